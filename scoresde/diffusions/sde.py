r"""Stochastic differential equations with one Wiener process for each coordinate, and the Gaussian ones among them.

*Any SDE.* For dx_i = f_i(x, t) dt + g_i(x, t) dw_i the density p obeys dp/dt = -div(f p) + 1/2 sum_i d_i^2 (g_i^2 p).
Written as -div(v p), the velocity is v_i = f_i - 1/2 d_i g_i^2 - 1/2 g_i^2 d_i log p, which is the probability flow's.
Run backwards, noise of strength eta g adds 1/2 eta^2 sum_i d_i^2 (g_i^2 p), and the drift that takes it out again makes

    dx_i = [f_i - (1 + eta^2)/2 (d_i g_i^2 + g_i^2 score_i)] dt + eta g_i dw_i,

with the same p at every time (Anderson 1982, "Reverse-time diffusion equation models"; Haussmann and Pardoux 1986,
"Time reversal of diffusions"; eta = 1 is theirs). The term d_i g_i^2 is 0 where the noise does not depend on the state.
Where v = 0, in equilibrium, the score is (2 f_i - d_i g_i^2)/g_i^2.

A Gaussian diffusion is two curves: x_t = alpha(t) x_0 + sigma(t) z. Write nu = sigma/alpha and
log_snr = log(alpha^2/sigma^2) = -2 log nu. Then x_t/alpha_t = x_0 + W(nu_t^2): every such diffusion is one Brownian
motion seen through the scale alpha and the clock nu^2, and all else follows:

    drift           f(x, t) = (d log alpha/dt) x
    diffusion       g^2 = sigma^2 d(log nu^2)/dt = -sigma^2 d(log_snr)/dt
    transition      x_t | x_s ~ N(a x_s, b^2),  a = alpha_t/alpha_s,  b^2 = sigma_t^2 - a^2 sigma_s^2
                    = sigma_t^2 (1 - e^D),  D = log_snr_t - log_snr_s <= 0
    posterior       x_s | x_t, x_0 ~ N(alpha_s/alpha_t e^D x_t + alpha_s (1 - e^D) x_0, sigma_s^2 (1 - e^D))
    reverse family  dx = [f - (1 + eta^2)/2 g^2 score] dt + eta g dw,  eta = 1 reverse SDE, eta = 0 probability flow

(Song et al. 2021, "Score-based generative modeling through stochastic differential equations", arXiv:2011.13456; Kingma
et al. 2021, "Variational diffusion models", arXiv:2107.00630). Differences of variances are written with expm1 of
differences of log_snr, which do not cancel. Curves are evaluated in float64 and return the type of their argument.
"""

from __future__ import annotations

import copy
import html
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from scoresde.diffusions.curves import CURVES, ROOM, check_domain, curve, in_float64, inside, read_times, unchecked
from scoresde.diffusions.fields import drift_of, noise_of
from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.point import Pair, Point
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, SolverError, show
from scoresde.errors.tensors import check_dense, check_device, check_floating, check_values
from scoresde.errors.values import check_instance, check_number, keep_number, read_number
from scoresde.ops import combine, expand, jacobian_diagonal, time_derivative, working_dtype

__all__ = [
    "SDE",
    "Conditioned",
    "GaussianSDE",
    "ReverseSDE",
    "check_score",
    "posterior_weights",
    "transition_weights",
]

ROUNDING = 1e-15  # of a log_snr, relative
NARROWEST = 1e-9  # of the times of use, relative to the last

Owner = TypeVar("Owner", bound="SDE")


class Scored(Protocol):
    """What a model returns, as far as a reverse SDE is concerned."""

    @property
    def score(self) -> Tensor:
        """The gradient of the log density, of x's shape."""


@runtime_checkable
class Conditioned(Protocol):
    """A network net(x, c_noise, **cond) that says itself which conditions it takes, as those of ``scoresde.nn`` do."""

    @property
    def condition_names(self) -> frozenset[str] | None:
        """The names; None for any."""


ScoreFunction = Callable[[Tensor, Tensor], "Tensor | Scored"]


