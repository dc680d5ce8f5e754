"""What the families share: the digits as levels, a training loop with early stopping, and what each must say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from scoresde.data import digits

__all__ = ["LEVELS", "SIDE", "Family", "Split", "count", "load", "to_images", "train"]

LEVELS, SIDE = 17, 8


@dataclass(frozen=True, eq=False)
class Split:
    """Digits as levels, integers 0..16 of shape (N, 8, 8): to train on, to choose by, and to judge by."""

    train: Tensor
    valid: Tensor
    test: Tensor


def load() -> Split:
    """Return the library's split of the digits, every tenth training image kept for choices."""
    whole, test = (to_levels(digits(part).images) for part in ("train", "test"))
    chosen = torch.arange(len(whole)) % 10 == 0
    return Split(whole[~chosen], whole[chosen], test)


def to_levels(images: Tensor) -> Tensor:
    """Return images (N, 1, 8, 8) in [-1, 1] as levels (N, 8, 8)."""
    return ((images[:, 0] + 1) * 8).round().long()


def to_images(levels: Tensor) -> Tensor:
    """Return levels (N, 8, 8) as images (N, 1, 8, 8) in [-1, 1]."""
    return levels[:, None].float() / 8 - 1


class Family(Protocol):
    """A trained model."""

    size: int
    kind: str
    """What ``log_prob`` is: "exact", or "bound" where log P is at least that, on average."""

    def log_prob(self, levels: Tensor) -> Mapping[str, Tensor]:
        """Return log P of levels (N, 8, 8) in nats, (N,): under "value", and other estimates by name."""

    def sample(self, n: int) -> Tensor:
        """Return n images as levels (n, 8, 8)."""


def count(net: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in net.parameters())


def train(
    net: nn.Module, loss: Callable[[Tensor], Tensor], split: Split, *, steps: int, rate: float = 1e-3, name: str = ""
) -> float:
    """Train a network by Adam on batches of 64, keep the weights that are best on the images to choose by.

    Args:
        net: the network.
        loss: levels (N, 8, 8) -> nats of each, (N,).
        split: the data.
        steps: of the optimiser; the validation loss is measured every fiftieth.
        rate: of Adam.
        name: for the progress bar.

    Returns:
        The best validation loss, in nats an image.
    """
    optimiser = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, kept = float("inf"), deepcopy(net.state_dict())
    for k in tqdm(range(steps), desc=name, leave=False):
        net.train()
        value = loss(split.train[torch.randint(len(split.train), (64,))]).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if k % 50 == 49 or k == steps - 1:
            net.eval()
            with torch.no_grad():
                now = float(loss(split.valid).mean())
            if now < best:
                best, kept = now, deepcopy(net.state_dict())
    net.load_state_dict(kept)
    net.eval()
    return best
