"""The transformer: patches, rotary positions, and the whole of it against its formulas."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from network_cases import awake, build, distance, inputs
from torch import Tensor
from torch.nn import functional as F

from scoresde import ConfigError, DomainError
from scoresde.nn import DiT
from scoresde.nn.dit import join_patches, rotary_angles, rotate, split_patches
from scoresde.noise import normal, stream
from scoresde.ops import plain_attention

DOUBLE = torch.float64


@pytest.mark.parametrize(("sizes", "patch"), [((12,), 3), ((4,), 1), ((4, 6), 2), ((9, 3), 3)])
def test_patches_are_pieces_in_order_and_are_put_together_again(sizes: tuple[int, ...], patch: int) -> None:
    x = normal((2, 3, *sizes), stream(0))
    tokens = split_patches(x, patch)
    counts = [n // patch for n in sizes]
    assert tokens.shape == (2, math.prod(counts), 3 * patch ** len(sizes))
    places = list(torch.cartesian_prod(*(torch.arange(n) for n in counts)).reshape(-1, len(counts)))
    for n, place in enumerate(places):
        piece = (slice(None), slice(None), *(slice(i * patch, i * patch + patch) for i in place.tolist()))
        assert torch.equal(tokens[:, n], x[piece].flatten(1))
    assert torch.equal(join_patches(tokens, patch, counts), x)


@pytest.mark.parametrize("counts", [(9,), (3, 4)])
def test_rotated_products_depend_on_differences_of_places_alone(counts: tuple[int, ...]) -> None:
    length = 12
    q, k = (normal((length,), stream(1, name), dtype=DOUBLE) for name in "qk")
    angles = rotary_angles(counts, length, torch.device("cpu"), DOUBLE)
    n = math.prod(counts)
    turned = [rotate(v.expand(1, 1, n, length), angles)[0, 0] for v in (q, k)]
    assert distance(turned[0].norm(dim=1), q.norm().expand(n)) < 1e-12
    products = turned[0] @ turned[1].T
    places = torch.cartesian_prod(*(torch.arange(m) for m in counts)).reshape(n, -1)
    seen: dict[tuple[int, ...], float] = {}
    for i in range(n):
        for j in range(n):
            step = tuple((places[i] - places[j]).tolist())
            assert float(products[i, j]) == pytest.approx(seen.setdefault(step, float(products[i, j])), abs=1e-12)
    assert len({round(value, 9) for value in seen.values()}) == len(seen)  # every difference is told from the others


def test_angles_are_those_of_the_papers() -> None:
    one = rotary_angles((1000,), 64, torch.device("cpu"), DOUBLE)
    assert distance(one[777], 777 * 10_000.0 ** (-torch.arange(32, dtype=DOUBLE) / 32)) < 1e-12
    two = rotary_angles((5, 7), 16, torch.device("cpu"), DOUBLE)
    omega = 100.0 ** (-torch.arange(4, dtype=DOUBLE) / 4)
    assert distance(two[3 * 7 + 6], torch.cat([3 * omega, 6 * omega])) < 1e-13
    assert rotary_angles((3,), 4, torch.device("cpu"), torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("case", ["patches", "patches of signals"])
def test_the_network_is_the_formula(case: str) -> None:
    """Attention with complex numbers for the rotations, places counted one by one."""
    net = build(case)
    x, c_noise, label = inputs(case)
    p, width = net.patch, net.width
    padded = F.pad(x, [n for size in reversed(x.shape[2:]) for n in (0, -size % p)])
    counts = [n // p for n in padded.shape[2:]]
    n, length = math.prod(counts), width // net.heads
    vector = net.conditioning(c_noise, {"label": label})
    terms = net.modulation(vector).reshape(len(x), 1, -1, width).unbind(2)
    base, pairs = {1: 10_000.0, 2: 100.0}[net.dims], length // (2 * net.dims)
    turns = torch.empty(n, length // 2, dtype=torch.complex128)
    for m in range(n):
        place = [m] if net.dims == 1 else [m // counts[1], m % counts[1]]
        for a, at in enumerate(place):
            for k in range(pairs):
                turns[m, a * pairs + k] = cmath.exp(1j * at * base ** (-k / pairs))

    def norm(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        centred = h - h.mean(2, keepdim=True)
        return (1 + scale) * centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt() + shift

    def turn(q: Tensor) -> Tensor:
        turned = torch.complex(*q.chunk(2, 3)) * turns
        return torch.cat([turned.real, turned.imag], 3)

    h = net.input(split_patches(padded, p))
    for i, block in enumerate(net.blocks):
        scale, shift, gate, scale_2, shift_2, gate_2 = terms[6 * i : 6 * i + 6]
        parts = block.project(norm(h, scale, shift)).chunk(3, 2)
        q, k, v = (part.unflatten(2, (net.heads, -1)).transpose(1, 2) for part in parts)
        mixed = (turn(q) @ turn(k).mT / math.sqrt(length)).softmax(3) @ v
        h = h + gate * block.mix(mixed.transpose(1, 2).flatten(2))
        h = h + gate_2 * block.narrow(F.gelu(block.widen(norm(h, scale_2, shift_2)), approximate="tanh"))
    out = join_patches(net.output(norm(h, terms[-2], terms[-1])), p, counts)
    out = out[(slice(None), slice(None), *(slice(size) for size in x.shape[2:]))]
    out = out + net.skip(vector).reshape(-1, *(1,) * (x.ndim - 1)) * x
    assert distance(out, net(x, c_noise, label)) < 1e-12


def test_sizes_are_filled_up_with_zeros_and_blocks_start_as_the_identity() -> None:
    net = awake(DiT(2, patch=3, width=16, depth=2, heads=2)).double()
    x, c_noise = normal((2, 2, 5, 7), stream(2), dtype=DOUBLE), torch.tensor([-2.0, 3.0])
    assert distance(net(F.pad(x, (0, 2, 0, 1)), c_noise)[:, :, :5, :7], net(x, c_noise)) < 1e-12
    fresh, h = DiT(2, width=16, depth=1, heads=2), normal((2, 6, 16), stream(3))
    terms = fresh.modulation(fresh.conditioning(c_noise, {}))[:, None].chunk(8, 2)
    assert not any(term.any() for term in terms)
    angles = rotary_angles((2, 3), 8, torch.device("cpu"), torch.float32)
    assert torch.equal(fresh.blocks[0](h, terms[:6], angles), h)


def test_attention_written_out_gives_the_same() -> None:
    net = build("patches")
    x, c_noise, label = inputs("patches")
    with plain_attention():
        plain = net(x, c_noise, label)
    assert distance(plain, net(x, c_noise, label)) < 1e-12


def test_what_does_not_fit_is_refused_with_a_cure() -> None:
    with pytest.raises(ConfigError, match=r"width=20 must be a multiple of 2 dims heads = 16, .*choose width=32"):
        DiT(1, width=20)
    with pytest.raises(DomainError, match=r"dims must be in \[1, 2\], got 3"):
        DiT(1, dims=3)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 1, H, W\), got \(2, 1, 8\); DiT\(1, dims=1\)"):
        DiT(1)(torch.zeros(2, 1, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"got \(2, 1, 8, 8, 8\); reshape x"):
        DiT(1)(torch.zeros(2, 1, 8, 8, 8), torch.zeros(2))