def check_score(function: object) -> Callable[..., Any]:
    """Return a score function; DTypeError where it cannot be called, or is a network that has no readout yet."""
    if isinstance(function, Conditioned):
        raise DTypeError(
            f"{type(function).__name__} is a network, net(x, c_noise), and no score function: make a model of it with "
            "ScoreModel(net, sde), or with ScoreModel.from_callable if it was trained to return the score at (x, t)"
        )
    if not callable(function) or isinstance(function, type):
        raise DTypeError(f"model must be a ScoreModel or a callable (x, t) -> score, got {show(function)}")
    return function


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Return a/b, and 1 where both are the same, also 0."""
    return torch.where(a == b, 1.0, a / b)


def _compare(early: Point, late: Point) -> Pair:
    """Return D <= 0 and 1 - e^D >= 0, both 0 from a point to itself, also where log_snr is infinite."""
    same = late.log_snr == early.log_snr
    gap = torch.where(same, 0.0, late.log_snr - early.log_snr)
    # The log_snr of neighbouring times may fall in the wrong order by rounding.
    gap = torch.where(gap < ROUNDING * (1 + late.log_snr.abs()), gap.clamp_max(0.0), gap)
    # 0 - 0 is 0, and -0 is not: a standard deviation has no sign.
    return gap, 0.0 - torch.expm1(gap)


def transition_weights(early: Point, late: Point) -> Pair:
    """Return (a, b) of x_late | x_early ~ N(a x_early, b^2); (1, 0) from a point to itself."""
    return _divide(late.alpha, early.alpha), late.sigma * _compare(early, late)[1].sqrt()


def posterior_weights(early: Point, late: Point) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of x_late and x_0 in the mean of x_early | x_late, x_0, and its standard deviation.

    From a point to itself they are (1, 0, 0).
    """
    gap, fresh = _compare(early, late)
    # alpha_s/alpha_t e^D = sigma_s/sigma_t e^(D/2), the form that holds where alpha_t = 0.
    return _divide(early.sigma, late.sigma) * (gap / 2).exp(), early.alpha * fresh, early.sigma * fresh.sqrt()


def _on_cpu(number: float) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64, device="cpu")


def check_span(low: float, high: float, low_name: str, high_name: str) -> None:
    """Raise DomainError for ends so close that the steps between them would be rounded away."""
    if high - low < NARROWEST * high:
        allowed = f"at least {1 + NARROWEST:.9f} {low_name}"
        raise DomainError(
            f"{high_name} must be {allowed}, got {show(low)} to {high!r}",
            parameter=high_name,
            got=high,
            allowed=allowed,
        )


