r"""Posteriors as models: the data prediction of x_0 given x_t and a measurement y = A x_0 + N(0, s^2).

With D = E[x_0 | x_t], J = dD/dx_t and nu = sigma/alpha, Tweedie's formulas are E[x_0 | x_t] = (x_t + sigma^2
score)/alpha and Cov[x_0 | x_t] = (sigma^2/alpha) J. For the posterior they read

    D_y = D + (sigma^2/alpha) grad_x log p(y | x_t).

Taking x_0 given x_t for Gaussian with a covariance C, log p(y | x_t) = log N(y; A D, S), S = s^2 + A C A^T, and

    D_y = D + (sigma^2/alpha) J^T A^T S^{-1} (y - A D).

* "mmps": C = (sigma^2/alpha) J, and S^{-1} by conjugate gradients, a product with the network an iteration (Rozet et
  al. 2024, arXiv:2405.13712).
* "pigdm": C = r^2, r^2 = sigma^2/(alpha^2 + sigma^2), or from the data's moments (Song et al. 2023,
  "Pseudoinverse-guided diffusion models for inverse problems"). One product.
* "tmpd": S diagonal, from the row sums of A (sigma^2/alpha) J A^T (Boys et al. 2023, arXiv:2310.06721). Two products.
* "dps": S^{-1} replaced by zeta/|y - A D| (Chung et al. 2023, arXiv:2209.14687). One product.
* "diffpir": nu^2/lambda in the place of (sigma^2/alpha) J too, so that D_y is a proximal step from D (Zhu et al. 2023,
  arXiv:2305.08995). No product.
* "ddnm": A^+ (y - A D) is added, less where nu < s (Wang et al. 2022, arXiv:2212.00490). No product.
* "ddrm": the same direction by direction in the singular basis of A (Kawar et al. 2022, arXiv:2201.11793). No product.

Where nu^2 exceeds five times the data's variance, (sigma^2/alpha) J is taken from the data's moments, (Sigma^{-1} +
1/nu^2)^{-1}: there it is that to the order of Sigma/nu^2, and a network's J carries its error times 1/alpha. In
conjugate gradients a direction whose curvature is not above s^2 ends them, since A C A^T is no less than 0.

For Gaussian data "mmps" is exact, and so is "pigdm" with the data's covariance. A is taken at D where it is not linear:
its Jacobian stands for A in the products. A transform of the model's is inside A, so that y is in the data's own units.
The measurement is one for all samples, or each sample's own as the condition "measurement".

A posterior is a *model*: every table, the flow and likelihoods run on it. (A likelihood score that is added outside a
table breaks its order; as a data prediction it does not.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.point import Point
from scoresde.errors import ConfigError, ShapeError, check_integer, check_number, unknown
from scoresde.models.guidance.operators import Operator, as_operator, check_measurement
from scoresde.models.mapped import ChangedModel, PreparedChange
from scoresde.models.prediction import Condition, Prediction, Predictor, Prepared
from scoresde.noise import normal, stream
from scoresde.ops import expand, flat, plain_attention, working_dtype
from scoresde.transforms.base import Transform

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "MEASUREMENT",
    "METHODS",
    "MMPS",
    "TMPD",
    "DiffPIR",
    "Measured",
    "Method",
    "MethodName",
    "PiGDM",
    "PosteriorModel",
    "posterior",
    "solve",
]

MEASUREMENT = "measurement"  # the condition with a measurement of each sample's own
LOWEST = -16.0  # log-SNR below which a state is taken for one of this level: where alpha is 0, J says nothing of C
BLIND = 5.0  # nu^2 over the data's variance above which their covariance stands for (sigma^2/alpha) J
MOST = 4096  # coordinates up to which a matrix is written down


class Measured:
    """A measurement seen from a model's coordinates: H(z) = A(transform^{-1}(z)), and its Jacobian at a point.

    Args:
        operator: A.
        transform: the model's, or None.
        event: the event's shape.
        std: of the noise.
    """

    def __init__(self, operator: Operator, transform: Transform | None, event: tuple[int, ...], std: float) -> None:
        self.operator, self.transform, self.event, self.std = operator, transform, event, std
        self._decomposition: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Return H(z), flattened, (B, m)."""
        x = z if self.transform is None else self.transform.inverse(z)
        out = self.operator(x)
        return out.reshape(len(z), math.prod(out.shape[1:]))

    def at(self, z: Tensor, *, keep: bool) -> Linearised:
        """Return H and its Jacobian at z; with ``keep`` the graph to z is kept."""
        return Linearised(self, z, keep)

    def is_linear(self) -> bool:
        """Return whether H - H(0) is linear on random data."""
        draw = stream(0, "linear")
        a, b = (normal((2, *self.event), draw, dtype=torch.float64) for _ in range(2))
        zero, both = self(torch.zeros_like(a)), self(a - 2 * b)
        parts = self(a) - zero - 2 * (self(b) - zero)
        scale = float(parts.abs().max()) + float(zero.abs().max()) + 1e-300
        return float((both - zero - parts).abs().max()) <= 1e-6 * scale

    def decompose(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, singular values and V^T of a linear H, where ``like`` is; ConfigError for too many coordinates."""
        size = math.prod(self.event)
        if size > MOST:
            raise ConfigError(
                f"singular values of {size} coordinates are too dear (at most {MOST}); use another method, e.g. 'mmps'"
            )
        if self._decomposition is None:
            basis = torch.eye(size, dtype=torch.float64).reshape(size, *self.event)
            matrix = (self(basis) - self(torch.zeros_like(basis[:1]))).T
            self._decomposition = torch.linalg.svd(matrix, full_matrices=False)
        u, s, vt = (part.to(like) for part in self._decomposition)
        return u, s, vt


class Linearised:
    """H at points z (B, *event): its values, and products with its Jacobian."""

    def __init__(self, measured: Measured, z: Tensor, keep: bool) -> None:
        self.measured, self.keep = measured, keep
        with torch.enable_grad():
            self.point = z if keep else z.detach().requires_grad_(True)
            self.graph = measured(self.point)
        self.value = self.graph if keep else self.graph.detach()
        self._base: Tensor | None = None

    def back(self, u: Tensor) -> Tensor:
        """Return H'^T u, (B, *event), for u (B, m)."""
        (out,) = torch.autograd.grad(
            self.graph, self.point, u.to(self.graph), retain_graph=True, create_graph=self.keep
        )
        return out

    def forward(self, v: Tensor) -> Tensor:
        """Return H' v, (B, m), for v (B, *event)."""
        if self.measured.operator.linear:
            if self._base is None:
                self._base = self.measured(torch.zeros_like(self.point[:1])).detach()
            return self.measured(v) - self._base
        with torch.enable_grad():
            slack = torch.zeros_like(self.graph).requires_grad_(True)
            (product,) = torch.autograd.grad(self.graph, self.point, slack, create_graph=True)
            (out,) = torch.autograd.grad(product, slack, v.to(product), retain_graph=True, create_graph=self.keep)
        return out


def solve(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float, least: float = 0.0
) -> Tensor:
    """Return x with product(x) = b, (B, m), by conjugate gradients, row by row; ``product`` is at least ``least``.

    A row stops where its residual is below ``tolerance`` times b, or where the curvature is not above ``least``, which
    an imperfect network's Jacobian may bring about.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rho = r.clone(), r.square().sum(1)
    goal = tolerance**2 * rho
    active = rho > goal
    for _ in range(iterations):
        if not bool(active.any()):
            break
        q = product(p)
        curvature = (p * q).sum(1)
        active = active & (curvature > least * p.square().sum(1)) & torch.isfinite(curvature)
        step = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)[:, None]
        x, r = x + step * p, r - step * q
        after = r.square().sum(1)
        p = r + torch.where(active, after / torch.where(rho > 0, rho, 1.0), 0.0)[:, None] * p
        rho, active = after, active & (after > goal)
    return x


@dataclass(eq=False)
class Asked:
    """What a method sees at a state.

    Args:
        data: D, (B, *event), in the model's coordinates.
        residual: y - H(D), (B, m).
        line: H at D.
        nu2: nu^2 = (sigma/alpha)^2, (B,).
        alpha: (B,).
        noise: s^2.
        covary: v -> (sigma^2/alpha) J^T v, both (B, *event): a product with the network.
        moments: of the data, or None.
    """

    data: Tensor
    residual: Tensor
    line: Linearised
    nu2: Tensor
    alpha: Tensor
    noise: float
    covary: Callable[[Tensor], Tensor]
    moments: Moments | None

    def through(self, covary: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return u -> (s^2 + H' C H'^T) u."""
        return lambda u: self.noise * u + self.line.forward(covary(self.line.back(u)))


def _covary_gaussian(moments: Moments, nu2: Tensor, v: Tensor) -> Tensor:
    """Return (Sigma^{-1} + 1/nu^2)^{-1} v, (B, *event), for Gaussian data of covariance Sigma."""
    variance = moments.variance.to(v)
    if moments.basis is None:
        wide = expand(nu2, v)
        return wide * variance / (variance + wide) * v
    basis = moments.basis.to(v)
    kept = nu2[:, None] * variance / (variance + nu2[:, None])
    return ((flat(v) @ basis * kept) @ basis.T).reshape(v.shape)


class Method(ABC):
    """How D_y is made of D and y; ``jacobian`` says whether products with the network are asked for."""

    jacobian: ClassVar[bool] = True
    nonlinear: ClassVar[bool] = True

    @abstractmethod
    def shift(self, asked: Asked) -> Tensor:
        """Return D_y - D, (B, *event)."""


@dataclass(frozen=True)
class MMPS(Method):
    """Moment matching: C is Tweedie's covariance, exact for Gaussian data.

    Args:
        iterations: of conjugate gradients, each a product with the network. A few leave out what a network's Jacobian
            says of directions in which C is small, where it is least to be trusted; an exact model bears any number.
        tolerance: of the residual, relative.
    """

    iterations: int = 3
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_integer(self.iterations, "iterations", 1)
        check_number(self.tolerance, "tolerance", 0.0, open_low=True)

    def shift(self, asked: Asked) -> Tensor:
        """Return C A^T S^{-1} (y - A D)."""
        u = solve(asked.through(asked.covary), asked.residual, self.iterations, self.tolerance, asked.noise)
        return asked.covary(asked.line.back(u))


Covariance = Literal["unit", "moments"]


@dataclass(frozen=True)
class PiGDM(Method):
    """C = r^2, r^2 = sigma^2/(alpha^2 + sigma^2) ("unit"), or the covariance of x_0 for Gaussian data ("moments").

    Args:
        covariance: "unit" for data of unit variance in the model's coordinates, as published; "moments" takes the
            data's covariance Sigma from the model's moments, C = (Sigma^{-1} + 1/nu^2)^{-1}.
        iterations: of conjugate gradients, without the network.
    """

    covariance: Covariance = "unit"
    iterations: int = 200

    def __post_init__(self) -> None:
        check_integer(self.iterations, "iterations", 1)
        if self.covariance not in get_args(Covariance):
            raise unknown("covariance", self.covariance, get_args(Covariance))

    def shift(self, asked: Asked) -> Tensor:
        """Return (sigma^2/alpha) J^T A^T S^{-1} (y - A D)."""
        u = solve(asked.through(lambda v: self.covary(asked, v)), asked.residual, self.iterations, 1e-12)
        return asked.covary(asked.line.back(u))

    def covary(self, asked: Asked, v: Tensor) -> Tensor:
        """Return C v, (B, *event)."""
        if self.covariance == "unit":
            return expand(asked.nu2 / (1 + asked.nu2), v) * v
        if asked.moments is None:
            raise ConfigError("covariance='moments' needs a model that knows its data's moments; use 'unit'")
        return _covary_gaussian(asked.moments, asked.nu2, v)


@dataclass(frozen=True)
class TMPD(Method):
    """S is diagonal, s^2 plus the row sums of A (sigma^2/alpha) J A^T."""

    def shift(self, asked: Asked) -> Tensor:
        """Return (sigma^2/alpha) J^T A^T S^{-1} (y - A D)."""
        sums = asked.line.forward(asked.covary(asked.line.back(torch.ones_like(asked.residual))))
        spread = (asked.noise + sums.clamp_min(0.0)).clamp_min(torch.finfo(sums.dtype).tiny)
        return asked.covary(asked.line.back(asked.residual / spread))


@dataclass(frozen=True)
class DPS(Method):
    """S^{-1} is replaced by zeta/|y - A D|: a step whose length does not depend on the distance.

    Args:
        zeta: the step, in the unit of y.
    """

    zeta: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.zeta, "zeta", 0.0, open_low=True)

    def shift(self, asked: Asked) -> Tensor:
        """Return (sigma^2/alpha) J^T A^T zeta (y - A D)/|y - A D|."""
        size = torch.linalg.vector_norm(asked.residual, dim=1, keepdim=True)
        return asked.covary(asked.line.back(self.zeta * asked.residual / size.clamp_min(1e-30)))


