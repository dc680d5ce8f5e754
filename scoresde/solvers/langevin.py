r"""Annealed Langevin dynamics: Langevin steps at one noise level after another, as a table.

At a level (alpha, sigma) one step of size a = c sigma^2 is

    x <- x + a score + sqrt(2 a) z = x - c sigma noise + sqrt(2 c) sigma z.

In the coordinates y = x/alpha, where every diffusion only adds noise, it is the same step with sigma/alpha in the place
of sigma; y stays as it is between levels, so x is scaled by the ratio of the alphas there. Nothing depends on the data:
the sizes are scheduled and each step is a row. The published forms count their step differently:

| source | step | c |
|---|---|---|
| NCSN (Song and Ermon 2019, alg. 1) | x + a_i/2 score + sqrt(a_i) z | epsilon/(2 sigma_L^2) |
| NCSNv2 (Song and Ermon 2020, alg. 1) | x + a_i score + sqrt(2 a_i) z | epsilon/sigma_L^2 |
| corrector (Song et al. 2021, alg. 4), the ratio of norms at its level | x + e score + sqrt(2 e) z | 2 snr^2 |

with a_i = epsilon sigma_i^2/sigma_L^2 and e = 2 (snr sigma)^2. NCSN's own numbers, epsilon = 2e-5 and sigma_L = 0.01,
are c = 0.1.

*Technique 4* of NCSNv2 chooses c by the law at a single data point, where a step is y <- (1 - c) y + sqrt(2 c) nu z
with nu = sigma/alpha. Coming from the level before with the variance gamma^2 nu^2, gamma the ratio of the two nu, T
steps leave nu^2 times

    f(c) = (1 - c)^{2T} (gamma^2 - w) + w,     w = 2c/(1 - (1 - c)^2) = 1/(1 - c/2),

which is above 1 for every c in (0, 1); c is where it is smallest. Steps with c >= 2 diverge at a single point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.errors.kinds import DomainError
from scoresde.errors.values import keep_integer, keep_number
from scoresde.solvers.grids import Grid, log_snr
from scoresde.solvers.rows import Knot, Row
from scoresde.solvers.solver import PointMethod, Solver
from scoresde.solvers.tableau import Tableau

NCSN_STEP = 0.1


def choose_step(gamma: Tensor, repeats: int) -> Tensor:
    """Return the step c in (0, 1), in units of sigma^2, that minimises f(c) of NCSNv2's technique 4.

    Source: Song and Ermon 2020, "Improved techniques for training score-based generative models", arXiv:2006.09011,
    proposition 3.

    Args:
        gamma: ratio of sigma/alpha at the level before and at the level, above 1, any shape, float64.
        repeats: Langevin steps at the level, T.
    """
    ratio = gamma.numpy()
    low, high = np.zeros_like(ratio), np.ones_like(ratio)
    for _ in range(36):
        c = 0.5 * (low + high)
        w, left = 1 / (1 - 0.5 * c), (1 - c) ** (2 * repeats - 1)
        # f' is negative at 0 and positive at 1; w' = w^2/2.
        rising = 0.5 * w * w * (1 - left * (1 - c)) > 2 * repeats * left * (ratio * ratio - w)
        low, high = np.where(rising, low, c), np.where(rising, c, high)
    middle: Tensor | float = 0.5 * (low + high)
    return middle if isinstance(middle, Tensor) else torch.tensor(middle, dtype=torch.float64, device="cpu")


def _check_levels(levels: list[Knot], name: str) -> None:
    if any(level.alpha == 0 for level in levels):
        raise DomainError(
            f"{name} keeps x/alpha from level to level, and alpha is 0 at t = {levels[0].t:g}; start below it, e.g. "
            "with an SDE of a smaller t_max"
        )


def _close(table: Tableau, knots: list[Knot]) -> Tableau:
    """Add the jump to clean data where the last knot is that."""
    return table.denoised() if knots[-1].sigma == 0 else table


def annealed_langevin(*, repeats: int = 5, step: float | None = None, grid: Grid | None = None) -> Solver:
    """Return annealed Langevin dynamics: ``repeats`` Langevin steps at every time of the grid, from the prior down.

    The end of ``final="denoise"`` is NCSNv2's last step, x + sigma^2 score, the data prediction; ``final="sample"`` is
    NCSN's end. The native grid, uniform in log-SNR, has geometric levels, as both have. With ``step = 2 snr^2`` these
    are the steps of ``Langevin(snr, norms="level")`` with no predictor between.

    The result is no discretisation of the reverse SDE: no order in the grid's steps is declared.

    Source: Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution",
    arXiv:1907.05600, alg. 1; Song and Ermon 2020, "Improved techniques for training score-based generative models",
    arXiv:2006.09011.

    Args:
        repeats: Langevin steps at each level (100 in NCSN, 3 to 5 in NCSNv2).
        step: their size a in units of sigma^2, in (0, 2); see the module's docstring for the papers' epsilon. By
            default the size of NCSNv2's technique 4, level by level (0.1 where there is but one level).
        grid: native time grid.

    Raises:
        DTypeError, DomainError: options out of range; when built, a level at which alpha is 0.
    """
    build = AnnealedLangevin(repeats, step)
    return Solver("annealed_langevin", build, log_snr() if grid is None else grid, repeats, paper="Song and Ermon 2020")


@dataclass(frozen=True)
class AnnealedLangevin(PointMethod):
    """Langevin steps at every level; ``annealed_langevin`` has the options.

    A last point with sigma = 0 is no level: the jump to it is the data prediction.
    """

    repeats: int
    step: float | None

    def __post_init__(self) -> None:
        keep_integer(self, "repeats", 1)
        if self.step is not None:
            keep_number(self, "step", 0.0, 2.0, open_low=True, open_high=True)

    def __str__(self) -> str:
        size = "NCSNv2 size" if self.step is None else f"{self.step:g} sigma^2"
        return f"{self.repeats} steps of {size} a level"

    def on(self, points: Point, prior_std: float) -> Tableau:
        knots = Knot.of(points)
        levels = [k for k in knots if k.sigma > 0]
        _check_levels(levels, "annealed Langevin")
        rows = []
        for i, (level, c) in enumerate(zip(levels, self._choose_sizes(points[: len(levels)]), strict=True)):
            for k in range(self.repeats):
                ratio = levels[i + 1].alpha / level.alpha if k + 1 == self.repeats and i + 1 < len(levels) else 1.0
                noise = (ratio * (2 * c) ** 0.5 * level.sigma,)
                rows.append(Row(level, (ratio, -ratio * c * level.sigma), noise=noise))
        name = f"annealed_langevin ({self})"
        return _close(Tableau(name, "noise", tuple(rows), knots[0], (levels or knots)[-1], prior_std), knots)

    def _choose_sizes(self, points: Point) -> list[float]:
        if self.step is None and len(points.t) > 1:
            chosen: list[float] = choose_step((0.5 * points.log_snr.diff()).exp(), self.repeats).tolist()
            # No level stands before the first one, where the start state is: it takes the next one's size.
            return [chosen[0], *chosen]
        return [NCSN_STEP if self.step is None else self.step] * len(points.t)


def corrector_only(*, grid: Grid | None = None) -> Solver:
    """Return the predictor that does nothing: x/alpha stays as it is from one time to the next.

    With ``kernels=[Langevin(...)]`` it is the sampler of Song et al. 2021, arXiv:2011.13456, without a predictor
    ("corrector only"), with any of the kernel's norms. The model is asked once more at each time than the kernels ask
    it, and that answer is not used; where the norms are the level's, ``annealed_langevin`` has the same steps without
    that.

    Args:
        grid: native time grid; uniform in log-SNR by default.
    """
    return Solver("corrector_only", _CorrectorOnly(), log_snr() if grid is None else grid, 1, paper="Song et al. 2021")


@dataclass(frozen=True)
class _CorrectorOnly(PointMethod):
    """x/alpha stays as it is."""

    def __str__(self) -> str:
        return ""

    def on(self, points: Point, prior_std: float) -> Tableau:
        knots = Knot.of(points)
        levels = [k for k in knots if k.sigma > 0]
        _check_levels(levels, "corrector_only")
        rows = tuple(Row(late, (early.alpha / late.alpha,)) for late, early in itertools.pairwise(levels))
        return _close(Tableau("corrector_only", "noise", rows, knots[0], (levels or knots)[-1], prior_std), knots)
