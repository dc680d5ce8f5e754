"""Paths of the bridge: their exact laws, orders, and stationary laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from bridge_laws import (
    F64,
    GRID,
    LINEAR,
    WELL,
    WELL_CDF,
    law,
    law_error,
    line,
    mixture,
    scaled,
    tape,
)
from helpers import SDES, slope
from torch import Tensor

from scoresde import (
    VPSDE,
    sample,
    solvers,
)
from scoresde.noise import normal, stream
from scoresde.sampling import bridge
from scoresde.solvers import grids

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
