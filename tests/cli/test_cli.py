"""The command line as its user sees it: help, exit codes, and mistakes, each one line with its cure."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from pathlib import Path

import pytest
from cli_helpers import QUICK, Folders, contents, main, refused, said

from scoresde.cli import WORDS
from scoresde.cli.compare import Compare
from scoresde.cli.convert import Convert
from scoresde.cli.describe import Describe
from scoresde.cli.explore import Explore
from scoresde.cli.likelihood import Likelihood
from scoresde.cli.presets import PRESETS
from scoresde.cli.restore import Restore
from scoresde.cli.sample import Sample
from scoresde.cli.train import Train
from scoresde.cli.tune import Tune
from scoresde.solvers import SOLVERS
from scoresde.training import losses

# ---------------------------------------------------------------------------------------------------------------------
# Help


def test_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "{train,sample,restore,compare,tune,likelihood,describe,explore,convert}" in out
    assert err == ""
    assert main([]) == 2
    assert capsys.readouterr().err == out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"scoresde \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_usage_names_the_extra_that_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--help"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["--help"]) == 0
    line = 'the command line needs tyro; in the repository run pip install ".[cli]"'
    assert capsys.readouterr().out == f"{whole}\n{line}\n"


VERBS: dict[str, type] = {
    "train": Train,
    "sample": Sample,
    "restore": Restore,
    "compare": Compare,
    "tune": Tune,
    "likelihood": Likelihood,
    "describe": Describe,
    "explore": Explore,
    "convert": Convert,
}
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
        "accumulate": "number of parts",
        "patience": "number of held-out losses",
        "keep": "number of the last checkpoints",
        "seed": "[0, 2^64)",
        "threads": "number of threads on the CPU",
    },
    "sample": {
        "n": "number of samples",
        "size": "side in pixels",
        "guidance": "scale of classifier-free",
        "steps": "number of steps",
        "seed": "[0, 2^64)",
        "chunk-size": "number of",
        "threads": "number of threads on the CPU",
    },
    "explore": {"port": "0 takes a free one", "threads": "number of threads on the CPU"},
    "restore": {
        "blur": "in pixels",
        "factor": "in pixels",
        "noise-std": "in the unit of the data",
        "steps": "number of evaluations",
        "n": "number of samples",
        "seed": "[0, 2^64)",
        "threads": "number of threads on the CPU",
    },
    "compare": {
        "n": "number of samples",
        "seed": "[0, 2^64)",
        "chunk-size": "number of samples",
        "threads": "number of threads on the CPU",
    },
    "likelihood": {
        "n": "number of held-out samples",
        "levels": "number of values",
        "low": "in the data's units",
        "high": "of these values",
        "probes": "groups of coordinates",
        "draws": "draws of the probes' signs",
        "importance": "draws for each sample",
        "tolerance": "relative and absolute",
        "samples": "draws of noise and time",
        "seed": "[0, 2^64)",
        "chunk-size": "number of samples",
        "threads": "number of threads on the CPU",
    },
    "tune": {
        "steps": "evaluations of the network",
        "samples": "start states",
        "iterations": "of a fit",
        "seed": "[0, 2^64)",
        "chunk-size": "samples given to the network at once",
        "threads": "number of threads on the CPU",
    },
    "describe": {"steps": "number of steps"},
    "convert": {"limit": "in GiB"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_every_option_its_unit_and_its_default(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, "--help"]) == 0
    out = said(capsys)
    parts = re.split(r" (?=--[a-z])", out.partition(" options ")[2])
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(VERBS[verb])}
    kinds = typing.get_type_hints(VERBS[verb])
    numbers = [
        name
        for name, field in fields.items()
        if {int, float} & {kinds[field.name], *typing.get_args(kinds[field.name])}
    ]
    assert sorted(numbers) == sorted(UNITS[verb]), "every number has a unit here"
    for name in fields.keys() - {"what", "file", "target"}:
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
        (
            ["trian"],
            "unknown verb 'trian'; did you mean 'train'? choices: compare, convert, describe, explore, likelihood,",
        ),
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
        (["sample", "--checkpoint", "nowhere", "--out", "samples.txt"], "unknown ending of --out '.txt'"),
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
    ("verb", "word", "meant"),
    [
        ("train", "--lr", "learning-rate"),
        ("train", "--epochs", "steps"),
        ("train", "--num_steps", "steps"),
        ("train", "--bs=3", "batch-size"),
        ("train", "--class-cond", "conditional"),
        ("train", "--num-workers", "threads"),
        ("sample", "--num-inference-steps", "steps"),
        ("sample", "--batch-size", "chunk-size"),
        ("sample", "--num-samples", "n"),
        ("sample", "--sampler", "solver"),
        ("sample", "--model", "checkpoint"),
        ("compare", "--solver", "samplers"),
        ("compare", "--steps", "samplers"),
        ("describe", "--num-steps", "steps"),
    ],
)
def test_another_word_for_an_option_names_ours(
    verb: str, word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, [verb, word, "5"])
    name = word.partition("=")[0].replace("_", "-")
    assert message == f"there is no {name}; did you mean --{meant}? scoresde {verb} --help lists the options"


def test_words_for_options_mean_options() -> None:
    for word, meant in WORDS.items():
        able = {field.name.replace("_", "-") for verb in VERBS.values() for field in dataclasses.fields(verb)}
        assert set(meant) <= able, word


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
