"""A context beside the samples: an array of the file or columns of a table, through every verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, main, refused

from scoresde import ScoreModel, sample
from scoresde.noise import normal, stream


def write(folder: Path) -> Path:
    draw = stream(0)
    seasons = normal((60, 2), draw).numpy()
    samples = (seasons @ np.array([[1.0, 0.5], [0.0, 1.0]])).astype(np.float32)
    seasons[3, 1] = np.nan  # known in part
    np.savez(folder / "x.npz", samples=samples, seasons=seasons)
    return folder / "x.npz"


def test_an_array_of_the_file_is_told_to_the_network(tmp_path: Path) -> None:
    data, run = write(tmp_path), tmp_path / "run"
    assert main(["train", "--data", str(data), "--context", "seasons", "--out", str(run), *QUICK]) == 0
    model = ScoreModel.load(run)
    assert model.net.kinds == {"context": ("context_features", 2)}
    assert model.dropout == {"context": 0.1}
    command = ["sample", "--checkpoint", str(run), "--n", "3", "--solver", "ddim:3"]
    assert main([*command, "--context", "0.5,-1", "--out", str(tmp_path / "a.npy")]) == 0
    told = torch.tensor([[0.5, -1.0]]).expand(3, 2)
    want = sample(model, 3, cond={"context": told}, solver="ddim", steps=3, seed=0)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), want.numpy(), rtol=1e-4, atol=1e-4)
    np.save(tmp_path / "rows.npy", told.numpy())
    assert main([*command, "--context", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "b.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), np.load(tmp_path / "a.npy"), rtol=1e-5, atol=1e-5)
    assert main([*command, "--context", "0.5,-1", "--guidance", "2", "--out", str(tmp_path / "c.npy")]) == 0
    assert not np.allclose(np.load(tmp_path / "c.npy"), np.load(tmp_path / "a.npy"))
    assert main(["compare", "--checkpoint", str(run), "--n", "20", "--samplers", "ddim:3"]) == 0
    flow = ["--tolerance", "0.1", "--samples", "2"]
    assert main(["likelihood", "--checkpoint", str(run), "--n", "4", "--levels", "0", *flow]) == 0
    assert main(["train", "--resume", str(run)]) == 0
    assert json.loads((run / "run.json").read_text())["options"]["context"] == "seasons"


def test_columns_of_a_table_are_told_and_not_learned(tmp_path: Path) -> None:
    rows = "".join(f"{k % 3},{k % 5},{k % 7}\n" for k in range(30))
    (tmp_path / "t.csv").write_text("a,b,season\n" + rows)
    run = tmp_path / "run"
    assert main(["train", "--data", str(tmp_path / "t.csv"), "--context", "season", "--out", str(run), *QUICK]) == 0
    model = ScoreModel.load(run)
    assert model.moments is not None
    assert model.moments.mean.shape == (2,)
    assert model.net.kinds == {"context": ("context_features", 1)}


FAULTS = {
    "name": (
        ["train", "--data", "digits", "--context", "x"],
        "names an array or columns of a file, and digits is none",
    ),
    "array": (
        ["train", "--data", "x.npz:samples", "--context", "season"],
        "unknown array in x.npz 'season'; did you mean",
    ),
    "length": (
        ["train", "--data", "x.npz:samples", "--context", "short"],
        "must hold a number or a vector for each of 60",
    ),
    "untold": (["sample", "--checkpoint", "RUN", "--context", "1"], "was trained without; train with --context"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_mistakes(
    runs: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    arguments, words = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    with np.load(write(tmp_path)) as known:
        np.savez(tmp_path / "x.npz", **known, short=np.zeros(3))
    assert words in refused(capsys, [str(runs[0]) if one == "RUN" else one for one in arguments])