@dataclass(frozen=True, eq=False)
class SDE(ABC):
    """dx = drift(x, t) dt + g dw on [t_min, t_max], with one Wiener process for each coordinate.

    Write ``drift``, and ``diffusion(t)`` where g is one number for all states and coordinates, or else
    ``diffusion_at(x, t)``.

    Args:
        t_min: the smallest time at which the score is used (t = 0 itself is legal only as the last entry of a grid).
        t_max: the time at which sampling starts.
    """

    t_min: float = field(default=1e-5, kw_only=True)
    t_max: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        keep_number(self, "t_min", 0.0, open_low=True)
        keep_number(self, "t_max", self.t_min, open_low=True)
        check_span(self.t_min, self.t_max, "t_min", "t_max")
        if type(self).diffusion is SDE.diffusion and self.is_additive:
            raise DTypeError(
                f"{type(self).__name__} says nothing of its noise; write diffusion(self, t), or "
                "diffusion_at(self, x, t) where it depends on the state or on the coordinate"
            )

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return f(x, t), of x's shape (B, *); t has shape () or (B,)."""

    def diffusion(self, t: Tensor | float) -> Tensor:
        """Return g(t), of t's shape; it multiplies a Wiener increment of x's shape."""
        raise ConfigError(f"the noise of {type(self).__name__} is no function of t alone; ask diffusion_at(x, t)")

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return g(x, t), of a shape that broadcasts to x's (B, *), such as one number for each coordinate of an event.

        Coordinate i of x is driven by g_i times a Wiener process of its own.
        """
        g = self.diffusion(t)
        if not isinstance(g, Tensor):
            raise ShapeError(f"diffusion must return a tensor of t's shape, got {show(g)}; take {show(g)} + 0 * t")
        return expand(g, x)

    def diffusion_divergence(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return d g_i^2/dx_i, of x's shape: by automatic differentiation unless a class knows better.

        That costs a gradient for each coordinate of an event where the noise depends on the state, and nothing
        elsewhere.
        """
        if self.is_additive:
            return torch.zeros_like(x)
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.diffusion_at(x, t).requires_grad)
        with torch.set_grad_enabled(wanted):  # else a graph that nobody asked for would grow with a path
            return jacobian_diagonal(lambda y: noise_of(self, y, t).square(), x)

    @property
    def is_additive(self) -> bool:
        """Whether g is one number for all states and coordinates, ``diffusion(t)``."""
        return type(self).diffusion_at is SDE.diffusion_at

    def prior(self, t: Tensor | float | None = None, moments: Moments | None = None) -> Gaussian:
        """Return the law that sampling starts from; a general SDE has none of its own."""
        raise ConfigError(f"{type(self).__name__} names no prior; pass prior= or x_init=")

    def reverse(self, model: ScoreFunction, eta: float = 1.0) -> ReverseSDE:
        """Return the reverse family dx = [f - (1 + eta^2)/2 (d g^2/dx + g^2 score)] dt + eta g dw as an SDE again.

        Args:
            model: a ScoreModel, or a callable (x, t) -> score.
            eta: 1 for the reverse SDE, 0 for the probability flow, any other >= 0 between and beyond.
        """
        return ReverseSDE(self, model, eta, t_min=self.t_min, t_max=self.t_max)

    def check_time(self, t: Tensor | float, x: Tensor | None = None, *, name: str = "t", zero: bool = False) -> Tensor:
        """Return t in float64 on the CPU, of shape () or (B,), inside [t_min, t_max] (and 0 where ``zero``).

        Raises:
            DTypeError: integers, or no numbers. ShapeError: another shape. DomainError: NaN or outside the interval.
        """
        if isinstance(t, Tensor):
            if not t.dtype.is_floating_point:
                raise DTypeError(f"{name} must be floating for a continuous SDE, got {t.dtype}; see DDPM for a chain")
            check_dense(t, name)
            check_values(t, name)
            time = t.to("cpu", torch.float64)
        elif (number := read_number(t)) is None:
            raise DTypeError(f"{name} must be a number or a floating tensor, got {show(t)} of type {type(t).__name__}")
        else:
            time = torch.tensor(number, dtype=torch.float64, device="cpu")
        if time.ndim > 1 or (time.ndim and x is not None and time.shape[0] != x.shape[0]):
            shapes = "()" if x is None else f"() or ({x.shape[0]},)"
            raise ShapeError(f"{name} must have shape {shapes}, got {tuple(time.shape)}")
        low, high = self.t_min * (1 - ROOM), self.t_max * (1 + ROOM)
        inside = (time >= low) & (time <= high)
        if zero:
            inside |= time == 0
        # A traced graph (torch.export, torch.compile) holds no values to look at.
        if not torch.compiler.is_compiling() and not bool(inside.all()):
            bad = float(time[~inside].reshape(-1)[0]) if time.ndim else float(time)
            raise DomainError(f"{name} must lie in [{self.t_min:g}, {self.t_max:g}], got {bad:g}")
        return time


