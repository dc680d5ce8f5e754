"""What a checkpoint declares against what its tensors are, before memory is taken for either.

A network is made on the meta device, where tensors have shapes and no values, under a watch that ends it once it makes
more than the file can fill. It gets memory where all names, types and shapes are the file's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scoresde.diffusions.gaussian import Moments
from scoresde.errors.kinds import CheckpointError, ScoreSDEError
from scoresde.models.networks import bare_network, network_state
from scoresde.models.schema import blame
from scoresde.models.stored import Described, StoredTensors
from scoresde.transforms.base import Transform

__all__ = ["Watch", "build_network", "check_event", "check_groups", "check_moments", "list_misfits"]

FREE = 1 << 20  # a number that may stand in any description
CALLS = 60  # of torch that a network may make for each of its tensors
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
LISTED = 12
ROUGH = 1e-3  # of an orthonormal basis


class Watch(TorchFunctionMode):
    """End a construction that makes more, or larger, tensors than there are in files."""

    def __init__(self, *stored: StoredTensors) -> None:
        super().__init__()
        self.elements = sum(one.elements for one in stored)
        self.left = CALLS * (sum(len(one.described) for one in stored) + 16)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left < 0:
            raise CheckpointError("it has more tensors")
        if isinstance(made, Tensor) and made.numel() > max(FREE, self.elements):
            raise CheckpointError(f"it has a tensor of shape {tuple(made.shape)}")
        return made


def build_network(kind: type[nn.Module], config: Mapping[str, object], stored: StoredTensors, where: str) -> nn.Module:
    """Return a network by its description, in the type of the weights that it is for, on the CPU and without values.

    Args:
        kind: its class, one of ``scoresde.nn.NETWORKS``.
        config: the arguments of its constructor, as JSON.
        stored: its weights.
        where: the file and the field of the description, for errors.

    Raises:
        CheckpointError: the constructor does not take the description, or it is of another network than the weights.
    """
    most = max(FREE, stored.elements)
    for name, value in config.items():
        if name != "seed" and (large := _find_largest(value)) > most:
            raise CheckpointError(f"{where}.{name} says {large}, and {stored.file.path} has {stored.elements} values")

    try:
        with torch.device("meta"), Watch(stored):
            made: Any = kind(**config)
    except CheckpointError as error:
        raise CheckpointError(f"{where} does not fit {stored.file.path}: {error}") from error
    except (ScoreSDEError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{where} is no description of a network {kind.__name__}: {error}") from error
    for name, value in config.items():
        if made.config[name] != value:
            raise CheckpointError(f"{where}.{name} says {value}, which the network takes for {made.config[name]}")
    types = {dtype for _, dtype in stored.described.values() if dtype.is_floating_point}
    net: nn.Module = made.to(types.pop()) if len(types) == 1 and types <= FLOATS else made
    wrong = list_misfits(network_state(net), stored.described)
    if wrong:
        raise CheckpointError(f"{where} does not fit {stored.file.path}: {wrong}; take another copy of the checkpoint")
    if len([*net.buffers()]) > len(net.state_dict()) - len([*net.named_parameters(remove_duplicate=False)]):
        with torch.device("cpu"):
            return kind(**config).to(next(net.parameters()).dtype)  # with what the file does not hold
    return net.to_empty(device="cpu")


def _find_largest(value: object) -> float:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = value if isinstance(value, int | float) else 0
    return max((own, *map(_find_largest, parts)))


def list_misfits(own: Mapping[str, Tensor], described: Mapping[str, Described]) -> str:
    """Return in words what is missing, unexpected or of another shape or type in a file; "" where it fits."""
    wrong = [f"missing {key}" for key in own if key not in described]
    wrong += [f"unexpected {key}" for key in described if key not in own]
    for key, mine in own.items():
        shape, dtype = described.get(key, (tuple(mine.shape), mine.dtype))
        if tuple(mine.shape) != shape or mine.dtype != dtype:
            wrong.append(
                f"mismatched {key}: {shape} {dtype} in the file, {tuple(mine.shape)} {mine.dtype} in the network"
            )
    return "; ".join(wrong[:LISTED]) + (f", and {len(wrong) - LISTED} more" if len(wrong) > LISTED else "")


def check_moments(tensors: Mapping[str, Tensor], where: str) -> Moments:
    """Return the moments of the tensors "mean", "variance" and perhaps "basis"; CheckpointError where they are none."""

    def refuse(name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{where}: {name} must be {what}; take another copy of the checkpoint", parameter=name)

    for name in ("mean", "variance"):
        if name not in tensors:
            raise refuse(name, "there")
    for name, values in tensors.items():
        if name not in ("mean", "variance", "basis"):
            raise refuse(name, "none of a law's tensors mean, variance and basis, and it is there")
        if values.dtype not in FLOATS or not bool(torch.isfinite(values).all()):
            raise refuse(name, f"finite real numbers, got {values.dtype}")
    mean, variance, basis = tensors["mean"], tensors["variance"], tensors.get("basis")
    if bool((variance < 0).any()):
        raise refuse("variance", f"at least 0, got {float(variance.min()):g}")
    size = mean.numel()
    if size == 0:
        raise refuse("mean", f"of an event with numbers in it, got shape {tuple(mean.shape)}")
    if basis is None:
        if variance.shape not in ((), mean.shape):
            raise refuse("variance", f"of shape () or {tuple(mean.shape)} as the mean, got {tuple(variance.shape)}")
        return Moments(mean, variance)
    if variance.shape != (size,):
        raise refuse("variance", f"of shape {(size,)}, one for each column of the basis, got {tuple(variance.shape)}")
    if basis.shape != (size, size):
        raise refuse("basis", f"of shape {(size, size)}, got {tuple(basis.shape)}")
    # Columns of length 1 whose products vanish: a probe in the place of all products, of which there are size^2.
    wide = basis.double()
    probe = torch.linspace(0.5, 1.5, size, dtype=torch.float64, device="cpu")
    off = ((wide.T @ (wide @ probe) - probe).abs().max(), (wide.square().sum(0) - 1).abs().max())
    if float(max(off)) > ROUGH * size**0.5:
        raise refuse("basis", "orthonormal columns")
    return Moments(mean, variance, basis)


def check_groups(tensors: Mapping[str, Tensor], event: tuple[int, ...] | None, where: str) -> dict[int, Tensor]:
    """Return groups of coordinates by their number; CheckpointError where one is no group of an event's coordinates."""
    found = {}
    for key, groups in tensors.items():
        count = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 and key[0] != "0" else 0
        whole = groups.dtype in (torch.int64, torch.int32) and groups.numel() > 0
        if not count or not whole or int(groups.min()) < 0 or int(groups.max()) >= count:
            raise CheckpointError(f"{where}: {key!r} must be a number of groups, and its values below it")
        if event not in (None, (), tuple(groups.shape)):
            raise CheckpointError(f"{where}: {key!r} must be of the event {event}, got {tuple(groups.shape)}")
        found[count] = groups
    return found


