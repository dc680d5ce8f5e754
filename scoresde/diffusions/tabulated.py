r"""Tabulated diffusions: two curves through given knots.

log_snr (and log alpha, where it is not variance preserving) is a monotone cubic between the knots (Fritsch and Carlson
1980, "Monotone piecewise cubic interpolation"), so that drift and diffusion exist there.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scoresde.diffusions.curves import curve, in_float64
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import DomainError, ShapeError
from scoresde.ops import time_derivative

__all__ = ["TabulatedSDE"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class TabulatedSDE(GaussianSDE):
    """A diffusion through given knots: log_snr (and log_alpha) by monotone cubic interpolation in t.

    The interpolant (Fritsch and Carlson 1980, "Monotone piecewise cubic interpolation") passes through the knots
    exactly and has a continuous derivative, so that drift and diffusion exist between them. t = 0 is clean data
    (alpha = 1, sigma = 0), legal where any SDE takes it: as an earlier time s and as the last time of a grid.

    Args:
        t: increasing times of the knots, at least two, in (0, inf).
        log_snr: decreasing log(alpha^2/sigma^2) at the knots.
        log_alpha: not increasing log alpha at the knots; by default variance preserving, alpha^2 = sigmoid(log_snr).

    Raises:
        ShapeError: the knots are not vectors of one length. DomainError: not finite or not monotone.
    """

    knots: Tensor
    knot_log_snr: Tensor
    knot_log_alpha: Tensor | None

    def __init__(self, t: Tensor, log_snr: Tensor, log_alpha: Tensor | None = None) -> None:
        given = (t, log_snr) if log_alpha is None else (t, log_snr, log_alpha)
        curves = [torch.as_tensor(c).detach().to("cpu", torch.float64) for c in given]
        for name, values in zip(("t", "log_snr", "log_alpha"), curves, strict=False):
            if values.shape != curves[0].shape or values.ndim != 1 or len(values) < 2:
                raise ShapeError(
                    f"{name} must be a vector of at least two knots, one for each t, got {tuple(values.shape)}"
                )
            steps = values.diff()
            wrong = ~(steps > 0) if name == "t" else ~(steps < 0) if name == "log_snr" else ~(steps <= 0)
            if not torch.isfinite(values).all() or wrong.any():
                way = "increase" if name == "t" else "decrease"
                raise DomainError(f"{name} must be finite and {way} along the knots")
        if curves[0][0] <= 0:
            raise DomainError(f"t must start above 0, got {float(curves[0][0]):g}")
        put = object.__setattr__
        put(self, "t_min", float(curves[0][0]))
        put(self, "t_max", float(curves[0][-1]))
        put(self, "knots", curves[0])
        put(self, "knot_log_snr", curves[1])
        put(self, "knot_log_alpha", None if log_alpha is None else curves[2])
        put(self, "_snr_pieces", _fit_pieces(curves[0], curves[1]))
        put(self, "_alpha_pieces", None if log_alpha is None else _fit_pieces(curves[0], curves[2]))

    _snr_pieces: Tensor = dataclasses.field(init=False)
    _alpha_pieces: Tensor | None = dataclasses.field(init=False)

    def __repr__(self) -> str:
        return f"TabulatedSDE({len(self.knots)} knots on [{self.t_min:g}, {self.t_max:g}])"

    def _interpolate(self, t: Tensor, pieces: Tensor, values: Tensor) -> Tensor:
        """Evaluate piecewise cubics at t; the knots themselves return their values to the last bit."""
        knots, pieces, values = self.knots.to(t), pieces.to(t), values.to(t)
        i = (torch.searchsorted(knots, t.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        h = t - knots[i]
        c = pieces[:, i]
        inside = ((c[0] * h + c[1]) * h + c[2]) * h + c[3]
        # The last knot keeps its last bit; the detached correction leaves the derivative alone.
        return inside + torch.where(t == knots[-1], values[-1] - inside, torch.zeros_like(inside)).detach()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return the interpolated log_snr; infinite at t = 0, which lies before the knots and is clean data."""
        inside = self._interpolate(t, self._snr_pieces, self.knot_log_snr)
        return torch.where(t == 0, torch.full_like(inside, math.inf), inside)

    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha: interpolated, or variance preserving, log(sigmoid(log_snr))/2."""
        if self._alpha_pieces is None or self.knot_log_alpha is None:
            return 0.5 * logsigmoid(self.log_snr(t))
        inside = self._interpolate(t, self._alpha_pieces, self.knot_log_alpha)
        return torch.where(t == 0, torch.zeros_like(inside), inside)

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return e^{log_alpha}."""
        return self.log_alpha(t).exp()

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return alpha e^{-log_snr/2}, or sqrt(sigmoid(-log_snr)) when variance preserving."""
        if self._alpha_pieces is None:
            return (0.5 * logsigmoid(-self.log_snr(t))).exp()
        return (self.log_alpha(t) - 0.5 * self.log_snr(t)).exp()

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return sigma sqrt(-d log_snr/dt); the interpolant may be flat at its ends, where rounding has no sign."""
        return self.sigma(t) * (-time_derivative(self.log_snr, t)).clamp_min(0.0).sqrt()

    @curve
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1 when variance preserving, else sigma."""
        return torch.ones_like(t) if self._alpha_pieces is None else self.sigma(t)

    def _log_snr_ends(self) -> tuple[float, float]:
        return float(self.knot_log_snr[-1]), float(self.knot_log_snr[0])

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return the t with this log_snr, by bisection between its knots and Newton's method (clamped to the knots)."""
        knots, values, pieces = self.knots.to(log_snr), self.knot_log_snr.to(log_snr), self._snr_pieces.to(log_snr)
        wanted = log_snr.clamp(values[-1], values[0])
        i = (torch.searchsorted(-values, -wanted.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        c, low, high = pieces[:, i], torch.zeros_like(wanted), knots[i + 1] - knots[i]
        for _ in range(30):
            h = 0.5 * (low + high)
            above = ((c[0] * h + c[1]) * h + c[2]) * h + c[3] > wanted
            low, high = torch.where(above, h, low), torch.where(above, high, h)
        h = 0.5 * (low + high)
        for _ in range(3):
            gap = ((c[0] * h + c[1]) * h + c[2]) * h + c[3] - wanted
            h = (h - gap / ((3 * c[0] * h + 2 * c[1]) * h + c[2])).clamp(low, high)
        # The knots themselves are exact, also where the curve is flat and Newton's method slow.
        inside = torch.where(wanted == values[i], knots[i], knots[i] + h)
        return torch.where(wanted == values[-1], knots[-1], inside)


def _fit_pieces(t: Tensor, values: Tensor) -> Tensor:
    """Return the cubic coefficients (4, n - 1), highest power first, of the monotone interpolant."""
    # Imported here, since it takes longer than the rest of the package together.
    from scipy.interpolate import PchipInterpolator

    return torch.from_numpy(np.ascontiguousarray(PchipInterpolator(t.numpy(), values.numpy()).c))
