r"""Measurements y = A(x) + noise: what was seen of the data, in their own units.

An operator maps data (B, *event) to measurements (B, *). A linear one needs no more than that: its adjoint is the
vector-Jacobian product of the map, and its matrix, where a method wants singular values, what it makes of unit vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.errors.tensors import check_floating, check_numbers, check_samples, check_values
from scoresde.errors.values import check_integer, check_number, check_sequence, keep_integer
from scoresde.ops import recording

__all__ = [
    "Blur",
    "Downsample",
    "Fourier",
    "Grey",
    "Linear",
    "Mask",
    "Matrix",
    "Nonlinear",
    "Operator",
    "as_operator",
    "check_measurement",
]

LARGEST_KERNEL = 2**24  # values


class Operator(ABC):
    """A map of data (B, *event), in the user's units, to measurements (B, *); ``linear`` says whether it is one."""

    linear: bool = True

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return A(x), (B, *), for x (B, *event)."""

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        """Return A^T y, (B, *event), for measurements y (B, *); ConfigError for an operator that is not linear."""
        if not self.linear:
            raise ConfigError(f"{type(self).__name__} is not linear, and has no adjoint; its Jacobian has one")
        with recording():
            x = y.new_zeros(len(y), *event).requires_grad_(True)
            (back,) = torch.autograd.grad(self(x), x, y)
        return back

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(_describe, vars(self).values()))})"


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}"
    return str(getattr(value, "__name__", type(value).__name__)) if callable(value) else repr(value)


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Operator):
    """The entries of x where ``keep`` is true, as a vector (B, m).

    Args:
        keep: bool, of the event's shape, or one that broadcasts to it, e.g. (H, W) for (C, H, W).
    """

    keep: Tensor

    def __post_init__(self) -> None:
        _check_seen(self.keep, "x")
        if not bool(self.keep.any()):
            raise ConfigError("keep is false everywhere: nothing is seen")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the entries that are seen."""
        try:
            keep = self.keep.expand(x.shape[1:])
        except RuntimeError as error:
            raise ShapeError(
                f"keep of shape {tuple(self.keep.shape)} does not fit the event {tuple(x.shape[1:])}"
            ) from error
        return x[:, keep.to(x.device)]


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(Operator):
    """A x for x flattened, (B, m).

    Args:
        matrix: (m, D), D the number of coordinates of an event.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        check_values(check_floating(self.matrix, "matrix"), "matrix")
        if self.matrix.ndim != 2 or not self.matrix.is_floating_point():
            raise ShapeError(f"matrix must be floating (m, D), got {self.matrix.dtype} {tuple(self.matrix.shape)}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product."""
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        if flat.shape[1] != self.matrix.shape[1]:
            raise ShapeError(f"matrix {tuple(self.matrix.shape)} does not fit events of {flat.shape[1]} coordinates")
        # Autocast is for networks; here it would round a measurement to bf16.
        with torch.autocast(x.device.type, enabled=False):
            return flat @ self.matrix.to(flat).T