def check_event(
    net: object, moments: Moments | None, transform: Transform | None, *, learned: bool, where: str
) -> None:
    """Raise CheckpointError where a network, the data's moments, a transform and a learned variance do not go together.

    Args:
        net: the network; of one that is not of ``scoresde.nn`` nothing is known.
        moments: of the data, whose shape is the event; None where it is not known.
        transform: from the data.
        learned: whether the network says a variance too.
        where: the file, for errors.
    """
    event = None if moments is None or not moments.mean.ndim else tuple(moments.mean.shape)
    if transform is not None and event is not None:
        with blame(f"{where}: transform"):
            transform.inverse(torch.zeros((1, *event), dtype=torch.float32, device="cpu"))
    own, channels = _find_event(net, event)
    if event is not None and own not in (None, event):
        raise CheckpointError(f"{where}: the moments are of the event {event}, the network's is {own}")
    first = own[0] if own else None
    if isinstance(first, int) and channels is not None and channels != (2 * first if learned else first):
        raise CheckpointError(
            f"{where}: variance is {'learned' if learned else 'fixed'}, and the network gives {channels} channels for "
            f"{first}"
        )


def _find_event(net: object, event: tuple[int, ...] | None) -> tuple[tuple[int | str, ...] | None, int | None]:
    """Return the event that a network takes, with the sizes of ``event`` where it takes any, and its channels.

    None where the network does not say.
    """
    from scoresde.nn.equivariant import EGNN
    from scoresde.nn.grids import GridNetwork
    from scoresde.nn.mlp import MLP

    inner = bare_network(net) if isinstance(net, nn.Module) else net
    if isinstance(inner, MLP):
        return inner.event_shape, inner.out_shape[0] if inner.out_shape else None
    if isinstance(inner, GridNetwork):
        if event is not None and len(event) == inner.dims + 1:
            return (inner.channels, *event[1:]), inner.out_channels
        return (inner.channels, *("size",) * inner.dims), inner.out_channels
    if isinstance(inner, EGNN):
        points = event[0] if event is not None and len(event) == 2 else "size"
        return (points, inner.coordinates + inner.features), points if isinstance(points, int) else None
    return None, None
