r"""What a network is told besides x and its noise level: classes, vectors, and values beside x.

| kind | option | given as | null |
|---|---|---|---|
| a class | ``classes=10``, named "label", or ``{"digit": 10, "style": 3}`` | integers (B,) from 0 on | -1 |
| a vector | ``context_features=5``, named "context", or ``{"weather": 5}`` | floats (B, 5) | NaN |
| beside x | ``concat_channels=1``, named "concat", or ``{"mask": 1}`` | floats (B, 1, *) with the sizes of x | NaN |

A class k adds a learned vector v_k to the conditioning vector, and the null class has one of its own. Vectors and
channels may be known in part: an entry that is NaN is *missing*. The network sees 0 in its place, and beside the values
a mask that is 1 where one is known. A condition that is not given is null for the whole batch.

A network trained with some conditions replaced by their null (``drop_conditions``) knows the conditional and the
unconditional score, as classifier-free guidance asks (Ho and Salimans 2022, arXiv:2207.12598). The networks themselves
draw no random number once they are made, in training mode neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, show
from scoresde.errors.names import unknown
from scoresde.errors.values import check_instance, check_integer, check_mapping, check_number
from scoresde.nn.embeddings import FREQUENCIES, fourier_features
from scoresde.noise import uniform

__all__ = [
    "ConditionalNetwork",
    "Conditioning",
    "Counts",
    "drop_conditions",
    "drop_labels",
    "look_up",
    "mask_missing",
    "null_like",
    "read_counts",
]

Counts = int | Mapping[str, int] | None


class ConditionalNetwork(nn.Module):
    """What the built-in networks share: a description by the constructor's arguments, and the conditions they take.

    ``kinds`` has, for each name, the option that brought it and its number: ``{"label": ("classes", 10)}``.
    """

    ARGS: ClassVar[tuple[str, ...]]  # the constructor's arguments, each an attribute
    classes: int | dict[str, int] | None
    context_features: int | dict[str, int] | None
    concat_channels: int | dict[str, int] | None
    kinds: dict[str, tuple[str, int]]

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments, JSON-able: ``MLP(**net.config)`` is an MLP again, with its first weights."""
        values = {name: getattr(self, name) for name in self.ARGS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def condition_names(self) -> frozenset[str]:
        """The conditions that ``forward`` takes."""
        return frozenset(self.kinds)

    def read_conditions(self, classes: Counts, context_features: Counts, concat_channels: Counts) -> None:
        """Take the options of the constructor; see the table of this module for names.

        Raises:
            DTypeError, DomainError: no positive integers. ConfigError: a name twice, or one that is no identifier.
        """
        self.kinds = {}
        for option, usual, given in (
            ("classes", "label", classes),
            ("context_features", "context", context_features),
            ("concat_channels", "concat", concat_channels),
        ):
            counts = read_counts(given, usual, option)
            setattr(self, option, dict(counts) if isinstance(given, Mapping) else counts.get(usual))
            for name, count in counts.items():
                if name in self.kinds:
                    raise ConfigError(f"{option} names {name!r}, which {self.kinds[name][0]} names, too; rename one")
                self.kinds[name] = option, count

    def check_conditions(self, x_shape: torch.Size, cond: Mapping[str, Tensor | None]) -> None:
        """Raise where a condition is none of this network's, or of another shape or type than it takes.

        Args:
            x_shape: of x, (B, *).
            cond: the conditions; None for one that is null.

        Raises:
            ConfigError: a name that the network does not take. ShapeError: another shape. DTypeError: a class that is
                no integer, other values that are not floating.
        """
        for name, value in cond.items():
            if value is None:
                continue
            if name not in self.kinds:
                raise _unknown_condition(name, self.kinds)
            option, count = self.kinds[name]
            given: object = value
            if not isinstance(given, Tensor):
                raise DTypeError(f"{name} must be a tensor, got {show(given)}; use torch.as_tensor({name})")
            if option == "classes":
                wanted: tuple[int, ...] = (x_shape[0],)
                if value.dtype not in (torch.int64, torch.int32):
                    raise DTypeError(
                        f"{name} must be an int64 or int32 tensor, got {value.dtype}; convert it with {name}.long()"
                    )
            else:
                wanted = (x_shape[0], count) if option == "context_features" else (x_shape[0], count, *x_shape[2:])
                if not value.is_floating_point():
                    raise DTypeError(f"{name} must be a floating tensor, got {value.dtype}; convert it with .float()")
            if value.shape != wanted:
                raise ShapeError(
                    f"{name} must have shape {wanted} for x of shape {tuple(x_shape)}, got {tuple(value.shape)}"
                )

    def null_conditions(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the null of each condition: -1 for classes, NaN for anything floating."""
        return {name: null_like(value) for name, value in cond.items()}

    def check_call(self, x: Tensor, c_noise: Tensor, cond: Mapping[str, Tensor | None]) -> None:
        """Raise DTypeError unless x is floating, ShapeError unless ``c_noise`` is (B,), and as ``check_conditions``."""
        if not x.is_floating_point():
            raise DTypeError(f"x must have a real floating dtype, got {x.dtype}; convert it with x.float()")
        batch = (x.shape[0],)
        if c_noise.shape != batch:
            raise ShapeError(
                f"c_noise must have shape {batch} for x of shape {tuple(x.shape)}, got {tuple(c_noise.shape)}"
            )
        self.check_conditions(x.shape, cond)

    @property
    def concat_inputs(self) -> int:
        """The channels that stand beside those of x: values and masks."""
        return sum(2 * count for option, count in self.kinds.values() if option == "concat_channels")

    def beside(self, x: Tensor, cond: Mapping[str, Tensor | None]) -> Tensor:
        """Return x (B, C, *) with the channels beside it, in the type of x."""
        parts = [x]
        for name, (option, count) in self.kinds.items():
            if option == "concat_channels":
                value = cond.get(name)
                nothing = x.new_zeros(x.shape[0], 2 * count, *x.shape[2:])
                parts.append(nothing if value is None else mask_missing(value, x))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Conditioning(nn.Module):
    """c_noise (B,), classes and vectors -> one vector (B, width).

    It is a two-layer network of the noise level's features, plus a learned vector for each class, and a two-layer
    network of each vector with its mask.

    Args:
        width: length of the vector.
        kinds: of ``ConditionalNetwork``; those beside x are left out.
    """

    def __init__(self, width: int, kinds: Mapping[str, tuple[str, int]]) -> None:
        super().__init__()
        self.features = nn.Linear(2 * FREQUENCIES, width)
        self.mix = nn.Linear(width, width)
        self.names = tuple(name for name, (option, _) in kinds.items() if option in ("classes", "context_features"))
        self.lengths = {name: count for name, (_, count) in kinds.items()}
        for name in self.names:
            option, count = kinds[name]
            if name in dir(self):
                raise ConfigError(f"a condition cannot be named {name!r}: the network has a part of this name")
            part = (
                nn.Embedding(count + 1, width)  # row 0 is the null class
                if option == "classes"
                else nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))
            )
            self.add_module(name, part)

    def forward(self, c_noise: Tensor, cond: Mapping[str, Tensor | None]) -> Tensor:
        """Return the vector (B, width) in the type of the weights.

        Raises:
            DomainError: classes outside -1..n-1 (the range is seen on the CPU only: elsewhere a look would stop the
                device, whose own indexing check reports it).
        """
        features = fourier_features(c_noise).to(self.mix.weight.dtype)
        h: Tensor = self.mix(functional.silu(self.features(features)))
        for name in self.names:
            part, value = self.get_submodule(name), cond.get(name)
            if isinstance(part, nn.Embedding):
                h = h + (part.weight[0] if value is None else look_up(part, value, name))
            else:
                nothing = h.new_zeros(h.shape[0], 2 * self.lengths[name])
                h = h + part(nothing if value is None else mask_missing(value, h))
        return functional.silu(h)


def read_counts(given: Counts, usual: str, option: str) -> dict[str, int]:
    """Return name -> number of an option: a number alone goes under the usual name."""
    if given is None:
        return {}
    counts = given if isinstance(given, Mapping) else {usual: given}
    names: tuple[object, ...] = tuple(counts)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name in ("self", "x", "c_noise"):
            raise ConfigError(f"{option} must name conditions by words such as {usual!r}, got {show(name)}")
    return {name: check_integer(count, option, 1) for name, count in counts.items()}


def null_like(value: Tensor) -> Tensor:
    """Return the null of a condition: -1 for classes, NaN for anything floating."""
    return torch.full_like(value, float("nan") if value.is_floating_point() else -1)


def drop_conditions(
    cond: Mapping[str, Tensor], shares: Mapping[str, float], generator: Mapping[str, torch.Generator]
) -> dict[str, Tensor]:
    """Return the conditions with some samples' replaced by their null, each condition by a draw of its own.

    Args:
        cond: each (B, *).
        shares: name -> probability in [0, 1]; 0.1 is usual for classifier-free guidance.
        generator: name -> source of its draw; it may live on another device than the conditions.

    Raises:
        ConfigError: a share of a condition that is not there. DTypeError, DomainError: a condition that is neither
            integer nor floating, a probability outside [0, 1].
    """
    made = dict(check_mapping(cond, "cond", "tensors"))
    sources = check_mapping(generator, "generator", "torch.Generators")
    for name, share in check_mapping(shares, "shares", "probabilities").items():
        if name not in cond:
            raise _unknown_condition(name, cond)
        if name not in sources:
            raise ConfigError(f"generator has no source for {name}; give one for each share")
        value = check_instance(cond[name], Tensor, f"cond[{name!r}]", "a tensor")
        if value.dtype.is_complex or value.dtype == torch.bool:
            raise DTypeError(f"{name} must be integers or floating, got {value.dtype}; convert it with {name}.long()")
        chosen = uniform((len(value),), sources[name]) < check_number(share, "probability", 0.0, 1.0)
        where = chosen.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
        made[name] = torch.where(where, null_like(value), value)
    return made


def drop_labels(label: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return ``label`` with each entry replaced by -1, the null class, with the given probability.

    Args:
        label: integers (B,).
        probability: in [0, 1]; 0.1 is usual for classifier-free guidance.
        generator: source of the draw; it may live on another device than the labels.

    Raises:
        DTypeError, DomainError: label is not of an integer type, probability outside [0, 1].
    """
    if check_instance(label, Tensor, "label", "a tensor").dtype.is_floating_point:
        raise DTypeError(f"label must have an integer dtype, got {label.dtype}; convert it with label.long()")
    return drop_conditions({"label": label}, {"label": probability}, {"label": generator})["label"]


def look_up(table: nn.Embedding, label: Tensor, name: str) -> Tensor:
    """Return the table's rows (B, width) of classes (B,) from -1 on, with the class's name in the error."""
    try:
        row: Tensor = table(label + 1)
    except IndexError as error:
        low, high = int(label.min()), int(label.max())
        allowed = f"0..{table.num_embeddings - 2}, or be -1 for no class"
        raise DomainError(f"{name} must lie in {allowed}, got values from {low} to {high}") from error
    return row


def mask_missing(value: Tensor, like: Tensor) -> Tensor:
    """Return values (B, k, *) with 0 for what is missing, and a mask of what is known, (B, 2 k, *)."""
    known = ~value.isnan()
    return torch.cat([torch.where(known, value, 0.0), known.to(value.dtype)], 1).to(like)


def _unknown_condition(name: str, known: Mapping[str, object]) -> Exception:
    if not known:
        return ConfigError(
            f"{name} was given, but the network takes no conditions; build it with classes=n, context_features=n or "
            "concat_channels=n"
        )
    return unknown("condition", name, known)
