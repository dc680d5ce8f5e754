"""One training whose weights, optimiser and averages are divided among the processes: fully sharded data parallelism.

Every process computes its share of a batch, as in data parallel training, and holds of every parameter some rows, and
so of its gradient, its averages and the optimiser's state. A part of the network that a rule names is gathered when it
is called, and left again: parameters before the forward and before the backward pass, gradients are summed into rows
after it. What no rule names is gathered with the whole network. With P parameters, p processes and s bytes of state a
parameter a process keeps s P/p and the largest part.

Source: Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel", arXiv:2304.11277;
Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054. The parts are made by ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.values import check_sequence
from scoresde.models import checkpoint
from scoresde.models.manifest import Entry
from scoresde.models.networks import Gradient, bare_network
from scoresde.models.sharded import is_sharded, local_rows, sharding
from scoresde.sampling.processes import World

__all__ = ["ShardRule", "average_over", "find_parts", "norm_over", "shard_network", "write_together"]

ShardRule = type[nn.Module] | str | Sequence[type[nn.Module] | str] | Callable[[nn.Module], bool]
LISTED = 8  # names in a message
ENTRY = 8 + 32  # bytes: a file's size and its SHA-256


def find_parts(net: nn.Module, rule: ShardRule) -> list[nn.Module]:
    """Return the parts of a network that a rule names, inner ones before those around them.

    Args:
        net: the network; it is no part of itself.
        rule: classes of modules; names, of a class or of a module as ``named_modules`` has them, where a list of
            modules stands for those in it; or a function of a module that says whether it is one.

    Raises:
        ConfigError: nothing has such a name, or the function takes none. DTypeError: no rule.
    """
    inside = dict(list(net.named_modules())[1:])
    chosen: set[str] = set()
    if callable(rule) and not isinstance(rule, type):
        chosen = {name for name, part in inside.items() if rule(part)}
    else:
        for one in [rule] if isinstance(rule, type | str) else check_sequence(rule, "shard", "classes or names"):
            if not isinstance(one, type | str):
                raise DTypeError(f"shard must be classes or names of modules, or a function of one, got {one!r:.60}")
            found = {
                name
                for name, part in inside.items()
                if (isinstance(part, one) if isinstance(one, type) else one in (name, type(part).__name__))
            }
            if not found:
                raise _no_match(net, inside, one)
            chosen |= found
    while lists := {name for name in chosen if isinstance(inside[name], nn.ModuleList | nn.ModuleDict)}:
        chosen = (chosen - lists) | {f"{name}.{key}" for name in lists for key, _ in inside[name].named_children()}
    # What has no weights has nothing to share.
    parts = [part for name, part in inside.items() if name in chosen and any(True for _ in part.parameters())]
    if not parts:
        raise _no_match(net, inside, rule)
    return parts[::-1]


def _no_match(net: nn.Module, inside: dict[str, nn.Module], rule: object) -> ConfigError:
    classes = sorted({type(part).__name__ for part in inside.values()})
    names = [name for name, _ in net.named_children()]
    said = rule.__name__ if isinstance(rule, type) else rule
    return ConfigError(
        f"shard={said!r:.60} names no part of {type(net).__name__}, and a network that is not cut into parts is "
        f"gathered whole; it has modules of the classes {', '.join(classes[:LISTED])} and of the names "
        f"{', '.join(names[:LISTED])}",
        parameter="shard",
    )


def shard_network(net: nn.Module, rule: ShardRule, world: World) -> nn.Module:
    """Return a copy of a network whose parameters are sharded over the processes; all begin with the first's.

    Parameters without a dimension stay whole in every process.

    Raises:
        ConfigError: one process alone, or a network that cannot be divided.
    """
    if world.size == 1:
        raise ConfigError(
            "shard= divides a network among processes, and this is one alone; start several (torchrun "
            "--nproc-per-node 2; in a program with world=), or leave it out"
        )
    named = dict(net.named_parameters())
    wrong = None
    if bare_network(net) is not net:
        wrong = f"is in a {type(net).__name__}; pass the network inside"
    elif isinstance(net, Gradient):
        wrong = "is the gradient of an energy, which differentiates inside its call; train it with world= alone"
    elif any(is_sharded(p) for p in named.values()):
        wrong = "is sharded already; pass it whole"
    elif len(named) != len([*net.named_parameters(remove_duplicate=False)]):
        wrong = "uses a parameter in two places; train it with world= alone"
    elif len({p.dtype for p in named.values()}) != 1:
        wrong = "has parameters of several types; cast it to one"
    if wrong is not None:
        raise ConfigError(f"shard= cannot divide the network {type(net).__name__}: it {wrong}", parameter="shard")
    find_parts(net, rule)
    # Seconds to import, which a training without it should not wait.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(net.parameters()).device
    made = copy.deepcopy(net.cpu())
    made.zero_grad(set_to_none=True)
    for value in [*made.parameters(), *made.buffers()]:
        first = value.detach().to(device).contiguous()
        distributed.broadcast(first.flatten().view(torch.uint8), 0)  # bytes: no way of torch's takes every type
        value.data = first if value.ndim == 0 else value.data.copy_(first)
    mesh = init_device_mesh(device.type, (world.size,))
    scalars = {p for p in made.parameters() if p.ndim == 0}
    for part in [*find_parts(made, rule), made]:
        # Also the whole network is left after its forward pass, so that its parameters are always the sharded ones.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    return made


def norm_over(gradients: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the 2-norm of all gradients together, 0-d; of sharded ones over all processes, which all must call."""
    norms: Sequence[Tensor] = torch._foreach_norm([local_rows(one) for one in gradients], 2, dtype)
    split = [is_sharded(one) for one in gradients]
    if not any(split):
        return _join(norms)
    mine = _join([one for one, s in zip(norms, split, strict=True) if s])
    group = sharding(gradients[split.index(True)])[0].get_group()
    found = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(found, mine, group=group)
    own = [one for one, s in zip(norms, split, strict=True) if not s]
    return _join([*found, *own])


