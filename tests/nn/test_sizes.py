"""Sizes by name: what they cost by hand, by the papers, and by the page."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import ROOT

from scoresde.errors import DomainError, DTypeError, ShapeError
from scoresde.nn import MLP, NETWORKS, SIZES, DiT, UNet, count

# The page's samples, and the arguments that a network needs for them.
EVENTS = {
    "MLP": ((2,), {}),
    "UNet": ((3, 32, 32), {}),
    "MagnitudeUNet": ((3, 32, 32), {}),
    "DiT": ((4, 32, 32), {"patch": 2}),
    "EGNN": ((32, 3), {}),
}


def build(name: str, size: str) -> torch.nn.Module:
    event, options = EVENTS[name]
    first = event[-1] if name == "EGNN" else event[0]
    with torch.device("meta"):
        return NETWORKS[name](first, **options, **SIZES[name][size])


def test_costs_by_hand() -> None:
    """Each multiplication with its addition is two operations, layer by layer."""
    w = 16
    conditioning = 64 * w + w * w
    mlp = MLP(3, width=w, depth=2)
    assert count(mlp, 3)[1] == 2 * (conditioning + w * 6 * w + 3 * w + 2 * 2 * w * w + 3 * w + w)
    assert count(mlp, (3,)) == count(mlp, 3)
    assert count(mlp, 3)[0] == sum(p.numel() for p in mlp.parameters())
    n = 4 * 3  # patches
    dit = DiT(2, width=w, depth=3, heads=2)
    block = 4 * n * w * w + 8 * n * w * w + 2 * n * n * w
    ends = n * (8 * w) + n * (w * 8) + w
    assert count(dit, (2, 8, 6))[1] == 2 * (conditioning + w * (6 * 3 + 2) * w + 3 * block + ends)
    unet = UNet(2, width=8, multipliers=(1,), heads=1)
    places, vector = 5 * 4, 32
    convolutions = 9 * (2 * 8 + 2 * 8 * 8 + 4 * 8 * 8 + 16 * 8 + 8 * 8 + 8 * 2) + 16 * 8
    attention = 4 * 8 * 8 + 2 * places * 8
    told = 64 * vector + vector * vector + vector * 4 * 16 + vector
    assert count(unet, (2, 5, 4))[1] == 2 * (places * (convolutions + attention) + told)


def test_sizes_are_those_of_the_papers() -> None:
    """DiT-S, B and XL with patches of 2 of latents (4, 32, 32): millions of parameters, with 1000 classes and a
    learned variance, and 10^9 multiplications with additions (Peebles and Xie 2023, table 4); DDPM++ and DDPM."""
    for size, millions, giga in (("S", 33, 6.06), ("B", 130, 23.01), ("XL", 675, 118.64)):
        with torch.device("meta"):
            net = DiT(4, classes=1000, out_channels=8, **SIZES["DiT"][size])
        parameters, operations = count(net, (4, 32, 32))
        assert parameters / 1e6 == pytest.approx(millions, rel=0.01)
        assert operations / 2e9 == pytest.approx(giga, rel=0.01)
    assert count(build("UNet", "large"), (3, 32, 32))[0] / 1e6 == pytest.approx(61.8, rel=0.03)
    assert count(build("UNet", "base"), (3, 32, 32))[0] / 1e6 == pytest.approx(35.7, rel=0.03)


def test_the_page_has_the_costs_of_every_size() -> None:
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    row = r"^\| (\w+) \| \"(\w+)\" \| \(([\d, ]+)\) \| ([\d.,]+) \| ([\d.,]+) \|$"
    rows = re.findall(row, page, re.MULTILINE)
    assert [(name, size) for name, size, *_ in rows] == [(name, size) for name in SIZES for size in SIZES[name]]
    for name, size, event, *figures in rows:
        shape = tuple(int(n) for n in event.split(",") if n.strip())
        assert shape == EVENTS[name][0]
        costs = count(build(name, size), shape)
        assert figures == [f"{float(f'{n / 1e6:.3g}'):,g}" for n in costs], (name, size)


def test_counting_leaves_the_network_alone_and_refuses_what_it_cannot_count() -> None:
    net = UNet(1, width=8, multipliers=(1,), classes=3, concat_channels=1).double()
    before = {name: (value.device, value.dtype) for name, value in net.state_dict().items()}
    assert count(net, (1, 6, 6))[1] > 0
    assert {name: (value.device, value.dtype) for name, value in net.state_dict().items()} == before
    with pytest.raises(DTypeError, match=r"net must be a torch.nn.Module, got str"):
        count("UNet", (1, 6, 6))
    with pytest.raises(DomainError, match="event_shape must be at least 1, got 0"):
        count(net, (1, 0, 6))
    with pytest.raises(ShapeError, match="x must have shape"):
        count(net, (2, 6, 6))
