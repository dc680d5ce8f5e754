"""The steps of the adaptive flow are those of an embedded pair under a PI controller, written out anew here."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde import ProbabilityFlow
from scoresde.solvers.adaptive import FIRST_STEP, Field
from scoresde.solvers.pairs import EMBEDDED

F64 = torch.float64
Slope = Callable[[float, float], float]


def integrate(slope: Slope, y: float, span: float, method: str, rtol: float, atol: float) -> tuple[float, int, int]:
    """Carry one number from u = 0 to ``span``; return it with the accepted and the rejected steps.

    Hairer, Norsett and Wanner 1993, II.4: a step is accepted where err <= atol + rtol max(|y|, |y_new|); with e their
    ratio the next one is 0.9 e^(-0.7/q) e_before^(0.4/q) times as long, between a fifth and ten, and after a rejection
    0.9 e^(-1/q) times, at least a tenth.
    """
    pair = EMBEDDED[method]
    u, h, before, accepted, rejected = 0.0, FIRST_STEP * span, 1.0, 0, 0
    while u < span:
        last = 1.01 * h > span - u
        h = span - u if last else h
        slopes = [slope(y, u)]
        for weights in pair.stages:
            new = y + h * math.fsum(w * k for w, k in zip(weights, slopes, strict=True))
            slopes.append(slope(new, u + h * sum(weights)))
        error = h * abs(math.fsum(w * k for w, k in zip(pair.error, slopes, strict=True)))
        size = max(error / (atol + rtol * max(abs(y), abs(new))), 1e-10)
        if size <= 1:
            u, y, accepted = span if last else u + h, new, accepted + 1
            h *= min(10.0, max(0.2, 0.9 * before ** (0.4 / pair.order) * size ** (-0.7 / pair.order)))
            before = max(size, 1e-4)
        else:
            rejected += 1
            h *= max(0.1, 0.9 * size ** (-1 / pair.order))
    return y, accepted, rejected


# From 0 upwards, downwards to nearly 0, round and round, and into a wall: the size of a state at both ends counts.
FIELDS: dict[str, tuple[Slope, float, float]] = {
    "from nothing": (lambda y, u: 30 * u**2 * math.exp(-u) + y, 0.0, 2.0),
    "to nothing": (lambda y, u: -12 * y, 5.0, 2.0),
    "a wave": (lambda y, u: 60 * math.cos(20 * u) - 3 * y, 0.0, 1.5),
    "a wall": (lambda y, u: 40 * (math.tanh(50 * (u - 0.5)) - y), 1.0, 1.0),
}


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("method", ["bosh3", "dopri5"])
@pytest.mark.parametrize("name", FIELDS)
def test_steps_are_accepted_and_scaled_by_the_formula(name: str, method: str, tolerance: float) -> None:
    slope, start, span = FIELDS[name]

    def stages(u: Tensor, rows: Tensor) -> Callable[[int, Tensor], Tensor]:
        def stage(i: int, y: Tensor) -> Tensor:
            at = zip(y.flatten().tolist(), u[i].tolist(), strict=True)
            return torch.tensor([slope(value, time) for value, time in at], dtype=F64).reshape(y.shape)

        return stage

    field = Field(stages, 0.0, span, (1.0, 1.0), lambda u: u, "u")
    atol = 1e-3 * tolerance  # so that the state's own size decides
    flow = ProbabilityFlow(rtol=tolerance, atol=atol, method=method)
    result = flow.integrate(field, torch.tensor([[start]], dtype=F64))
    y, accepted, rejected = integrate(slope, start, span, method, tolerance, atol)
    assert (int(result.accepted[0]), int(result.rejected[0])) == (accepted, rejected)
    assert float(result.x[0, 0]) == pytest.approx(y, rel=1e-9, abs=1e-12)


def test_some_of_these_steps_are_rejected() -> None:
    counts = [integrate(*FIELDS[name], "dopri5", 1e-4, 1e-7)[2] for name in FIELDS]
    assert sum(count > 0 for count in counts) >= 3
