"""``scoresde sample`` and ``scoresde compare``: the files that appear and what is in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Folders, contents, main, refused
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from scoresde import VPSDE, ScoreModel, read_shards, sample, training
from scoresde.cli import pictures
from scoresde.cli.presets import DATA, SDES
from scoresde.cli.yardsticks import make_yardstick
from scoresde.data import DATASETS, TABLES, digits, moons
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.metrics import Comparison, energy_distance, sliced_wasserstein
from scoresde.nn import MLP
from scoresde.plots.style import save
from scoresde.sampling import compare as comparison
from scoresde.sampling.compare import format_table

# ---------------------------------------------------------------------------------------------------------------------
# sample


def test_arrays_are_the_library_s_samples(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "x.npy"
    base = ["sample", "--checkpoint", str(runs[0]), "--out", str(out)]
    assert main([*base, "--n", "7", "--solver", "heun:5", "--seed", "11"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}: 7 samples by heun, 10 evaluations each, ")
    model = ScoreModel.load(runs[0] / "checkpoint")
    expected = sample(model, (7, 2), solver="heun", steps=5, seed=11)
    assert isinstance(expected, Tensor)
    written = np.load(out, allow_pickle=False)
    assert written.dtype == np.float32
    assert np.allclose(written, expected.numpy(), atol=1e-5), "the number of threads may differ"
    assert main([*base, "--n", "3", "--solver", "heun:5", "--seed", "11", "--chunk-size", "2"]) == 0
    assert np.allclose(np.load(out, allow_pickle=False), written[:3], atol=1e-5)
    assert [f.name for f in out.parent.iterdir()] == ["x.npy"], "no temporary file stays"


def test_without_an_ending_the_samples_fill_a_folder(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["sample", "--checkpoint", str(runs[2]), "--n", "12", "--solver", "ddim:3", "--seed", "4"]
    assert main([*base, "--out", str(tmp_path / "x.npz")]) == 0
    assert main([*base, "--out", str(tmp_path / "x"), "--chunk-size", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {tmp_path}/x/: 12 samples by ddim, 3 evalu")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        scale = np.abs(arrays["samples"]).max()
        assert np.abs(read_shards(tmp_path / "x").numpy() - arrays["samples"]).max() < 1e-5 * scale
        assert (read_shards(tmp_path / "x", "labels").numpy() == arrays["labels"]).all()
    about = json.loads((tmp_path / "x" / "index.json").read_text())["about"]
    assert (about["seed"], about["solver"], about["classes"]) == (4, "ddim:3", list("0123456789"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    assert "holds 'thesis.tex', which is no file of samples" in refused(capsys, [*base, "--out", f"{tmp_path}/mine"])
    assert contents(tmp_path / "mine") == {"thesis.tex": b"all of it"}


def test_labels_come_in_turn_or_as_asked(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = runs[2]
    model = ScoreModel.load(images / "checkpoint")
    base = ["sample", "--checkpoint", str(images / "checkpoint"), "--n", "12", "--solver", "ddim:3"]
    for option, labels in (([], torch.arange(12) % 10), (["--label", "7"], torch.full((12,), 7))):
        out = tmp_path / "x.npz"
        assert main([*base, *option, "--out", str(out)]) == 0
        expected = sample(model, (12, 1, 8, 8), solver="ddim", steps=3, seed=0, cond={"label": labels})
        assert isinstance(expected, Tensor)
        with np.load(out, allow_pickle=False) as arrays:
            assert sorted(arrays) == ["labels", "samples"]
            assert (arrays["labels"] == labels.numpy()).all()
            assert np.allclose(arrays["samples"], expected.numpy(), atol=1e-5)
    assert "unknown class '10'; did you mean '1'? choices: 0, 1, 2," in refused(capsys, [*base, "--label", "10"])
    assert "unknown class '-1'; " in refused(capsys, [*base, "--label", "-1"])


def test_pictures_show_images_in_columns_of_a_class_and_points_with_the_data(
    runs: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, points, vectors = tmp_path / "grid.png", tmp_path / "points.png", tmp_path / "points.svg"
    common = ["--solver", "ddim:2", "--n", "40"]
    assert main(["sample", "--checkpoint", str(runs[2]), *common, "--out", str(grid)]) == 0
    with Image.open(grid) as picture:
        wide, tall = picture.size
    assert 2.0 < wide / tall < 2.6, "four rows of ten"
    # Any number of them: a class keeps its column, and there are no columns for classes where some have no sample.
    for count, shape in ((23, (3, 10)), (12, (2, 10)), (10, (1, 10)), (7, (2, 4))):
        seen: list[Figure] = []
        argv = ["sample", "--checkpoint", str(runs[2]), *common[:2], "--n", str(count), "--out", str(grid)]
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "save", lambda figure, file, seen=seen: seen.append(figure) or save(figure, file))
            assert main(argv) == 0
        axes = seen[0].axes[0]
        assert [one.get_text() for one in axes.get_xticklabels()] == (list("0123456789") if shape[1] == 10 else [])
        height, width = np.asarray(axes.images[0].get_array()).shape[:2]
        side = height // shape[0] if shape[0] == 1 else (height + 8) // shape[0] - 8
        assert (shape[0] * (side + 8) - 8, shape[1] * (side + 8) - 8) == (height, width)
    assert main(["sample", "--checkpoint", str(runs[0]), *common, "--out", str(points)]) == 0
    with Image.open(points) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(2**24) or []}
    assert {(184, 184, 184), (255, 255, 255)} <= colors, "held-out data lie behind in grey"
    assert main(["sample", "--checkpoint", str(runs[0]), *common, "--out", str(vectors)]) == 0
    assert "<svg" in vectors.read_text()


def test_a_saved_model_without_a_run_serves_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ScoreModel(MLP(3, width=8, depth=1), VPSDE())
    model.save("bare")
    assert "holds no data moments" in refused(capsys, ["sample", "--checkpoint", "bare", "--out", "x.npy"])
    model.moments = training.fit(model, torch.eye(3), steps=1, progress=False).model.moments
    model.save("mine")
    assert "samples of shape (3,) have no picture" in refused(capsys, ["sample", "--checkpoint", "mine"])
    assert main(["sample", "--checkpoint", "mine", "--n", "5", "--out", "x.npy"]) == 0
    assert np.load("x.npy", allow_pickle=False).shape == (5, 3)
    assert "say which with --data" in refused(capsys, ["likelihood", "--checkpoint", "mine"])


# ---------------------------------------------------------------------------------------------------------------------
# compare


def test_compare_prints_and_writes_one_table(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samplers = ["ddpm:12@20", "pc:5", "probability_flow", "dpmpp_2m:4"]
    argv = ["compare", "--checkpoint", str(runs[0]), "--n", "30", "--seed", "5", "--out", str(tmp_path / "new")]
    assert main([*argv, "--samplers", *samplers]) == 0
    out = capsys.readouterr().out
    table = json.loads((tmp_path / "new" / "table.json").read_text())
    rows = [Comparison(**row) for row in table.pop("rows")]
    assert table == {
        "data": "moons",
        "checkpoint": str(runs[0]),
        "sde": repr(VPSDE()),
        "seed": 5,
        "held_out": 2000,
        "complete": True,
    }
    assert out.startswith(format_table(rows))
    assert [(row.sampler, row.samples) for row in rows] == [
        ("ddpm", 20),
        ("pc", 30),
        ("probability_flow", 30),
        ("dpmpp_2m", 30),
    ]
    assert [row.nfe for row in rows if row.sampler != "probability_flow"] == [12, 10, 4]
    model = ScoreModel.load(runs[0] / "checkpoint")
    x = sample(model, (30, 2), solver="dpmpp_2m", steps=4, seed=5)
    assert isinstance(x, Tensor)
    held_out = moons(2000, seed=1)
    expected = {"sliced_wasserstein": sliced_wasserstein(x, held_out), "energy_distance": energy_distance(x, held_out)}
    assert rows[-1].distances == pytest.approx(expected, rel=1e-6)
    for row in rows:
        # Some thirty real points are still this far from two thousand, and a model that has learned nothing is farther.
        assert 0 < row.floors["energy_distance"] < row.distances["energy_distance"]
    assert rows[0].floors["energy_distance"] > rows[1].floors["energy_distance"], "fewer samples, a higher floor"
    for name in ("comparison.png", "samples.png"):
        with Image.open(tmp_path / "new" / name) as picture:
            assert min(picture.size) > 400
    assert sorted(contents(tmp_path / "new")) == ["comparison.png", "samples.png", "table.json"]


def test_compare_judges_digits_and_labels(runs: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the results lie in the run's folder; a second comparison replaces them."""
    argv = ["compare", "--checkpoint", str(runs[2]), "--n", "20", "--samplers"]
    for name, nfe in (("ddim:1", 1.0), ("ddim:3", 3.0)):
        assert main([*argv, name]) == 0
        (row,) = json.loads((runs[2] / "comparison" / "table.json").read_text())["rows"]
        assert row["nfe"] == nfe
    assert list(row["distances"]) == ["frechet_distance", "share_sure", "sliced_wasserstein", "label_accuracy"]
    assert row["floors"].keys() == row["distances"].keys()
    # The judge is right about real digits; hardly trained samples are not taken for the class that was asked for.
    assert row["floors"]["label_accuracy"] > 0.9 > 0.6 > row["distances"]["label_accuracy"]
    assert row["distances"]["frechet_distance"] > row["floors"]["frechet_distance"] > 0
    assert "held-out digits" in capsys.readouterr().out