@dataclass(frozen=True, eq=False)
class GaussianSDE(SDE):
    """x_t = alpha(t) x_0 + sigma(t) z. Write ``alpha`` and ``sigma``; all else is derived.

    Rates come from automatic differentiation unless ``alpha_rate``, ``sigma_rate`` or ``diffusion`` are overridden;
    ``log_snr`` and its inverse ``time`` should be overridden where a form without cancellation is known.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # The curves of one's own refuse a time outside as those of the library do.
        for name in CURVES:
            own = cls.__dict__.get(name)
            if inspect.isfunction(own) and not getattr(own, "inside", False):
                setattr(cls, name, inside(own))

    @abstractmethod
    def alpha(self, t: Tensor | float) -> Tensor:
        """Give the signal scale, positive and not increasing, of t's shape."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """Give the noise standard deviation; sigma/alpha increases."""

    @curve
    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(alpha^2/sigma^2), twice the literature's lambda."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the t with this log_snr, the inverse of ``log_snr(t)``, of log_snr's shape and type, in [0, t_max].

        It reads values, which a traced graph does not have: there the range is not checked.

        Raises:
            DomainError: NaN, or by more than rounding outside of what the curve reaches from t_max down.
        """
        given = read_times(log_snr, "log_snr")
        if given.dtype.is_floating_point and not torch.compiler.is_compiling():
            self._check_log_snr(given.detach())
        return self._invert(given).clamp(0.0, self.t_max)

    def _check_log_snr(self, log_snr: Tensor) -> None:
        """Raise DomainError where a log_snr has no time."""
        low, high = self._log_snr_ends()
        wide = log_snr.to(working_dtype(log_snr.device))
        slack = max(1e-9, 4 * torch.finfo(log_snr.dtype).eps) * wide.abs().clamp(1, 1e6)
        # Written so that a NaN fails and an infinity that is an end does not.
        inside = (wide + slack >= low) & (wide - slack <= high)
        if not bool(inside.all()):
            bad = float(wide[~inside].reshape(-1)[0])
            least = f"at least {low:g}, reached at t_max = {self.t_max:g}"
            raise DomainError(f"log_snr must be {least if not bad > high else f'at most {high:g}'}; got {bad:g}")

    def _log_snr_ends(self) -> tuple[float, float]:
        """Return the smallest and the largest log_snr that has a time: those of t_max and of t = 0."""
        low, high = self.log_snr(torch.tensor([self.t_max, 0.0], dtype=torch.float64, device="cpu")).tolist()
        return low, high

    @in_float64
    def _invert(self, log_snr: Tensor) -> Tensor:
        """Return ``time`` without its check, by bisection to 1e-16 t_max; a class of the library has a closed form.

        A closed form goes on beyond t_max, as far as the curves do.
        """
        low = torch.zeros_like(log_snr)
        high = torch.full_like(log_snr, self.t_max)
        for _ in range(100):
            middle = (low + high) / 2
            above = self.log_snr(middle) > log_snr
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return high

    @curve
    def alpha_rate(self, t: Tensor) -> Tensor:
        """Return d alpha/dt."""
        return time_derivative(self.alpha, t)

    @curve
    def sigma_rate(self, t: Tensor) -> Tensor:
        """Return d sigma/dt."""
        return time_derivative(self.sigma, t)

    @curve
    def diffusion(self, t: Tensor) -> Tensor:
        """Return g(t) = sigma sqrt(-d log_snr/dt), in units of x per square root of t."""
        return self.sigma(t) * (-time_derivative(self.log_snr, t)).sqrt()

    @curve
    def drift_rate(self, t: Tensor) -> Tensor:
        """Return d log alpha/dt, the factor of x in the drift."""
        return self.alpha_rate(t) / self.alpha(t)

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return f(x, t) = (d log alpha/dt) x, of x's shape."""
        return combine((self.drift_rate(self.check_time(t, check_floating(x))), x))

    @curve
    def prior_std(self, t: Tensor) -> Tensor:
        """Return the standard deviation of the zero-mean prior at t: sigma(t), unless a class knows better."""
        return self.sigma(t)

    def at(self, t: Tensor | float) -> Point:
        """Return the points at times t (no check of the interval), in float64 on the CPU."""
        time = read_times(t).to("cpu", torch.float64)
        return unchecked(lambda: Point(time, self.alpha(time), self.sigma(time), self.log_snr(time), self))

    def _ask(self, t: Tensor | float) -> Point:
        """Return the points at times in [0, t_max]; DomainError for any other."""
        if not torch.compiler.is_compiling():
            check_domain(t, self.t_max)
        return self.at(t)

    def match(self, point: Point) -> Point:
        """Return the points of this SDE at the log-SNR of ``point``: itself where it lies on this very SDE.

        A model may be carried beyond the times of its own SDE, where that has a closed form that goes on there.
        """
        if point.owner is self:
            return point
        kind = type(self)
        closed = kind.time is GaussianSDE.time and kind._invert is not GaussianSDE._invert
        return self.at(self._invert(point.log_snr) if closed else self.time(point.log_snr))

    def marginal(self, x0: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the mean alpha x_0, of shape (B, *), and the standard deviation sigma, of t's shape, of x_t | x_0."""
        time = self.check_time(t, check_floating(x0, "x0"))
        return combine((self.alpha(time), x0)), self.sigma(time).to(x0)

    def perturb(self, x0: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """Return x_t = alpha x_0 + sigma noise, of x_0's type; ``noise`` has x_0's shape and device."""
        if check_floating(x0, "x0").shape != check_floating(noise, "noise").shape:
            raise ShapeError(f"noise must have the shape {tuple(x0.shape)} of x0, got {tuple(noise.shape)}")
        check_device(noise.device, "noise", x0.device, "x0")
        time = self.check_time(t, x0)
        return combine((self.alpha(time), x0), (self.sigma(time), noise))

    def transition_weights(self, s: Tensor | float, t: Tensor | float) -> Pair:
        """Return (a, b) of x_t | x_s ~ N(a x_s, b^2) for s <= t, in float64."""
        return transition_weights(*(self._ask(time) for time in (s, t)))

    def transition(self, x_s: Tensor, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation, of t's shape, of x_t | x_s for s <= t."""
        check_floating(x_s, "x_s")
        a, b = self.transition_weights(*self._check_order(x_s, s, t))
        return combine((a, x_s)), b.to(x_s)

    def posterior_weights(self, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of x_t and x_0 in the mean of x_s | x_t, x_0, and its standard deviation, in float64."""
        return posterior_weights(*(self._ask(time) for time in (s, t)))

    def posterior(self, x0: Tensor, x_t: Tensor, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return mean, of shape (B, *), and standard deviation, of t's shape, of x_s | x_t, x_0 for s <= t (Bayes)."""
        if check_floating(x0, "x0").shape != check_floating(x_t, "x_t").shape:
            raise ShapeError(f"x0 and x_t must agree, got shapes {tuple(x0.shape)} and {tuple(x_t.shape)}")
        check_device(x0.device, "x0", x_t.device, "x_t")
        on_xt, on_x0, std = self.posterior_weights(*self._check_order(x0, s, t))
        return combine((on_x0, x0), (on_xt, x_t)), std.to(x0)

    def _check_order(self, x: Tensor, s: Tensor | float, t: Tensor | float) -> Pair:
        early, late = self.check_time(s, x, name="s", zero=True), self.check_time(t, x)
        if bool((early > late).any()):
            raise DomainError(f"s must not exceed t, got s = {early.max():g} and t = {late.min():g}; swap them")
        return early, late

    def prior(self, t: Tensor | float | None = None, moments: Moments | None = None) -> Gaussian:
        """Return the Gaussian that sampling starts from at t (t_max by default).

        With the data's moments it is N(alpha m, alpha^2 C + sigma^2), which has the exact mean and covariance of x_t;
        without them N(0, prior_std^2).
        """
        time = self.check_time(self.t_max if t is None else t)
        if time.ndim:
            raise ShapeError(f"t of a prior must be a single time, got shape {tuple(time.shape)}")
        if moments is None:
            return Gaussian(torch.zeros((), dtype=torch.float64, device="cpu"), self.prior_std(time).square())
        point = self.at(time)
        return check_instance(moments, Moments, "moments", "Moments, e.g. Moments.of(data)").at(
            float(point.alpha), float(point.sigma)
        )

    def describe(self) -> str:
        """Return the curves at five times as text: t, alpha, sigma, log_snr, drift rate and g."""
        lines = ["".join(f"{cell:>16}" for cell in row) for row in self._rows()]
        prior = float(self.prior_std(self.t_max))
        end = f"prior at t_max: mean 0, standard deviation {prior:g} (data moments unknown)"
        return "\n".join([self._head(), *lines, end])

    def starting_at(self, t_min: float) -> Self:
        """Return a copy with another ``t_min``, in (0, t_max), at which data lie; times mean what they meant."""
        other = copy.copy(self)
        object.__setattr__(other, "t_min", check_number(t_min, "t_min", 0.0, self.t_max, open_low=True, open_high=True))
        return other

    @property
    def how_to_end_earlier(self) -> str:
        """What to do about an end at which alpha is 0, in words, for errors."""
        return "lower t_max"

    def _repr_html_(self) -> str:
        first, *rest = ("".join(f"<td>{cell}</td>" for cell in row) for row in self._rows())
        body = "".join(f"<tr>{row}</tr>" for row in rest)
        names = first.replace("td>", "th>")
        return f"<p>{html.escape(self._head())}</p><table><tr>{names}</tr>{body}</table>"

    def _head(self) -> str:
        return f"{self}: x_t = alpha(t) x_0 + sigma(t) z on [{self.t_min:g}, {self.t_max:g}]"

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the names of the curves, and their values at five times."""
        t = torch.linspace(self.t_min, self.t_max, 5, dtype=torch.float64, device="cpu")
        columns = t, self.alpha(t), self.sigma(t), self.log_snr(t), self.drift_rate(t), self.diffusion(t)
        values = torch.stack(columns, 1).tolist()
        names = ("t", "alpha", "sigma", "log_snr", "d log alpha/dt", "g")
        return [names, *(tuple(f"{value:.6g}" for value in row) for row in values)]


@dataclass(frozen=True, eq=False)
class ReverseSDE(SDE):
    """dx = [f - (1 + eta^2)/2 (d g^2/dx + g^2 score)] dt + eta g dw, run from t_max down to t_min.

    ``drift(x, t)``, ``diffusion(t)`` and ``diffusion_at(x, t)`` are in forward time t. The members ``f``, ``g``,
    ``noise_type`` and ``sde_type`` are torchsde's protocol in the increasing time s = t_max - t.
    """

    forward: SDE
    model: ScoreFunction
    eta: float = 1.0
    noise_type = "diagonal"
    sde_type = "ito"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "eta", 0.0)
        check_score(self.model)

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the reverse drift in forward time, of x's shape."""
        time = self.check_time(t, check_floating(x))
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        out = self.model(x, time)
        score = out if isinstance(out, Tensor) else out.score
        if score.shape != x.shape:
            raise SolverError(f"the score must have the shape {tuple(x.shape)} of x, got {tuple(score.shape)}")
        drift = drift_of(self.forward, x, time)
        if not self.is_additive:
            pull = noise_of(self.forward, x, time).square() * score + self.forward.diffusion_divergence(x, time)
            return (drift - 0.5 * (1 + self.eta**2) * pull).to(dtype)
        g = self.forward.diffusion(time)
        on_score = -0.5 * (1 + self.eta**2) * g.square()
        return combine((torch.ones_like(g), drift), (on_score, score)).to(dtype)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """Return eta g(t)."""
        return self.eta * self.forward.diffusion(t)

    def diffusion_at(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return eta g(x, t)."""
        return self.eta * self.forward.diffusion_at(x, t)

    def diffusion_divergence(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return eta^2 d g_i^2/dx_i, of x's shape."""
        return self.eta**2 * self.forward.diffusion_divergence(x, t)

    @property
    def is_additive(self) -> bool:
        """Whether the forward SDE's noise is."""
        return self.forward.is_additive

    def prior(self, t: Tensor | float | None = None, moments: Moments | None = None) -> Gaussian:
        """Return the forward SDE's prior: both have the same marginals."""
        return self.forward.prior(t, moments)

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """Return torchsde's drift at s = t_max - t: minus the reverse drift, since time runs backwards."""
        return -self.drift(y, (self.t_max - s).clamp(self.t_min, self.t_max))

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """Return torchsde's diagonal diffusion at s = t_max - t, of y's shape."""
        return self.diffusion_at(y, (self.t_max - s).clamp(self.t_min, self.t_max)).expand_as(y)