@dataclass(frozen=True)
class DiffPIR(Method):
    """The proximal step argmin |y - A x|^2/(2 s^2) + lambda |x - D|^2/(2 nu^2), by conjugate gradients.

    Args:
        strength: lambda.
        iterations: of conjugate gradients, without the network.
    """

    strength: float = 1.0
    iterations: int = 200

    jacobian = False

    def __post_init__(self) -> None:
        check_number(self.strength, "strength", 0.0, open_low=True)
        check_integer(self.iterations, "iterations", 1)

    def shift(self, asked: Asked) -> Tensor:
        """Return r^2 A^T (s^2 + r^2 A A^T)^{-1} (y - A D), r^2 = nu^2/lambda."""
        r2 = asked.nu2 / self.strength

        def covary(v: Tensor) -> Tensor:
            return expand(r2, v) * v

        u = solve(asked.through(covary), asked.residual, self.iterations, 1e-12)
        return covary(asked.line.back(u))


@dataclass(frozen=True)
class DDNM(Method):
    """A^+ (y - A D), times nu/s where nu < s: the range of A is told, its null space is the model's.

    Args:
        iterations: of conjugate gradients, without the network.
    """

    iterations: int = 200

    jacobian = False
    nonlinear = False

    def __post_init__(self) -> None:
        check_integer(self.iterations, "iterations", 1)

    def shift(self, asked: Asked) -> Tensor:
        """Return min(1, nu/s) A^+ (y - A D)."""
        u = solve(lambda u: asked.line.forward(asked.line.back(u)), asked.residual, self.iterations, 1e-12)
        share = torch.ones_like(asked.nu2) if asked.noise == 0 else (asked.nu2 / asked.noise).sqrt().clamp_max(1.0)
        return expand(share, asked.data) * asked.line.back(u)


