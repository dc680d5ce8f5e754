"""The processes of one job: who this one is among them, its share of the work, and what they tell each other.

``torchrun`` and ``accelerate launch`` start one program several times and name each process in its environment: RANK
among WORLD_SIZE, LOCAL_RANK among those of its machine, and where rank 0 listens. Of n items rank r of p has

    floor(n r / p), ..., floor(n (r + 1) / p) - 1:

shares in the order of the ranks, whose sizes differ by at most one. Noise belongs to a sample and not to a process
(``noise.SampleNoise``), so that a share drawn with ``first_sample=`` is that part of the whole.

What the processes exchange are small tensors on the CPU, as bytes: no object is pickled. Each exchange waits for the
slowest process, at most for a time-out; then, or when another process has died, it raises ``ProcessError``.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from scoresde.errors.kinds import ConfigError, DTypeError, ProcessError, ShapeError
from scoresde.errors.values import check_integer, check_number

__all__ = ["TIMEOUT", "World", "processes", "world"]

TIMEOUT = "SCORESDE_TIMEOUT"  # of the environment, in seconds
SECONDS = 600.0
CPU = torch.device("cpu")
START = "start with torchrun --nproc-per-node 2 or accelerate launch, which name every process"


@dataclass(frozen=True)
class World:
    """A process among those of its job.

    Args:
        rank: its number, 0 ... size - 1.
        size: how many there are.
        local_rank: its number among those of its machine.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes for all: rank 0."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return this process's part of n items."""
        count = check_integer(n, "n", 0)
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what every process passes, by rank, on x's device; all must call it.

        Args:
            x: (n, *), n of each process's own, the rest and the type alike for all.

        Raises:
            ShapeError: no dimension, or tensors that do not fit together.
            ConfigError: several processes outside of ``processes``.
            ProcessError: another process has died, or did not come within the time-out.
        """
        if not isinstance(x, Tensor):
            raise DTypeError(f"x must be a torch.Tensor, got {type(x).__name__}; use torch.tensor([x])")
        if x.ndim == 0:
            raise ShapeError("x must have shape (n, *), got a 0-d tensor; add a dimension with x[None]")
        if self.size == 1:
            return (x,)
        kind = f"{x.dtype}, {tuple(x.shape[1:])}"
        mark = int.from_bytes(hashlib.blake2b(kind.encode(), digest_size=7).digest(), "little")
        heads = [
            head.tolist() for head in self._exchange(torch.tensor([len(x), mark], dtype=torch.int64, device="cpu"))
        ]
        strange = [rank for rank, (_, other) in enumerate(heads) if other != mark]
        if strange:
            raise ShapeError(f"process {self.rank} gathers tensors of {kind}, process {strange[0]} others")
        width = math.prod(x.shape[1:]) * x.element_size()
        raw = torch.zeros(max(rows for rows, _ in heads) * width, dtype=torch.uint8, device="cpu")
        raw[: len(x) * width] = x.detach().cpu().contiguous().view(-1).view(torch.uint8)
        parts = zip(self._exchange(raw), heads, strict=True)
        return tuple(
            part[: rows * width].clone().view(x.dtype).view(rows, *x.shape[1:]).to(x.device)
            for part, (rows, _) in parts
        )

    def barrier(self) -> None:
        """Wait until every process is here; errors as of ``gather``."""
        self.gather(torch.zeros(1, dtype=torch.int64, device="cpu"))

    def _exchange(self, x: Tensor) -> list[Tensor]:
        """Return the equally long tensors of all processes, on the CPU."""
        if not distributed.is_initialized():
            raise ConfigError(
                f"process {self.rank} of {self.size} is not connected; work inside `with processes() as world:`"
            )
        # Torch names its ways as "cpu:gloo,cuda:nccl"; a group of others that has nccl alone takes tensors on the GPU.
        x = x if "cpu:" in distributed.get_backend_config() else x.to(self.device)
        found = [torch.empty_like(x) for _ in range(self.size)]
        with _explained(f"process {self.rank} of {self.size} lost the others"):
            distributed.all_gather(found, x)
        return [one.cpu() for one in found]


def world(device: torch.device | str | None = None) -> World:
    """Return this process's place: in the group of torch.distributed if there is one, else by the environment.

    Args:
        device: where it computes, by default the CPU; "cuda" without a number is the GPU of this process's own.

    Raises:
        ConfigError: an environment that names the process by half, or more processes on a machine than it has GPUs.
    """
    if distributed.is_available() and distributed.is_initialized():
        rank, size = distributed.get_rank(), distributed.get_world_size()
    else:
        named = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
        if len(named) == 1:
            raise ConfigError(f"the environment has {named[0]} and not the other of RANK and WORLD_SIZE; {START}")
        size = _read("WORLD_SIZE", 1, 1)
        rank = _read("RANK", 0, 0, size - 1)
    place = torch.device("cpu" if device is None else device)
    local = _read("LOCAL_RANK", rank % max(1, torch.cuda.device_count()), 0)
    if place.type == "cuda" and place.index is None and size > 1:
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"this machine has {torch.cuda.device_count()} GPUs, and process {rank} is number {local} on it",
                parameter="LOCAL_RANK",
                got=local,
                cure="start one process for each GPU",
            )
        place = torch.device("cuda", local)
    return World(rank, size, local, place)


@contextmanager
def processes(device: torch.device | str | None = None, *, timeout: float | None = None) -> Iterator[World]:
    """Connect the processes of a job for the time of a with block, which gets this process's place.

    One process alone connects nothing, and a group that is there already is used as it is and left as it is. Otherwise
    a group is made, gloo for the CPU and nccl beside it for GPUs, and destroyed at the end, also after an exception:
    the others notice that in their next exchange.

    Args:
        device: as of ``world``.
        timeout: seconds that an exchange waits for the others; by default SCORESDE_TIMEOUT of the environment, or 600.

    Raises:
        ConfigError, DomainError: an environment or a time-out that is none.
        ProcessError: the others did not come within the time-out.
    """
    found = world(device)
    given: object = timeout
    if timeout is None and TIMEOUT in os.environ:
        try:
            given = float(os.environ[TIMEOUT])
        except ValueError as error:
            raise ConfigError(f"{TIMEOUT} must be a number of seconds, got {os.environ[TIMEOUT]!r}") from error
    seconds = check_number(SECONDS if given is None else given, "timeout", 0.0, open_low=True)
    if found.size == 1 or distributed.is_initialized():
        yield found
        return
    on_gpu = found.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(found.device)
    with _explained(f"process {found.rank} of {found.size} did not find the others"):
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=found.rank,
            world_size=found.size,
            timeout=timedelta(seconds=seconds),
        )
    try:
        yield found
    finally:
        distributed.destroy_process_group()


def _read(name: str, missing: int, low: int, high: int | None = None) -> int:
    """Return a whole number of the environment."""
    text = os.environ.get(name)
    number = missing if text is None else int(text) if text.isdecimal() else low - 1
    if number < low or (high is not None and number > high):
        allowed = f"a whole number of at least {low}" if high is None else f"one of {low}, ..., {high}"
        raise ConfigError(f"{name} of the environment must be {allowed}, got {text!r}; {START}", parameter=name)
    return number


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say in one line that an exchange failed: torch's own errors tell of addresses and lines of its source."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ProcessError(
            f"{what}: one has died, or was slower than the time-out ({first})",
            cure=f"look for the first error of another process; {TIMEOUT}=1800 waits longer",
        ) from error