@dataclass(frozen=True, eq=False, repr=False)
class Blur(Operator):
    """Circular convolution of every channel with a kernel, (B, C, *), centred.

    Args:
        kernel: of as many dimensions as the event has behind its channels, each of odd size.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        check_values(check_floating(self.kernel, "kernel"), "kernel")
        if not self.kernel.is_floating_point() or self.kernel.ndim not in (1, 2, 3):
            raise ShapeError(f"kernel must be floating, of 1 to 3 dimensions, got {tuple(self.kernel.shape)}")
        if any(size % 2 == 0 for size in self.kernel.shape):
            raise ShapeError(f"kernel must have odd sizes, so that it has a centre, got {tuple(self.kernel.shape)}")

    @classmethod
    def gaussian(cls, std: float, dims: int = 2) -> Blur:
        """Return a Gaussian blur of a standard deviation in pixels, cut at three; a kernel has up to 2^24 values."""
        dims = check_integer(dims, "dims", 1, 3)
        std = check_number(std, "std", 0.0, (LARGEST_KERNEL ** (1 / dims) - 3) / 6, open_low=True)
        reach = max(1, math.ceil(3 * std))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu") / std) ** 2)
        kernel = line / line.sum()
        for _ in range(dims - 1):
            kernel = kernel[..., None] * (line / line.sum())
        return cls(kernel)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the blurred x."""
        dims = self.kernel.ndim
        if x.ndim != dims + 2:
            raise ShapeError(f"a kernel of {dims} dimensions blurs (B, C) and {dims} sizes, got {tuple(x.shape)}")
        reach = [size // 2 for size in self.kernel.shape for _ in range(2)]
        if any(r > n for r, n in zip(reach[::2], x.shape[2:], strict=True)):
            raise ShapeError(f"kernel {tuple(self.kernel.shape)} is larger than twice the event {tuple(x.shape[1:])}")
        rows = x.reshape(-1, 1, *x.shape[2:])
        padded = functional.pad(rows, reach[::-1], mode="circular")
        conv = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = conv(padded, self.kernel.to(x).flip(list(range(dims)))[None, None])
        return out.reshape(x.shape)


@dataclass(frozen=True, repr=False)
class Downsample(Operator):
    """Means over blocks, (B, C, *sizes/factor); each size a multiple of the factor."""

    factor: int

    def __post_init__(self) -> None:
        keep_integer(self, "factor", 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the means."""
        if x.ndim < 3 or any(size % self.factor for size in x.shape[2:]):
            raise ShapeError(f"factor {self.factor} must divide the sizes behind (B, C), got {tuple(x.shape)}")
        for dim in range(2, x.ndim):
            blocks = (*x.shape[:dim], x.shape[dim] // self.factor, self.factor, *x.shape[dim + 1 :])
            x = x.reshape(blocks).mean(dim + 1)
        return x


@dataclass(frozen=True, repr=False)
class Grey(Operator):
    """A weighted sum of the channels, (B, 1, *).

    Args:
        weights: one for each channel; None for their mean.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            given = check_sequence(self.weights, "weights", "numbers")
            object.__setattr__(self, "weights", tuple(check_number(w, "weights") for w in given))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sum."""
        if self.weights is None:
            return x.mean(1, keepdim=True)
        if x.ndim < 2 or x.shape[1] != len(self.weights):
            raise ShapeError(f"{len(self.weights)} weights need as many channels, got x of shape {tuple(x.shape)}")
        return (x * x.new_tensor(self.weights).reshape(-1, *(1,) * (x.ndim - 2))).sum(1, keepdim=True)


@dataclass(frozen=True, eq=False, repr=False)
class Fourier(Operator):
    """Some Fourier coefficients of every channel, orthonormal, real parts before imaginary ones: (B, C, 2 m).

    Args:
        keep: bool, of the event's sizes behind its channels, true for the coefficients of ``torch.fft.fftn`` seen.
    """

    keep: Tensor

    def __post_init__(self) -> None:
        _check_seen(self.keep, "a coefficient")

    def __call__(self, x: Tensor) -> Tensor:
        """Return the coefficients."""
        if x.shape[2:] != self.keep.shape:
            raise ShapeError(
                f"keep must have the sizes {tuple(x.shape[2:])} behind (B, C), got {tuple(self.keep.shape)}"
            )
        spectrum = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")[:, :, self.keep.to(x.device)]
        return torch.cat([spectrum.real, spectrum.imag], -1)


@dataclass(frozen=True, eq=False, repr=False)
class Linear(Operator):
    """Any linear function of x, written with torch; that it is linear is checked where it is used."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function returns."""
        return self.function(x)


@dataclass(frozen=True, eq=False, repr=False)
class Nonlinear(Operator):
    """Any differentiable function of x, written with torch."""

    function: Callable[[Tensor], Tensor]

    linear = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function returns."""
        return self.function(x)


def _check_seen(keep: object, what: str) -> None:
    """Raise DTypeError unless ``keep`` is a bool tensor."""
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        got = keep.dtype if isinstance(keep, Tensor) else show(keep)
        raise DTypeError(f"keep must be a bool tensor, true where {what} is seen, got {got}")
    check_numbers(keep, "keep")


def as_operator(operator: object) -> Operator:
    """Return an operator: itself, a bool tensor as a mask, a matrix, or a function as a nonlinear one."""
    if isinstance(operator, Operator):
        return operator
    if isinstance(operator, Tensor):
        return Mask(operator) if operator.dtype == torch.bool else Matrix(operator)
    if callable(operator) and not isinstance(operator, type):
        return Nonlinear(operator)
    raise DTypeError(
        "operator must be one of scoresde.guidance, e.g. Mask(keep), a bool tensor, a matrix (m, D), or a function, "
        f"got {type(operator).__name__}"
    )


def check_measurement(operator: Operator, y: object, event: Sequence[int]) -> Tensor:
    """Return y if it is finite and of the shape of one measurement of an event, with or without a batch before it."""
    if not isinstance(y, Tensor):
        raise DTypeError(f"y must be a tensor, got {type(y).__name__}")
    check_samples(y[None], "y")
    seen = operator(torch.zeros((1, *event), dtype=torch.float32, device=y.device))
    if not isinstance(seen, Tensor):
        raise DTypeError(f"the operator must return a tensor, got {type(seen).__name__}")
    if tuple(y.shape) != tuple(seen.shape[1:]):
        raise ShapeError(
            f"y must have the shape {tuple(seen.shape[1:])} of one measurement of an event {tuple(event)}, got "
            f'{tuple(y.shape)}; pass a measurement for each sample as cond={{"measurement": y}}'
        )
    return y
