"""A schedule that is learned beside the network: gradients, the variance that falls, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import DATA, F64, same, weights
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    ConfigError,
    GaussianMixtureModel,
    LearnedSchedule,
    Moments,
    ScoreModel,
    denoising_score_matching,
    fit,
)
from scoresde.models import checkpoint
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import Trainer

OPTIONS: dict[str, Any] = {"steps": 12, "batch_size": 20, "progress": False, "save_every": 4}
MIXTURE = GaussianMixtureModel(
    sde=VPSDE(), weights=torch.ones(3), means=torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.2]]), std=0.2
)


def scheduled(units: int = 4, **options: Any) -> ScoreModel:
    net = MLP(2, width=16, depth=1, seed=1).double()
    nn.init.constant_(net.output.weight, 0.1)
    return ScoreModel(net, LearnedSchedule(units, **options))


class Exact(nn.Module):
    """The exact network of a mixture, with a parameter that it does not look at."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.idle = MIXTURE.net, nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.inner(x, c_noise) + 0.0 * self.idle


def bound(trainer: Trainer, x0: Tensor) -> float:
    """The bound of some samples and their noise, for each coordinate and less a constant, with the public loss."""
    model, sde = trainer.model, trainer.model.sde
    x, z = x0[::16], trainer.draw_noise(x0, 0)[::16]
    low, high = float(sde.log_snr(sde.t_max)), float(sde.log_snr(sde.t_min))
    # Gauss and Legendre's rule in log_snr.
    nodes, shares = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(60))
    places = low + (high - low) * (1 + nodes) / 2
    t = sde.time(places).repeat(len(x))
    every = torch.arange(len(x)).repeat_interleave(len(nodes))
    e = denoising_score_matching(model, x[every], weight="simple", t=t, noise=z[every]).reshape(len(x), -1)
    inner = (e * shares).sum(1).mean() * (high - low) / 4
    last = denoising_score_matching(model, x, weight="simple", t=sde.t_min, noise=z).mean()
    snr = sde.log_snr(sde.t_max).exp()
    if model.moments is None:
        variance = 1 / (1 + snr)
        prior = 0.5 * (snr * variance * x0.square().mean() + variance - 1 - variance.log())
    else:
        centred = DATA.double() - DATA.double().mean(0)
        prior = torch.logdet(torch.eye(2, dtype=F64) + snr * centred.T @ centred / len(DATA)) / 4
    return float(inner + 0.5 * (last - high) + prior)


def difference(function: Any, numbers: Tensor, size: float = 1e-5) -> Tensor:
    """Return central differences by each number."""
    out = torch.zeros_like(numbers)
    for k in range(numbers.numel()):
        kept, ends = numbers.view(-1)[k].clone(), []
        for sign in (1, -1):
            numbers.view(-1)[k] = kept + sign * size
            ends.append(function())
        numbers.view(-1)[k] = kept
        out.view(-1)[k] = (ends[0] - ends[1]) / (2 * size)
    return out


@pytest.mark.parametrize(("parts", "moments"), [(1, True), (3, False)])
def test_the_ends_have_the_gradient_of_the_bound(parts: int, moments: bool) -> None:
    trainer = Trainer(scheduled(low=-3.0, high=3.0), accumulate=parts)
    trainer.model.moments = Moments.of(DATA) if moments else None
    x0, sde = DATA[:40].double(), trainer.model.sde
    assert isinstance(sde, LearnedSchedule)
    with torch.no_grad():
        expected = difference(lambda: bound(trainer, x0), sde.ends)
    trainer._backward(x0, None)
    assert trainer.schedule is not None
    torch.testing.assert_close(trainer.schedule.parameters["schedule.ends"].grad, expected, rtol=1e-6, atol=1e-8)
    assert float(expected.abs().min()) > 1e-2
    assert not sde.bends.requires_grad
    assert not sde.ends.requires_grad


