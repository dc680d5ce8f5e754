"""What a process shares, and the library must never change."""

from __future__ import annotations

import random

import numpy as np
import torch


def global_state() -> dict[str, object]:
    """What the library must never change: the random generators and the settings shared by a whole process."""
    kind, keys, *position = np.random.get_state()  # noqa: NPY002 the global generator is what is watched
    state: dict[str, object] = {
        "Python's random state": random.getstate(),
        "NumPy's random state": (kind, keys.tobytes(), *position),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_initialized():
        state["CUDA's random state"] = [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()]
    return state


def changes(before: dict[str, object]) -> str | None:
    after = global_state()
    moved = [name for name, value in before.items() if after[name] != value]
    if not moved:
        return None
    return f"changed {', '.join(moved)}: draw from scoresde.noise or a torch.Generator, and restore what you set"
