r"""Linear SDEs with one matrix on the parts of an event: learned matrices, and critically damped Langevin diffusion.

    dx = beta(t) F x dt + sqrt(beta(t)) G dw,    G G^T = Q,    B(t) = int_0^t beta,    beta linear in t,

so that with the clock B the coefficients are constant: M = e^{B F} and, by Van Loan's exponential of twice the size,

    exp(B [[F, Q], [0, -F^T]]) = [[M, S M^{-T}], [0, M^{-T}]],      S(B) = int_0^B e^{u F} Q e^{u F^T} du,

taken at B/2^k and doubled, S(2B) = S(B) + M S(B) M^T, a sum in which nothing cancels. Sigma = S + M Sigma_0 M^T, where
Sigma_0 is the variance of the parts that hold no data and start as noise.

*Critically damped Langevin diffusion* (Dockhorn, Vahdat and Kreis 2022, arXiv:2112.07068): parts position and velocity,

    F = [[0, 1/m], [-1, -Gamma/m]],    Q = diag(0, 2 Gamma),    velocity at t = 0 ~ N(0, gamma m),

with mass m and friction Gamma = 2 sqrt(m), whose stationary law is N(0, diag(1, m)). Noise reaches the position through
the velocity alone.

Source: Van Loan 1978, "Computing integrals involving the matrix exponential".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from scoresde.diffusions.blocks import Blocks, invert, turned
from scoresde.diffusions.linear import LinearPoint, LinearSDE, Maps
from scoresde.errors.kinds import DomainError, ShapeError
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_number, keep_number

__all__ = ["MatrixSDE", "exponentiate"]

LONGEST = 700.0
PIECES = 192  # of a step's length in log B, in which the flow's linear part is integrated


def exponentiate(drift: Tensor, noise: Tensor, b: Tensor) -> Maps:
    """Return e^{b F} and S(b) for b of any shape, each (*b, K, K)."""
    size = float(b.detach().max()) * float(torch.linalg.matrix_norm(drift.detach(), 1)) if b.numel() else 0.0
    doublings = max(0, math.ceil(math.log2(size))) if size > 1 else 0
    whole = torch.cat(
        [torch.cat([drift, noise], 1), torch.cat([torch.zeros_like(drift), -drift.T], 1)],
    )
    short = torch.linalg.matrix_exp((b / 2**doublings)[..., None, None] * whole)
    k = len(drift)
    mean = short[..., :k, :k]
    spread = short[..., :k, k:] @ turned(mean)
    for _ in range(doublings):
        spread = spread + mean @ spread @ turned(mean)
        mean = mean @ mean
    return mean, 0.5 * (spread + turned(spread))


@dataclass(frozen=True, eq=False)
class MatrixSDE(LinearSDE):
    """dx = beta(t) F x dt + sqrt(beta(t)) G dw with G G^T = Q, one matrix on the K parts of an event.

    An event's first size is a multiple of K: a vector of K numbers, or K images one behind the other in the channels.

    Args:
        matrix: F, (K, K), a tensor. Gradients reach it where it requires them.
        noise: Q, (K, K), symmetric and positive semi-definite; None for -(F + F^T), under which N(0, 1) stays N(0, 1).
        start: variances of the parts at t = 0, (K,); 0, which is the default, for parts that hold data.
        beta_min, beta_max: beta(t) = beta_min + t (beta_max - beta_min).
        t_min, t_max: the interval.

    Raises:
        ShapeError: no square matrix, or another one of another size. DomainError: not finite numbers, a noise that is
            not symmetric and positive semi-definite or never reaches some direction, a negative rate or variance.
    """

    matrix: Tensor
    noise: Tensor | None = None
    start: Tensor | None = None
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = field(default=1e-4, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "beta_min", 0.0)
        keep_number(self, "beta_max", self.beta_min, open_low=self.beta_min == 0)
        matrix = _check_square(self.matrix, "matrix")
        noise = -(matrix + matrix.T) if self.noise is None else _check_square(self.noise, "noise")
        k = len(matrix)
        if noise.shape != matrix.shape:
            raise ShapeError(f"noise must be ({k}, {k}) as matrix is, got {tuple(noise.shape)}")
        start = torch.zeros(k, dtype=torch.float64, device="cpu")
        start = start if self.start is None else check_numbers(self.start, "start")
        if start.shape != (k,):
            raise ShapeError(f"start must have {k} variances, one for each part, got {tuple(start.shape)}")
        if not bool((start >= 0).all()) or not bool(torch.isfinite(start).all()):
            raise DomainError(f"start must hold variances, got {start.tolist()}")
        fixed, largest = noise.detach(), float(noise.detach().abs().max())
        if bool(((fixed - fixed.T).abs() > 1e-12 * largest).any()):
            raise DomainError("noise must be symmetric", parameter="noise", cure="take (Q + Q.T)/2")
        least = float(torch.linalg.eigvalsh(fixed).min())
        if least < -1e-12 * largest:
            how = " (it is -(F + F^T); pass noise=)" if self.noise is None else ""
            raise DomainError(f"noise must be positive semi-definite, its smallest eigenvalue is {least:g}{how}")
        for name, value in (("matrix", matrix), ("noise", noise), ("start", start)):
            object.__setattr__(self, name, value)
        length = float(self.integral(torch.tensor(self.t_max, dtype=torch.float64, device="cpu")))
        length *= float(torch.linalg.matrix_norm(matrix.detach(), 1))
        if not length <= LONGEST:
            raise DomainError(
                f"the integral of beta times the norm of matrix must be at most {LONGEST:g}, got {length:g}: the "
                "signal would be no number of float64; take a smaller beta_max, t_max or matrix",
                parameter="beta_max",
            )
        end = self.maps(torch.tensor(self.t_max, dtype=torch.float64, device="cpu"))[1].detach()
        if not bool(torch.isfinite(end).all()) or not bool((torch.diagonal(end[0]) > 0).all()):
            raise DomainError(
                "the noise never reaches some direction of the state, or the matrix grows beyond all numbers; give "
                "each direction noise, directly or through the matrix, and eigenvalues of real part 0 or less"
            )

    @classmethod
    def langevin(
        cls,
        *,
        mass: float = 0.25,
        velocity: float = 0.04,
        beta_min: float = 4.0,
        beta_max: float = 4.0,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> Self:
        """Return critically damped Langevin diffusion on (position, velocity); the module's docstring has the matrices.

        Args:
            mass: m; the friction is 2 sqrt(m).
            velocity: gamma, the variance of the velocity at t = 0 in units of the mass.
            beta_min, beta_max: the rates at t = 0 and t = 1.
            t_min, t_max: the interval.

        Source: Dockhorn, Vahdat and Kreis 2022, "Score-based generative modeling with critically-damped Langevin
        diffusion", arXiv:2112.07068, whose values these are.

        Raises:
            DTypeError, DomainError: numbers that are not positive.
        """
        mass = check_number(mass, "mass", 0.0, open_low=True)
        velocity = check_number(velocity, "velocity", 0.0, open_low=True)
        friction = 2 * math.sqrt(mass)
        return cls(
            torch.tensor([[0.0, 1 / mass], [-1.0, -friction / mass]], dtype=torch.float64, device="cpu"),
            torch.tensor([[0.0, 0.0], [0.0, 2 * friction]], dtype=torch.float64, device="cpu"),
            torch.tensor([0.0, velocity * mass], dtype=torch.float64, device="cpu"),
            beta_min,
            beta_max,
            t_min=t_min,
            t_max=t_max,
        )

    @property
    def blocks(self) -> Blocks:
        """One K x K matrix for all."""
        return Blocks(len(self.matrix))

    @property
    def hidden(self) -> int:
        """How many parts, the last ones, start as noise and hold no data."""
        assert self.start is not None
        return int((self.start > 0).sum())

    def integral(self, t: Tensor) -> Tensor:
        """Return B(t)."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def inverse_integral(self, b: Tensor) -> Tensor:
        """Return the t with B(t) = b, without subtraction."""
        rate = self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b).sqrt()
        return torch.where(b == 0, 0.0, 2 * b / rate)

    def maps(self, t: Tensor) -> Maps:
        """Return M and the lower triangular L."""
        mean, covariance = self._at_integral(self.integral(t))
        first = t == 0
        assert self.start is not None
        begin = torch.diag(self.start.sqrt())
        safe = torch.where(first[..., None, None], torch.eye(len(begin), dtype=torch.float64, device="cpu"), covariance)
        lower, failed = torch.linalg.cholesky_ex(safe)
        lower = torch.where((failed > 0)[..., None, None], torch.nan, lower)
        return mean.unsqueeze(-3), torch.where(first[..., None, None], begin, lower).unsqueeze(-3)

    def _at_integral(self, b: Tensor) -> Maps:
        """Return M and Sigma where the integral of beta is b."""
        assert self.noise is not None
        assert self.start is not None
        mean, spread = exponentiate(self.matrix, self.noise, b)
        return mean, spread + (mean * self.start) @ turned(mean)

    def coefficients(self, t: Tensor) -> Maps:
        """Return beta F and beta Q."""
        assert self.noise is not None
        beta = (self.beta_min + t * (self.beta_max - self.beta_min))[..., None, None, None]
        return beta * self.matrix, beta * self.noise

    def transition_maps(self, s: Tensor, t: Tensor) -> Maps:
        """Return e^{b F} and S(b) for b = B(t) - B(s)."""
        assert self.noise is not None
        # Without the difference of two integrals.
        b = (t - s) * (self.beta_min + 0.5 * (s + t) * (self.beta_max - self.beta_min))
        onward, covariance = exponentiate(self.matrix, self.noise, b)
        return onward.unsqueeze(-3), covariance.unsqueeze(-3)

    def carry_deviation(self, late: LinearPoint, early: LinearPoint, eta: float) -> Tensor:
        """Integrate Psi in log B by Magnus' method of order 4 (Iserles and Norsett 1999) in many small pieces."""
        assert self.noise is not None
        high, low = self.integral(late.t).log(), self.integral(early.t).log()
        step = (low - high)[:, None] / PIECES
        shift = math.sqrt(3) / 6
        place = torch.arange(PIECES, dtype=torch.float64, device="cpu") + 0.5
        first, second = (high[:, None] + step * (place + sign * shift) for sign in (-1, 1))
        slopes = []
        for log_b in (first, second):
            b = log_b.exp()
            covariance = self._at_integral(b)[1]
            pull = 0.5 * (1 + eta**2) * self.noise @ invert(covariance)
            slopes.append(b[..., None, None] * (self.matrix + pull))
        h = step[..., None, None]
        ahead = 0.5 * h * (slopes[0] + slopes[1])
        ahead = ahead - math.sqrt(3) / 12 * h.square() * (slopes[0] @ slopes[1] - slopes[1] @ slopes[0])
        pieces = torch.linalg.matrix_exp(ahead)
        whole: Tensor = pieces[:, 0]
        for i in range(1, PIECES):
            whole = pieces[:, i] @ whole
        return whole.unsqueeze(-3)

    def to_dict(self) -> dict[str, object]:
        """Return a JSON-able description."""
        assert self.noise is not None
        assert self.start is not None
        tensors = {"matrix": self.matrix, "noise": self.noise, "start": self.start}
        numbers = {name: getattr(self, name) for name in ("beta_min", "beta_max", "t_min", "t_max")}
        return {"kind": "MatrixSDE", **{name: value.tolist() for name, value in tensors.items()}, **numbers}

    def __repr__(self) -> str:
        k = len(self.matrix)
        return (
            f"MatrixSDE({k} x {k}, beta {self.beta_min:g} to {self.beta_max:g}, t in [{self.t_min:g}, {self.t_max:g}])"
        )


def _check_square(value: object, name: str) -> Tensor:
    """Return a finite square matrix in float64 on the CPU, with its graph."""
    wide = check_numbers(value, name)
    if isinstance(value, Tensor) and value.requires_grad:
        wide = value.to("cpu", torch.float64)
    if wide.ndim != 2 or wide.shape[0] != wide.shape[1] or not len(wide):
        raise ShapeError(f"{name} must be a square matrix (K, K), got {tuple(wide.shape)}")
    if not bool(torch.isfinite(wide).all()):
        raise DomainError(f"{name} must be finite", parameter=name, allowed="finite values")
    return wide
