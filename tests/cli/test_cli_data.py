"""Your own data on the command line: how they are read, split, scaled and judged, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, contents, main, refused
from PIL import Image

from scoresde import ScoreModel
from scoresde.cli.files import is_name, open_data
from scoresde.cli.layouts import Kind
from scoresde.cli.pictures import to_pixels
from scoresde.cli.presets import DATA, PRESETS
from scoresde.cli.run_folder import open_run
from scoresde.cli.yardsticks import make_yardstick
from scoresde.data import tabular
from scoresde.errors import ConfigError, DataError
from scoresde.metrics import energy_distance, sliced_wasserstein
from scoresde.nn import MLP, UNet
from scoresde.noise import integers, normal, permutation, stream
from scoresde.transforms import Affine

CPU = torch.device("cpu")


def numbers(*shape: int, key: str = "x") -> np.ndarray:
    return normal(shape, stream(4, "cli data", key)).numpy()


def photo(height: int, width: int, key: object = 0, channels: int = 3) -> np.ndarray:
    return integers(256, (height, width, channels), stream(4, "photo", str(key))).to(torch.uint8).numpy()


def save(file: Path, array: np.ndarray, mode: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    (image if mode is None else image.convert(mode)).save(file)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_every_fifth_sample_is_held_out_and_the_model_sees_standardised_columns(here: Path) -> None:
    x = numbers(23, 3) * np.array([1.0, 100.0, 1e-3], dtype=np.float32) + np.array([0, 5, -7], dtype=np.float32)
    np.save("x.npy", x)
    data = open_data("x.npy")
    (train, labels), (test, _) = data.load(), data.test()
    train, test = train[:], test[:]
    assert (data.kind, data.classes, labels) == ("vectors", (), None)
    assert torch.equal(test, torch.from_numpy(x)[::5])
    assert len(train) == 18
    assert {tuple(row) for row in torch.cat([train, test]).tolist()} == {tuple(row) for row in x.tolist()}
    transform = data.transform()
    assert transform is not None
    scaled = transform.forward(train.double())
    assert torch.allclose(scaled.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(scaled.std(0), torch.ones(3, dtype=torch.float64), atol=1e-5)


def test_labels_of_an_archive_and_an_array_by_name(here: Path) -> None:
    labels = np.array([1, 0, 2] * 5)
    np.savez("x.npz", samples=numbers(15, 2), labels=labels, others=numbers(9, 1, 8))
    data = open_data("x.npz")
    (train, seen), (test, unseen) = data.load(), data.test()
    train, test = train[:], test[:]
    assert (data.kind, data.classes) == ("points", ("0", "1", "2"))
    assert seen is not None
    assert unseen is not None
    # In the order of the labels every fifth: each class has its share.
    assert unseen.bincount().tolist() == [1, 1, 1]
    assert seen.bincount().tolist() == [4, 4, 4]
    x = torch.from_numpy(numbers(15, 2))
    for part, own in ((train, seen), (test, unseen)):
        places = [int((x == row).all(1).nonzero()) for row in part]
        assert labels[places].tolist() == own.tolist()
    other = open_data("x.npz:others")
    assert (other.kind, other.classes, other.load()[0].shape) == ("series", (), (7, 1, 8))
    np.savez("y.npz", pictures=numbers(10, 1, 2, 2))
    assert open_data("y.npz").kind == "images"


@pytest.mark.parametrize(
    ("array", "ends"),
    [
        (photo(4, 4, channels=10).transpose(2, 0, 1)[:, None], (0.0, 255.0)),
        (np.clip(numbers(10, 1, 4, 4), 0, 1), (0.0, 1.0)),
        (np.clip(numbers(10, 3, 4, 4), -1, 1), (-1.0, 1.0)),
        (numbers(10, 3, 4, 4) > 0, (0.0, 1.0)),
    ],
)
def test_pixels_are_mapped_from_their_range(array: np.ndarray, ends: tuple[float, float], here: Path) -> None:
    np.save("x.npy", array)
    transform = open_data("x.npy").transform()
    expected = None if ends == (-1.0, 1.0) else Affine.from_range(*ends)
    assert transform == expected


def test_a_folder_s_subfolders_are_its_classes_and_grey_images_have_one_channel(here: Path) -> None:
    for k in range(6):
        save(here / "pets" / ("cat" if k % 2 else "dog") / f"{k}.png", photo(5, 7, k))
        save(here / "grey" / f"{k}.png", photo(6, 6, k, channels=1))
    pets = open_data("pets", size=4)
    train, labels = pets.load()
    train = train[:]
    assert (pets.kind, pets.classes, tuple(train.shape[1:])) == ("images", ("cat", "dog"), (3, 4, 4))
    assert labels is not None
    assert labels.bincount().tolist() == [2, 2]
    grey = open_data("grey")
    assert (grey.classes, tuple(grey.load()[0].shape[1:])) == ((), (1, 6, 6))
    expected = torch.from_numpy(photo(6, 6, 0, channels=1)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(grey.test()[0][:][0], expected, atol=1e-6)


def test_networks_follow_the_shape() -> None:
    some = DATA["digits"]
    shapes: dict[Kind, tuple[int, ...]] = {
        "vectors": (3,),
        "series": (2, 50),
        "images": (1, 7, 9),
        "volumes": (1, 3, 4, 5),
    }
    for kind, event in shapes.items():
        net = dataclasses.replace(some, kind=kind).network(event, classes=2, seed=0)
        assert isinstance(net, MLP if kind == "vectors" else UNet)
        assert net(torch.zeros(2, *event), torch.zeros(2), torch.tensor([0, 1])).shape == (2, *event)
    image = some.network((1, 64, 48), classes=None, seed=0)
    assert isinstance(image, UNet)
    assert (image.width, image.multipliers) == (32, (1, 2, 4, 4)), "attention is left 8 x 6 places"


# ---------------------------------------------------------------------------------------------------------------------
# The whole way


def test_vectors_go_through_training_sampling_and_comparing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = numbers(60, 3) * np.array([1.0, 100.0, 0.01], dtype=np.float32) + 5
    np.save("x.npy", x)
    assert main(["train", "--data", "x.npy", *QUICK, "--held-out-loss"]) == 0
    out = capsys.readouterr().out
    assert "x.npy: 48 vectors of shape (3,), 12 held out" in out
    run = Path("runs/x")
    model = ScoreModel.load(run / "checkpoint")
    assert model.transform == open_data("x.npy").transform()
    record = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert 0.1 < record["held_out_loss"] < 10
    assert main(["sample", "--checkpoint", "runs/x", "--n", "40", "--out", "y.npy"]) == 0
    drawn = torch.from_numpy(np.load("y.npy", allow_pickle=False))
    assert main(["compare", "--checkpoint", "runs/x", "--n", "40", "--samplers", "flow_abm:20"]) == 0
    assert "units of the model, to which the data were scaled" in capsys.readouterr().out
    (row,) = json.loads((run / "comparison" / "table.json").read_text())["rows"]
    data = open_data("x.npy")
    assert model.transform is not None
    ours, theirs = model.transform.forward(drawn), model.transform.forward(data.held_out()[:])
    assert row["distances"]["sliced_wasserstein"] == pytest.approx(sliced_wasserstein(ours, theirs), rel=1e-3)
    assert row["distances"]["energy_distance"] == pytest.approx(energy_distance(ours, theirs), rel=1e-3)
    assert row["floors"]["energy_distance"] > 0
    assert sorted(contents(run / "comparison")) == ["comparison.png", "samples.png", "table.json"]


def test_a_folder_goes_through_training_sampling_and_comparing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(12):
        save(here / "pets" / ("cat" if k % 3 else "dog") / f"{k}.png", photo(8, 10, k))
    (here / "pets" / "cat" / "bad.png").touch()
    train = ["train", "--data", "pets", "--size", "8", "--conditional", *QUICK, "--out", "run"]
    assert main([*train, "--on-bad-image", "skip"]) == 0
    text, err = capsys.readouterr()
    assert "pets: 9 images of shape (3, 8, 8), 3 held out" in text
    assert "left out pets/cat/bad.png, which is empty (0 bytes)" in err
    assert main(["sample", "--checkpoint", "run", "--n", "6", "--out", "x.npz"]) == 0
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == ["cat", "dog"] * 3
    # The size and what to do about bad images are the run's; metrics of images have no energy distance.
    assert main(["compare", "--checkpoint", "run", "--n", "6", "--samplers", "ddim:2"]) == 0
    (row,) = json.loads(Path("run/comparison/table.json").read_text())["rows"]
    assert list(row["distances"]) == ["sliced_wasserstein"]
    # An image more, and the held-out ones are others.
    save(here / "pets" / "cat" / "more.png", photo(8, 10, "more"))
    capsys.readouterr()
    assert main(["compare", "--checkpoint", "run", "--n", "6", "--samplers", "ddim:2"]) == 0
    assert "note: pets has changed since the training" in capsys.readouterr().err


def test_series_have_arrays_and_a_table_but_no_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", numbers(30, 2, 16))
    assert main(["train", "--data", "x.npy", *QUICK, "--out", "run"]) == 0
    assert "samples of shape (2, 16) have no picture" in refused(capsys, ["sample", "--checkpoint", "run"])
    assert main(["sample", "--checkpoint", "run", "--n", "3", "--out", "y.npy"]) == 0
    assert main(["compare", "--checkpoint", "run", "--n", "8", "--samplers", "ddim:2"]) == 0
    assert sorted(contents(Path("run/comparison"))) == ["comparison.png", "table.json"]


def test_resuming_wants_the_same_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", numbers(30, 2))
    assert main(["train", "--data", "x.npy", *QUICK, "--out", "run"]) == 0
    before = contents(here / "run" / "checkpoint")
    assert main(["train", "--resume", "run"]) == 0
    assert (
        contents(here / "run" / "checkpoint").items()
        <= {k.removeprefix("checkpoint/"): v for k, v in before.items()}.items()
    )
    np.save("x.npy", numbers(30, 2, key="other"))
    assert "x.npy has changed since run began" in refused(capsys, ["train", "--resume", "run"])


def test_pictures_of_bytes_are_bright_where_bytes_are_high(here: Path) -> None:
    np.save("x.npy", photo(4, 4, channels=10).transpose(2, 0, 1)[:, None])
    assert main(["train", "--data", "x.npy", *QUICK, "--out", "run"]) == 0
    run = open_run(Path("run"), CPU)
    shown = to_pixels(run, torch.tensor([0.0, 127.5, 255.0]).reshape(3, 1, 1, 1))
    assert torch.allclose(shown.flatten(), torch.tensor([-1.0, 0.0, 1.0]))


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def test_a_table_is_judged_in_the_model_s_units() -> None:
    data = DATA["wine"]
    yard = make_yardstick("wine", data)
    transform = data.transform()
    assert transform == Affine.standardise(tabular("wine").values)
    real, labels = data.load()
    real = real[:]
    target = transform.forward(data.held_out()[:])
    assert yard.metrics["energy_distance"](real) == pytest.approx(energy_distance(transform.forward(real), target))
    # The floor of n samples is what n training samples measure.
    chosen = [permutation(len(real), stream(0, "real wine", k))[:20] for k in range(16)]
    values = [sliced_wasserstein(transform.forward(real[one]), target) for one in chosen]
    assert yard.floors(20)["sliced_wasserstein"].mean == pytest.approx(np.mean(values))
    assert yard.floors(20)["sliced_wasserstein"].std == pytest.approx(np.std(values, ddof=1))
    assert yard.floors(1000)["sliced_wasserstein"].size == len(real)
    assert labels is not None
    assert yard.classes is not None
    assert yard.classes.bincount().tolist() == labels.bincount().tolist()
    assert yard.classes.tolist() != labels.tolist()


def test_series_have_fresh_floors_and_photographs_no_energy() -> None:
    assert PRESETS["images"].metrics == PRESETS["volumes"].metrics == ("sliced_wasserstein",)
    series = make_yardstick("time_series", DATA["time_series"])
    assert list(series.metrics) == ["sliced_wasserstein", "energy_distance"]
    assert "as many real samples" in series.notes[1]
    assert len(series.held_out) == 2000


# ---------------------------------------------------------------------------------------------------------------------
# Faults: one line, exit code 2, nothing on disk


def test_faults_of_arrays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("five.npy", numbers(6, 1, 2, 2, 2, 2))
    np.save("square.npy", numbers(6, 8, 8))
    np.save("few.npy", numbers(2, 3))
    np.save("nan.npy", np.array([[1.0, np.nan]] * 4))
    np.save("text.npy", np.array(["a", "b"]))
    np.save("objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez("two.npz", a=numbers(5, 2), b=numbers(5, 2))
    np.savez("labels.npz", samples=numbers(5, 2), labels=np.array([0, 1, 2]))
    Path("cut.npy").write_bytes(Path("few.npy").read_bytes()[:-3])
    Path("empty.npy").touch()
    Path("notes.txt").write_text("no data")
    cases = {
        "five.npy": "samples of shape (1, 2, 2, 2, 2), which no built-in network takes: there is one for vectors (D,)",
        "square.npy": "samples of shape (8, 8), whose sizes do not tell what they are; say it with --layout: NCL",
        "few.npy": "few.npy holds 2 samples; a fifth of them is held out and two are needed",
        "nan.npy": "4 non-finite values",
        "text.npy": "text.npy has dtype <U1",
        "objects.npy": "may run any code: refused",
        "two.npz": "two.npz holds 2 arrays; name the samples behind a colon: two.npz:a or two.npz:b; or call them",
        "two.npz:c": "unknown array in two.npz 'c'; choices: a, b",
        "labels.npz": "labels.npz holds 3 labels and 5 samples; give one for each; or choose the samples without",
        "cut.npy": "cut.npy is damaged",
        "empty.npy": "empty.npy is damaged",
        "absent.npy": "absent.npy cannot be read: No such file or directory",
        "notes.txt": "notes.txt is a file of a kind that is not read; give a folder of images, or a file of numbers (",
        "sub/absent": "sub/absent does not exist; give a folder of images, or a file of numbers",
    }
    before = contents(here)
    for name, message in cases.items():
        assert message in refused(capsys, ["train", "--data", name, *QUICK]), name
    assert contents(here) == before


def test_faults_of_image_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {f"{k}.png": photo(6, 6, k) for k in range(5)}

    def folder(name: str) -> Path:
        for file, array in good.items():
            save(here / name / file, array)
        return here / name

    (folder("corrupt") / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder("empty") / "3.png").write_bytes(b"")
    save(folder("cmyk") / "9.jpg", photo(6, 6), "CMYK")
    Image.fromarray(np.full((6, 6), 40_000, dtype=np.uint16)).save(folder("deep") / "9.png")
    Image.new("1", (9000, 9000)).save(folder("huge") / "9.png")
    save(folder("mixed") / "9.png", photo(4, 6))
    (here / "nothing").mkdir()
    cases = {
        "corrupt": "image 2 of 5, corrupt/2.png, cannot be read",
        "empty": "image 3 of 5, empty/3.png, is empty (0 bytes)",
        "cmyk": "image 5 of 6, cmyk/9.jpg, has colours of mode CMYK",
        "deep": "image 5 of 6, deep/9.png, has 16 or more bits a channel",
        "huge": "image 5 of 6, huge/9.png, has 9000 x 9000 pixels",
        "mixed": "2 sizes (height x width): 5 of 6 x 6, 1 of 4 x 6; --size 32 scales and crops each to 32 x 32",
        "nothing": "the image folder nothing holds no images",
    }
    before = contents(here)
    for name, message in cases.items():
        said = refused(capsys, ["train", "--data", name, *QUICK])
        assert message in said, name
        assert ("repair or remove it, or leave it out with --on-bad-image skip" in said) == ("image " in message[:6])
    assert contents(here) == before
    for name in ("corrupt", "empty", "cmyk", "deep", "huge"):
        assert len(open_data(name, on_bad_image="skip").notes) == 1


@pytest.fixture
def unprivileged(here: Path) -> Iterator[Path]:
    """A folder of one's own, without the rights of the administrator, to whom no permission is denied."""
    # What is imported late is imported now: the interpreter's own files may be the administrator's.
    np.save("warm.npy", numbers(20, 2))
    assert main(["train", "--data", "warm.npy", *QUICK, "--out", "warm"]) == 0
    admin = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if admin:
            os.chown(folder, 65534, 65534)
            os.setresuid(65534, 65534, 0)
        try:
            yield folder
        finally:
            if admin:
                os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.name == "nt", reason="permissions of files are those of POSIX")
