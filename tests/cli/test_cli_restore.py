"""``scoresde restore`` and ``scoresde sample --guidance``: the library's own samples, pictures, and mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import Folders, main, refused

from scoresde import ScoreModel, guided, sample, sample_posterior
from scoresde.models.guidance import Downsample, Mask


def test_a_mask_gives_the_librarys_samples(runs: Folders, tmp_path: Path) -> None:
    x = np.array([[0.5, np.nan], [np.nan, -0.3]], dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    command = ["restore", "--checkpoint", str(runs[0]), "--data", str(tmp_path / "x.npy"), "--steps", "8", "--n", "3"]
    assert main([*command, "--out", str(tmp_path / "out.npz"), "--noise-std", "0.1", "--seed", "5"]) == 0
    got = np.load(tmp_path / "out.npz")
    assert got["samples"].shape == (2, 3, 2)
    np.testing.assert_array_equal(got["measurements"], x)
    model = ScoreModel.load(runs[0])
    want = sample_posterior(
        model, Mask(torch.tensor([True, False])), torch.tensor([0.5]), 3, noise_std=0.1, steps=8, seed=5
    )
    np.testing.assert_allclose(got["samples"][0], want.x.numpy(), rtol=1e-5, atol=1e-5)
    assert main([*command, "--out", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").stat().st_size > 1000


@pytest.mark.parametrize("operator", ["blur", "downsample", "grey"])
def test_images_are_restored_into_a_picture(runs: Folders, tmp_path: Path, operator: str) -> None:
    size = 4 if operator == "downsample" else 8
    np.save(tmp_path / "y.npy", np.zeros((2, 1, size, size), dtype=np.float32))
    command = ["restore", "--checkpoint", str(runs[2]), "--data", str(tmp_path / "y.npy"), "--operator", operator]
    options = ["--steps", "3", "--n", "2", "--method", "diffpir", "--noise-std", "0.1", "--label", "3"]
    assert main([*command, *options, "--out", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert main([*command, *options, "--out", str(tmp_path / "out.npy")]) == 0
    got = np.load(tmp_path / "out.npy")
    assert got.shape == (2, 2, 1, 8, 8)
    if operator == "downsample":
        want = sample_posterior(
            ScoreModel.load(runs[2]),
            Downsample(2),
            torch.zeros(1, 4, 4),
            2,
            noise_std=0.1,
            method="diffpir",
            steps=3,
            cond={"label": 3},
            seed=1,
        )
        np.testing.assert_allclose(got[1], want.x.numpy(), rtol=1e-4, atol=1e-4)


def test_guidance_is_the_librarys(runs: Folders, tmp_path: Path) -> None:
    command = ["sample", "--checkpoint", str(runs[2]), "--n", "4", "--label", "3", "--solver", "ddim:3"]
    assert main([*command, "--guidance", "2", "--out", str(tmp_path / "x.npy")]) == 0
    cond = {"label": torch.full((4,), 3)}
    want = sample(guided(ScoreModel.load(runs[2]), 2.0), 4, cond=cond, solver="ddim", steps=3, seed=0)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want.numpy(), rtol=1e-4, atol=1e-4)


FAULTS = {
    "guidance": (["sample", "--guidance", "2"], 0, "--guidance leads to a class or a context, and"),
    "scale": (["sample", "--cfg", "2"], 0, "there is no --cfg; did you mean --guidance?"),
    "operator": (
        ["restore", "--data", "y.npy", "--operator", "blurr"],
        0,
        "unknown operator 'blurr'; did you mean 'blur'",
    ),
    "method": (["restore", "--data", "y.npy", "--method", "mps"], 0, "unknown method 'mps'; did you mean"),
    "ending": (["restore", "--data", "y.npy", "--out", "x.gif"], 0, "unknown ending of --out '.gif'"),
    "noise": (["restore", "--data", "y.npy", "--noise-std", "-1"], 0, "noise_std must"),
    "file": (["restore", "--data", "missing.npy"], 0, "cannot be read"),
    "shape": (
        ["restore", "--data", "y.npy"],
        2,
        "holds measurements of shape (4, 4), and mask of the model's samples has",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_mistakes(
    runs: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, run, words = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.zeros((1, 4, 4) if run else (1, 2), dtype=np.float32))
    assert words in refused(capsys, [*arguments, "--checkpoint", str(runs[run])])
