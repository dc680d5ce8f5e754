"""Bridges: torchsde's schemes against our tables, exact laws and orders; scipy and torchdiffeq on the flow; faults."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import SDES, Net, gaussian, slope
from scipy import integrate
from torch import Tensor, nn

from scoresde import (
    SDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    Gaussian,
    GaussianMixtureModel,
    GaussianSDE,
    Langevin,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    SolverError,
    sample,
    solvers,
)
from scoresde.models.scored_sde import ScoredSDE
from scoresde.noise import GeneratorNoise, SampleNoise, TapeNoise, normal, stream
from scoresde.sampling import bridge
from scoresde.sampling.bridge.paths import DRAWS
from scoresde.sampling.flow import solve
from scoresde.solvers import grids

F64 = torch.float64
pytest.importorskip("torchsde")
pytest.importorskip("torchdiffeq")


def mixture(sde: GaussianSDE, event: tuple[int, ...] = (2,)) -> GaussianMixtureModel:
    means = torch.linspace(-1.5, 1.0, 2 * math.prod(event)).reshape(2, *event)
    return GaussianMixtureModel(sde=sde, weights=torch.tensor([0.3, 0.7]), means=means, std=0.5)


def tape(shape: tuple[int, ...], count: int, key: str = "tape") -> list[Tensor]:
    return [normal(shape, stream(3, key, k), dtype=F64) for k in range(count)]


def scaled(sde: GaussianSDE, shape: tuple[int, ...]) -> Tensor:
    return float(sde.prior_std(sde.t_max)) * tape(shape, 1, "start")[0]


# ---------------------------------------------------------------------------------------------------------------------
# A user's own SDEs, with drift and diffusion only


class Relaxation(SDE):
    """dx = -(1 + t) (x - 1/2) dt + sqrt(1 + t) dw: linear, with the exact law below."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        rate = 1 + torch.as_tensor(t, dtype=x.dtype)
        return -rate.reshape(-1, *(1,) * (x.ndim - 1)) * (x - 0.5) if rate.ndim else -rate * (x - 0.5)

    def diffusion(self, t: Tensor | float) -> Tensor:
        return (1 + torch.as_tensor(t, dtype=F64)).sqrt()


LINEAR = Relaxation(t_min=1e-3, t_max=1.2)


def law(mean: float, variance: float, early: float, late: float) -> tuple[float, float]:
    """The law of the linear SDE at ``late``: with A = int (1 + t) dt, dv/dA = -2 v + 1."""
    decay = math.exp(-(late - early) * (1 + (late + early) / 2))
    return 0.5 + (mean - 0.5) * decay, 0.5 + (variance - 0.5) * decay**2


class DoubleWell(SDE):
    """dx = (x - x^3) dt + g dw with the stationary density exp((x^2 - x^4/2)/g^2), up to its mass."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.full_like(torch.as_tensor(t, dtype=F64), 0.7)


WELL = DoubleWell(t_min=1e-3, t_max=1.0)
GRID = np.linspace(-4, 4, 40_001)
DENSITY = np.exp((GRID**2 - GRID**4 / 2) / 0.49)
WELL_CDF = np.cumsum(DENSITY) / DENSITY.sum()


def linear_map(method: str, sde: SDE, times: Tensor) -> np.ndarray:
    """Weights on [1, start state, draw 1, ...] of a linear SDE's last state, read off the real simulation."""
    count = DRAWS[method] * (len(times) - 1)
    unit = torch.eye(2 + count, dtype=F64)
    out = bridge.simulate(sde, unit[1], times, method=method, noise=TapeNoise(list(unit[2:])))[-1]
    return torch.cat([out[:1], out[1:] - out[:1]]).numpy()


def law_error(method: str, sde: SDE, times: Tensor, first: tuple[float, float], last: tuple[float, float]) -> float:
    weights = linear_map(method, sde, times)
    mean, variance = weights[0] + weights[1] * first[0], weights[1] ** 2 * first[1] + (weights[2:] ** 2).sum()
    return math.hypot(mean - last[0], variance - last[1])


def line(early: float, late: float, steps: int) -> Tensor:
    return torch.linspace(early, late, steps + 1, dtype=F64)


# ---------------------------------------------------------------------------------------------------------------------
# torchsde's schemes