def test_no_permission_is_one_line(unprivileged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed, readable = unprivileged / "closed", unprivileged / "readable"
    for folder in (closed, readable):
        folder.mkdir()
    np.save(readable / "x.npy", numbers(20, 2))
    (readable / "run.toml").write_text("steps = 3\n")
    for file in readable.iterdir():
        file.chmod(0)
    closed.chmod(0o500)
    data, config = str(readable / "x.npy"), str(readable / "run.toml")
    assert "x.npy cannot be read: Permission denied" in refused(capsys, ["train", "--data", data, *QUICK])
    assert "run.toml cannot be read: Permission denied" in refused(capsys, ["train", "--config", config])
    out = str(closed / "run")
    message = refused(capsys, ["train", "--data", "moons", *QUICK, "--out", out])
    assert message == f"--out {out} cannot be written: no permission in {closed}; choose another path"
    assert "cannot be written: no permission" in refused(
        capsys, ["sample", "--checkpoint", "nowhere", "--out", str(closed / "x.npy")]
    )
    assert list(closed.iterdir()) == []


def test_names_are_told_from_paths(here: Path) -> None:
    Path("folder").mkdir()
    assert is_name("digits")
    assert is_name("digit")
    assert not any(map(is_name, ["folder", "a/b", "./digits", "x.npy", str(here)]))
    with pytest.raises(ConfigError, match="unknown data set 'digit'; did you mean 'digits'"):
        open_data("digit")
    with pytest.raises(DataError, match="holds no images"):
        open_data("folder")
