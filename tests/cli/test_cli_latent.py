"""The verbs on a latent model: samples, pictures and comparisons have the shape of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import main, refused

from scoresde import VPSDE, Latent, ScoreModel, fit, nn
from scoresde.noise import normal, stream

DATA = normal((30, 1, 8, 8), stream(0, "latent"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("latent")
    coder = nn.Autoencoder(1, width=4, multipliers=(1, 1), latent_channels=2)
    model = ScoreModel(nn.UNet(2, width=8, multipliers=(1,), heads=1), VPSDE())
    fit(model, DATA, transform=Latent.standardise(coder, DATA), steps=2, folder=home / "run", progress=False)
    np.save(home / "x.npy", DATA.numpy())
    np.save(home / "y.npy", DATA[:2].numpy())
    return home


def test_samples_and_restored_ones_are_data(folder: Path, tmp_path: Path) -> None:
    of = ["--checkpoint", str(folder / "run")]
    for out in ("x.npy", "x.png"):
        command = ["sample", *of, "--n", "3", "--solver", "ddim:2", "--out", str(tmp_path / out)]
        assert main(command) == 0
    assert np.load(tmp_path / "x.npy").shape == (3, 1, 8, 8)
    measured = ["--data", str(folder / "y.npy"), "--operator", "blur", "--blur", "1"]
    assert main(["restore", *of, *measured, "--n", "2", "--steps", "2", "--out", str(tmp_path / "r.npy")]) == 0
    assert np.load(tmp_path / "r.npy").shape == (2, 2, 1, 8, 8)


def test_comparisons_are_with_data_and_densities_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = ["--checkpoint", str(folder / "run"), "--data", str(folder / "x.npy")]
    assert main(["compare", *of, "--n", "4", "--samplers", "ddim:2", "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c" / "samples.png").is_file()
    assert main(["likelihood", *of, "--n", "4", "--out", str(tmp_path / "l")]) == 2
    assert "latent_elbo(model, x) bounds log p(x)" in capsys.readouterr().err
    assert "latent_elbo" not in refused(capsys, ["compare", *of, "--n", "1"])
