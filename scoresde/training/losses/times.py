r"""Laws of the time at which the loss is taken, each by its quantile function: t = Q(u) with u uniform on [0, 1).

| law | uniform in, or law of |
|---|---|
| uniform, low_discrepancy | t on [t_min, t_max] |
| log_snr | lambda = log(alpha^2/sigma^2) between its ends (from -10 on where alpha reaches 0) |
| edm | log(sigma/alpha) ~ N(-1.2, 1.2^2) (Karras et al. 2022, arXiv:2206.00364) |
| logit_normal | log(sigma/alpha) ~ N(0, 1), the logit of sigma/(alpha + sigma) (Esser et al. 2024, arXiv:2403.03206) |
| cauchy | lambda ~ Cauchy(0, 3), from -40 on (Hang et al. 2024, arXiv:2407.03297) |
| importance | lambda uniform, and the loss divided by its density, so that the objective is that of uniform times |

The two normal laws are one family, since logit(sigma/(alpha + sigma)) = log(sigma/alpha); they and Cauchy's are cut to
[t_min, t_max]. Of Cauchy's half lies in [-3, 3], where data take shape, and a share falling as 1/lambda^2 further out.

All but "uniform" are of low discrepancy: the u of the B samples of a batch are (u_0 + i/B) mod 1 with a single uniform
u_0 (Kingma et al. 2021, arXiv:2107.00630). Each of them is uniform, together they fill [0, 1) evenly, and the variance
of the batch's mean falls.

*Importance.* Under the likelihood weight the noise's squared error counts with (-d lambda/dt)/2, and lambda uniform is
the law proportional to it: the loss becomes the constant (lambda(t_min) - lambda(t_max))/(2 (t_max - t_min)) times that
error, with the same mean and less variance (Song, Durkan et al. 2021, arXiv:2101.09258, section 4). Other weights keep
their mean too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor

from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.named import check_sde
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import check_callable, check_flag, check_integer, check_number, check_text
from scoresde.models.score_model import C_NOISE_LIMIT
from scoresde.noise import uniform
from scoresde.solvers.grids import FIRST_LOG_SNR
from scoresde.training.losses.weights import Weight

__all__ = ["TIMES", "TimeLaw", "TimeSampler", "TimesName", "correct_weight", "log_normal"]

TimeSampler = Callable[[int, GaussianSDE, torch.Generator], Tensor]
TimesName = Literal["low_discrepancy", "uniform", "log_snr", "edm", "logit_normal", "cauchy", "importance"]


@dataclass(frozen=True)
class TimeLaw:
    """A law of the time; a call draws n times, float64 on the CPU, in [t_min, t_max].

    Args:
        name: what it is, for people.
        quantile: (sde, u in [0, 1)) -> t.
        stratified: draw the u of a batch with low discrepancy, not independently.
        ratio: (point, sde) -> the uniform law's density over this one's, by which the loss is to be multiplied; None
            where the law is meant to change the objective.
    """

    name: str
    quantile: Callable[[GaussianSDE, Tensor], Tensor]
    stratified: bool = True
    ratio: Weight | None = None

    def __repr__(self) -> str:
        return f"<TimeLaw {self.name}{'' if self.stratified else ', independent draws'}>"

    def __post_init__(self) -> None:
        check_text(self.name, "name")
        check_callable(self.quantile, "quantile", "(sde, u) -> t", optional=False)
        check_callable(self.ratio, "ratio", "(point, sde) -> the loss's factor")
        check_flag(self.stratified, "stratified")

    def __call__(self, n: int, sde: GaussianSDE, generator: torch.Generator) -> Tensor:
        n, given = check_integer(n, "n"), cast(object, sde)
        if not isinstance(given, LinearSDE):  # which has what the laws ask for
            check_sde(given)
        if self.stratified:
            start = uniform((1,), generator, dtype=torch.float64)
            u = torch.arange(n, dtype=torch.float64, device="cpu").div_(n).add_(start).remainder_(1.0)
        else:
            u = uniform((n,), generator, dtype=torch.float64)
        return self.quantile(sde, u).clamp(sde.t_min, sde.t_max)


def correct_weight(weight: Weight, times: TimeSampler) -> Weight:
    """Return the weight to use at times drawn by ``times``: with the law's ratio, where it has one."""
    if not isinstance(times, TimeLaw) or times.ratio is None:
        return weight
    return partial(_multiply, weight=weight, ratio=times.ratio)


def _multiply(point: Point, sde: GaussianSDE, *, weight: Weight, ratio: Weight) -> Tensor:
    return weight(point, sde) * ratio(point, sde)


def _in_t(sde: GaussianSDE, u: Tensor) -> Tensor:
    return sde.t_min + (sde.t_max - sde.t_min) * u


def _ends(sde: GaussianSDE) -> Tensor:
    """Return log_snr at t_max and at t_min."""
    return sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64, device="cpu"))


def _in_log_snr(sde: GaussianSDE, u: Tensor) -> Tensor:
    low, high = _ends(sde)
    low = torch.where(low == -math.inf, FIRST_LOG_SNR, low)
    return sde.time(low + (high - low) * u)


def log_normal(mean: float, std: float, *, name: str = "") -> TimeLaw:
    """Return the law with log(sigma/alpha) ~ N(mean, std^2), cut to [t_min, t_max].

    Raises DTypeError, DomainError where the mean is not finite or std <= 0. Source: arXiv:2206.00364, section 5.
    """
    mean = check_number(mean, "mean")
    std = check_number(std, "std", 0.0, open_low=True)
    return TimeLaw(
        check_text(name, "name") or f"log_normal({mean:g}, {std:g})", partial(_in_log_normal, mean=mean, std=std)
    )


def _in_log_normal(sde: GaussianSDE, u: Tensor, *, mean: float, std: float) -> Tensor:
    high, low = (-0.5 * _ends(sde) - mean) / std
    below, above = torch.special.ndtr(low), torch.special.ndtr(high)
    z: Tensor = torch.special.ndtri(below + (above - below) * u)
    z = z.clamp(low, high)
    return sde.time(-2 * (mean + std * z))


def _in_cauchy(sde: GaussianSDE, u: Tensor, *, width: float) -> Tensor:
    low, high = ends = _ends(sde).clamp_min(-C_NOISE_LIMIT)
    first, last = torch.atan(ends / width)
    return sde.time((width * torch.tan(first + (last - first) * u)).clamp(low, high))


def _over_log_snr(point: Point, sde: GaussianSDE) -> Tensor:
    low, high = _ends(sde)
    if not bool(torch.isfinite(high - low)):
        raise ConfigError(
            f"times='importance' needs a finite log_snr on [t_min, t_max], {sde!r} reaches alpha = 0; "
            f"{sde.how_to_end_earlier}, or take times='log_snr'"
        )
    ratio: Tensor = (high - low) / (sde.t_max - sde.t_min) * (point.sigma / sde.diffusion(point.t)).square()
    return ratio


TIMES: dict[str, TimeLaw] = {
    "low_discrepancy": TimeLaw("low_discrepancy", _in_t),
    "uniform": TimeLaw("uniform", _in_t, stratified=False),
    "log_snr": TimeLaw("log_snr", _in_log_snr),
    "edm": log_normal(-1.2, 1.2, name="edm"),
    "logit_normal": log_normal(0.0, 1.0, name="logit_normal"),
    "cauchy": TimeLaw("cauchy", partial(_in_cauchy, width=3.0)),
    "importance": TimeLaw("importance", _in_log_snr, ratio=_over_log_snr),
}
