"""The loss of held-out data, by noise level too: the same numbers whatever the chunks, and the right ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoresde import VPSDE, Affine, Compose, Dequantise, GaussianModel, ScoreModel, ShapeError
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import fit
from scoresde.training.losses import held_out_loss
from scoresde.training.losses.bins import LossBins

F64 = torch.float64
EXACT = GaussianModel(
    sde=VPSDE(), mean=torch.tensor([1.0, -0.5], dtype=F64), covariance=torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
)
DATA = EXACT.sample_data(2000, stream(0, "held out"))


def test_loss_of_the_exact_model_is_the_posterior_variance_in_every_bin() -> None:
    found = held_out_loss(EXACT, DATA, weight="simple", repeats=20)
    sde, c = EXACT.sde, torch.linalg.eigvalsh(EXACT.moments.covariance)
    t = torch.linspace(sde.t_min, sde.t_max, 200_001, dtype=F64)
    point = sde.at(t)
    exact = ((point.alpha / point.sigma) ** 2)[:, None] * c / ((point.alpha / point.sigma) ** 2)[:, None]
    exact = (c * point.alpha[:, None] ** 2 / (point.alpha[:, None] ** 2 * c + point.sigma[:, None] ** 2)).mean(1)
    assert found.mean == pytest.approx(float(exact.mean()), abs=5 * found.standard_error)
    assert found.standard_error < 0.01
    bins = LossBins(sde, torch.device("cpu")).find(point.log_snr)
    for k, value in enumerate(found.loss_by_log_snr):
        share = float((bins == k).double().mean())
        if share > 0.01:
            # A bin's losses have a standard deviation of at most 1.5 times their mean.
            spread = 1.5 / math.sqrt(share * 40_000)
            assert value == pytest.approx(float(exact[bins == k].mean()), rel=5 * spread), k


def test_the_same_noise_and_times_whatever_the_chunks() -> None:
    # Matrix kernels depend on the size of a batch: the law holds to the rounding of the data's type.
    for data, rounding in ((DATA.double(), 1e-12), (DATA, 1e-5)):
        first = held_out_loss(EXACT, data, seed=3)
        chunked = held_out_loss(EXACT, data, seed=3, chunk_size=7)
        assert chunked.mean == pytest.approx(first.mean, rel=rounding)
    np.testing.assert_allclose(
        [v or 0 for v in chunked.loss_by_log_snr], [v or 0 for v in first.loss_by_log_snr], rtol=1e-5
    )
    assert held_out_loss(EXACT, DATA, seed=4).mean != first.mean


def test_mode_is_restored_and_conditions_follow_the_chunks() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modes: list[bool] = []

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            self.modes.append(self.training)
            return label[:, None].to(x).expand_as(x)

    net = Labelled()
    model = ScoreModel(net, VPSDE())
    labels = torch.arange(10)
    x = torch.zeros(10, 2, dtype=F64)
    whole = held_out_loss(model, x, cond={"label": labels})
    parts = held_out_loss(model, x, cond={"label": labels}, chunk_size=3)
    assert parts.mean == pytest.approx(whole.mean, rel=1e-12)
    assert set(net.modes) == {False}
    assert model.training


def test_transform_of_the_model_is_applied() -> None:
    units = Affine(10.0, 4.0)
    inside = GaussianModel(sde=EXACT.sde, mean=EXACT.moments.mean, covariance=EXACT.moments.covariance)
    inside.transform = units
    data = DATA.double()
    assert held_out_loss(inside, units.inverse(data)).mean == pytest.approx(held_out_loss(EXACT, data).mean, rel=1e-10)


def test_empty_data_are_refused() -> None:
    with pytest.raises(ShapeError, match="data is empty"):
        held_out_loss(EXACT, DATA[:0])
    with pytest.raises(ShapeError, match=r"cond\['label'\]"):
        held_out_loss(EXACT, DATA, cond={"label": torch.zeros(3)})


def test_training_logs_the_loss_by_noise_level_and_of_held_out_data() -> None:
    model = ScoreModel(MLP(2, width=32, depth=1), VPSDE())
    result = fit(
        model, DATA[:1000].float(), held_out=DATA[1000:].float(), steps=60, batch_size=64, log_every=20, save_every=30,
        learning_rate=3e-3, progress=False,
    )  # fmt: skip
    assert [record["step"] for record in result.log] == [20, 30, 40, 60]
    assert ["held_out_loss" in record for record in result.log] == [False, True, False, True]
    # The last held-out loss is that of the averaged weights, at the run's own seed.
    assert result.log[-1]["held_out_loss"] == held_out_loss(result.model, DATA[1000:].float(), seed=0).mean
    assert result.log[-1]["held_out_loss"] < result.log[1]["held_out_loss"]
    edges = LossBins(model.sde, torch.device("cpu")).edges
    for record in result.log:
        np.testing.assert_allclose(record["log_snr"], 0.5 * (edges[1:] + edges[:-1]), atol=1e-6)
    # Each record's loss is the mean over its bins, weighted by how many times fell into them.
    t = torch.linspace(model.sde.t_min, model.sde.t_max, 100_001, dtype=F64)
    shares = torch.bincount(LossBins(model.sde, torch.device("cpu")).find(model.sde.log_snr(t)), minlength=10) / len(t)
    losses = torch.tensor([v or 0.0 for v in result.log[-1]["loss_by_log_snr"]])
    assert float(shares @ losses) == pytest.approx(result.log[-1]["loss"], rel=0.05)


def test_a_random_transform_is_drawn_anew_for_every_batch() -> None:
    seen: list[Tensor] = []

    class Watches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP(1, width=4, depth=1)

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return self.inner(x, c_noise)

    lattice = Dequantise(2, 0.0, 1.0)
    data = torch.tensor([[0.0]])

    def states(transform: object, seed: int = 0) -> Tensor:
        seen.clear()
        model = ScoreModel(Watches(), VPSDE(beta_max=0.2, t_min=1e-5, t_max=2e-5))  # next to no noise
        fit(model, data, steps=50, batch_size=4, transform=transform, seed=seed, progress=False)
        return torch.cat(seen).flatten()

    drawn = states(Compose((lattice, Affine(0.0, 0.5))))
    # One datum, 200 draws of its bin [-1/2, 1/2) in units of 1/2.
    assert float(drawn.min()) < -0.9
    assert float(drawn.max()) > 0.9
    assert float(drawn.mean()) == pytest.approx(0.0, abs=6 / math.sqrt(3 * 200))
    assert torch.equal(drawn, states(Compose((lattice, Affine(0.0, 0.5)))))
    # Without noise in the transform every state is the datum's, but for the diffusion's own little noise.
    assert float(states(Affine(0.0, 0.5)).abs().max()) < 0.05
    assert normal((1,), stream(0)).numel() == 1