def test_the_shape_has_the_gradient_of_the_mean_square() -> None:
    """int L^2 dt of fixed data and noise, at evenly spaced times; the losses of a step are all that it takes."""
    trainer = Trainer(scheduled(low=-6.0, high=5.0))
    sde, schedule = trainer.model.sde, trainer.schedule
    assert isinstance(sde, LearnedSchedule)
    assert schedule is not None
    x0, z = (
        DATA[:3].double().repeat_interleave(2000, 0),
        normal((3, 2), stream(1), dtype=F64).repeat_interleave(2000, 0),
    )
    t = (sde.t_min + (sde.t_max - sde.t_min) * (torch.arange(2000, dtype=F64) + 0.5) / 2000).repeat(3)

    def squares() -> Tensor:
        return denoising_score_matching(trainer.model, x0, weight="likelihood", t=t, noise=z).square()

    with torch.no_grad():
        expected = difference(lambda: float(squares().mean().log()), sde.bends)
        found = schedule.of_shape(t, squares()) / squares().sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(expected.abs().max()) > 1e-2
    # A step takes it from its own losses, in parts or whole.
    for parts in (1, 3):
        one = Trainer(trainer.model, accumulate=parts)
        data, draws = DATA[:40].double(), one.draw_times(40, 0)
        noise = one.draw_noise(data, 0)
        losses = denoising_score_matching(one.model, data, weight="likelihood", t=draws, noise=noise).detach()
        one._backward(data, None)
        assert one.schedule is not None
        expected = schedule.of_shape(draws, losses.square()) / losses.square().sum()
        torch.testing.assert_close(one.schedule.parameters["schedule.bends"].grad, expected, rtol=1e-9, atol=1e-12)


def square_of_loss(sde: LearnedSchedule, x0: Tensor, z: Tensor, count: int = 100) -> float:
    """Return (t_max - t_min)^2 E[L^2] of the exact model, t by the midpoint rule."""
    total = 0.0
    for t in sde.t_min + (sde.t_max - sde.t_min) * (torch.arange(count, dtype=F64) + 0.5) / count:
        losses = denoising_score_matching(MIXTURE.with_sde(sde), x0, weight="likelihood", t=t, noise=z)
        total += float(losses.square().mean()) / count
    return total * (sde.t_max - sde.t_min) ** 2


def test_the_variance_falls_towards_the_least_that_there_is() -> None:
    """An exact network stays as it is, as does the bound; E[L^2] >= (int sqrt(E[e^2]) d lambda/2)^2."""
    sde = LearnedSchedule(8, low=-8.0, high=9.0, learn_ends=False)
    data = MIXTURE.sample_data(4000, stream(0, "mixture")).double()
    x0, z = data[:500], normal((500, 2), stream(1, "noise"), dtype=F64)
    before = square_of_loss(sde, x0, z)
    places = torch.linspace(-8, 9, 100, dtype=F64)
    flat = LearnedSchedule(1, low=-8.0, high=9.0)
    errors = [
        denoising_score_matching(MIXTURE.with_sde(flat), x0, weight="simple", t=flat.time(p), noise=z) for p in places
    ]
    roots = torch.stack([e.square().mean().sqrt() for e in errors])
    least = float(torch.trapezoid(roots, places) / 2) ** 2
    model = ScoreModel(Exact(), sde, predicts="v")
    result = fit(model, data, steps=200, batch_size=256, learning_rate=1e-2, warmup=10, calibrate=False, progress=False)
    after = square_of_loss(sde, x0, z)
    assert least < before
    assert least * 0.99 < after < least + 0.3 * (before - least)
    assert sde.ends.tolist() == [-8.0, 9.0]
    learned = result.model.sde
    assert learned is result.model.trained_sde
    assert learned is not sde
    assert isinstance(learned, LearnedSchedule)
    assert torch.equal(learned.bends, sde.bends)
    assert (result.weight, result.times) == ("likelihood", "low_discrepancy")


