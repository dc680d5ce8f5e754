"""References of chains, and the weights of their tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde import (
    DDPM,
    Tableau,
)

F64 = torch.float64
CHAINS = json.loads((Path(__file__).parents[1] / "reference" / "chains.json").read_text(encoding="utf-8"))
betas = st.lists(st.floats(1e-5, 0.95), min_size=1, max_size=30).map(lambda b: torch.tensor(b, dtype=F64))


def close(got: Tensor, expected: Tensor | list[float], rtol: float = 1e-12, atol: float = 0.0) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=F64), rtol=rtol, atol=atol)


def bars(chain: DDPM) -> tuple[Tensor, Tensor, Tensor]:
    """beta_i, alpha_bar_i and alpha_bar_{i-1}, by the textbook's product."""
    bar = torch.cumprod(1 - chain.betas, 0)
    return chain.betas, bar, torch.cat([torch.ones(1, dtype=F64), bar[:-1]])


def weights(table: Tableau) -> np.ndarray:
    """Each row's weights on the state, the data prediction and the noise."""
    assert table.prediction == "data"
    assert all(row.anchor is None and len(row.state) == 2 and len(row.noise) <= 1 for row in table.rows)
    return np.array([(*row.state, *(row.noise or (0.0,))) for row in table.rows])
