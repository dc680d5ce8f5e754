"""How a data prediction D becomes that of x_0 given a measurement; ``posteriors`` derives the formulas."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import is_name, unknown
from scoresde.errors.values import keep_integer, keep_number
from scoresde.models.guidance.measured import Linearised
from scoresde.ops import expand, flat

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "METHODS",
    "MMPS",
    "TMPD",
    "Asked",
    "DiffPIR",
    "Method",
    "MethodName",
    "PiGDM",
    "covary_gaussian",
    "solve",
]


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


def covary_gaussian(moments: Moments, nu2: Tensor, v: Tensor) -> Tensor:
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
        keep_integer(self, "iterations", 1)
        keep_number(self, "tolerance", 0.0, open_low=True)

    def shift(self, asked: Asked) -> Tensor:
        """Return C A^T S^{-1} (y - A D)."""
        u = solve(asked.through(asked.covary), asked.residual, self.iterations, self.tolerance, asked.noise)
        return asked.covary(asked.line.back(u))


@dataclass(frozen=True)
class PiGDM(Method):
    """C = (1/v + 1/nu^2)^{-1} for data of variance v, or the covariance of x_0 for Gaussian data ("moments").

    Args:
        covariance: v, in the model's coordinates: 1 is sigma^2/(alpha^2 + sigma^2), as published, and less takes a
            measurement to say more; "moments" takes the data's covariance Sigma in the place of v.
        iterations: of conjugate gradients, without the network.
    """

    covariance: float | Literal["moments"] = 0.5
    iterations: int = 200

    def __post_init__(self) -> None:
        keep_integer(self, "iterations", 1)
        if not is_name(self.covariance, ("moments",)):
            if isinstance(self.covariance, str):
                raise unknown("covariance", self.covariance, ["moments", "or a number"])
            keep_number(self, "covariance", 0.0, open_low=True)

    def shift(self, asked: Asked) -> Tensor:
        """Return (sigma^2/alpha) J^T A^T S^{-1} (y - A D)."""
        u = solve(asked.through(lambda v: self.covary(asked, v)), asked.residual, self.iterations, 1e-12)
        return asked.covary(asked.line.back(u))

    def covary(self, asked: Asked, v: Tensor) -> Tensor:
        """Return C v, (B, *event)."""
        if isinstance(self.covariance, str):
            if asked.moments is None:
                raise ConfigError("covariance='moments' needs a model that knows its data's moments; use a number")
            return covary_gaussian(asked.moments, asked.nu2, v)
        return expand(self.covariance * asked.nu2 / (self.covariance + asked.nu2), v) * v


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
        zeta: the step, in the unit of y, for A of norm about 1.
    """

    zeta: float = 2.0

    def __post_init__(self) -> None:
        keep_number(self, "zeta", 0.0, open_low=True)

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
        keep_number(self, "strength", 0.0, open_low=True)
        keep_integer(self, "iterations", 1)

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
        keep_integer(self, "iterations", 1)

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
        keep_number(self, "eta", 0.0, 1.0)

    def shift(self, asked: Asked) -> Tensor:
        """Return V diag(w_i/s_i) U^T (y - A D)."""
        u, values, vt = asked.line.measured.decompose(asked.residual)
        seen = values > 1e-9 * values.max()
        inverse = torch.where(seen, 1 / torch.where(seen, values, 1.0), 0.0)
        share = torch.ones((len(asked.nu2), 1), dtype=torch.float32, device="cpu").to(asked.residual)
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