@dataclass(frozen=True)
class DDRM(Method):
    """A^+ (y - A D) in the singular basis: direction i in whole where nu >= s/s_i, else times sqrt(1 - eta^2) nu s_i/s.

    Args:
        eta: as published, in [0, 1].
    """

    eta: float = 0.85

    jacobian = False
    nonlinear = False

    def __post_init__(self) -> None:
        check_number(self.eta, "eta", 0.0, 1.0)

    def shift(self, asked: Asked) -> Tensor:
        """Return V diag(w_i/s_i) U^T (y - A D)."""
        u, values, vt = asked.line.measured.decompose(asked.residual)
        seen = values > 1e-9 * values.max()
        inverse = torch.where(seen, 1 / torch.where(seen, values, 1.0), 0.0)
        share = torch.ones((len(asked.nu2), 1)).to(asked.residual)
        if asked.noise > 0:
            ratio = (asked.nu2 / asked.noise).sqrt()[:, None] * values
            share = torch.where(ratio >= 1, 1.0, math.sqrt(1 - self.eta**2) * ratio)
        return ((asked.residual @ u * (share * inverse)) @ vt).reshape(asked.data.shape)


METHODS: dict[str, Method] = {
    "mmps": MMPS(),
    "pigdm": PiGDM(),
    "tmpd": TMPD(),
    "dps": DPS(),
    "diffpir": DiffPIR(),
    "ddnm": DDNM(),
    "ddrm": DDRM(),
}
MethodName = Literal["mmps", "pigdm", "tmpd", "dps", "diffpir", "ddnm", "ddrm"]


