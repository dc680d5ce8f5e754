"""One training by several processes: a network that they share, and what is said when one of them is lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scoresde.errors.kinds import ConfigError, ProcessError
from scoresde.models.networks import network_state
from scoresde.models.score_model import ScoreModel
from scoresde.models.sde_model import SDEModel
from scoresde.models.sharded import whole
from scoresde.sampling.processes import World
from scoresde.training.sharding import ShardRule, shard_network
from scoresde.training.trainable import known_model

__all__ = ["lost_processes", "shared_network"]

SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "peer")


@contextmanager
def shared_network(
    model: ScoreModel | SDEModel, world: World, shard: ShardRule | None = None
) -> Iterator[ScoreModel | SDEModel]:
    """Put the model's network into ``DistributedDataParallel`` where there are several processes; out again at the end.

    All begin with the weights of the first. With a rule the model gets a sharded copy of its network meanwhile, which
    itself waits in the memory of the CPU and takes the weights at the end; after an error it has those that it had.

    Raises:
        ConfigError: several processes that are not connected, or no network that could be shared.
    """
    known = known_model(model)
    net = known.net
    if shard is None and (world.size == 1 or isinstance(net, DistributedDataParallel)):
        yield model
        return
    if world.size > 1 and not torch.distributed.is_initialized():
        raise ConfigError("world= is that of `with processes() as world:`, and fit is called inside of it")
    if not isinstance(net, nn.Module) or not any(p.requires_grad for p in net.parameters()):
        raise ConfigError("the model's network has no trainable parameters; training needs a torch.nn.Module with some")
    device = next(net.parameters()).device
    if shard is not None:
        with warnings.catch_warnings():
            # Nothing writes to what the network returns.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
            try:
                known.net = divided = shard_network(net, shard, world)
                yield model
                with torch.no_grad():
                    for own, made in zip(network_state(net).values(), network_state(divided).values(), strict=True):
                        own.copy_(whole(made))
            finally:
                known.net = net.to(device)
        return
    known.net = DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
    try:
        yield model
    finally:
        known.net = net


@contextmanager
def lost_processes(world: World) -> Iterator[None]:
    """Say in one line that another process was lost; its checkpoint stands."""
    try:
        yield
    except RuntimeError as error:
        first = error.__cause__ if isinstance(error, ProcessError) else error
        told = str(first).strip().partition("\n")[0]
        if world.size == 1 or isinstance(error, torch.OutOfMemoryError) or not any(s in told.lower() for s in SIGNS):
            raise
        raise ProcessError(
            f"process {world.rank} of {world.size} lost the others: one has died, or was slower than the time-out "
            f"({told})",
            cure="look for the first error of another process; the last checkpoint stands, go on with resume=True",
        ) from error
