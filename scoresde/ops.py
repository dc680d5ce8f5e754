"""Operations that every layer shares: broadcasting, derivatives in time, and data that are read in parts.

A coefficient c has shape () or (B,); a sample x has shape (B, *). ``expand`` is the only place in the package where
dimensions are added so that c multiplies x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError
from scoresde.errors.tensors import PART, check_finite, check_floating, check_values

__all__ = [
    "Array",
    "Rows",
    "accept_arrays",
    "accept_rows",
    "check_readable",
    "chunks",
    "combine",
    "divergence",
    "drop_mean",
    "expand",
    "flat",
    "gather_moments",
    "jacobian_products",
    "move",
    "parts",
    "plain_attention",
    "recording",
    "restore_points",
    "share_memory",
    "time_derivative",
    "working_dtype",
]

Array = Tensor | NDArray[Any]


def accept_arrays(value: object, name: str = "x", *, only_read: bool = False) -> object:
    """Return a NumPy array as a tensor, also the arrays in a mapping; anything else as it is, for a check to judge.

    The tensor shares the array's memory, unless the array is laid out as no tensor is, or is read-only and the tensor
    might be written to: then it is a copy. Raises DTypeError where torch has no such type.
    """
    if isinstance(value, Mapping):
        return {key: accept_arrays(part, f"{name}[{key!r}]", only_read=only_read) for key, part in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    strange = any(stride < 0 or stride % max(1, value.itemsize) for stride in value.strides)
    if strange or not ((only_read or value.flags.writeable) and value.dtype.isnative):
        value = value.astype(value.dtype.newbyteorder("="), order="C")
    try:
        return share_memory(value)
    except TypeError as error:
        cure = f"convert it with {name}.astype(np.float32)"
        if value.dtype == object:
            cure = f"make samples of one size and np.stack({name}) them, or convert them to numbers"
        raise DTypeError(f"{name} must be an array of numbers, got dtype {value.dtype}", cure=cure) from error


class _Memory:
    """The memory of an array, which it keeps alive, without the mark that it is read-only."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def share_memory(array: NDArray[Any]) -> Tensor:
    """Return a tensor on an array's memory; where that is read-only, as a file's is, writing to the tensor is fatal."""
    # torch.from_numpy warns of read-only memory.
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Memory(array)))


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples (N, *) of a tensor that are read and converted a part at a time; the tensor may lie in a file.

    Args:
        source: (M, *), of any real type.
        dtype: the type in which they are read.
        index: which rows of the source they are, (N,); None for all.
    """

    source: Tensor
    dtype: torch.dtype
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source if self.index is None else self.index)

    @property
    def shape(self) -> torch.Size:
        """(N, *)."""
        return torch.Size((len(self), *self.source.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Where the source is."""
        return self.source.device

    def __getitem__(self, places: slice | Tensor) -> Tensor:
        where = places if self.index is None else self.index[places]
        return self.source[where].to(self.dtype)


def accept_rows(value: object, name: str) -> Rows:
    """Return a tensor or an array of finite floating numbers or bytes, (N, *), as rows in at least float32; no copy.

    Raises:
        DTypeError, ShapeError, DomainError: anything else.
    """
    if isinstance(value, Rows):
        rows = value
    else:
        x = accept_arrays(value, name, only_read=True)
        samples = x if isinstance(x, Tensor) and x.dtype == torch.uint8 and x.ndim else check_floating(x, name)
        rows = Rows(samples.detach(), torch.promote_types(samples.dtype, torch.float32))
    check_values(rows.source, name)
    if rows.source.is_floating_point():
        for _ in check_finite(parts(rows), name):
            pass
    return rows


