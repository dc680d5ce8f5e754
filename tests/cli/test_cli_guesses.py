"""What the command line takes data for is said, or asked for: labels, layouts, scales, splits, what was left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, contents, main, refused
from PIL import Image

from scoresde import ScoreModel
from scoresde.cli.held_out import open_data_of
from scoresde.cli.layouts import LAYOUTS, find_layout
from scoresde.cli.run_folder import open_run
from scoresde.cli.train_run import Pace, say_time
from scoresde.errors import ConfigError
from scoresde.noise import normal, stream


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(*shape: int, key: str = "x") -> np.ndarray:
    return normal(shape, stream(0, key)).numpy()


def picture(file: Path, seed: int = 0, mode: str = "RGB", side: int = 8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    channels = len(mode) if mode != "L" else 1
    values = np.clip(127 + 60 * numbers(side, side, channels, key=f"{file.name} {seed}"), 0, 255).astype(np.uint8)
    Image.fromarray(values.squeeze(), mode).save(file, format="PNG")


def train(data: str, out: str, *options: str) -> list[str]:
    return ["train", "--data", data, "--out", out, *QUICK, *options]


# ---------------------------------------------------------------------------------------------------------------------
# Labels


@pytest.mark.parametrize(
    ("labels", "names", "written"),
    [
        ([1, 2, 3], ["1", "2", "3"], [1, 2, 3]),
        ([0, 1_000_000, 7], ["0", "7", "1000000"], [0, 7, 1_000_000]),
        ([-1, 5, 2], ["-1", "2", "5"], [-1, 2, 5]),
        (["dog", "cat", "eel"], ["cat", "dog", "eel"], ["cat", "dog", "eel"]),
    ],
)
def test_classes_are_the_distinct_labels_and_keep_their_names(
    labels: list, names: list, written: list, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("x.npz", samples=numbers(30, 3), labels=np.array(labels)[np.arange(30) % 3])
    assert main(train("x.npz", "run", "--conditional")) == 0
    assert f"classes      3: {', '.join(names)}\n" in capsys.readouterr().out
    model = ScoreModel.load("run")
    assert model.net.classes == 3
    assert model.class_names == {"label": tuple(names)}
    assert main(["describe", "run"]) == 0
    assert f"classes      label: 3, {', '.join(names)}\n" in capsys.readouterr().out
    assert main(["sample", "--checkpoint", "run", "--n", "6", "--out", "y.npz"]) == 0
    with np.load("y.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == written * 2
        samples = arrays["samples"]
    # A name is what --label takes, and what it draws is that class.
    assert main(["sample", "--checkpoint", "run", "--n", "6", "--label", names[1], "--out", "z.npz"]) == 0
    with np.load("z.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == [written[1]] * 6
        assert np.allclose(arrays["samples"][1::3], samples[1::3], atol=1e-5)
    assert f"choices: {', '.join(sorted(names))}" in refused(
        capsys, ["sample", "--checkpoint", "run", "--label", "none", "--out", "z.npz"]
    )
    # What it wrote is data again, of the same classes.
    assert main(train("y.npz", "again", "--conditional")) == 0
    assert ScoreModel.load("again").class_names == {"label": tuple(names)}


def test_the_only_sample_of_a_class_is_trained_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("x.npz", samples=numbers(21, 3), labels=np.array([5] + [9] * 20))
    assert main(train("x.npz", "run", "--conditional")) == 0
    assert "x.npz: 17 vectors of shape (3,), 4 held out" in capsys.readouterr().out
    assert ScoreModel.load("run").class_names == {"label": ("5", "9")}


def test_labels_of_other_data_go_by_their_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.array(["a", "b", "c"])[np.arange(30) % 3]
    np.savez("x.npz", samples=numbers(30, 3), labels=labels)
    np.savez("some.npz", samples=numbers(30, 3), labels=np.where(labels == "a", "c", labels))
    np.savez("other.npz", samples=numbers(30, 3), labels=np.where(labels == "a", "d", labels))
    assert main(train("x.npz", "run", "--conditional")) == 0
    _, data = open_data_of(open_run(Path("run"), torch.device("cpu")), "some.npz", None)
    for part, at in ((data.load(), data.load()[0].index), (data.test(), data.test()[0].index)):
        assert part[1].tolist() == [1 if labels[k] == "b" else 2 for k in at.tolist()]
    args = ["likelihood", "--checkpoint", "run", "--n", "6", "--draws", "1"]
    assert main([*args, "--data", "some.npz", "--out", "one"]) == 0
    assert "the model's 'd'; choices: a, b, c" in refused(capsys, [*args, "--data", "other.npz", "--out", "two"])


def test_words_and_counts_that_are_no_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, labels in enumerate((np.linspace(0, 1, 9), np.zeros((9, 2), dtype=int), np.array(["a"] * 8))):
        np.savez(f"x{k}.npz", samples=numbers(9, 3), labels=labels)
        message = refused(capsys, train(f"x{k}.npz", "run"))
        assert message.startswith(f"x{k}.npz holds ")
        assert f"or choose the samples without their labels: --data x{k}.npz:samples" in message
    assert main(train("x0.npz:samples", "run")) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Scales


@pytest.mark.parametrize(
    ("centre", "width", "kind"), [(1.7e9, 20.0, "float64"), (2.46e6, 0.01, "float64"), (1.7e9, 200.0, "int64")]
)
def test_numbers_far_from_zero_keep_their_precision(centre: float, width: float, kind: str, here: Path) -> None:
    x = (centre + width * normal((800, 2), stream(3), dtype=torch.float64).numpy()).astype(kind)
    np.save("x.npy", x)
    assert main(["train", "--data", "x.npy", "--out", "run", "--steps", "150", "--batch-size", "128"]) == 0
    transform = ScoreModel.load("run").transform
    held = np.arange(800) % 5 > 0
    assert np.allclose(transform.scale, x[held].astype(np.float64).std(0, ddof=1), rtol=1e-9)
    assert np.allclose(transform.shift, x[held].astype(np.float64).mean(0), rtol=1e-14)
    assert main(["sample", "--checkpoint", "run", "--n", "400", "--out", "y.npy"]) == 0
    y = np.load("y.npy", allow_pickle=False)
    assert y.dtype == np.float64
    assert len(np.unique(y)) > 780
    assert abs(y.mean() - centre) < 0.5 * width
    assert 0.6 * width < y.std() < 1.6 * width
    assert main(["compare", "--checkpoint", "run", "--n", "40", "--samplers", "ddim:5"]) == 0
    (row,) = json.loads(Path("run/comparison/table.json").read_text())["rows"]
    assert row["distances"]["sliced_wasserstein"] < 1


def test_numbers_whose_squares_overflow_are_finite(here: Path) -> None:
    np.save("x.npy", 1e300 * numbers(60, 3).astype(np.float64))
    assert main(train("x.npy", "run")) == 0
    assert main(["sample", "--checkpoint", "run", "--n", "4", "--out", "y.npy"]) == 0
    assert np.isfinite(np.load("y.npy", allow_pickle=False)).all()


def test_other_data_come_back_in_float32(here: Path) -> None:
    np.save("x.npy", 5 + 100 * numbers(30, 3).astype(np.float64))
    assert main(train("x.npy", "run")) == 0
    assert main(["sample", "--checkpoint", "run", "--n", "4", "--out", "y.npy"]) == 0
    assert np.load("y.npy", allow_pickle=False).dtype == np.float32


# ---------------------------------------------------------------------------------------------------------------------
# Layouts

TOLD = [
    ((9, 4), False, "ND", "vectors of 4"),
    ((9, 2), False, "ND", "points in the plane"),
    ((9,), False, "ND", "vectors of 1"),
    ((9, 1, 2), False, "NCL", "series, 1 channel, length 2"),
    ((9, 3, 50), False, "NCL", "series, 3 channels, length 50"),
    ((9, 50, 3), False, "NLC", "series, 3 channels, length 50"),
    ((9, 8, 8), True, "NHW", "images 1 x 8 x 8"),
    ((9, 28, 20), True, "NHW", "images 1 x 28 x 20"),
    ((9, 3, 50), True, "NCL", "series, 3 channels, length 50"),
    ((9, 1, 8, 8), False, "NCHW", "images 1 x 8 x 8"),
    ((9, 3, 12, 20), False, "NCHW", "images 3 x 12 x 20"),
    ((9, 12, 20, 3), False, "NHWC", "images 3 x 12 x 20"),
    ((9, 16, 8, 8), False, "NCHW", "images 16 x 8 x 8"),
    ((9, 8, 8, 16), False, "NHWC", "images 16 x 8 x 8"),
    ((9, 2, 5, 6, 7), False, "NCDHW", "volumes 2 x 5 x 6 x 7"),
    ((9, 5, 6, 7, 2), False, "NDHWC", "volumes 2 x 5 x 6 x 7"),
]


@pytest.mark.parametrize(("shape", "pixels", "name", "words"), TOLD)
def test_a_layout_that_the_sizes_tell_is_said(shape: tuple[int, ...], pixels: bool, name: str, words: str) -> None:
    layout = find_layout(shape, "x", None, pixels=pixels)
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    read = layout.read(x)
    assert (layout.name, layout.describe(read.shape[1:])) == (name, words)
    written = layout.write(read)
    assert torch.equal(written if len(shape) > 1 else written[:, 0], x)


@pytest.mark.parametrize(
    ("shape", "choices"),
    [
        ((9, 28, 28), ("NCL", "NLC", "NHW")),
        ((9, 5, 8), ("NCL", "NLC", "NHW")),
        ((9, 3, 8, 3), ("NCHW", "NHWC", "NDHW")),
        ((9, 20, 30, 40), ("NCHW", "NHWC", "NDHW")),
        ((9, 4, 4, 4, 4), ("NCDHW", "NDHWC")),
    ],
)
def test_a_layout_that_they_do_not_tell_is_asked_for(shape: tuple[int, ...], choices: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="whose sizes do not tell what they are; say it with --layout: ") as caught:
        find_layout(shape, "x", None, pixels=False)
    assert caught.value.allowed == choices
    for name in choices:
        chosen = find_layout(shape, "x", name, pixels=False)
        x = torch.arange(float(np.prod(shape))).reshape(shape)
        assert torch.equal(chosen.write(chosen.read(x)), x)


def test_layouts_that_do_not_fit() -> None:
    for name in LAYOUTS.keys() - {"NCL", "NLC", "NHW"}:
        with pytest.raises(ConfigError, match=rf"--layout {name} does not fit x of shape \(9, 8, 8\); those that do: "):
            find_layout((9, 8, 8), "x", name, pixels=True)
    with pytest.raises(ConfigError, match="--layout points does not fit"):
        find_layout((9, 3), "x", "points", pixels=False)
    with pytest.raises(ConfigError, match="unknown layout 'NHCW'; did you mean 'N"):
        find_layout((9, 3, 8, 8), "x", "NHCW", pixels=False)
    with pytest.raises(ConfigError, match="which no built-in network takes"):
        find_layout((9, 1, 2, 2, 2, 2), "x", None, pixels=False)


def test_the_line_the_samples_and_the_verbs_keep_the_layout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", np.clip(numbers(30, 8, 8, 3), 0, 1))
    assert main(train("x.npy", "run")) == 0
    out = capsys.readouterr().out
    assert "x.npy: 24 images of shape (3, 8, 8), 6 held out\nlayout       NHWC: images 3 x 8 x 8; --layout" in out
    assert main(["sample", "--checkpoint", "run", "--n", "4", "--out", "y.npy"]) == 0
    assert np.load("y.npy", allow_pickle=False).shape == (4, 8, 8, 3)
    assert main(["compare", "--checkpoint", "run", "--n", "4", "--samplers", "ddim:2"]) == 0
    seen = np.clip(numbers(2, 8, 8, 3, key="seen"), 0, 1)
    seen[:, :4] = np.nan
    np.save("seen.npy", seen)
    args = ["restore", "--checkpoint", "run", "--data", "seen.npy", "--n", "2", "--steps", "4", "--out", "z.npy"]
    assert main(args) == 0
    assert "--layout is for files of arrays, moons is none" in refused(capsys, train("moons", "o", "--layout", "ND"))
    np.save("square.npy", numbers(30, 8, 8))
    assert "--layout: NCL (series, 8 channels, length 8), NLC " in refused(capsys, train("square.npy", "o"))
    assert main(train("square.npy", "o", "--layout", "NHW")) == 0
    assert main(["compare", "--checkpoint", "o", "--n", "4", "--samplers", "ddim:2"]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def test_a_folder_with_the_name_of_a_built_in_set_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(4):
        picture(here / "moons" / f"{k}.png", k)
    assert main(train("moons", "one")) == 0
    out, err = capsys.readouterr()
    assert "note: moons is the built-in set; for what is here write ./moons" in err
    assert "moons: 50000 points" in out
    assert main(train("./moons", "two")) == 0
    out, err = capsys.readouterr()
    assert "note" not in err
    assert "3 images of shape (3, 8, 8), 1 held out" in out
    # It is still the folder where it is read again.
    assert main(["compare", "--checkpoint", "two", "--n", "4", "--samplers", "ddim:2"]) == 0
    assert "note" not in capsys.readouterr().err
    assert main(["train", "--resume", "two"]) == 0
    assert json.loads(Path("two/run.json").read_text())["data_path"] == "../moons"


def test_data_are_found_from_any_folder_and_with_the_run_when_both_move(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "work").mkdir()
    np.save("work/x.npy", numbers(30, 3))
    monkeypatch.chdir(here / "work")
    assert main(train("x.npy", "runs/x")) == 0
    about = json.loads(Path("runs/x/run.json").read_text())
    assert (about["data"], about["data_path"]) == ("x.npy", "../../x.npy")
    compare = ["--n", "4", "--samplers", "ddim:2"]
    monkeypatch.chdir(here)
    np.save("x.npy", numbers(20, 3, key="another file of this name"))
    for folder in ("work/runs/x", "moved/runs/x"):
        assert main(["compare", "--checkpoint", folder, *compare]) == 0
        assert "note" not in capsys.readouterr().err
        assert main(["train", "--resume", folder]) == 0
        shutil.move("work", "moved") if folder.startswith("work") else None
    np.save("moved/x.npy", numbers(30, 3, key="changed"))
    assert main(["compare", "--checkpoint", "moved/runs/x", *compare]) == 0
    assert "x.npy has changed since the training; its held-out part may be known" in capsys.readouterr().err
    assert "x.npy has changed since" in refused(capsys, ["train", "--resume", "moved/runs/x"])
    Path("moved/x.npy").unlink()
    Path("x.npy").unlink()
    said = refused(capsys, ["compare", "--checkpoint", "moved/runs/x", *compare])
    assert said == "moved/x.npy, on which moved/runs/x was trained, is not there; say where it is now with --data"


def test_a_held_out_part_that_changed_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("train", 5), ("test", 3)):
        for k in range(count):
            picture(here / "x" / name / f"{k}.png", k)
    assert main(train("x", "run")) == 0
    picture(here / "x" / "test" / "0.png", 99)
    capsys.readouterr()
    assert main(["compare", "--checkpoint", "run", "--n", "4", "--samplers", "ddim:2"]) == 0
    assert "note: the held-out part of x has changed since the training" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_train_and_test_are_the_split_and_what_is_left_out_is_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind, count in (("Train", "cat", 4), ("Train", "dog", 3), ("test", "cat", 2), ("test", "eel", 2)):
        for k in range(count):
            picture(here / "pets" / name / kind / f"{k}.png", k)
    home = here / "pets" / "Train" / "cat"
    for name in ("a.heic", "b.HEIC", "c.avif", "noending", ".hidden"):
        (home / name).write_bytes(b"x")
    (home / "broken.png").symlink_to(here / "nowhere.png")
    picture(here / "elsewhere" / "0.jfif")
    (here / "pets" / "Train" / "eel").symlink_to(here / "elsewhere")
    (here / "pets" / "Train" / "dog" / "loop").symlink_to(here / "pets" / "Train")
    (here / "pets" / "notes.txt").write_text("mine")
    before = contents(here)
    assert main(train("pets", "run", "--conditional")) == 0
    out, err = capsys.readouterr()
    assert "pets: 8 images of shape (3, 8, 8), 4 held out" in out
    assert "classes      3: cat, dog, eel\n" in out
    assert "left out     1 .avif, 2 .heic, 1 broken links, 1 without an ending in pets/Train\n" in err
    assert "split        Train/ is trained on, test/ held out; left out notes.txt\n" in err
    assert {name: data for name, data in contents(here).items() if not name.startswith("run/")} == before


def test_a_class_of_trains_is_no_split(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("train", "car"):
        for k in range(4):
            picture(here / "traffic" / kind / f"{k}.png", k)
    assert main(train("traffic", "run", "--conditional")) == 0
    assert "classes      2: car, train\n" in capsys.readouterr().out


def test_classes_of_the_test_that_no_training_has_are_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kinds in (("train", ("a", "b")), ("val", ("a", "c"))):
        for kind in kinds:
            for k in range(3):
                picture(here / "x" / name / kind / f"{k}.png", k)
    assert main(train("x", "run", "--conditional")) == 0
    out, err = capsys.readouterr()
    assert "6 images of shape (3, 8, 8), 3 held out" in out
    assert "left out     3 images of val/, of classes that train/ lacks" in err
    picture(here / "x" / "val" / "a" / "9.png", 9, side=6)
    assert "have 2 sizes" in refused(capsys, train("x", "other"))


def test_transparent_pictures_get_a_background(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(5):
        picture(here / "x" / f"{k}.png", k, mode="RGBA")
    message = refused(capsys, train("x", "run"))
    assert "x/0.png, is transparent in places; --background white (or 255,255,255) puts a colour behind" in message
    for colour in ("white", "10,20,30"):
        assert main(train("x", colour, "--background", colour)) == 0
        assert main(["compare", "--checkpoint", colour, "--n", "4", "--samplers", "ddim:2"]) == 0
    assert "--background must be three numbers from 0 to 255, or white, grey, black, got 'whitish'" in refused(
        capsys, train("x", "run", "--background", "whitish")
    )
    np.save("y.npy", numbers(9, 3))
    for data in ("y.npy", "moons"):
        assert f"--background is for folders of images, {data} is none; leave it out" in refused(
            capsys, train(data, "run", "--background", "white")
        )
    assert "is a single picture; give a folder" in refused(capsys, train("x/0.png", "run"))


# ---------------------------------------------------------------------------------------------------------------------
# Files and consoles


def test_endings_are_read_and_written_in_any_case(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("A.NPZ.npz", a=numbers(30, 2), b=numbers(30, 3))
    Path("A.NPZ.npz").rename("A.NPZ")
    assert main(train("A.NPZ:a", "run")) == 0
    for name in ("S.NPY", "S.Npz", "S.PNG", "S.Svg", "S.GIF"):
        assert main(["sample", "--checkpoint", "run", "--n", "4", "--solver", "ddim:3", "--out", name]) == 0
        assert Path(name).stat().st_size > 0
    assert main(["sample", "--checkpoint", "run", "--n", "4", "--save-table", "T.JSON", "--solver", "ddim:3"]) == 0
    assert main(["sample", "--checkpoint", "run", "--n", "4", "--solver", "T.JSON", "--out", "S.NPY"]) == 0
    known = {"A.NPZ", "run", "S.NPY", "S.Npz", "S.PNG", "S.Svg", "S.GIF", "T.JSON", "samples.png"}
    assert {file.name for file in here.iterdir()} == known
    message = refused(capsys, train("A.NPZ", "other"))
    assert "name the samples behind a colon: A.NPZ:a or A.NPZ:b; or call them 'samples', and their labels 'labels'" in (
        message
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_show_a_name_shows_it_escaped(encoding: str, here: Path) -> None:
    np.save("数据.npy", numbers(30, 2))
    argv = [sys.executable, "-m", "scoresde", *train("数据.npy", "run")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(argv, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert rb"data         \u6570\u636e.npy: 24 points of shape (2,), 6 held out" in done.stdout


def test_images_of_another_size_than_in_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", np.clip(numbers(30, 1, 8, 8), 0, 1))
    assert main(train("x.npy", "run")) == 0
    args = ["sample", "--checkpoint", "run", "--n", "3"]
    assert main([*args, "--size", "12", "--out", "y.npy"]) == 0
    assert np.load("y.npy", allow_pickle=False).shape == (3, 1, 12, 12)
    assert main([*args, "--size", "12", "--out", "y.png"]) == 0
    assert "size must be at least 1" in refused(capsys, [*args, "--size", "0"])
    np.save("z.npy", numbers(30, 3))
    assert main(train("z.npy", "flat")) == 0
    said = refused(capsys, ["sample", "--checkpoint", "flat", "--size", "12", "--out", "y.npy"])
    assert "--size is for images of a U-Net, flat holds a MLP" in said


# ---------------------------------------------------------------------------------------------------------------------
# Resuming, and slow steps


def test_a_run_goes_on_under_other_options_on_purpose(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", numbers(30, 3))
    assert main(train("x.npy", "run")) == 0
    assert "leave out --steps, or change it on purpose" in refused(capsys, ["train", "--resume", "run", "--steps", "6"])
    assert main(["train", "--resume", "run", "--change", "--steps", "6", "--learning-rate", "1e-4"]) == 0
    assert json.loads(Path("run/run.json").read_text())["options"]["steps"] == 6
    capsys.readouterr()
    assert main(["describe", "run"]) == 0
    out = capsys.readouterr().out
    assert "changed      at step 4, learning_rate was 0.002\n" in out
    assert "changed      at step 4, steps was 4\n" in out
    assert main(["train", "--resume", "run"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--change", "--predicts", "v"]) == 2
    said = capsys.readouterr().err
    assert (
        "is the run of another model: predicts 'noise', now 'v'; start a new run, from its weights if they fit" in said
    )
    assert "--change" not in said, "which would not help"
    assert "--change is for --resume" in refused(capsys, train("x.npy", "new", "--change"))


def test_the_first_step_of_a_slow_training_is_timed_and_the_time_left_said() -> None:
    words: list[str] = []
    pace = Pace(words.append)
    for step in range(1, 101):
        pace(step, 100, 6.0 * step)
    assert words[0] == "the first step took 6 seconds: at this pace 10 minutes left"
    assert words[1] == "step 11, 9 minutes left"
    assert len(words) == 10
    # A run that goes on counts the steps of this call alone.
    words.clear()
    pace = Pace(words.append)
    for step in range(51, 71):
        pace(step, 100, 6.0 * (step - 50))
    assert words == [
        "the first step took 6 seconds: at this pace 4.9 minutes left".replace("4.9", "5"),
        "step 61, 4 minutes left",
    ]
    fast: list[str] = []
    pace = Pace(fast.append)
    for step in range(1, 101):
        pace(step, 100, 0.01 * step)
    assert fast == []
    assert [say_time(s) for s in (0.25, 99, 600, 20_000)] == ["0.25 seconds", "99 seconds", "10 minutes", "5.6 hours"]


def test_a_slow_training_says_so_where_no_bar_is(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoresde.cli.train_run.SLOW", 0.0)
    assert main(train("moons", "run")) == 0
    assert "training     the first step took " in capsys.readouterr().err
