"""Networks of other libraries: what they are told, what they answer, and that samples are those of their own loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    DDPM,
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    adapt,
    fit,
    sample,
)
from scoresde.data import moons
from scoresde.models.networks import Around, Gradient
from scoresde.nn import MLP
from scoresde.noise import normal, stream

F64 = torch.float64
CHAIN = DDPM.linear(100)
MEAN, COVARIANCE = torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)


def gaussian(sde: Any) -> GaussianModel:
    return GaussianModel(sde=sde, mean=MEAN, covariance=COVARIANCE)


class Says(nn.Module):
    """A network of another library: it answers for a Gaussian, and keeps what it was told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.told = answer, []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, time: Tensor) -> Any:
        self.told.append(time.detach().clone())
        return self.weight * self.answer(x, time)


@pytest.mark.parametrize("kind", ["noise", "data", "v"])
@pytest.mark.parametrize("whole", [False, True])
def test_indices_of_a_chain(kind: str, whole: bool) -> None:
    exact = gaussian(CHAIN.sde())

    def answer(x: Tensor, index: Tensor) -> Tensor:
        return exact(x, (index.double() + 1) / 100).view(kind).to(x)

    net = Says(answer)
    model = adapt(net, time="index", betas=CHAIN.betas, predicts=kind, whole=whole)
    z = normal((5, 2), stream(0), dtype=F64)
    for table in (CHAIN.ddim(), CHAIN.strided(20).ddim()):
        net.told.clear()
        with torch.no_grad():
            x = sample(model, x_init=z, solver=table)
        assert all(bool((told == told.round()).all()) for told in net.told), "at the knots it is told whole numbers"
        assert net.told[0].tolist() == [99] * 5
        assert net.told[0].dtype == (torch.int64 if whole else torch.float32)
        torch.testing.assert_close(x, sample(exact, x_init=z, solver=table), rtol=0, atol=1e-6)
    # Between the knots too, by any solver.
    x = sample(model, x_init=z, solver="flow_abm", steps=20)
    torch.testing.assert_close(
        x.detach(), sample(exact, x_init=z, solver="flow_abm", steps=20), rtol=0, atol=0.1 if whole else 1e-5
    )


def test_times_levels_and_edms_preconditioning() -> None:
    z = normal((5, 2), stream(0), dtype=F64)
    vp, edm = gaussian(VPSDE()), gaussian(EDMSDE())
    by_time = adapt(Says(lambda x, t: vp(x, t.double()).score.to(x)), time="time", predicts="score")
    denoiser = adapt(Says(lambda x, sigma: edm(x, sigma.double()).data.to(x)), time="sigma")
    for model, exact, start in ((by_time, vp, z), (denoiser, edm, 80 * z)):
        with torch.no_grad():
            x = sample(model, x_init=start, solver="heun", steps=20)
        torch.testing.assert_close(x, sample(exact, x_init=start, solver="heun", steps=20), rtol=0, atol=1e-5)

    # Told sigma on a diffusion whose time is another, too.
    ve = gaussian(VESDE())
    told = Says(lambda x, sigma: ve(x, ve.sde.time(-2 * sigma.double().log())).data.to(x))
    model = adapt(told, time="sigma", sde=ve.sde)
    start = ve.sde.sigma(1.0) * z
    with torch.no_grad():
        x = sample(model, x_init=start, solver="heun", steps=20)
    torch.testing.assert_close(x, sample(ve, x_init=start, solver="heun", steps=20), rtol=0, atol=1e-4)
    assert float(told.told[0].max()) == pytest.approx(50.0, rel=1e-5)

    def preconditioned(scaled: Tensor, c_noise: Tensor) -> Tensor:
        # F of EDM's equation 7, with sigma_data = 0.5, for D of the Gaussian.
        sigma = (4 * c_noise.double()).exp()[:, None]
        width = (sigma**2 + 0.25).sqrt()
        x = scaled * width
        skip, out = 0.25 / width**2, 0.5 * sigma / width
        return ((edm(x, sigma[:, 0]).data - skip * x) / out).to(scaled)

    model = adapt(Says(preconditioned), time="edm")
    with torch.no_grad():
        x = sample(model, x_init=80 * z, solver="heun", steps=20)
    torch.testing.assert_close(x, sample(edm, x_init=80 * z, solver="heun", steps=20), rtol=0, atol=1e-5)


