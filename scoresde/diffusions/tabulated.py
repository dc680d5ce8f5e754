r"""Tabulated diffusions: two curves through given knots.

log_snr (and log alpha, where it is not variance preserving) is a monotone cubic between the knots (Fritsch and Carlson
1980, "Monotone piecewise cubic interpolation"), so that drift and diffusion exist there.

At the last knot alpha may be 0, and log_snr minus infinity ("zero terminal SNR", Lin et al. 2024, "Common diffusion
noise schedules and sample steps are flawed", arXiv:2305.08891). Between the knot before it, a, and this one, b, with
u = (b - t)/(b - a),

    log_snr = log_snr_a + 2 log u + c (1 - u),       c = 2 + (b - a) d log_snr/dt at a < 2,

falls without end, begins with the cubic's value and derivative, and alpha/sigma goes to 0 as u does; log alpha, where
it is given, likewise with log u in the place of 2 log u. What sigma is at the end follows from both.
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
from scoresde.errors.kinds import DomainError, ShapeError
from scoresde.errors.tensors import check_numbers
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
        log_snr: decreasing log(alpha^2/sigma^2) at the knots; of at least three the last may be minus infinity.
        log_alpha: not increasing log alpha at the knots, minus infinity where log_snr is; by default variance
            preserving, alpha^2 = sigmoid(log_snr).

    Raises:
        ShapeError: the knots are not vectors of one length. DomainError: not finite or not monotone.
    """

    knots: Tensor
    knot_log_snr: Tensor
    knot_log_alpha: Tensor | None

    def __init__(self, t: Tensor, log_snr: Tensor, log_alpha: Tensor | None = None) -> None:
        given = (t, log_snr) if log_alpha is None else (t, log_snr, log_alpha)
        names = ("t", "log_snr", "log_alpha")
        curves = [check_numbers(c, name) for c, name in zip(given, names, strict=False)]
        zero = bool(curves[1].numel()) and float(curves[1].reshape(-1)[-1]) == -math.inf
        for name, values in zip(names, curves, strict=False):
            if values.shape != curves[0].shape or values.ndim != 1 or len(values) < 2:
                raise ShapeError(
                    f"{name} must be a vector of at least two knots, one for each t, got {tuple(values.shape)}"
                )
            steps = values.diff()
            wrong = ~(steps > 0) if name == "t" else ~(steps < 0) if name == "log_snr" else ~(steps <= 0)
            # The first two carry the curve on to where it ends in minus infinity.
            whole = values[:-1] if zero and name != "t" and len(values) > 2 else values
            if not torch.isfinite(whole).all() or wrong.any():
                way = "increase" if name == "t" else "decrease"
                raise DomainError(f"{name} must be finite and {way} along the knots")
        if zero and log_alpha is not None and float(curves[2][-1]) != -math.inf:
            raise DomainError("log_alpha must be minus infinity at the last knot, where log_snr is: sigma is finite")
        if curves[0][0] <= 0:
            raise DomainError(f"t must start above 0, got {float(curves[0][0]):g}")
        put = object.__setattr__
        put(self, "t_min", float(curves[0][0]))
        put(self, "t_max", float(curves[0][-1]))
        put(self, "knots", curves[0])
        put(self, "knot_log_snr", curves[1])
        put(self, "knot_log_alpha", None if log_alpha is None else curves[2])
        inner = slice(None, -1 if zero else None)
        put(self, "_snr_pieces", _fit_pieces(curves[0][inner], curves[1][inner]))
        put(self, "_alpha_pieces", None if log_alpha is None else _fit_pieces(curves[0][inner], curves[2][inner]))
        put(self, "ends_in_zero", zero)

    ends_in_zero: bool = dataclasses.field(init=False)
    _snr_pieces: Tensor = dataclasses.field(init=False)
    _alpha_pieces: Tensor | None = dataclasses.field(init=False)

    @property
    def how_to_end_earlier(self) -> str:
        """What to do about an end at which alpha is 0, in words, for errors."""
        return "leave out the last knot (of a chain: DDPM.from_betas(betas[:-1]))"

    def __repr__(self) -> str:
        return f"TabulatedSDE({len(self.knots)} knots on [{self.t_min:g}, {self.t_max:g}])"

    def _interpolate(self, t: Tensor, pieces: Tensor, values: Tensor, power: int) -> Tensor:
        """Evaluate piecewise cubics at t; the knots themselves return their values to the last bit.

        Where the curve ends in minus infinity, its last piece is without ``power`` log u.
        """
        knots, pieces, values = self.knots.to(t), pieces.to(t), values.to(t)
        last = pieces.shape[1]  # the place of the last knot of the cubics
        i = (torch.searchsorted(knots, t.detach().contiguous(), right=True) - 1).clamp(0, last - 1)
        h = t - knots[i]
        c = pieces[:, i]
        inside = ((c[0] * h + c[1]) * h + c[2]) * h + c[3]
        # The last knot keeps its last bit; the detached correction leaves the derivative alone.
        inside = inside + torch.where(t == knots[last], values[last] - inside, torch.zeros_like(inside)).detach()
        if not self.ends_in_zero:
            return inside
        rest = values[last] + self._bend(pieces, power) * (1 - self._left(t))
        return torch.where(t > knots[last], rest, inside)

    def _bend(self, pieces: Tensor, power: int) -> Tensor:
        """Return c of the last piece, at whose start the cubic's derivative goes on."""
        c = pieces[:, -1]
        before, start, end = self.knots[-3:].to(c)
        h = start - before
        bend: Tensor = power + (end - start) * ((3 * c[0] * h + 2 * c[1]) * h + c[2])
        return bend

    def _left(self, t: Tensor) -> Tensor:
        """Return u: the share of the last piece that is left, 1 before it; 1 everywhere where alpha does not end in 0.

        It has a derivative in the last piece alone.
        """
        if not self.ends_in_zero:
            return torch.ones_like(t)
        start, end = self.knots[-2:].to(t)
        return torch.where(t > start, (end - t) / (end - start), 1.0)

    def _snr(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log_snr - 2 log u, infinite at t = 0, which lies before the knots and is clean data; and u."""
        inside = self._interpolate(t, self._snr_pieces, self.knot_log_snr, 2)
        return torch.where(t == 0, torch.full_like(inside, math.inf), inside), self._left(t)

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return the interpolated log_snr; infinite at t = 0."""
        rest, left = self._snr(t)
        return rest + 2 * left.log() if self.ends_in_zero else rest

    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha: interpolated, or variance preserving, log(sigmoid(log_snr))/2."""
        if self._alpha_pieces is None or self.knot_log_alpha is None:
            return 0.5 * logsigmoid(self.log_snr(t))
        rest = self._log_alpha(t)
        return rest + self._left(t).log() if self.ends_in_zero else rest

    def _log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha - log u, of a curve that is given."""
        assert self._alpha_pieces is not None
        assert self.knot_log_alpha is not None
        inside = self._interpolate(t, self._alpha_pieces, self.knot_log_alpha, 1)
        return torch.where(t == 0, torch.zeros_like(inside), inside)

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return e^{log_alpha}."""
        if not self.ends_in_zero:
            return self.log_alpha(t).exp()
        # Written with u as a factor, alpha has a derivative where it is 0.
        rest, left = self._snr(t)
        if self._alpha_pieces is None:
            return left / ((-rest).exp() + left.square()).sqrt()
        return left * self._log_alpha(t).exp()

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return alpha e^{-log_snr/2}, or sqrt(sigmoid(-log_snr)) when variance preserving."""
        if self._alpha_pieces is None:
            return (0.5 * logsigmoid(-self.log_snr(t))).exp()
        return (self._log_alpha(t) - 0.5 * self._snr(t)[0]).exp()

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return d sigma/dt; -alpha alpha'/sigma when variance preserving, which has a value where alpha is 0."""
        if self._alpha_pieces is None and self.ends_in_zero:
            return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t)
        return time_derivative(self.sigma, t)

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
        last = pieces.shape[1]  # the place of the last knot of the cubics
        wanted = log_snr.clamp(values[last], values[0])
        i = (torch.searchsorted(-values, -wanted.contiguous(), right=True) - 1).clamp(0, last - 1)
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
        inside = torch.where(wanted == values[last], knots[last], inside)
        if not self.ends_in_zero:
            return inside
        return torch.where(log_snr < values[last], self._invert_last(log_snr - values[last]), inside)

    def _invert_last(self, fall: Tensor) -> Tensor:
        """Return the t of the last piece at which log_snr has fallen by -2 w - c (1 - e^w), w = log u, by bisection."""
        c = self._bend(self._snr_pieces.to(fall), 2)
        start, end = self.knots[-2:].to(fall)
        # 1 - e^w lies in [0, 1], and w is -inf where the fall is.
        low, high = 0.5 * (fall - c.clamp_min(0.0)), (0.5 * (fall - c.clamp_max(0.0))).clamp_max(0.0)
        for _ in range(80):
            w = 0.5 * (low + high)
            above = 2 * w - c * torch.expm1(w) > fall
            low, high = torch.where(above, low, w), torch.where(above, w, high)
        t: Tensor = end - (end - start) * (0.5 * (low + high)).exp()
        return t


def _fit_pieces(t: Tensor, values: Tensor) -> Tensor:
    """Return the cubic coefficients (4, n - 1), highest power first, of the monotone interpolant."""
    # Imported here, since it takes longer than the rest of the package together.
    from scipy.interpolate import PchipInterpolator

    return torch.from_numpy(np.ascontiguousarray(PchipInterpolator(t.numpy(), values.numpy()).c))
