"""The command line as its user sees it: exit codes, one-line errors, the files that appear and what is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, contents, main, refused, said
from PIL import Image
from torch import Tensor

import scoresde
from scoresde import VESDE, VPSDE, ScoreModel, SubVPSDE, sample, training
from scoresde.cli import train as train_verb
from scoresde.cli.compare import Compare
from scoresde.cli.describe import Describe
from scoresde.cli.presets import DATA, PRESETS, SDES, kind_of
from scoresde.cli.sample import Sample
from scoresde.cli.train import Train
from scoresde.cli.yardsticks import make_yardstick
from scoresde.data import DATASETS, TABLES, digits, moons
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.metrics import Comparison, energy_distance, sliced_wasserstein
from scoresde.models.checkpoint import read
from scoresde.nn import MLP, UNet
from scoresde.sampling import compare as comparison
from scoresde.sampling.compare import format_table
from scoresde.solvers import SOLVERS
from scoresde.training import losses

Folders = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Hardly trained: points under VP, points under VE that predict v, and class-conditional digits."""
    home = tmp_path_factory.mktemp("runs")
    jobs = {
        "points": ["--data", "moons", "--seed", "3"],
        "ve": ["--data", "swiss_roll", "--sde", "ve", "--predicts", "edm"],
        "digits": ["--data", "digits", "--conditional"],
    }
    for name, options in jobs.items():
        assert main(["train", "--out", str(home / name), *options, *QUICK]) == 0
    return home / "points", home / "ve", home / "digits"


# ---------------------------------------------------------------------------------------------------------------------
# Help


def test_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "{train,sample,compare,describe}" in out
    assert err == ""
    assert main([]) == 2
    assert capsys.readouterr().err == out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"scoresde \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