def test_flow_matching_runs_the_other_way() -> None:
    flow = gaussian(RectifiedFlow())

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return -flow(x, (1 - t.double()).clamp(1e-5, 1.0)).view("velocity").to(x)  # data - noise at t = 1 - ours

    z = normal((5, 2), stream(0), dtype=F64)
    model = adapt(Says(velocity), time="flow_matching")
    with torch.no_grad():
        x = sample(model, x_init=z, solver="flow_abm", steps=20)
    torch.testing.assert_close(x, sample(flow, x_init=z, solver="flow_abm", steps=20), rtol=0, atol=1e-5)
    # Its own Euler loop from t = 0 to 1 is ours on the same times, but for where ours begins to be a jump to the data.
    y, times = z.clone(), torch.linspace(0, 1, 11, dtype=F64)
    for a, b in itertools.pairwise(times):
        y = y + (b - a) * velocity(y, a.expand(5))
    ours = sample(model, x_init=z, solver="ddim", times=(1 - times[:-1])).detach()
    torch.testing.assert_close(ours, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda x: SimpleNamespace(sample=x), lambda x: (x, None), lambda x: x])
def test_records_and_tuples_are_taken_apart_and_the_network_trains(wrap: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.3 * normal((2, 3), stream(4)))

        def forward(self, x: Tensor, timestep: Tensor) -> Any:
            return wrap(torch.cat([x, timestep[:, None] / 100], 1) @ self.weight.T)

    model = adapt(Net(), time="index", betas=CHAIN.betas)
    done = fit(model, moons(256), steps=30, progress=False)
    assert bool(torch.isfinite(done.losses).all())
    assert not torch.equal(done.losses[:1], done.losses[-1:])
    assert bool(torch.isfinite(sample(done.model, 8, seed=0)).all())


def test_an_adapted_network_is_saved_and_read_with_its_module(tmp_path: Path) -> None:
    def build() -> ScoreModel:
        return adapt(Says(lambda x, i: x * 0.01), time="index", betas=CHAIN.betas)

    model = build()
    model.save(tmp_path / "m")
    again = ScoreModel.load(tmp_path / "m", net=build().net)
    z = normal((3, 2), stream(0))
    assert torch.equal(sample(again, x_init=z, steps=5), sample(model, x_init=z, steps=5))


def test_bad_words() -> None:
    net = Says(lambda x, t: x)
    cases: dict[str, tuple[dict[str, Any], type[Exception]]] = {
        "unknown time 'indices'; did you mean 'index'": ({"time": "indices"}, ConfigError),
        "betas= go with time='index', got time='index' and no betas": ({"time": "index"}, ConfigError),
        "betas= go with time='index', got time='sigma'": ({"time": "sigma", "betas": CHAIN.betas}, ConfigError),
        "is of a diffusion of its own; leave out sde=": ({"time": "edm", "sde": VPSDE()}, ConfigError),
        "answers the velocity data - noise, not 'noise'": ({"time": "flow_matching", "predicts": "noise"}, ConfigError),
        "scales x_0; leave out sde=, and sample under it with": ({"time": "sigma", "sde": VPSDE()}, ConfigError),
        "take time='edm'": ({"time": "sigma", "predicts": "edm"}, ConfigError),
        "betas must be a vector": ({"time": "index", "betas": torch.zeros(2, 2)}, ShapeError),
        "at index 1 it is 2": ({"time": "index", "betas": torch.tensor([0.1, 2.0])}, DomainError),
    }
    for words, (options, kind) in cases.items():
        with pytest.raises(kind, match=words):
            adapt(net, **options)
    with pytest.raises(DTypeError, match="net must be a network"):
        adapt(3, time="time")


@pytest.mark.parametrize("around", [lambda net: adapt(net, time="time").net, Gradient])
def test_a_module_around_a_network_has_it_look_at_its_conditions(around: Callable[[nn.Module], Around]) -> None:
    made = around(MLP(2, width=4, depth=1, classes=3))
    assert made.condition_names == {"label"}
    made.check_conditions(torch.Size((4, 2)), {"label": torch.zeros(4, dtype=torch.long)})
    with pytest.raises(ShapeError, match=r"label must have shape \(4,\)"):
        made.check_conditions(torch.Size((4, 2)), {"label": torch.zeros(3, dtype=torch.long)})
