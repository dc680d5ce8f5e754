"""Chains and diffusions whose bounds are known, for the tests of the bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from helpers import MEAN, VARIANCE, gaussian
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    SMLD,
    VPSDE,
    Bound,
    GaussianSDE,
    variational_bound,
)
from scoresde.chains.base import Chain

ENTROPY = 0.5 * math.log(2 * math.pi * math.e * VARIANCE)
CHAINS: dict[str, Callable[[], Chain]] = {
    "linear": lambda: DDPM.linear(50),
    "cosine": lambda: DDPM.cosine(30),
    "sub-chain": lambda: DDPM.linear(1000).strided(7),
    "smld": lambda: SMLD.geometric(12),
    "two": lambda: DDPM.from_sde(VPSDE(), 2),
    "one": lambda: DDPM.from_sde(VPSDE(), 1),
}


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def exact_nodes() -> tuple[Tensor, Tensor]:
    """Data and noise whose mean over four samples is the expectation of every quadratic."""
    return MEAN + math.sqrt(VARIANCE) * vector(1, 1, -1, -1), vector(1, -1, 1, -1)


def exact_bound(chain: Chain, variance: str = "small") -> Bound:
    """The expected bound for data N(MEAN, VARIANCE) with the exact model."""
    x, z = exact_nodes()
    return variational_bound(gaussian(), chain, x, variance=variance, noise=[z] * len(chain))


def lattice(end: float, n: int) -> Tensor:
    return torch.linspace(-end, end, n, dtype=torch.float64)


def even_chain(n: int, high: float = 8.0, low: float = -8.0) -> DDPM:
    """A chain whose log-SNR is evenly spaced between fixed ends."""
    logs = torch.nn.functional.logsigmoid(torch.linspace(high, low, n, dtype=torch.float64))
    return DDPM(logs.diff(prepend=torch.zeros(1, dtype=torch.float64)))


def between(sde: GaussianSDE, high: float = 8.0, low: float = -8.0) -> GaussianSDE:
    """The SDE between two log-SNR."""
    ends = sde.time(vector(high, low)).tolist()
    if isinstance(sde, EDMSDE):
        return EDMSDE(sigma_min=math.exp(-high / 2), sigma_max=math.exp(-low / 2))
    return replace(sde, t_min=ends[0], t_max=ends[1])