VERBS: dict[str, type] = {"train": Train, "sample": Sample, "compare": Compare, "describe": Describe}
UNITS = {
    "train": {
        "size": "pixels",
        "label-dropout": "share of the labels",
        "steps": "optimiser steps",
        "batch-size": "samples in a step",
        "learning-rate": "of Adam",
        "warmup": "steps",
        "weight-decay": "share of the learning rate",
        "clip-norm": "norm of the gradient",
        "ema-decay": "each step, in [0, 1)",
        "seed": "[0, 2^64)",
        "threads": "number of threads on the CPU",
    },
    "sample": {
        "n": "number of samples",
        "label": "class",
        "steps": "number of steps",
        "seed": "[0, 2^64)",
        "chunk-size": "number of",
        "threads": "number of threads on the CPU",
    },
    "compare": {
        "n": "number of samples",
        "seed": "[0, 2^64)",
        "chunk-size": "number of samples",
        "threads": "number of threads on the CPU",
    },
    "describe": {"steps": "number of steps"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_every_option_its_unit_and_its_default(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    out = said(capsys)
    parts = re.split(r" (?=--[a-z])", out.partition(" options ")[2])
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(VERBS[verb])}
    numbers = [name for name, field in fields.items() if re.search(r"\b(Optional)?(Int|Float)\b", str(field.type))]
    assert sorted(numbers) == sorted(UNITS[verb]), "every number has a unit here"
    for name in fields.keys() - {"what"}:
        about = next(part for part in parts if part.startswith(f"--{name} "))
        assert re.search(r"\((default: [^)]+|required|optional)\)", about), about
        assert len(about.split()) > 6, f"{about}: says too little"
        assert UNITS[verb].get(name, "") in about


def test_help_names_the_choices_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = said(capsys)
    for text in (
        "time_series,breast_cancer,iris,wine,FOLDER,FILE}",
        "{vp,cosine,subvp,ve,edm,rectified}",
        "{noise,data,v,score,velocity,edm}",
        f"{{{','.join(losses.WEIGHTS)}}}",
        f"{{{','.join(losses.TIMES)}}}",
        f"(default: {PRESETS['points'].batch_size} for points, ",
        "(default: edm under edm, velocity under rectified, noise else)",
        "(default: runs/DATA)",
        "50 000 points",
    ):
        assert text in out
    for verb in ("sample", "compare"):
        assert main([verb, "--help"]) == 0
        out = said(capsys)
        assert all(name in out for name in (*SOLVERS, "ddpm", "pc"))
    assert "ddpm:1000 euler_maruyama:200 pc:100 probability_flow dpmpp_2m:10 dpmpp_2m:20" in out
    assert "(default: 2000 for points, 1000 for vectors, 500 for series and images and volumes)" in out


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'? choices: compare, describe, sample, train"),
        (["train", "--data", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["train", "--data", "moon"], "did you mean 'moons'?"),
        (["train", "--sde", "vpp"], "unknown sde 'vpp'; did you mean 'vp'?"),
        (["train", "--predicts", "nois"], "unknown prediction 'nois'; did you mean 'noise'?"),
        (["train", "--step", "3"], "Unrecognized options: --step, 3; did you mean --steps?"),
        (["train", "moons"], "Unrecognized options: moons; scoresde train --help lists the options"),
        (["train", "--steps"], "Missing value for argument '--steps'"),
        (["train", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "--steps", "-4"], "steps must be at least 1, got -4"),
        (["train", "--steps", "1.5"], "--steps: a whole number is needed, got '1.5'"),
        (["train", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["train", "--learning-rate", "0"], "learning_rate must lie in (0, inf), got 0"),
        (["train", "--learning-rate", "fast"], "--learning-rate: a number is needed, got 'fast'"),
        (["train", "--learning-rate", "nan"], "learning_rate must lie in (0, inf), got nan"),
        (["train", "--weight", "min_snrr"], "unknown weight 'min_snrr'; did you mean 'min_snr'?"),
        (["train", "--times", "unifrom"], "unknown time sampler 'unifrom'; did you mean 'uniform'?"),
        (["train", "--weight-decay", "-1"], "weight_decay must lie in [0, inf), got -1"),
        (["train", "--clip-norm", "-1"], "clip_norm must lie in [0, inf), got -1"),
        (["train", "--warmup", "9", "--steps", "8"], "warmup must be in [0, 8], got 9"),
        (["train", "--conditional", "--label-dropout", "1"], "label_dropout must lie in [0, 1), got 1"),
        (["train", "--label-dropout", "0.2"], "--label-dropout needs labels to hide: add --conditional"),
        (["train", "--size", "8"], "--size is for folders of images, digits has its own"),
        (["train", "--on-bad-image", "ignore"], "unknown way for on_bad_image 'ignore'; choices: raise, skip"),
        (
            ["train", "--sde", "rectified", "--predicts", "noise"],
            "--predicts noise cannot work under --sde rectified: at t = 1 the signal is gone (alpha = 0), and the "
            "noise tells nothing of the data; use --predicts velocity (or data, v, edm)",
        ),
        (["train", "--ema-decay", "1"], "ema_decay must lie in [0, 1), got 1"),
        (["train", "--seed", "-1"], "seed must lie in [0, 2**64), got -1"),
        (["train", "--data", "moons", "--conditional"], "--conditional needs class labels, moons has none"),
        (["train", "--device", "gpu", *QUICK], "device 'gpu' is not usable here; use cpu"),
        (["train", "--resume", "nothing"], "--resume nothing holds no run to go on with"),
        (["train", "--resume", "nothing", "--steps", "3"], "leave out --steps"),
        (["sample"], "Missing from scoresde sample: --checkpoint FOLDER"),
        (["sample", "--checkpoint", "nowhere"], "checkpoint nowhere does not exist; make one with: scoresde train"),
        (["sample", "--checkpoint", "nowhere", "--n", "0"], "n must be at least 1, got 0"),
        (
            ["sample", "--checkpoint", "nowhere", "--out", "x.giff"],
            "unknown ending of --out '.giff'; did you mean '.gif'? choices: .gif, .npy, .npz",
        ),
        (["sample", "--checkpoint", "nowhere", "--out", "samples"], "unknown ending of --out ''"),
        (["compare", "--checkpoint", "nowhere"], "checkpoint nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line_with_its_cure(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, argv)
    assert contents(tmp_path) == {}, "nothing appears on disk"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "--solver", "dpmp_2m:5"], "unknown sampler 'dpmp_2m'; did you mean 'dpmpp_2m'?"),
        (["sample", "--solver", "ddim:0"], "steps of ddim must be at least 1, got 0"),
        (["sample", "--solver", "ddim:5@3"], "the number of samples is --n here"),
        (["sample", "--solver", "probability_flow:5"], "chooses its own steps"),
        (["sample", "--label", "3"], "was trained without labels; train with --conditional"),
        (["sample", "--chunk-size", "0"], "chunk_size must be at least 1"),
        (["sample", "--final", "clean"], "unknown final 'clean'; did you mean 'mean'? choices: denoise, mean, sample"),
        (
            ["sample", "--solver", "ddim:5", "--steps", "4"],
            "sampler 'ddim:5' names its steps already; leave out steps=4",
        ),
        (["sample", "--solver", "ddim", "--steps", "0"], "steps must be at least 1, got 0"),
        (["sample", "--solver", "absent.json"], "the table absent.json cannot be read: No such file or directory"),
        (["sample", "--solver", "probability_flow", "--out", "x.gif"], "shows the states of a solver with steps"),
        (["sample", "--solver", "probability_flow", "--save-table", "t.json"], "is adaptive and has no table"),
        (["sample", "--solver", "pc:5", "--save-table", "t.json"], "pc has correctors that depend on the state"),
        (["sample", "--save-table", "t.txt"], "unknown ending of --save-table '.txt'; choices: .json"),
        (["compare", "--samplers", "ddim:5", "dimm:5"], "unknown sampler 'dimm'; did you mean 'ddim'?"),
        (["compare", "--samplers"], "--samplers must name at least one"),
        (["compare", "--samplers", "ddim:5@1"], "samples of ddim must be at least 2, got 1"),
        (["compare", "--n", "1"], "n must be at least 2, got 1"),
        (["compare", "--data", "moon"], "unknown data set 'moon'; did you mean 'moons'?"),
        (["compare", "--data", "digits"], "the model's samples have shape (2,), those of digits (1, 8, 8)"),
    ],
)
def test_a_mistake_about_a_model_is_one_line_with_its_cure(
    argv: list[str],
    message: str,
    runs: Folders,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(runs[0])
    assert message in refused(capsys, [*argv, "--checkpoint", str(runs[0])])
    assert contents(tmp_path) == {}
    assert contents(runs[0]) == before


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        main(["train", "--steps", "0", "--debug"])


def test_places_that_cannot_be_written_are_refused_before_the_work(
    runs: Folders, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    below, full = str(tmp_path / "file" / "below"), str(tmp_path / "full")
    points = str(runs[0])
    assert "is a file; choose another path" in refused(capsys, ["train", "--out", below])
    assert "is a file; choose another path" in refused(capsys, ["train", "--out", str(tmp_path / "file")])
    assert f"--out {full} is not empty; choose another, or" in refused(capsys, ["train", "--out", full])
    assert "is a file; choose" in refused(capsys, ["sample", "--checkpoint", points, "--out", below + ".png"])
    assert "is a file; choose" in refused(capsys, ["compare", "--checkpoint", points, "--out", below])
    folder = tmp_path / "named.png"
    folder.mkdir()
    assert "is a folder; name a file" in refused(capsys, ["sample", "--checkpoint", points, "--out", str(folder)])
    assert contents(tmp_path) == {"file": b"", "full/a": b""}


def test_a_folder_without_a_checkpoint_names_the_nearest_run(
    runs: Folders, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    near = runs[0].with_name("point")
    assert f"did you mean {runs[0]}?" in refused(capsys, ["sample", "--checkpoint", str(near)])
    assert "holds no checkpoint" in refused(capsys, ["sample", "--checkpoint", str(tmp_path)])


def test_a_damaged_checkpoint_is_refused(runs: Folders, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    for name, data in contents(runs[0]).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    ema = next(copy.glob("checkpoint/ema-*"))
    ema.write_bytes(ema.read_bytes()[:-1] + b"\x00")
    (copy / "run.json").write_text("{")
    assert "run.json is damaged" in refused(capsys, ["sample", "--checkpoint", str(copy)])
    (copy / "run.json").unlink()
    assert "another copy" in refused(capsys, ["sample", "--checkpoint", str(copy), "--out", str(tmp_path / "x.npy")])
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize(
    ("missing", "argv", "extra"),
    [
        ("tyro", ["train"], "cli"),
        ("matplotlib", ["sample", "--checkpoint", "POINTS", "--out", "x.png"], "plots"),
        ("matplotlib", ["compare", "--checkpoint", "POINTS"], "plots"),
        ("sklearn.datasets", ["train", "--data", "digits", *QUICK], "data"),
        ("sklearn.datasets", ["compare", "--checkpoint", "DIGITS"], "data"),
    ],
)
def test_a_missing_extra_is_named(
    missing: str,
    argv: list[str],
    extra: str,
    runs: Folders,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "tyro":
        for name in [one for one in sys.modules if one.startswith(("scoresde.cli.", "tyro."))]:
            monkeypatch.delitem(sys.modules, name)
    named = {"POINTS": str(runs[0]), "DIGITS": str(runs[2])}
    message = refused(capsys, [named.get(word, word) for word in argv])
    assert f'pip install ".[{extra}]"' in message
    assert contents(tmp_path) == {}


# ---------------------------------------------------------------------------------------------------------------------
# train


def test_train_leaves_a_model_a_log_and_its_options(runs: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    points, ve, images = runs
    about = json.loads((points / "run.json").read_text())
    assert about["options"] == {
        "data": "moons",
        "size": None,
        "on_bad_image": "raise",
        "sde": "vp",
        "predicts": "noise",
        "weight": "simple",
        "times": "low_discrepancy",
        "conditional": False,
        "label_dropout": 0.0,
        "steps": 4,
        "batch_size": 16,
        "learning_rate": PRESETS["points"].learning_rate,
        "warmup": None,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema_decay": 0.995,
        "held_out_loss": False,
        "seed": 3,
        "threads": 1,
    }
    digest = hashlib.sha256(moons(50_000, seed=0).numpy().tobytes()).hexdigest()
    assert about["samples"] == {"shape": [2], "training": 50_000, "held_out": 2_000, "sha256": digest}
    assert (about["data"], about["complete"]) == ("moons", True)
    assert about["versions"] == {"scoresde": scoresde.__version__, "torch": torch.__version__}
    left = sorted(f.name for f in points.iterdir() if f.name != "comparison")
    assert left == ["checkpoint", "log.jsonl", "run.json", "training.png"]
    assert about["model"]["sde"] == repr(VPSDE())
    assert MLP(**about["model"]["network"]["config"]).config == ScoreModel.load(points / "checkpoint").net.config
    for folder, sde, predicts, net in ((points, VPSDE(), "noise", MLP), (ve, VESDE(), "edm", MLP)):
        model = ScoreModel.load(folder / "checkpoint")
        assert (model.sde, model.parameterization.name, type(model.net)) == (sde, predicts, net)
    model = ScoreModel.load(images / "checkpoint")
    assert isinstance(model.net, UNet)
    assert model.net.classes == 10
    records = [json.loads(line) for line in (points / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [4]
    assert 0.2 < records[0]["loss"] < 3.0


def test_train_is_the_library_s_fit(runs: Folders) -> None:
    moons_data = DATA["moons"]
    preset = moons_data.preset
    model = ScoreModel(moons_data.network((2,), classes=None, seed=3), VPSDE())
    data, labels = moons_data.load()
    assert labels is None
    assert torch.equal(data, moons(50_000, seed=0))
    rate = preset.learning_rate
    result = training.fit(
        model, data, steps=4, batch_size=16, learning_rate=rate, ema_decay=0.995, seed=3, progress=False
    )
    saved = ScoreModel.load(runs[0] / "checkpoint")
    assert isinstance(saved.net, torch.nn.Module)
    assert isinstance(result.model.net, torch.nn.Module)
    for ours, theirs in zip(result.model.net.parameters(), saved.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_train_says_what_it_does_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "run"
    assert main(["train", "--data", "checkerboard", "--sde", "subvp", *QUICK, "--out", str(out)]) == 0
    text, progress = capsys.readouterr()
    facts = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert facts["data"] == "checkerboard: 50000 points of shape (2,), 2000 held out"
    assert f"noise under {SubVPSDE()}" in facts["model"]
    assert facts["training"].startswith("4 steps of 16 samples on ")
    assert facts["results"] == f"{out}/"
    assert facts["checkpoint"] == f"{out / 'checkpoint'}/"
    assert facts["next"] == f"scoresde compare --checkpoint {out}"
    loss = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"]
    assert facts["done"].startswith(f"loss {loss:.4g} after 4 steps")
    assert f"step 4, loss {loss:.4g}" in progress


def test_train_refuses_a_folder_in_use_and_leaves_it(runs: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs[0])
    message = refused(capsys, ["train", "--data", "moons", *QUICK, "--out", str(runs[0])])
    assert f"go on with --resume {runs[0]}" in message
    assert contents(runs[0]) == before


def test_interrupted_training_goes_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--data", "eight_gaussians", "--steps", "120", "--batch-size", "8"]
    assert main(["train", *options, "--out", str(whole)]) == 0

    def stop(path: Path, value: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    # The first record, at step 50, is when run.json is written; Ctrl-C arrives then.
    monkeypatch.setattr(train_verb, "write_json", stop)
    capsys.readouterr()
    assert main(["train", *options, "--out", str(cut)]) == 130
    err = capsys.readouterr().err
    assert f"go on with: scoresde train --resume {cut}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert read(cut / "checkpoint").documents["training"]["step"] == 50
    assert "leave out --data" in refused(capsys, ["train", "--resume", str(cut), "--data", "moons"])
    assert main(["train", "--resume", str(cut)]) == 0
    assert contents(cut / "checkpoint") == contents(whole / "checkpoint")
    assert (cut / "run.json").read_bytes() == (whole / "run.json").read_bytes()
    steps = [json.loads(line)["step"] for line in (cut / "log.jsonl").read_text().splitlines()]
    assert steps == [50, 100, 120]


def test_options_that_are_not_a_training_s_do_not_resume(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in contents(runs[0]).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    about = json.loads((tmp_path / "run.json").read_text())
    for broken in ({}, {**about, "options": {"lerning_rate": 1.0}}):
        (tmp_path / "run.json").write_text(json.dumps(broken))
        assert "does not hold the options of a training" in refused(capsys, ["train", "--resume", str(tmp_path)])


# ---------------------------------------------------------------------------------------------------------------------
# sample


def test_arrays_are_the_library_s_samples(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "x.npy"
    base = ["sample", "--checkpoint", str(runs[0]), "--out", str(out)]
    assert main([*base, "--n", "7", "--solver", "heun:5", "--seed", "11"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}: 7 samples by heun, 9 evaluations each, ")
    model = ScoreModel.load(runs[0] / "checkpoint")
    expected = sample(model, (7, 2), solver="heun", steps=5, seed=11)
    assert isinstance(expected, Tensor)
    written = np.load(out, allow_pickle=False)
    assert written.dtype == np.float32
    assert (written == expected.numpy()).all()
    assert main([*base, "--n", "3", "--solver", "heun:5", "--seed", "11", "--chunk-size", "2"]) == 0
    assert np.allclose(np.load(out, allow_pickle=False), written[:3], atol=1e-5)
    assert [f.name for f in out.parent.iterdir()] == ["x.npy"], "no temporary file stays"


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
            assert (arrays["samples"] == expected.numpy()).all()
    assert "--label must lie in 0..9, got 10" in refused(capsys, [*base, "--label", "10"])
    assert "--label must lie in 0..9, got -1" in refused(capsys, [*base, "--label", "-1"])


def test_pictures_show_images_in_columns_of_a_class_and_points_with_the_data(runs: Folders, tmp_path: Path) -> None:
    grid, points, vectors = tmp_path / "grid.png", tmp_path / "points.png", tmp_path / "points.svg"
    common = ["--solver", "ddim:2", "--n", "40"]
    assert main(["sample", "--checkpoint", str(runs[2]), *common, "--out", str(grid)]) == 0
    with Image.open(grid) as picture:
        wide, tall = picture.size
    assert 2.0 < wide / tall < 2.6, "four rows of ten"
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
    assert "say which with --data" in refused(capsys, ["compare", "--checkpoint", "mine"])


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
        assert held_out.shape[1:] == real.shape[1:]
        assert kind_of(real.shape[1:], name) == data.kind
        assert (labels is not None) == (others is not None) == bool(data.classes) == (name in labelled)
        if labels is not None:
            assert labels.unique().tolist() == list(range(data.classes))
        # No held-out sample is a training sample.
        both = torch.cat([real.flatten(1), held_out.flatten(1)])
        if data.kind == "points" or name == "time_series":
            assert len(both.unique(dim=0)) == len(both)
            assert data.fresh is not None
            assert not torch.equal(data.fresh(5), real[:5])
            assert not torch.equal(data.fresh(5), held_out[:5])