def posterior(
    model: Predictor,
    operator: Operator | Tensor | Callable[[Tensor], Tensor],
    y: Tensor | None,
    *,
    noise_std: float,
    method: MethodName | Method = "mmps",
    event: tuple[int, ...] | None = None,
) -> PosteriorModel:
    """Return the model of x_0 given a measurement: ``sample(posterior(model, Mask(keep), y, noise_std=0.05), 64)``.

    Args:
        model: any model; of data whose moments it knows, unless ``event`` is given.
        operator: A; a bool tensor is a mask, a floating (m, D) a matrix, a function is taken for nonlinear.
        y: the measurement of all samples, in the data's units; None where each sample's own comes as
            ``cond={"measurement": y}``.
        noise_std: s, in the unit of y; 0 for an exact measurement.
        method: a key of ``METHODS``, or one with options, e.g. ``MMPS(iterations=20)``.
        event: the shape of one sample.

    Raises:
        DTypeError, ShapeError: no model, operator or tensor, or shapes that do not fit. DomainError: y that is not
            finite, a negative deviation. ConfigError: an unknown method, one that cannot use this operator (with those
            that can), an operator said to be linear that is not, a device other than the model's.
    """
    return PosteriorModel(model, as_operator(operator), y, noise_std, method, event)


class PosteriorModel(ChangedModel):
    """A model of x_0 given a measurement; see ``posterior``.

    Args:
        model: the prior.
        operator: A.
        y: the measurement, or None.
        noise_std: s.
        method: how D_y is made.
        event: the shape of one sample; None for that of the moments.
    """

    def __init__(
        self,
        model: Predictor,
        operator: Operator,
        y: Tensor | None,
        noise_std: float,
        method: str | Method,
        event: tuple[int, ...] | None,
    ) -> None:
        super().__init__(model, "data")
        if event is None and self.moments is None:
            raise ConfigError("the model knows no moments, so no event; pass event=, the shape of one sample")
        self.event = tuple(event or (() if self.moments is None else self.moments.mean.shape))
        if isinstance(method, str) and method not in METHODS:
            raise unknown("posterior method", method, METHODS)
        self.method = METHODS[method] if isinstance(method, str) else method
        self.noise_std = check_number(noise_std, "noise_std", 0.0)
        self.measured = Measured(operator, self.transform, self.event, self.noise_std)
        linear = operator.linear and self.measured.is_linear()
        if operator.linear and not linear:
            if self.transform is None or Measured(operator, None, self.event, 0.0).is_linear() is False:
                raise ConfigError(f"{type(operator).__name__} is not linear; pass the function as Nonlinear(function)")
            operator = _Composed(operator)
            self.measured = Measured(operator, self.transform, self.event, self.noise_std)
        if not linear and not self.method.nonlinear:
            able = [name for name, one in METHODS.items() if one.nonlinear]
            raise ConfigError(
                f"{type(self.method).__name__} needs a linear operator (and a linear transform); use one of "
                f"{', '.join(able)}"
            )
        self.y = None
        if y is not None:
            self.y = check_measurement(operator, y, self.event).detach()
            self.check_device(y.device, "y")

    def find_home(self, point: Point) -> Point:
        """Return the points of the model's own SDE, none below ``LOWEST``."""
        home = super().find_home(point)
        if float(home.log_snr.min()) >= LOWEST:
            return home
        return self.model.sde.at(self.model.sde.time(home.log_snr.clamp_min(LOWEST)))

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Prepare the model inside at these points of its own SDE; see ``Predictor.prepare``."""
        held = dict(cond or {})
        own = held.pop(MEASUREMENT, None)
        if own is None:
            if self.y is None:
                raise ConfigError('no measurement is given; pass y=, or cond={"measurement": y}')
            own = self.y[None].expand(len(x), *self.y.shape)
        return _PreparedPosterior(self, point, x, held or None, own)

    def __repr__(self) -> str:
        return (
            f"PosteriorModel({self.model!r}, {type(self.measured.operator).__name__}, noise_std={self.noise_std:g}, "
            f"{self.method!r}{self._describe_sde()})"
        )


class _Composed(Operator):
    """A linear operator behind a transform that is none."""

    linear = False

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(x)


class _PreparedPosterior(PreparedChange):
    def __init__(self, model: PosteriorModel, point: Point, x: Tensor, cond: Condition, y: Tensor) -> None:
        super().__init__(model, point, x, cond)
        self.posterior = model
        shape = point.t.shape
        columns = (1,) if len(shape) == 1 else shape[1:]
        self.nu2 = torch.exp(-self.home.log_snr).expand(shape).reshape(len(shape) and shape[0], *columns)
        self.alpha = self.home.alpha.expand(shape).reshape(self.nu2.shape)
        self.factor = (self.home.sigma.square() / self.home.alpha).expand(shape).reshape(self.nu2.shape)
        self.y = y.reshape(len(x), math.prod(y.shape[1:]))

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return D_y at point i, and the inner model's v where the variance is learned."""
        model, batch = self.posterior, len(x)
        keep = torch.is_grad_enabled()
        with torch.enable_grad(), plain_attention():
            state = self.state(i, x)
            state = state if keep and state.requires_grad else state.detach().requires_grad_(True)
            output, fraction = self.inner.outputs(i, state)
            data = Prediction(state, output, self.inner.reading(i)).data
        wide = (data if keep else data.detach()).to(working_dtype(x.device))
        nu2, alpha, factor = (c[i].to(wide).expand(batch) for c in (self.nu2, self.alpha, self.factor))

        # Where noise outweighs the data, (sigma^2/alpha) J is their covariance, and 1/alpha times a network's error.
        blind = torch.zeros(batch, dtype=torch.bool, device=wide.device)
        if model.moments is not None:
            blind = nu2 > BLIND * float(model.moments.variance.mean())

        def covary(v: Tensor) -> Tensor:
            known = _covary_gaussian(model.moments, nu2, v) if model.moments is not None else v
            if bool(blind.all()):
                return known
            (back,) = torch.autograd.grad(data, state, v.to(data), retain_graph=True, create_graph=keep)
            return torch.where(expand(blind, wide).bool(), known, expand(factor, wide) * back.to(wide))

        line = model.measured.at(wide, keep=keep)
        y = self.y.to(wide)
        if y.shape != line.value.shape:
            raise ShapeError(f"a measurement of {y.shape[1]} numbers does not fit the operator's {line.value.shape[1]}")
        asked = Asked(wide, y - line.value, line, nu2, alpha, model.noise_std**2, covary, model.moments)
        shifted = wide + model.method.shift(asked)
        return shifted.to(x), fraction if fraction is None or keep else fraction.detach()