def test_digits_floors_are_those_of_real_digits() -> None:
    yard = make_yardstick("digits", DATA["digits"], classes=10)
    assert torch.equal(yard.held_out, digits("test").images)
    assert (yard.examples.shape, yard.held_out.shape) == ((360, 1, 8, 8), (360, 1, 8, 8))
    order = [int((yard.held_out == one).flatten(1).all(1).nonzero()[0]) for one in yard.examples[:20]]
    assert digits("test").labels[order].tolist() == [*range(10)] * 2
    floors, everything = yard.floors(200), yard.floors(5000)
    real = digits("train").images
    assert yard.metrics["frechet_distance"](real) == pytest.approx(everything["frechet_distance"].mean, rel=1e-6)
    assert everything["frechet_distance"].std < 1e-6
    assert floors["frechet_distance"].mean > everything["frechet_distance"].mean
    assert floors["share_sure"].mean == yard.metrics["share_sure"](yard.held_out)
    assert floors["share_sure"].mean > 0.8
    assert set(yard.linear) == {"share_sure", "label_accuracy"}


def test_default_samplers_leave_out_what_the_sde_cannot_carry(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ve, out = runs[1], tmp_path / "x"
    argv = ["compare", "--checkpoint", str(ve), "--n", "8", "--out", str(out)]
    assert "VESDE does not; use ancestral:30" in refused(capsys, [*argv, "--samplers", "ddim:3", "ddpm:30"])
    assert not out.exists()
    asked: list[str] = []

    def counted(model: object, samplers: Sequence[comparison.Sampler], *rest: object, **options: object) -> None:
        asked.extend(one.name for one in samplers)

    monkeypatch.setattr("scoresde.cli.compare.compare", counted)
    assert main(argv) == 0
    assert "left out ddpm:1000" in capsys.readouterr().err
    assert asked == ["euler_maruyama", "pc", "probability_flow", "dpmpp_2m", "dpmpp_2m", "flow_abm"]


@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupted_comparison_keeps_its_rows(
    done: int, runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    draw = comparison.sample

    def interrupted(model: ScoreModel, shape: Sequence[int], **options: object) -> object:
        calls.append(shape)
        if len(calls) > done:
            raise KeyboardInterrupt
        return draw(model, shape, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(comparison, "sample", interrupted)
    out = tmp_path / "x"
    argv = ["compare", "--checkpoint", str(runs[0]), "--n", "9", "--out", str(out), "--samplers"]
    assert main([*argv, "ddim:2", "ddim:3", "ddim:4"]) == 130
    text, err = capsys.readouterr()
    assert err.splitlines()[-1] == f"scoresde: stopped; {done} of 3 samplers are done, in {out}/"
    if not done:
        assert contents(tmp_path) == {}
        return
    table = json.loads((out / "table.json").read_text())
    assert table["complete"] is False
    assert [row["nfe"] for row in table["rows"]] == [2.0, 3.0]
    assert format_table([Comparison(**row) for row in table["rows"]]) in text
    assert (out / "comparison.png").is_file()
    assert (out / "samples.png").is_file()


def test_tables_of_names_are_complete() -> None:
    assert {one.build for one in SDES.values()} == set(DIFFUSIONS.values())
    assert set(DATA) == {"digits", "photographs", "time_series", *DATASETS, *TABLES}
    labelled = {"digits", "photographs", *TABLES}
    for name, data in DATA.items():
        (real, labels), (held_out, others) = data.load(), data.test()
        real, held_out = real[:], held_out[:]
        assert held_out.shape[1:] == real.shape[1:]
        assert (labels is not None) == (others is not None) == bool(data.classes) == (name in labelled)
        if labels is not None:
            assert labels.unique().tolist() == list(range(len(data.classes)))
        # No held-out sample is a training sample.
        both = torch.cat([real.flatten(1), held_out.flatten(1)])
        if data.kind == "points" or name == "time_series":
            assert len(both.unique(dim=0)) == len(both)
            assert data.fresh is not None
            assert not torch.equal(data.fresh(5), real[:5])
            assert not torch.equal(data.fresh(5), held_out[:5])