@pytest.mark.parametrize("sde", ["vp", "ve", "sub_vp"])
@pytest.mark.parametrize("event", [(), (2,), (1, 2, 2)], ids=str)
def test_torchsdes_euler_is_our_table(sde: str, event: tuple[int, ...]) -> None:
    model = mixture(SDES[sde], event)
    times = grids.uniform()(model.sde, 25)
    shape, options = (3, *event), {"times": times, "final": "sample", "full_output": True}
    x, noise = scaled(model.sde, shape), tape(shape, 25)
    ours = sample(model, x_init=x, noise=noise, solver="euler_maruyama", **options)
    for method in ("euler", "milstein"):
        theirs = sample(model, x_init=x, noise=noise, solver=bridge.TorchSDE(method), **options)
        torch.testing.assert_close(theirs.x, ours.x, rtol=1e-9, atol=1e-9)
        assert torch.equal(theirs.nfe, ours.nfe)
        assert torch.equal(theirs.accepted, ours.accepted)
        assert theirs.rejected.tolist() == theirs.status.tolist() == [0, 0, 0]
        assert theirs.times == pytest.approx(ours.times, abs=1e-15)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_eta_is_the_reverse_familys(eta: float) -> None:
    model, times = mixture(VPSDE()), line(1.0, 0.01, 20)
    x, noise = scaled(model.sde, (3, 2)), tape((3, 2), 20)
    ours = sample(model, x_init=x, noise=noise, solver=solvers.euler_maruyama(eta=eta), times=times, final="sample")
    theirs = sample(
        model, x_init=x, noise=noise if eta else [], solver=bridge.TorchSDE(eta=eta), times=times, final="sample"
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)


def test_a_linear_sde_has_the_law_of_eulers_recursion() -> None:
    times = line(0.1, 1.2, 12)
    mean, variance = 2.0, 0.3
    for early, late in itertools.pairwise(times.tolist()):
        h = late - early
        mean, variance = mean - h * (1 + early) * (mean - 0.5), (1 - h * (1 + early)) ** 2 * variance + h * (1 + early)
    assert law_error("euler", LINEAR, times, (2.0, 0.3), (mean, variance)) < 1e-12


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 2.0)])
def test_forward_simulation_converges_to_the_exact_law(method: str, order: float) -> None:
    first, steps = (2.0, 0.3), (16, 32)
    errors = [law_error(method, LINEAR, line(0.1, 1.2, n), first, law(*first, 0.1, 1.2)) for n in steps]
    assert slope(errors, steps) > order - 0.15
    assert errors[-1] < {"euler": 3e-2, "srk": 1e-3}[method]


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 2.0)])
def test_the_reverse_of_a_users_sde_converges_to_the_exact_law(method: str, order: float) -> None:
    """Gaussian data: the score is linear, and so is the reverse SDE."""
    data = (1.4, 0.2)

    def score(x: Tensor, t: Tensor) -> Tensor:
        laws = torch.tensor([law(*data, 0.1, float(s)) for s in t.reshape(-1)], dtype=F64)
        mean, variance = laws.T if t.ndim else laws[0]
        return -(x - mean) / variance

    steps, reverse = (32, 64), LINEAR.reverse(score)
    errors = [law_error(method, reverse, line(1.2, 0.1, n), law(*data, 0.1, 1.2), data) for n in steps]
    assert slope(errors, steps) > order - 0.15
    assert errors[-1] < {"euler": 3e-2, "srk": 1e-3}[method]