def _join(norms: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.linalg.vector_norm(torch.stack([*norms]))
    return joined


def average_over(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Put the mean of the processes' gradients in the place of each one's."""
    for p in parameters:
        if p.grad is not None:
            distributed.all_reduce(p.grad)
            p.grad.div_(world.size)


def write_together(folder: Path, documents: checkpoint.Documents, tensors: checkpoint.Tensors, world: World) -> None:
    """Write a checkpoint: of what is sharded every process its rows, and the first one all else.

    All must call it where something is sharded. The manifest is written when every process has written its rows, so
    that one which dies before leaves the checkpoint that stood there.

    Raises:
        CheckpointError: what ``checkpoint.write`` raises. ProcessError: another process was lost.
    """
    split = {name: group for name, group in tensors.items() if any(map(is_sharded, group.values()))}
    if not split:
        if world.is_main:
            checkpoint.write(folder, documents, tensors)
        return
    with checkpoint.share(folder, split, first=world.is_main) as entries:
        told = b"".join(e["bytes"].to_bytes(8, "little") + bytes.fromhex(e["sha256"]) for e in entries.values())
        rows = torch.frombuffer(bytearray(told), dtype=torch.uint8).view(len(entries), ENTRY)
        heard = [bytes(one.flatten().tolist()) for one in world.gather(rows)]
    if not world.is_main:
        return
    shares: dict[str, list[Entry]] = {}
    for k, name in enumerate(entries):
        shares[name] = []
        for one in heard:
            size, digest = one[k * ENTRY : k * ENTRY + 8], one[k * ENTRY + 8 : (k + 1) * ENTRY].hex()
            file = f"{name}-{digest[:16]}.safetensors"
            shares[name].append({"file": file, "bytes": int.from_bytes(size, "little"), "sha256": digest})
    rest = {name: group for name, group in tensors.items() if name not in split}
    checkpoint.write(folder, documents, rest, shares)
