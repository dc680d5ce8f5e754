"""The U-Net's pieces and options: means and nearest places, residual steps, and what older checkpoints rely on."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import pytest
import torch
from network_cases import awake, distance
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import ConfigError, DomainError
from scoresde.nn import UNet
from scoresde.nn.blocks import Block, enlarge, halve
from scoresde.noise import normal, seeded_torch, stream, uniform

# Options, event, digests of the parameters' names and shapes and of their first values, and of the output with other
# weights its sum, sum of squares and eighth value; recorded before there were ``resample`` and ``rescale_skips``.
KEPT = {
    "images": (
        {"channels": 3, "width": 8, "blocks": 2, "multipliers": (1, 3), "attention": (1,), "seed": 5},
        (3, 5, 9),
        ("19ba32bfc5fde611", "2fada565509a8662"),
        (-21.494625282379587, 106.61420447296081, -0.3850514694167797),
    ),
    "signals": (
        {"channels": 1, "dims": 1, "width": 8, "concat_channels": 1, "out_channels": 2, "seed": 6},
        (1, 11),
        ("f383acf2b0e3f420", "e2f5d0c3f248d6b6"),
        (0.061463339500544945, 3.978888309572106, -0.2785889913720597),
    ),
    "volumes": (
        {"channels": 1, "dims": 3, "width": 8, "multipliers": (2, 1), "context_features": 2},
        (1, 4, 3, 5),
        ("e9ab64c1d5826fa7", "3b2874e06106df6c"),
        (-59.759553531137215, 184.05496111564898, 2.7354124869743295),
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_network_of_the_first_options_is_what_it_was(case: str) -> None:
    options, event, digests, figures = KEPT[case]
    net = UNet(**options)
    names = "\n".join(f"{name} {tuple(value.shape)}" for name, value in net.state_dict().items())
    values = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    assert tuple(hashlib.sha256(part).hexdigest()[:16] for part in (names.encode(), values)) == digests
    draw = stream(1, "kept")
    with torch.no_grad():
        for p in net.double().parameters():
            p.add_(0.4 * uniform(p.shape, draw, dtype=torch.float64) - 0.2)
    x = 2 * uniform((2, *event), draw, dtype=torch.float64) - 1
    out = net(x, torch.tensor([-3.0, 5.0], dtype=torch.float64)).detach()
    got = (float(out.sum()), float(out.square().sum()), float(out.flatten()[7]))
    assert got == pytest.approx(figures, rel=1e-11, abs=1e-11)
    older = {name: value for name, value in net.config.items() if name not in ("resample", "rescale_skips", "dropout")}
    assert UNet(**older).config == net.config


@pytest.mark.parametrize("resample", ["conv", "residual"])
def test_dropout_takes_its_share_before_every_second_convolution_in_training_alone(resample: str) -> None:
    options: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "resample": resample, "seed": 2}
    plain, net = UNet(1, **options), UNet(1, **options, dropout=0.25)
    assert net.config == {**plain.config, "dropout": 0.25}
    net.load_state_dict(plain.state_dict())
    x, c_noise = normal((3, 1, 8, 8), stream(1)), torch.zeros(3)
    blocks = [part for part in net.modules() if isinstance(part, Block)]
    seen: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        block.dropout.register_forward_hook(lambda layer, given, out: seen.append((given[0], out)))
        block.second.register_forward_pre_hook(lambda layer, given: seen.append(given))
    with seeded_torch(torch.device("cpu"), 0, "dropout"):
        net.train()(x, c_noise)
    assert len(seen) == 2 * len(blocks)
    for (before, after), (into,) in zip(seen[::2], seen[1::2], strict=True):
        assert after is into
        kept = after != 0
        torch.testing.assert_close(after[kept], before[kept] / 0.75)
    share = torch.cat([(after == 0).flatten() for _, after in seen[::2]]).double().mean()
    assert 0.22 < float(share) < 0.28
    assert torch.equal(net.eval()(x, c_noise), plain.eval()(x, c_noise))
    for bad in (1.0, -0.1, math.nan):
        with pytest.raises(DomainError, match=r"dropout must lie in \[0, 1\)"):
            UNet(1, dropout=bad)


@pytest.mark.parametrize("sizes", [(7,), (1,), (4, 7), (5, 1), (3, 4, 5), (1, 2, 7)])
def test_a_half_grid_has_means_and_a_finer_one_the_nearest_places(sizes: tuple[int, ...]) -> None:
    x = normal((2, 3, *sizes), stream(0), dtype=torch.float64)
    got = halve(x)
    assert got.shape[2:] == tuple(math.ceil(n / 2) for n in sizes)
    for place in itertools.product(*map(range, got.shape[2:])):
        window = (slice(None), slice(None), *(slice(2 * i, 2 * i + 2) for i in place))
        assert distance(got[(..., *place)], x[window].flatten(2).mean(2)) < 1e-14
    back = enlarge(got, sizes)
    for place in itertools.product(*map(range, sizes)):
        source = tuple(i * small // n for i, small, n in zip(place, got.shape[2:], sizes, strict=True))
        assert torch.equal(back[(..., *place)], got[(..., *source)])


@pytest.mark.parametrize("rescale", [False, True])
def test_residual_steps_are_the_formula(rescale: bool) -> None:
    """Two levels of two blocks, without attention but for the middle's, against the formulas of nn.blocks."""
    options = {"width": 8, "multipliers": (1, 2), "resample": "residual", "rescale_skips": rescale}
    net = awake(UNet(2, **options)).double()
    x, c_noise = normal((3, 2, 5, 6), stream(1), dtype=torch.float64), torch.tensor([-4.0, 0.5, 7.0]).double()
    outer, middle = net.level, net.level.inner.level.inner
    coarse = net.level.inner.level
    down, up = net.level.inner.down, net.level.inner.up
    order = [outer.before[0], down, coarse.before[0], middle.first, middle.second, coarse.after[0], up, outer.after[0]]
    vector = net.conditioning(c_noise, {})
    terms = dict(zip(order, net.modulation(vector).split(net.splits, 1), strict=True))
    r = math.sqrt(0.5) if rescale else 1.0

    def block(layer: nn.Module, h: Tensor, move=lambda h: h) -> Tensor:
        scale, shift = terms[layer][..., None, None].chunk(2, 1)
        inside = layer.modulated_norm(layer.first(move(F.silu(layer.norm(h)))))
        return r * (layer.skip(move(h)) + layer.second(F.silu((1 + scale) * inside + shift)))

    def attend(layer: nn.Module, h: Tensor) -> Tensor:
        tokens = layer.norm(h).flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in layer.project(tokens).chunk(3, 2))
        mixed = (q @ k.mT / math.sqrt(q.shape[3])).softmax(3) @ v
        return r * (h + layer.output(mixed.transpose(1, 2).flatten(2)).mT.reshape(h.shape))

    first = block(outer.before[0], net.input(x))
    second = block(coarse.before[0], block(down, first, halve))
    h = block(middle.second, attend(middle.attention, block(middle.first, second)))
    h = block(coarse.after[0], torch.cat([h, second], 1))
    h = block(up, h, lambda h: enlarge(h, (5, 6)))
    h = block(outer.after[0], torch.cat([h, first], 1))
    expected = net.output(F.silu(net.norm(h))) + net.skip(vector)[..., None, None] * x
    assert distance(expected, net(x, c_noise)) < 1e-12


def test_another_way_to_resample_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown resample 'residul'; did you mean 'residual'"):
        UNet(1, resample="residul")