class Coarse:
    """A fine path's increments and their time integrals over ``every`` steps of length h, as draws of coarse steps."""

    def __init__(self, h: float, every: int, both: bool) -> None:
        self.h, self.every, self.both, self.step, self.pending = h, every, both, 0, None

    def fill(self, out: Tensor) -> None:
        if self.pending is not None:
            out.copy_(self.pending)
            self.pending = None
            return
        w, u = torch.zeros_like(out), torch.zeros_like(out)
        for _ in range(self.every):
            z = normal((2, *out.shape), stream(11, self.step), dtype=F64)
            part = math.sqrt(self.h) * z[0]
            u += self.h * w + self.h / 2 * part + math.sqrt(self.h**3 / 12) * z[1]
            w += part
            self.step += 1
        h = self.h * self.every
        out.copy_(w / math.sqrt(h))
        self.pending = (u - h / 2 * w) / math.sqrt(h**3 / 12) if self.both else None


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("srk", 1.5)])
def test_strong_order_on_the_double_well(method: str, order: float) -> None:
    """All grids follow one path; errors against the finest. The noise is additive, so Euler-Maruyama has order 1."""
    x, finest = torch.linspace(-2, 2, 200, dtype=F64)[:, None], 256
    ends = {}
    for steps in (16, 32, 64, finest):
        noise = Coarse(0.999 / finest, finest // steps, method == "srk")
        ends[steps] = bridge.simulate(WELL, x, line(1e-3, 1.0, steps), method=method, noise=noise)[-1]
    errors = [float((ends[n] - ends[finest]).square().mean().sqrt()) for n in (16, 32, 64)]
    # The finest grid has an error of its own, and the part of the error without noise falls faster: both steepen.
    assert order - 0.1 < slope(errors, (16, 32, 64)) < order + 0.45


def kolmogorov(x: Tensor, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    u = np.sort(cdf(x.reshape(-1).numpy()))
    n = len(u)
    return float(max(np.max(np.arange(1, n + 1) / n - u), np.max(u - np.arange(n) / n)) * math.sqrt(n))


def accepted(draw: Callable[[int, int], Tensor], cdf: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Kolmogorov-Smirnov in two stages: alpha 1e-3 with 4000 samples, on rejection 1e-5 with 32 000 new ones."""
    critical = [math.sqrt(-math.log(alpha / 2) / 2) for alpha in (1e-3, 1e-5)]
    return kolmogorov(draw(0, 4000), cdf) < critical[0] or kolmogorov(draw(1, 32_000), cdf) < critical[1]


def well_start(seed: int, n: int) -> Tensor:
    u = torch.special.ndtr(normal((n,), stream(seed, "well"), dtype=F64)).numpy()
    return torch.from_numpy(np.interp(u, WELL_CDF, GRID))[:, None]


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_the_double_well_stays_in_its_stationary_law(backwards: bool) -> None:
    """In the stationary law the score is 2 f/g^2, so that the process reversed in time is the process itself."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return 2 * (x - x**3) / 0.49

    def draw(seed: int, n: int) -> Tensor:
        x = well_start(seed, n)
        if backwards:
            solver = bridge.TorchSDE("srk", dt=0.05)
            return sample(score, sde=WELL, x_init=x, solver=solver, final="sample", seed=seed)
        return bridge.simulate(WELL, x, line(1e-3, 1.0, 20), seed=seed)[-1]

    assert accepted(draw, lambda x: np.interp(x, GRID, WELL_CDF))
    # The test sees a wrong drift: with half the score the reverse SDE has none.
    wrong = bridge.simulate(
        WELL.reverse(lambda x, t: score(x, t) / 2), well_start(0, 4000), line(1.0, 1e-3, 20), seed=0
    )
    assert kolmogorov(wrong[-1], lambda x: np.interp(x, GRID, WELL_CDF)) > 3


# ---------------------------------------------------------------------------------------------------------------------
# Randomness, ends, options


SHAPE = (5, 2)


def path(model: ScoreModel, **options: object) -> Tensor:
    method = options.pop("method", "euler")
    return sample(model, SHAPE, **{"solver": bridge.TorchSDE(method), "steps": 8, "dtype": F64, "seed": 4} | options)


@pytest.mark.parametrize("method", DRAWS)
def test_a_sample_is_the_same_in_any_batch(method: str) -> None:
    model = mixture(VPSDE())
    whole = path(model, method=method)
    assert torch.equal(whole, path(model, method=method))
    assert not torch.equal(whole, path(model, method=method, seed=5))
    torch.testing.assert_close(path(model, method=method, chunk_size=2), whole, rtol=1e-12, atol=1e-12)
    alone = sample(model, (1, 2), solver=bridge.TorchSDE(method), steps=8, dtype=F64, seed=4, first_sample=3)
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-12, atol=1e-12)
    own = sample(model, SHAPE, solver=bridge.TorchSDE(method), steps=8, dtype=F64, seeds=[7, 1, 7, 9, 2])
    assert torch.equal(own[0], own[2])
    assert not torch.equal(own[0], own[1])


def test_simulate_and_sample_walk_the_same_path() -> None:
    model, times = mixture(VPSDE()), line(1.0, 0.01, 6)
    x = scaled(model.sde, SHAPE)
    states = bridge.simulate(model.sde.reverse(model), x, times, method="srk", seed=8)
    r = sample(
        model,
        x_init=x,
        solver=bridge.TorchSDE("srk"),
        times=times,
        seed=8,
        final="sample",
        trajectory=True,
        full_output=True,
    )
    assert torch.equal(states[0], x)
    torch.testing.assert_close(states[-1], r.x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(states, r.trajectory, rtol=1e-13, atol=1e-13)
    assert r.times == tuple(times.tolist())
    # Substeps are steps: every second state of a grid twice as fine.
    half = bridge.simulate(model.sde.reverse(model), x, times[::2], method="srk", substeps=2, seed=8)
    torch.testing.assert_close(half, states[::2], rtol=1e-9, atol=1e-9)
    generator = stream(1)
    again = [bridge.simulate(LINEAR, x, line(0.1, 1, 3), noise=GeneratorNoise(g)) for g in (generator, stream(1))]
    assert torch.equal(*again)


def test_what_final_does_to_a_path() -> None:
    model, times = mixture(VPSDE()), line(1.0, 0.01, 6)
    x, noise = scaled(model.sde, SHAPE), tape(SHAPE, 6)
    runs = {
        final: sample(
            model, x_init=x, noise=noise, solver=bridge.TorchSDE(), times=times, final=final, full_output=True
        )
        for final in ("sample", "mean", "denoise")
    }
    torch.testing.assert_close(runs["denoise"].x, model(runs["sample"].x, 0.01).data, rtol=1e-12, atol=1e-12)
    assert runs["denoise"].times == (*times.tolist(), 0.0)
    assert [int(r.nfe[0]) for r in runs.values()] == [6, 6, 7]
    before = sample(model, x_init=x, noise=noise, solver=bridge.TorchSDE(), times=times[:-1], final="sample")
    mean = before - model.sde.reverse(model).drift(before, times[-2]) * (times[-2] - times[-1])
    torch.testing.assert_close(runs["mean"].x, mean, rtol=1e-12, atol=1e-12)
    # With steps= the last interval is the jump to clean data; dt is the longest step.
    counts = [
        int(sample(model, SHAPE, seed=0, solver=bridge.TorchSDE(dt=dt), full_output=True, **more).nfe[0])
        for dt, more in ((None, {"steps": 7}), (None, {"steps": 7, "final": "sample"}), (0.1, {}), (0.3, {}))
    ]
    assert counts == [7, 7, 11, 5]
    grid = sample(model, SHAPE, seed=0, solver=bridge.TorchSDE(), times=grids.log_snr(5), full_output=True)
    assert grid.times[:-1] == tuple(grids.log_snr(4)(model.sde).tolist())


def test_srk_evaluates_each_stage_once() -> None:
    net = Net(dtype=F64)
    r = sample(ScoreModel(net, VPSDE()), SHAPE, solver=bridge.TorchSDE("srk"), steps=6, seed=0, full_output=True)
    assert len(net.calls) == int(r.nfe[0]) == 5 * 3 + 1


def test_own_sde_with_prior_and_condition() -> None:
    class WithPrior(Relaxation):
        def prior(self, t: Tensor | float | None = None, moments: object = None) -> Gaussian:
            return Gaussian(torch.tensor(float(t)), torch.tensor(0.0))

    seen = []

    def score(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        seen.append((t.dtype, t.shape, float(t[0])))
        return -(x - shift[:, None])

    sde, shift = WithPrior(t_min=0.1, t_max=1.2), torch.tensor([0.0, 5.0, 0.0])
    options = {"sde": sde, "cond": {"shift": shift}, "final": "sample", "seed": 0}
    x = sample(score, (3, 1), solver=bridge.TorchSDE(dt=0.1), **options)
    one = sample(score, (3, 1), solver=bridge.TorchSDE(dt=0.1), **options | {"cond": {"shift": shift[:1].expand(3)}})
    torch.testing.assert_close(x[[0, 2]], one[[0, 2]])
    assert float((x - one)[1].abs()) > 1
    assert seen[0] == (torch.float32, (3,), pytest.approx(1.2))
    start = sample(score, (3, 1), solver=ProbabilityFlow(), times=torch.tensor([1.2]), **options)
    torch.testing.assert_close(start, torch.full((3, 1), 1.2))


# ---------------------------------------------------------------------------------------------------------------------
# The probability flow


def reference(model: ScoreModel, x: Tensor, early: float, late: float) -> Tensor:
    """scipy on dx/dt = alpha' data + sigma' noise at 1e-12, written here."""

    def velocity(t: float, values: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(values).reshape(x.shape)
        return model(now, t).velocity.reshape(-1).numpy()

    return torch.from_numpy(
        integrate.solve_ivp(velocity, (late, early), x.reshape(-1).numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    ).reshape(x.shape)


FLOWS = {
    "ours, dopri5": ProbabilityFlow(rtol=1e-10, atol=1e-10),
    "ours, bosh3": ProbabilityFlow(rtol=1e-8, atol=1e-8, method="bosh3"),
    "scipy RK45": bridge.ScipyODE(rtol=1e-8, atol=1e-8),
    "scipy DOP853": bridge.ScipyODE("DOP853", rtol=1e-9, atol=1e-9),
    "scipy LSODA": bridge.ScipyODE("LSODA", rtol=1e-9, atol=1e-9),
    "torchdiffeq dopri5": bridge.TorchDiffEq(rtol=1e-8, atol=1e-8, together=True),
    "torchdiffeq dopri8": bridge.TorchDiffEq("dopri8", rtol=1e-8, atol=1e-8),
}


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_all_flows_agree_with_scipy_on_a_mixture(sde: str) -> None:
    model = mixture(SDES[sde], (1, 2))
    early = {"vp": 1e-3, "ve": model.sde.t_min}[sde]
    x, times = scaled(model.sde, (2, 1, 2)), torch.tensor([1.0, early], dtype=F64)
    exact = reference(model, x, early, 1.0)
    for name, solver in FLOWS.items():
        got = sample(model, x_init=x, solver=solver, times=times, final="sample", full_output=True)
        assert float((got.x - exact).abs().max()) < 3e-7 * (1 + float(exact.abs().max())), name
        assert got.times == (1.0, early)
    end = sample(model, x_init=x, solver=FLOWS["ours, dopri5"], final="sample")
    heun = [sample(model, x_init=x, solver="heun", times=grids.rectified(n), final="sample") for n in (80, 160)]
    errors = [float((got - end).norm()) for got in heun]
    assert slope(errors, (80, 160)) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    "solver",
    [kind(rtol=1e-9, atol=1e-9) for kind in (ProbabilityFlow, bridge.ScipyODE, bridge.TorchDiffEq)],
    ids=lambda s: type(s).__name__,
)
def test_the_flow_of_a_users_sde_is_the_exact_one(solver: object) -> None:
    """Gaussian laws: the flow keeps the number of standard deviations from the mean."""
    data = (1.4, 0.2)

    def score(x: Tensor, t: Tensor) -> Tensor:
        mean, variance = torch.tensor([law(*data, 0.1, float(s)) for s in t], dtype=F64).T
        return -(x - mean[:, None]) / variance[:, None]

    x = torch.linspace(-1, 3, 5, dtype=F64)[:, None]
    mean, variance = law(*data, 0.1, 1.2)
    times = torch.tensor([1.2, 0.1], dtype=F64)
    got = sample(score, sde=LINEAR, x_init=x, solver=solver, times=times, final="sample")
    torch.testing.assert_close(got, data[0] + (x - mean) * math.sqrt(data[1] / variance), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["RK23", "RK45", "DOP853", "dopri5", "bosh3"])
def test_backends_report_what_they_did(method: str) -> None:
    net = Net(lambda x, k: torch.sin(3 * x), dtype=F64)
    make = bridge.ScipyODE if method in ("RK23", "RK45", "DOP853") else bridge.TorchDiffEq
    stages = {"RK23": 3, "RK45": 6, "DOP853": 12, "dopri5": 6, "bosh3": 3}[method]
    solver = make(method, rtol=1e-3, atol=1e-3)
    r = sample(ScoreModel(net, VPSDE()), (3, 2), solver=solver, seed=1, dtype=F64, full_output=True)
    # Two evaluations choose the first step, one denoises the whole batch.
    assert int(r.nfe.sum()) - 2 == len(net.calls)
    assert torch.equal(r.nfe, 2 + stages * (r.accepted + r.rejected) + 1)
    assert int(r.rejected.sum()) > 0
    assert len(set(r.nfe.tolist())) > 1


def test_samples_are_solved_one_by_one_unless_together() -> None:
    scale = torch.tensor([1.0, 12.0, 1.0])
    net = Net(lambda x, k: torch.sin(x), dtype=F64)
    net.forward = lambda x, c_noise, scale: torch.sin(scale[:, None] * x)
    model, x = ScoreModel(net, VPSDE(), predicts="data"), tape((3, 2), 1)[0]
    options = {"x_init": x, "full_output": True}
    for solver in (bridge.ScipyODE(rtol=1e-3, atol=1e-3), bridge.TorchDiffEq(rtol=1e-3, atol=1e-3)):
        whole = sample(model, solver=solver, cond={"scale": scale}, **options)
        for k in range(3):
            own = {"cond": {"scale": scale[k : k + 1]}, "x_init": x[k : k + 1], "full_output": True}
            alone = sample(model, solver=solver, **own)
            torch.testing.assert_close(alone.x[0], whole.x[k], rtol=1e-12, atol=1e-12)
            assert int(alone.nfe) == int(whole.nfe[k])
        assert int(whole.nfe[1]) > int(whole.nfe[0])
    together = sample(
        model, solver=bridge.TorchDiffEq(rtol=1e-3, atol=1e-3, together=True), cond={"scale": scale}, **options
    )
    assert len(set(together.nfe.tolist())) == 1
    torch.testing.assert_close(together.x[0], whole.x[0], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(together.x, whole.x, rtol=1e-9, atol=1e-9)


def test_no_sample_and_no_interval() -> None:
    net = Net()
    for solver in (bridge.ScipyODE(), bridge.TorchDiffEq(), bridge.TorchDiffEq(together=True)):
        r = solve(solver, ScoreModel(net, VPSDE()), torch.ones(2, 2), 0.5, 0.5)
        assert (r.x.tolist(), r.nfe.tolist()) == ([[1.0, 1.0], [1.0, 1.0]], [0, 0])
        assert solve(solver, ScoreModel(net, VPSDE()), torch.ones(0, 2), 1.0, 0.5).x.shape == (0, 2)
    assert sample(ScoreModel(net, VPSDE()), (0, 2), solver=bridge.TorchSDE()).shape == (0, 2)
    assert net.calls == []


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=F64))

    def forward(self, x: Tensor, c_noise: Tensor, shift: Tensor) -> Tensor:
        return self.weight * torch.tanh(x + 0.1 * c_noise[:, None].to(x)) + shift[:, None]


def gradients(solver: object, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """Of a sum of squares with respect to the start state, the network's parameter and the condition."""
    net = Weighted()
    x, shift = tape((2, 3), 1, "start")[0].requires_grad_(), torch.tensor([0.1, -0.2], dtype=F64, requires_grad=True)
    out = sample(
        ScoreModel(net, VPSDE(), predicts="data"),
        x_init=x,
        cond={"shift": shift},
        solver=solver,
        differentiable=True,
        final="sample",
        **options,
    )
    return torch.autograd.grad(out.square().sum(), (x, net.weight, shift))


def distance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    return max(float((p - q).abs().max() / (1 + q.abs().max())) for p, q in zip(a, b, strict=True))


def test_gradients_through_the_steps_are_the_tables() -> None:
    options = {"times": line(1.0, 0.02, 12), "noise": tape((2, 3), 12)}
    exact = gradients("euler_maruyama", **options)
    assert distance(gradients(bridge.TorchSDE(), **options), exact) < 1e-9


def test_adjoint_gradients_converge_with_the_step() -> None:
    errors = []
    for steps in (25, 100):
        options = {"times": line(1.0, 0.1, steps), "seed": 3}
        exact = gradients(bridge.TorchSDE(), **options)
        errors.append(distance(gradients(bridge.TorchSDE(adjoint=True), **options), exact))
    assert errors[1] < 0.4 * errors[0]
    assert 0 < errors[1] < 0.05


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_the_flow_are_the_exact_flows(adjoint: bool) -> None:
    """For Gaussian data the flow is affine with the slope sqrt(V_end/V_start)."""
    model = gaussian()
    x = torch.tensor([-1.0, 0.3], dtype=F64, requires_grad=True)
    solver = bridge.TorchDiffEq(rtol=1e-8, atol=1e-8, adjoint=adjoint)
    out = sample(model, x_init=x, solver=solver, times=line(1.0, 0.1, 1), final="sample", differentiable=True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    with torch.no_grad():
        ends = model.flow(torch.tensor([0.0, 1.0], dtype=F64), 1.0, 0.1)
    torch.testing.assert_close(gradient, (ends[1] - ends[0]).expand(2), rtol=1e-6, atol=0)


def test_adjoint_and_direct_gradients_of_the_flow_agree() -> None:
    options = {"times": torch.tensor([1.0, 0.1], dtype=F64)}
    direct = gradients(bridge.TorchDiffEq(rtol=1e-7, atol=1e-7), **options)
    for together in (False, True):
        adjoint = gradients(bridge.TorchDiffEq(rtol=1e-7, atol=1e-7, adjoint=True, together=together), **options)
        assert distance(adjoint, direct) < 2e-6
    assert min(float(g.abs().max()) for g in direct) > 1e-3


def test_simulate_passes_gradients_to_what_the_sde_holds() -> None:
    rate = torch.tensor(1.3, dtype=F64, requires_grad=True)

    class Learned(SDE):
        def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
            return -rate * x

        def diffusion(self, t: Tensor | float) -> Tensor:
            return torch.tensor(0.0, dtype=F64)

    sde, x = Learned(t_min=1e-3, t_max=1.0), torch.ones(1, 1, dtype=F64)
    for adjoint, tolerance in ((None, 1e-4), ([rate], 2e-2)):
        method = "srk" if adjoint is None else "euler"
        end = bridge.simulate(sde, x, line(0.1, 0.9, 100), method=method, adjoint=adjoint)
        (got,) = torch.autograd.grad(end[-1].sum(), rate)
        assert float(got) == pytest.approx(-0.8 * math.exp(-0.8 * 1.3), rel=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: bridge.TorchSDE("heun"), ConfigError, "unknown method 'heun'.*euler, milstein, srk"),
        (lambda: bridge.TorchSDE(dt=0.0), DomainError, r"dt must lie in \(0, inf\), got 0"),
        (lambda: bridge.TorchSDE(eta=-1.0), DomainError, r"eta must lie in \[0, inf\), got -1"),
        (lambda: bridge.ScipyODE("RK4"), ConfigError, "unknown method 'RK4'; did you mean 'RK45'"),
        (lambda: bridge.ScipyODE(rtol=0.0), DomainError, "rtol must lie in"),
        (lambda: bridge.ScipyODE(max_calls=0), DomainError, "max_calls must be at least 1"),
        (lambda: bridge.TorchDiffEq("rk4"), ConfigError, "unknown method 'rk4'"),
        (lambda: bridge.TorchDiffEq(atol=math.nan), DomainError, "atol"),
        (lambda: bridge.TorchDiffEq(rtol="1"), DTypeError, "rtol must be a number"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize(
    ("package", "make", "words"),
    [
        ("torchsde", bridge.TorchSDE, r'pip install "scoresde\[torchsde\]"'),
        ("torchdiffeq", bridge.TorchDiffEq, r'pip install "scoresde\[torchdiffeq\]"'),
    ],
)
def test_a_missing_package_is_named(
    package: str, make: Callable[[], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=words):
        make()


T = torch.tensor([0.9, 0.2], dtype=F64)
INNER = torch.tensor([0.9, 0.5, 0.2], dtype=F64)
START = {"x_init": torch.ones(2, 1)}
IN_SAMPLE: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "steps and dt": ({"solver": bridge.TorchSDE(dt=0.1), "steps": 3}, ConfigError, r"steps= or TorchSDE\(dt=\)"),
    "times and dt": ({"solver": bridge.TorchSDE(dt=0.1), "times": T}, ConfigError, r"times= or TorchSDE\(dt=\)"),
    "steps and times": ({"solver": bridge.TorchSDE(), "steps": 3, "times": T}, ConfigError, "steps= or a tensor"),
    "no step": ({"solver": bridge.TorchSDE(), "steps": 0}, DomainError, "steps must be at least 1"),
    "rising times": ({"solver": bridge.TorchSDE(), "times": T.flip(0)}, DomainError, r"flip\(0\)"),
    "to t = 0": ({"solver": bridge.TorchSDE(), "times": torch.tensor([0.5, 0.0])}, ConfigError, "end at t > 0"),
    "flow to t = 0": ({"solver": bridge.ScipyODE(), "times": torch.tensor([0.5, 0.0])}, ConfigError, "end at t > 0"),
    "kernels": ({"solver": bridge.TorchSDE(), "kernels": [Langevin()]}, ConfigError, "TorchSDE takes no kernels"),
    "freeze": ({"solver": bridge.TorchSDE(), "on_nonfinite": "freeze"}, ConfigError, "no on_nonfinite='freeze'"),
    "scipy's gradients": ({"solver": bridge.ScipyODE(), "differentiable": True}, ConfigError, "no differentiable"),
    "steps of a flow": ({"solver": bridge.TorchDiffEq(), "steps": 9}, ConfigError, "takes no steps"),
    "grid of a flow": ({"solver": bridge.TorchDiffEq(), "times": grids.uniform(4)}, ConfigError, "no a grid"),
    "final": ({"solver": bridge.TorchSDE(), "final": "end"}, ConfigError, "unknown final 'end'"),
    "tolerance in float32": ({"solver": bridge.TorchDiffEq(rtol=1e-9)}, DomainError, "at least 1.19209e-07"),
    "scipy's tolerance": ({"solver": bridge.ScipyODE(rtol=1e-15)}, DomainError, "rtol"),
    "inner times of scipy's flow": (
        {"solver": bridge.ScipyODE(), "times": INNER},
        ConfigError,
        "two ends, got 3 times",
    ),
    "inner times of a flow": ({"solver": bridge.TorchDiffEq(), "times": INNER}, ConfigError, "two ends, got 3 times"),
    "own SDE with a table": ({"sde": LINEAR, "final": "sample"}, DTypeError, "needs a solver of scoresde.bridge"),
    "own SDE to clean data": ({"sde": LINEAR, "solver": bridge.TorchSDE()}, ConfigError, "pass final='sample'"),
    "own SDE on a grid": (
        {"sde": LINEAR, "solver": bridge.TorchSDE(), "final": "sample", "times": grids.uniform(4)},
        ConfigError,
        "Relaxation has no alpha and sigma for a Grid",
    ),
    "own SDE without prior": (
        {"sde": LINEAR, "solver": bridge.TorchSDE(), "final": "sample", "x_init": None, "shape": (2, 1)},
        ConfigError,
        "Relaxation names no prior; pass prior= or x_init=",
    ),
}


@pytest.mark.parametrize("case", IN_SAMPLE)
def test_what_a_bridge_cannot_do_is_refused_before_any_call(case: str) -> None:
    options, kind, words = IN_SAMPLE[case]

    def score(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    with pytest.raises(kind, match=words):
        sample(score, **{"sde": VPSDE()} | START | options)


def test_a_score_model_has_no_meaning_under_a_plain_sde() -> None:
    with pytest.raises(ConfigError, match="Relaxation has no alpha and sigma"):
        sample(gaussian(), (2,), sde=LINEAR, solver=bridge.TorchSDE())
    with pytest.raises(DomainError, match="times, not points"):
        solve(ProbabilityFlow(), ScoredSDE(lambda x, t: x, LINEAR), torch.ones(1, 1), VPSDE().at(1.0), 0.5)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"times": line(1.0, 0.1, 3)}, DomainError, r"times must increase, from data to noise.*flip\(0\)"),
        ({"times": torch.tensor([0.1, 0.5, 0.4])}, DomainError, "must increase; it falls at index 2"),
        ({"times": torch.tensor([0.0, 0.5])}, DomainError, "must lie in"),
        ({"times": torch.tensor([0.1, 2.0])}, DomainError, "must lie in"),
        ({"times": [0.1, 0.5]}, DTypeError, "must be a floating tensor"),
        ({"x0": torch.tensor(1.0)}, ShapeError, "0-d"),
        ({"x0": torch.tensor([math.nan])}, DomainError, "x0 has 1 non-finite"),
        ({"method": "midpoint"}, ConfigError, "unknown method"),
        ({"substeps": 0}, DomainError, "substeps must be at least 1"),
        ({"seed": 1, "noise": SampleNoise(1)}, ConfigError, "seed and noise"),
        ({"seed": -1}, DomainError, "seed must lie in"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_simulate_checks_its_arguments(options: dict[str, object], kind: type[Exception], words: str) -> None:
    arguments = {"x0": torch.ones(2, 1), "times": line(0.1, 1.0, 3)} | options
    with pytest.raises(kind, match=words):
        bridge.simulate(LINEAR, **arguments)


@pytest.mark.parametrize("solver", [bridge.TorchSDE(), bridge.TorchSDE("srk", dt=0.1, eta=0.0)], ids=str)
def test_a_reverse_sde_starts_below_alpha_0(solver: bridge.TorchSDE) -> None:
    net, sde = Net(dtype=F64), RectifiedFlow()
    model = ScoreModel(net, sde, predicts="v")
    words = "^alpha is 0 at t = 1, where the reverse drift and the diffusion are infinite: start below it with times="
    with pytest.raises(DomainError, match=words):
        sample(model, (2, 2), solver=solver, seed=0)
    with pytest.raises(DomainError, match=words):
        bridge.simulate(sde.reverse(model), torch.ones(2, 2), torch.tensor([1.0, 0.5]), seed=0)
    assert net.calls == []
    solver = bridge.TorchSDE(solver.method, eta=solver.eta)
    x = sample(model, (8, 2), solver=solver, times=line(0.99, 0.01, 50), seed=0)
    assert bool(torch.isfinite(x).all())


def test_a_state_that_is_not_finite_names_its_step() -> None:
    net = Net(lambda x, k: torch.where(torch.tensor(k >= 3), math.nan, 1.0) * x, dtype=F64)
    with pytest.raises(SolverError, match=r"step 3 of torchsde's euler at t = 0\.7 gave non-finite .* 100\.0%") as e:
        sample(ScoreModel(net, VPSDE()), (4, 2), solver=bridge.TorchSDE(), times=line(1.0, 0.1, 9), seed=0)
    assert e.value.partial.shape == (4, 2)
    assert bool(torch.isfinite(e.value.partial).all())


@pytest.mark.parametrize(
    "solver", [bridge.ScipyODE(), bridge.TorchDiffEq(), bridge.TorchDiffEq(together=True)], ids=str
)
def test_a_failed_flow_raises_with_the_time_reached(solver: object) -> None:
    net = Net(lambda x, k: torch.where(torch.tensor(k > 20), math.nan, 1.0) * x, dtype=F64)
    with pytest.raises(SolverError, match=r"stopped at t = 0\.\d+ .*: the prediction is not finite") as e:
        sample(ScoreModel(net, VPSDE()), (4, 2), solver=solver, seed=0, dtype=F64)
    assert bool(torch.isfinite(e.value.partial).all())
    few = type(solver)(max_calls=5)
    with pytest.raises(SolverError, match=r"stopped at t = .*max_calls = 5 is used up; loosen"):
        sample(gaussian(), (4,), solver=few, seed=0)


@pytest.mark.parametrize("solver", [bridge.ScipyODE(), bridge.TorchDiffEq()], ids=str)
def test_a_step_that_underflows_stops_the_flow(solver: object) -> None:
    net = Net(dtype=F64)
    net.act = lambda x, k: x + 1 / net.calls[-1][1]
    words = r"scipy's RK45 stopped at t = 0\.25896|torchdiffeq's dopri5 stopped: underflow"
    with pytest.raises(SolverError, match=words):
        sample(ScoreModel(net, VPSDE()), (1, 2), solver=solver, seed=0, dtype=F64)
