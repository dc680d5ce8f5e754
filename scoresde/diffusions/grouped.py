r"""Linear SDEs with one scalar diffusion for each group of coordinates: rates, frequencies and scales.

The coordinates of an event are in groups, and those of group g follow a diffusion of their own,

    x_t = alpha_g(t) x_0 + sigma_g(t) z,

so that M and L are one number for each group. A group whose diffusion ends before the others do (its ``t_max`` is
earlier) *rests* from there on: it is as much noise as it will be. Going back in time it enters at its own ``t_max``,
and before that it need not be in the state that a network is given (``kept``).

*Blurring* (Rissanen, Heinonen and Solin 2023, arXiv:2206.13397; Hoogeboom and Salimans 2023, "Blurring diffusion
models", arXiv:2209.05557). In the cosine basis (``transforms.Cosine``) the frequency (i, j) of an image H x W has the
rate lambda = pi^2 (i^2/H^2 + j^2/W^2) of the heat equation, and with its time tau = (blur sin^2(pi t/2))^2/2

    alpha = e^{-B/2} ((1 - floor) e^{-lambda tau} + floor),     sigma^2 = 1 - e^{-B}.

*Levels* (as in the multi-scale flows of Dinh, Sohl-Dickstein and Bengio 2017, arXiv:1605.08803, and Guth et al. 2022,
"Wavelet score-based generative modeling", arXiv:2208.05003). In the Haar basis (``transforms.Haar``) the details of
level k = 1, ..., n (1 the finest) are noise from t = ends[k - 1] on, and the coarse image at t = 1.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Blocks
from scoresde.diffusions.curves import curve, unchecked
from scoresde.diffusions.linear import LinearPoint, LinearSDE, Maps
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE, transition_weights
from scoresde.diffusions.vp import VPSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, show
from scoresde.errors.values import check_number, check_sequence, check_sizes, keep_number

__all__ = ["BlurredVPSDE", "GroupedSDE"]


@dataclass(frozen=True)
class BlurredVPSDE(GaussianSDE):
    """One frequency of a blurring diffusion; the module's docstring has its alpha and sigma.

    Args:
        rate: lambda of the heat equation, per square of the unit of length; 0 is VPSDE.
        blur: largest standard deviation of the blur, at t = 1, in that unit (pixels).
        floor: what the blur leaves of a frequency.
        beta_min, beta_max: beta(t) = beta_min + t (beta_max - beta_min).
    """

    rate: float = 0.0
    blur: float = 4.0
    floor: float = 1e-3
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "rate", 0.0)
        keep_number(self, "blur", 0.0)
        keep_number(self, "floor", 0.0, 1.0, open_low=True)
        keep_number(self, "beta_min", 0.0, open_low=True)
        keep_number(self, "beta_max", self.beta_min)
        if self.t_max > 1:
            raise DomainError(f"t_max must be at most 1, where the blur is whole, got {self.t_max:g}")

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _log_damping(self, t: Tensor) -> Tensor:
        tau = 0.5 * (self.blur * (0.5 * math.pi * t).sin().square()).square()
        return torch.log1p((1 - self.floor) * torch.expm1(-self.rate * tau))

    @curve
    def alpha(self, t: Tensor) -> Tensor:
        """Return e^{-B/2} times what the blur leaves."""
        return (self._log_damping(t) - 0.5 * self._integral(t)).exp()

    @curve
    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - e^{-B})."""
        return (-torch.expm1(-self._integral(t))).sqrt()

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(alpha^2/sigma^2)."""
        b = self._integral(t)
        return 2 * self._log_damping(t) - b - (-torch.expm1(-b)).log()

    @curve
    def prior_std(self, t: Tensor) -> Tensor:
        """Return 1, at every t."""
        return torch.ones_like(t)


# The kinds whose curves take vectors in the place of their numbers.
STACKED: Mapping[type[GaussianSDE], tuple[str, ...]] = {
    VPSDE: ("beta_min", "beta_max"),
    BlurredVPSDE: ("rate", "blur", "floor", "beta_min", "beta_max"),
}


@dataclass(frozen=True, eq=False)
class GroupedSDE(LinearSDE):
    """One scalar diffusion for each group of coordinates.

    Args:
        sdes: the groups' diffusions, all with the same ``t_min``. One that ends earlier than the others rests from
            there on.
        index: the group of each coordinate, integers from 0 on, of an event's shape.

    Raises:
        DTypeError: no diffusions, no integers. ConfigError: none, or different t_min. DomainError: a group without a
            diffusion or without a coordinate.
    """

    sdes: tuple[GaussianSDE, ...]
    index: Tensor
    t_min: float = field(default=1e-5, kw_only=True, init=False)
    t_max: float = field(default=1.0, kw_only=True, init=False)

    def __post_init__(self) -> None:
        sdes = check_sequence(self.sdes, "sdes", "diffusions")
        if not sdes or not all(isinstance(sde, GaussianSDE) for sde in sdes):
            raise DTypeError(f"sdes must be a tuple of GaussianSDEs, e.g. (VPSDE(),), got {show(self.sdes)}")
        given: object = self.index
        index = self.index
        if not isinstance(given, Tensor) or index.is_floating_point() or index.is_complex() or not index.ndim:
            raise DTypeError(f"index must be a tensor of integers of an event's shape, got {show(index)}")
        index = index.to("cpu", torch.long)
        found = torch.unique(index)
        if found.tolist() != list(range(len(sdes))):
            raise DomainError(
                f"index must name each of the groups 0 to {len(sdes) - 1}, one for each diffusion, got "
                f"{index.numel()} coordinates of {len(found)} groups, {show(found.tolist()[:4])} and so on"
            )
        if len({sde.t_min for sde in sdes}) > 1:
            raise ConfigError(f"sdes must have one t_min, got {sorted({sde.t_min for sde in sdes})}")
        for name, value in (
            ("sdes", tuple(sdes)),
            ("index", index),
            ("t_min", sdes[0].t_min),
            ("t_max", max(sde.t_max for sde in sdes)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def with_rates(
        cls, rates: Sequence[float], *, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5
    ) -> Self:
        """Return a VP diffusion of vectors (D,) with one rate for each coordinate: B_i = rates[i] B.

        Args:
            rates: positive, D of them.
            beta_min, beta_max: beta(t) of the rate 1.
            t_min: the smallest time.
        """
        known = [check_number(r, f"rates[{i}]", 0.0, open_low=True) for i, r in enumerate(check_rates(rates))]
        low, high = check_number(beta_min, "beta_min", 0.0), check_number(beta_max, "beta_max", 0.0)
        own = sorted(set(known))
        sdes = tuple(VPSDE(r * low, r * high, t_min=t_min) for r in own)
        return cls(sdes, torch.tensor([own.index(r) for r in known], dtype=torch.long, device="cpu"))

    @classmethod
    def blurring(
        cls,
        size: Sequence[int],
        *,
        blur: float = 4.0,
        floor: float = 1e-3,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        t_min: float = 1e-5,
    ) -> Self:
        """Return a blurring diffusion of images (C, H, W), or signals (C, L), in the basis of ``transforms.Cosine``.

        Args:
            size: (C, H, W), (C, L), or with more dimensions.
            blur: largest standard deviation of the blur, in pixels; 0 is VPSDE.
            floor: what the blur leaves of the highest frequencies, in (0, 1].
            beta_min, beta_max: of the noise, as VPSDE's.
            t_min: the smallest time.
        """
        sizes = check_sizes(size, "size", 1)
        if len(sizes) < 2:
            raise ShapeError(f"size must be (C, H, W) or (C, L), got {sizes}", parameter="size")
        # Whole numbers first: equal frequencies are one group.
        squares = torch.zeros((), dtype=torch.float64, device="cpu")
        for n in sizes[1:]:
            squares = squares[..., None] + (torch.arange(n, dtype=torch.float64, device="cpu") * math.pi / n).square()
        found, index = torch.unique(squares.round(decimals=12), return_inverse=True)
        numbers = {"blur": blur, "floor": floor, "beta_min": beta_min, "beta_max": beta_max, "t_min": t_min}
        sdes = tuple(BlurredVPSDE(rate, **numbers) for rate in found.tolist())
        return cls(sdes, index.expand(sizes).contiguous())

    @classmethod
    def levels(
        cls,
        size: Sequence[int],
        ends: Sequence[float],
        *,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        t_min: float = 1e-5,
    ) -> Self:
        """Return a multi-scale diffusion of images (C, H, W), or signals (C, L), in the basis of ``transforms.Haar``.

        The details of level k follow VPSDE sped up so that it is over at ends[k - 1]; the coarse rest follows it up to
        t = 1. With ``Haar(len(ends))`` the state before a level enters is the coarser image alone.

        Args:
            size: the event, whose sizes but the first are multiples of 2^levels.
            ends: in (0, 1), one for each level, the finest first, not decreasing.
            beta_min, beta_max: of VPSDE.
            t_min: the smallest time.
        """
        sizes, times = check_sizes(size, "size", 1), check_sequence(ends, "ends", "times")
        t_min, beta_min = check_number(t_min, "t_min", 0.0, 1.0, open_low=True), check_number(beta_min, "beta_min", 0.0)
        beta_max = check_number(beta_max, "beta_max", beta_min)
        known = [check_number(u, f"ends[{i}]", t_min, 1.0, open_low=True) for i, u in enumerate(times)]
        if not known or known != sorted(known):
            raise DomainError(f"ends must be times in (0, 1] that do not decrease, the finest level first, got {known}")
        factor = 2 ** len(known)
        if len(sizes) < 2 or any(n % factor for n in sizes[1:]):
            raise ShapeError(f"size must be (C, H, W) or (C, L), multiples of {factor} but for C, got {sizes}")
        index = torch.full(sizes, len(known), dtype=torch.long, device="cpu")
        for level in range(1, len(known) + 1):  # the quadrants of the finest level are the outermost
            inside = torch.zeros(sizes, dtype=torch.bool, device="cpu")
            inside[(slice(None), *(slice(0, n // 2 ** (level - 1)) for n in sizes[1:]))] = True
            inside[(slice(None), *(slice(0, n // 2**level) for n in sizes[1:]))] = False
            index[inside] = level - 1
        rise = beta_max - beta_min
        sdes = [VPSDE(beta_min / u, beta_min / u + rise / u**2, t_min=t_min, t_max=u) for u in [*known, 1.0]]
        return cls(tuple(sdes), index)

    @property
    def blocks(self) -> Blocks:
        """One number for each group."""
        return Blocks(1, self.index)

    @property
    def ends(self) -> Tensor:
        """The times from which on the groups rest, (G,)."""
        return torch.tensor([sde.t_max for sde in self.sdes], dtype=torch.float64, device="cpu")

    def points(self, t: Tensor) -> Point:
        """Return the groups' own points, fields of shape (*t, G); those of a group at rest stay at its end."""
        times = torch.minimum(t[..., None], self.ends)
        kind = type(self.sdes[0])
        if kind in STACKED and all(type(sde) is kind for sde in self.sdes):
            # The curves of many diffusions of one kind are those of one whose numbers are vectors.
            whole = copy.copy(self.sdes[0])
            for name in STACKED[kind]:
                values = [getattr(sde, name) for sde in self.sdes]
                object.__setattr__(whole, name, torch.tensor(values, dtype=torch.float64, device="cpu"))
            return unchecked(lambda: Point(times, whole.alpha(times), whole.sigma(times), whole.log_snr(times)))
        each = [sde.at(times[..., g]) for g, sde in enumerate(self.sdes)]
        alpha, sigma, log_snr = (torch.stack(c, -1) for c in zip(*(p.numbers[1:] for p in each), strict=True))
        return Point(times, alpha, sigma, log_snr)

    def maps(self, t: Tensor) -> Maps:
        """Return the alphas and sigmas."""
        point = self.points(t)
        return point.alpha[..., None, None], point.sigma[..., None, None]

    def log_snr_of(self, t: Tensor) -> Tensor:
        """Return the groups' log-SNR, (*t, G)."""
        return self.points(t).log_snr

    def coefficients(self, t: Tensor) -> Maps:
        """Return d log alpha/dt and g^2 of each group, 0 where it rests."""
        moving, times = t[..., None] < self.ends, torch.minimum(t[..., None], self.ends)
        last = t[..., None] == self.ends
        each = [_rates(sde, times[..., g]) for g, sde in enumerate(self.sdes)]
        drift, noise = (torch.stack(c, -1) for c in zip(*each, strict=True))
        on = moving | last
        return torch.where(on, drift, 0.0)[..., None, None], torch.where(on, noise, 0.0)[..., None, None]

    def transition_maps(self, s: Tensor, t: Tensor) -> Maps:
        """Return a and b^2 of each group."""
        a, b = transition_weights(self.points(s), self.points(t))
        return a[..., None, None], b.square()[..., None, None]

    def carry_deviation(self, late: LinearPoint, early: LinearPoint, eta: float) -> Tensor:
        """Return sigma_s/sigma_t e^{-eta^2 h} of each group, h being the step in log(alpha/sigma)."""
        start, end = self.points(late.t), self.points(early.t)
        still = start.log_snr == end.log_snr
        shrink = (0.5 * eta**2 * (start.log_snr - end.log_snr)).exp() if eta else torch.ones_like(start.sigma)
        return torch.where(still, 1.0, end.sigma / start.sigma * shrink)[..., None, None]

    def kept(self, t: float) -> tuple[int, ...]:
        """Return the sizes of the leading box of an event that holds the groups which do not rest at t.

        The whole event where they fill no such box, or where none rests. A group is in the state up to its end.
        """
        active = (self.ends >= t * (1 - 1e-12))[self.index]
        whole = tuple(self.index.shape)
        if bool(active.all()):
            return whole
        if not bool(active.any()):
            return whole
        box = tuple(int(places.max()) + 1 for places in active.nonzero().unbind(1))
        return box if math.prod(box) == int(active.sum()) else whole

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able description; ConfigError where a group's diffusion is of your own."""
        kinds = {"VPSDE": VPSDE, "BlurredVPSDE": BlurredVPSDE}
        parts: list[dict[str, object]] = []
        for sde in self.sdes:
            kind = type(sde).__name__
            if kinds.get(kind) is not type(sde):
                raise ConfigError(
                    f"a group follows {kind}, which JSON cannot rebuild; pass sde= when the model is loaded"
                )
            parts.append({"kind": kind, **{f.name: getattr(sde, f.name) for f in dataclasses.fields(sde) if f.init}})
        return {"kind": "GroupedSDE", "sdes": parts, "index": self.index.tolist()}

    def __repr__(self) -> str:
        resting = int((self.ends < self.t_max).sum())
        names = sorted({type(sde).__name__ for sde in self.sdes})
        rest = f", {resting} rest before the end" if resting else ""
        return f"GroupedSDE({len(self.sdes)} groups of {' and '.join(names)} on {tuple(self.index.shape)}{rest})"


def _rates(sde: GaussianSDE, t: Tensor) -> Maps:
    """Return d log alpha/dt and g^2."""
    return unchecked(lambda: (sde.drift_rate(t), sde.diffusion(t).square()))


def check_rates(rates: object) -> tuple[object, ...]:
    """Return the rates as a tuple; ShapeError where there is none."""
    known = check_sequence(rates, "rates", "numbers")
    if not known:
        raise ShapeError("rates must be positive numbers, one for each coordinate, got none")
    return known
