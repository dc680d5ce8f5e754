"""How many threads a command computes with.

The threads of one operation wait for each other by spinning. Where another process has one of two cores, each of the
some hundred operations of a training step waits until the system gives the core back. The time of a training step with
two threads, in that with one, on two cores:

| network | both cores free | one or both taken |
|---|---|---|
| MLP, points | 0.9 | 5 to 15 |
| U-Net, 8 x 8 images | 1.05 | 7 to 14 |
| U-Net, 16 x 16 images | 0.7 | 6 to 11 |

So an MLP gets one thread, and a larger network as many as there are cores that nobody uses. The number decides in which
order sums are taken, and so the last digits of a result: a training keeps it, so that it goes on to the same bits.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scoresde.errors.values import check_integer
from scoresde.nn.mlp import MLP

__all__ = ["choose_threads", "count_idle_cores", "use_threads"]


def count_idle_cores() -> int:
    """Return how many of the cores that this process may use are idle by the load of the last minute; at least 1."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if sys.platform != "win32" else 0.0
    return max(1, math.floor(cores * (1 - load) + 0.5))


def choose_threads(asked: int | None, net: object) -> int:
    """Return the number of threads: as asked; as ``OMP_NUM_THREADS`` says; else what suits the network and the load.

    Raises:
        DomainError: less than one.
    """
    if asked is not None:
        return check_integer(asked, "threads", 1)
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return most
    return 1 if isinstance(net, MLP) else min(most, count_idle_cores())


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
