"""Figures that several files of tests look at."""

from __future__ import annotations

from torch import Tensor

from scoresde.metrics import Comparison
from scoresde.noise import stream, uniform
from scoresde.solvers.rows import Knot, Row
from scoresde.solvers.tableau import Tableau


def images(*shape: int) -> Tensor:
    return 2 * uniform(shape, stream(2, "images")) - 1


def row(sampler: str, nfe: float, value: float, *, floor: float | None = 0.03, samples: int = 500) -> Comparison:
    return Comparison(
        sampler=sampler,
        nfe=nfe,
        seconds=nfe / 50,
        samples=samples,
        distances={"sliced_wasserstein": value, "share": 0.8},
        floors={} if floor is None else {"sliced_wasserstein": floor},
        floor_stds={} if floor is None else {"sliced_wasserstein": 0.004},
    )


ROWS = [
    row("ddim", 20, 0.08),
    row("heun", 40, 0.05),
    row("ddim", 10, 0.2),
    row("ddpm", 1000, 0.06, floor=0.05, samples=100),
]


def table() -> Tableau:
    knots = [Knot(t, 1.0 - t / 2, t) for t in (1.0, 0.5, 0.25)]
    rows = (
        Row(knots[0], (0.9, 0.1), anchor=(1.0,), noise=(0.3,)),
        Row(knots[1], (0.8, -0.2, 0.05), noise=(0.2, 0.1)),
        Row(knots[2], (0.7, 0.3), restart=True),
    )
    return Tableau("by hand", "data", rows, knots[0], Knot(0.0, 1.0, 0.0), 1.0)
