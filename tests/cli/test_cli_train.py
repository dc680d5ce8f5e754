"""``scoresde train``: the files that appear, what is in them, and going on after Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cli_helpers import QUICK, Folders, contents, main, refused

import scoresde
from scoresde import VESDE, VPSDE, ScoreModel, SubVPSDE, training
from scoresde.cli.presets import DATA, PRESETS
from scoresde.cli.threads import use_threads
from scoresde.data import moons
from scoresde.models.checkpoint import read
from scoresde.models.lock import locked
from scoresde.nn import MLP, UNet
from scoresde.training.log import Log, Record


def test_train_leaves_a_model_a_log_and_its_options(runs: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    points, ve, images = runs
    about = json.loads((points / "run.json").read_text())
    assert about["options"] == {
        "data": "moons",
        "size": None,
        "on_bad_image": "raise",
        "background": None,
        "layout": None,
        "sde": "vp",
        "predicts": "noise",
        "weight": "simple",
        "times": "low_discrepancy",
        "conditional": False,
        "context": None,
        "label_dropout": 0.0,
        "steps": 4,
        "batch_size": 16,
        "learning_rate": PRESETS["points"].learning_rate,
        "warmup": None,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema_decay": 0.995,
        "accumulate": 1,
        "precision": "fp32",
        "uncertainty": False,
        "flip": False,
        "held_out_loss": False,
        "patience": None,
        "watch": False,
        "keep": 1,
        "tracker": None,
        "seed": 3,
        "threads": 1,
    }
    digest = hashlib.sha256(moons(50_000, seed=0).numpy().tobytes()).hexdigest()
    held_out = hashlib.sha256(moons(2_000, seed=1).numpy().tobytes()).hexdigest()
    samples = {"shape": [2], "training": 50_000, "held_out": 2_000, "sha256": digest, "held_out_sha256": held_out}
    assert about["samples"] == samples
    assert "data_path" not in about
    assert (about["data"], about["complete"]) == ("moons", True)
    assert about["versions"] == {"scoresde": scoresde.__version__, "torch": torch.__version__}
    left = sorted(f.name for f in points.iterdir() if f.name != "comparison")
    assert left == ["checkpoint", "log.csv", "log.jsonl", "run.json", "training.png"]
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
    with use_threads(json.loads((runs[0] / "run.json").read_text())["options"]["threads"]):
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
    assert facts["loss"] == "weight simple, times cauchy"
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

    add = Log.add

    def stop(log: Log, record: Record) -> None:
        monkeypatch.undo()
        add(log, record)
        raise KeyboardInterrupt

    # Ctrl-C arrives at the first record, at step 50.
    monkeypatch.setattr(Log, "add", stop)
    capsys.readouterr()
    assert main(["train", *options, "--out", str(cut)]) == 130
    err = capsys.readouterr().err
    assert f"go on with: scoresde train --resume {cut}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert read(cut / "checkpoint").documents["training"]["step"] == 50
    assert "leave out --data, or change it on purpose with --change" in refused(
        capsys, ["train", "--resume", str(cut), "--data", "moons"]
    )
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
    # Someone gave an option another kind of value.
    for name, value, kind in (
        ("data", 3, "str"),
        ("steps", "many", "int or null"),
        ("steps", 4.0, "int or null"),
        ("conditional", 1, "bool"),
        ("ema_decay", [0.5], "float"),
    ):
        (tmp_path / "run.json").write_text(json.dumps({**about, "options": {**about["options"], name: value}}))
        message = refused(capsys, ["train", "--resume", str(tmp_path)])
        assert f"run.json: options.{name} must be {kind}, got {value!r}" in message


def test_watching_a_training_logs_distances_and_keeps_pictures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--data", "moons", "--steps", "20", "--batch-size", "8", "--watch", "--keep", "2", "--precision", "bf16"]
    assert main(["train", *options, "--accumulate", "2", "--uncertainty", "--patience", "50", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    watched = {line["step"]: line["watched"] for line in lines if "watched" in line}
    assert sorted(watched) == list(range(2, 21, 2))
    assert all(set(numbers) == {"sliced_wasserstein", "energy_distance"} for numbers in watched.values())
    assert sorted(f.name for f in (out / "samples").iterdir()) == [f"step-{k:08d}.png" for k in range(2, 21, 2)]
    assert sorted(f.name for f in (out / "kept").iterdir()) == ["0000000018", "0000000020"]
    assert all("held_out_loss" in line for line in lines)
    identity = read(out / "checkpoint").documents["run"]["identity"]
    assert (identity["accumulate"], identity["uncertainty"], identity["autocast"]) == (2, True, "torch.bfloat16")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder has run.json and perhaps a log; --resume says to start, and --out takes the folder."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("{}", "utf-8")
    (out / "log.jsonl").write_text('{"step": 5}\n', "utf-8")
    said = refused(capsys, ["train", "--resume", str(out)])
    assert f"holds no run to go on with; start one: --out {out}" in said
    options = ["--data", "moons", "--steps", "4", "--batch-size", "8"]
    assert main(["train", *options, "--out", str(out)]) == 0
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [4]


def test_a_training_that_is_refused_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, ["train", "--data", "moons", "--flip", "--out", str(tmp_path / "run")])
    assert "--flip mirrors images and series, moons are points; leave it out" in said
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_never_finite_is_said_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "moons", "--steps", "200", "--batch-size", "8", "--learning-rate", "1e30", "--clip-norm", "0"]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "the loss is not finite at step" in err.splitlines()[-1]
    assert "Lower learning_rate" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_run_is_changed_back_to_a_default_where_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--data", "moons", "--batch-size", "8", "--precision", "bf16", "--accumulate", "2", "--watch"]
    assert main(["train", *options, "--steps", "4", "--out", str(out)]) == 0
    said = refused(capsys, ["train", "--resume", str(out), "--precision", "fp32"])
    assert "leave out --precision, or change it on purpose with --change" in said
    change = ["--change", "--precision", "fp32", "--steps", "8"]
    assert main(["train", "--resume", str(out), *change]) == 0
    kept = json.loads((out / "run.json").read_text())["options"]
    assert (kept["precision"], kept["accumulate"], kept["watch"], kept["steps"]) == ("fp32", 2, True, 8)
    assert sorted(f.name for f in (out / "samples").iterdir()) == [f"step-{k:08d}.png" for k in range(1, 9)]


def test_a_run_that_is_not_gone_on_with_stays_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused for fewer steps than were made, or while another one writes there: run.json says what it said."""
    out = tmp_path / "run"
    assert main(["train", "--data", "moons", "--batch-size", "8", "--steps", "8", "--out", str(out)]) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    change = ["train", "--resume", str(out), "--change", "--precision", "bf16", "--steps"]
    assert main([*change, "4"]) == 2
    assert "steps must be at least 8" in capsys.readouterr().err
    with ThreadPoolExecutor(1) as other:
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with locked(out):
                held.set()
                go_on.wait(60)

        holding = other.submit(hold)
        assert held.wait(60)
        try:
            assert main([*change, "12"]) == 2
            assert "is in use by another thread" in capsys.readouterr().err
        finally:
            go_on.set()
        holding.result()
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