def test_ends_go_where_the_bound_is_less() -> None:
    """Data N(0, 1) under the exact noise prediction: e = SNR/(1 + SNR), whatever low is; the bound falls with high."""

    class Normal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.zeros(1, dtype=F64))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.sigmoid(-c_noise).sqrt()[:, None] * x + 0.0 * self.idle

    data = normal((4096, 2), stream(3), dtype=F64)
    model = ScoreModel(Normal(), LearnedSchedule(4, low=-5.0, high=1.0))
    fit(
        model,
        data,
        steps=60,
        batch_size=1024,
        learning_rate=2e-3,
        moments=Moments.exact(torch.zeros(2), torch.ones(2)),
        calibrate=False,
        progress=False,
    )
    assert isinstance(model.sde, LearnedSchedule)
    low, high = model.sde.ends.tolist()
    assert high > 1.2
    # Its gradient on low is noise alone, of which Adam makes a random walk.
    assert abs(low + 5.0) < 0.6


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def look(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Stop

    return look


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole, cut = scheduled(), scheduled()
    one = fit(whole, DATA, folder=tmp_path / "whole", **OPTIONS)
    with pytest.raises(Stop):
        fit(scheduled(), DATA, folder=tmp_path / "cut", log_every=1, on_log=stop_at(9), **OPTIONS)
    two = fit(cut, DATA, folder=tmp_path / "cut", resume=True, **OPTIONS)
    assert same(weights(whole), weights(cut))
    assert isinstance(whole.sde, LearnedSchedule)
    assert isinstance(cut.sde, LearnedSchedule)
    assert same([whole.sde.ends, whole.sde.bends], [cut.sde.ends, cut.sde.bends])
    assert not torch.equal(whole.sde.bends, LearnedSchedule(4).bends)
    assert not torch.equal(whole.sde.ends, LearnedSchedule(4).ends)
    assert [r["log_snr"] for r in one.log][-1] == [r["log_snr"] for r in two.log][-1]
    loaded = ScoreModel.load(tmp_path / "cut").sde
    assert isinstance(loaded, LearnedSchedule)
    assert same([loaded.ends, loaded.bends], [cut.sde.ends, cut.sde.bends])
    kept = loaded.bends.clone()
    # Another training of the same model changes its schedule, and not that of the first result.
    fit(whole, DATA, **OPTIONS)
    assert isinstance(one.model.sde, LearnedSchedule)
    assert torch.equal(one.model.sde.bends, kept)
    assert not torch.equal(whole.sde.bends, kept)
    with pytest.raises(ConfigError, match="is the run of another model: sde"):
        fit(scheduled(5), DATA, folder=tmp_path / "cut", resume=True, **OPTIONS)
    state = checkpoint.read(tmp_path / "cut" / "checkpoint").tensors("training_state")
    assert {"value.schedule.ends", "exp_avg.schedule.bends"} <= state.keys()


def test_a_step_that_is_left_out_leaves_the_schedule() -> None:
    trainer = Trainer(scheduled())
    assert isinstance(trainer.model.sde, LearnedSchedule)
    first = trainer.model.sde.bends.clone()
    x0 = DATA[:20].double()
    x0[3] = torch.nan
    trainer(x0)
    assert bool(trainer.skipped)
    assert torch.equal(trainer.model.sde.bends, first)
    trainer(DATA[:20].double())
    assert not torch.equal(trainer.model.sde.bends, first)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({}, {"objective": lambda m, x, g, c: x.sum(1)}, "not from an objective=; train under sde.tabulated"),
        ({}, {"uncertainty": True}, "uncertainty= takes the weight of log-SNR out"),
        ({}, {"weight": "simple"}, "learns under weight='likelihood'"),
        ({}, {"weight": lambda point, sde: point.alpha}, "learns under weight='likelihood'"),
        ({}, {"times": "log_snr"}, "uniform in t, 'low_discrepancy' or 'uniform'"),
        ({"predicts": "velocity"}, {}, "must mean the same at equal log_snr"),
        ({"condition_on": "time"}, {}, "must mean the same at equal log_snr"),
    ],
)
def test_what_cannot_be_learned_with_is_refused(model: Any, options: Any, message: str) -> None:
    made = ScoreModel(MLP(2, width=8, depth=1), LearnedSchedule(), **model)
    with pytest.raises(ConfigError, match=message):
        fit(made, DATA, **options, **OPTIONS)