def parts(x: Tensor | Rows) -> Iterator[Tensor]:
    """Yield samples (N, *) in order, in parts (n, *) of some 130 000 values; one empty part where N is 0."""
    size = max(1, PART // max(1, math.prod(x.shape[1:])))
    yield from (x[part] for part in chunks(len(x), size)) if len(x) else (x[:0],)


def gather_moments(rows: Iterable[Tensor], full_limit: int = 0) -> tuple[int, Tensor, Tensor]:
    """Return the number N of rows that come in parts (n, D), their mean (D,) and their scatter, in float64 on the CPU.

    The scatter is the sum over rows of (x - mean)(x - mean)^T, (D, D), up to ``full_limit`` coordinates, and else its
    diagonal, (D,). Each part is centred on its own mean, and two of them, a and b, are joined by

        mean = mean_a + d n_b/n,    scatter = scatter_a + scatter_b + d d^T n_a n_b/n,    d = mean_b - mean_a.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", The American Statistician
    37(3).
    """
    count, mean, scatter = (
        0,
        torch.zeros((), dtype=torch.float32, device="cpu"),
        torch.zeros((), dtype=torch.float32, device="cpu"),
    )
    for part in rows:
        x = part.detach().to("cpu", torch.float64)
        own, full = x.mean(0), x.shape[1] <= full_limit
        centred = x - own
        spread = centred.T @ centred if full else centred.square_().sum(0)
        if not count:
            count, mean, scatter = len(x), own, spread
            continue
        total, step = count + len(x), own - mean
        scatter += spread + (torch.outer(step, step) if full else step.square()) * (count * len(x) / total)
        mean += step * (len(x) / total)
        count = total
    return count, mean, scatter


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Cast ``c`` of shape () or (B,) to x's dtype and device and give it trailing dimensions to multiply x of (B, *).

    Raises ShapeError where c has another shape.
    """
    if c.ndim == 0:
        return c.to(x)
    if c.ndim != 1 or c.shape[0] != x.shape[0]:
        raise ShapeError(
            f"t must have shape () or ({x.shape[0]},) for x of shape {tuple(x.shape)}, got {tuple(c.shape)}"
        )
    return c.to(x).reshape(-1, *(1,) * (x.ndim - 1))


def flat(x: Tensor) -> Tensor:
    """Return x (B, *) as (B, D), also where B is 0."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of c x over the terms (c, x), c of shape () or (B,) and x of shape (B, *).

    Computed in at least float32 and cast last to the type of the first x, so that a half type costs one rounding.
    """
    first = terms[0][1]
    wide = torch.promote_types(first.dtype, torch.float32)
    parts = [expand(c, x) * x for c, x in ((c, x.to(wide)) for c, x in terms)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(first.dtype)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yield the slices that part ``count`` things into pieces of at most ``size``; none where there is nothing."""
    for low in range(0, count, size):
        yield slice(low, min(low + size, count))


def working_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which schedules are evaluated: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def drop_mean(cloud: Tensor, coordinates: int) -> Tensor:
    """Return clouds of points without their mean places: (B, N, n + features) -> (B, n (N - 1) + features N).

    The places come first, as N - 1 orthonormal combinations that do not see the mean; ``coordinates`` is n.
    """
    basis = _zero_mean_basis(cloud.shape[1], cloud)
    places, features = cloud[..., :coordinates], cloud[..., coordinates:]
    return torch.cat([(basis @ places).flatten(1), features.flatten(1)], 1)


def restore_points(y: Tensor, coordinates: int, features: int) -> Tensor:
    """Return the clouds (B, N, n + features) of mean place 0 whose ``drop_mean`` is y, (B, n (N - 1) + features N).

    Raises ShapeError where y is that of no cloud.
    """
    each = coordinates + features
    count = (y.shape[1] + coordinates) // each if y.ndim == 2 else 0
    if count < 1 or count * each - coordinates != y.shape[1]:
        raise ShapeError(
            f"clouds in relative coordinates have shape (B, {each} N - {coordinates}) for N points with {coordinates} "
            f"coordinates and {features} features, got {tuple(y.shape)}; RelativePlaces.forward makes them of clouds"
        )
    size = coordinates * (count - 1)
    basis = _zero_mean_basis(count, y)
    places = basis.mT @ y[:, :size].reshape(len(y), count - 1, coordinates)
    return torch.cat([places, y[:, size:].reshape(len(y), count, features)], 2)


def _zero_mean_basis(count: int, like: Tensor) -> Tensor:
    """Return Helmert's rows (N - 1, N), orthonormal and perpendicular to (1, ..., 1), in the type of ``like``."""
    number = torch.arange(count, dtype=working_dtype(like.device), device=like.device)
    k = number[1:, None]
    rows = (number < k).to(k) - k * (number == k).to(k)
    return (rows * (k * (k + 1)).rsqrt()).to(like)


def time_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Return d function/dt at t, elementwise, by automatic differentiation.

    The result is differentiable in t and in whatever parameters the function holds; it needs no grad mode.
    """
    # Backwards, since torch's forward mode compiles decompositions at its first use, with a deprecation warning.
    derivative: Tensor = torch.func.grad(lambda s: function(s).sum())(t)
    return derivative


def check_readable(x: Tensor | None = None) -> None:
    """Raise ConfigError under a transform of torch.func (grad, jacrev, vmap, ...), whose tensors show no numbers."""
    if torch.compiler.is_compiling():
        return
    try:
        torch.zeros((), dtype=torch.float32, device="cpu").data_ptr()
        if x is not None:
            x.data_ptr()
    except RuntimeError as error:
        raise ConfigError(
            "a transform of torch.func hides the numbers that this looks at; take SamplingModule(model, shape) there, "
            "or torch.autograd with sample(..., differentiable=True)"
        ) from error


@contextmanager
def recording() -> Iterator[None]:
    """Record for a gradient, also under ``torch.no_grad()``; ConfigError in inference mode, which forbids it."""
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "this differentiates, which torch.inference_mode() forbids; leave it, torch.no_grad() does as well"
        )
    with torch.enable_grad():
        yield


def plain_attention() -> AbstractContextManager[None]:
    """Return a context in which attention is written out, so that it has forward-mode and second derivatives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def jacobian_products(
    function: Callable[[Tensor], Tensor], x: Tensor, probes: Iterable[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return function(x), of x's shape, and v^T J v, (B,), for each probe v, J being the Jacobian of each sample.

    The function acts sample by sample. One evaluation of it, and one gradient for each probe: backwards, which
    ``benchmarks/jacobian_products.py`` finds cheaper than forward mode for every network. In grad mode both results
    carry the graph to whatever parameters the function holds, and to x where x requires a gradient; attention then
    takes its plain form, since the fused ones have no second derivative. Products are summed in at least float32.

    Args:
        function: x (B, *) -> a tensor of x's shape.
        x: states (B, *).
        probes: tensors of x's shape, or of its event's.
    """
    keep = torch.is_grad_enabled()
    with recording(), plain_attention() if keep else nullcontext():
        # A view of such an x, made without grad mode, says that it requires a gradient and belongs to no graph.
        point = x if keep and x.requires_grad else x.detach().requires_grad_(True)
        value = function(point)
        products = []
        for v in probes:
            if not value.requires_grad:  # constant in x: the Jacobian is 0
                products.append(x.new_zeros(len(x)))
                continue
            (product,) = torch.autograd.grad(
                value, point, v.expand_as(value), create_graph=keep, retain_graph=True, materialize_grads=True
            )
            wide = (product * v).to(torch.promote_types(product.dtype, torch.float32))
            products.append(wide.reshape(len(x), math.prod(x.shape[1:])).sum(1))
    return (value, products) if keep else (value.detach(), products)


def divergence(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return function(x), of x's shape (B, *), and its exact divergence, (B,): the trace of each sample's Jacobian.

    It costs a gradient for each coordinate of an event; see ``jacobian_products``, which estimates it with fewer.
    """
    value, products = jacobian_products(function, x, _units(x))
    return value, sum(products, x.new_zeros(len(x)))


def jacobian_diagonal(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return d function_i/dx_i, of x's shape (B, *); a gradient for each coordinate, see ``jacobian_products``."""
    products = jacobian_products(function, x, _units(x))[1]
    return torch.stack(products, 1).reshape(x.shape).to(x.dtype) if products else torch.zeros_like(x)


def _units(x: Tensor) -> Iterator[Tensor]:
    """Yield the unit vectors of an event."""
    size = math.prod(x.shape[1:])
    places = torch.arange(size, device=x.device)
    yield from ((places == i).to(x.dtype).reshape(x.shape[1:]) for i in range(size))


def move(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device`` without waiting for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
