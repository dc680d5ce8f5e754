"""The autoencoder: its losses are the evidence lower bound by torch's own laws, its shapes, its seeds, its refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scoresde import ConfigError, DomainError, DTypeError, ShapeError
from scoresde.nn import Autoencoder
from scoresde.noise import normal, stream

F64 = torch.float64


def data(*shape: int) -> Tensor:
    return normal(shape, stream(0, "autoencoder", "data"), dtype=F64)


def small(**options: object) -> Autoencoder:
    chosen: dict[str, object] = {"width": 4, "multipliers": (1, 2), "latent_channels": 3, **options}
    made = Autoencoder(2, **chosen).double()  # type: ignore[arg-type]
    with torch.no_grad():
        # Blocks start as the identity and biases at 0: a slip there would not be seen.
        for k, weight in enumerate(made.parameters()):
            weight.add_(0.1 * normal(weight.shape, stream(k, "autoencoder"), dtype=F64))
    return made


@pytest.mark.parametrize("std", [None, 0.3])
@pytest.mark.parametrize("shape", [(5, 2, 8), (5, 2, 8, 4)])
def test_the_losses_are_the_evidence_lower_bound(shape: tuple[int, ...], std: float | None) -> None:
    net, x = small(dims=len(shape) - 2, std=std), data(*shape)
    mean, log_variance = net.posterior(x)
    assert log_variance is not None
    law, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    z = mean + (0.5 * log_variance).exp() * normal(mean.shape, stream(7, "z"), dtype=F64)
    scale = torch.tensor(std or math.exp(float(net.log_std.detach())), dtype=F64)
    expected = kl_divergence(law, prior).flatten(1).sum(1) - Normal(net.decode(z), scale).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(net.losses(x, stream(7, "z")), expected, rtol=1e-10, atol=1e-10)


def test_the_losses_of_a_plain_one_are_those_of_its_reconstruction_and_draw_nothing() -> None:
    net, x = small(variational=False, std=0.5), data(5, 2, 8, 8)
    code, none = net.posterior(x)
    assert none is None
    generator = stream(7, "z")
    before = generator.get_state()
    expected = -Normal(net.decode(code), torch.tensor(0.5, dtype=F64)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(net.losses(x, generator), expected, rtol=1e-10, atol=1e-10)
    assert bool((generator.get_state() == before).all())


def test_the_learned_scale_is_best_at_the_root_of_the_mean_square() -> None:
    net, x = small(variational=False), data(20, 2, 8, 8)
    error = float((x - net.decode(net.posterior(x)[0])).detach().square().mean().sqrt())
    assert net.scale is not None
    slopes = []
    for factor in (0.9, 1.0, 1.1):
        with torch.no_grad():
            net.scale.fill_(math.log(factor * error) / 10)
        (slope,) = torch.autograd.grad(net.losses(x, stream(0)).mean(), net.scale)
        slopes.append(float(slope))
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 1e-9 * slopes[2]


@pytest.mark.parametrize(("multipliers", "factor"), [((1,), 1), ((1, 2), 2), ((1, 2, 3), 4)])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_code_sees_what_lies_around_it_on_a_coarser_grid(
    dims: int, multipliers: tuple[int, ...], factor: int
) -> None:
    net, x = small(dims=dims, multipliers=multipliers, variational=False), data(1, 2, *(64,) * dims)
    assert net.factor == factor
    code = net.posterior(x)[0]
    assert code.shape == (1, 3, *(64 // factor,) * dims)
    assert net.decode(code).shape == x.shape
    # Normalisation spreads a whisper of a change over the whole event; what lies there changes most.
    other = x.clone()
    other[(0, 0, *(40,) * dims)] += 1.0
    change = (net.posterior(other)[0] - code).abs().amax((0, 1)).flatten()
    place = int(change.argmax())
    found = [place // (64 // factor), place % (64 // factor)] if dims == 2 else [place]
    assert all(abs(where - 40 / factor) <= 2 for where in found)


def test_the_seed_names_the_weights_and_the_config_makes_it_again() -> None:
    net = Autoencoder(2, 3, width=4, multipliers=(1, 2), seed=3)
    twin, other = Autoencoder(**net.config), Autoencoder(**{**net.config, "seed": 4})  # type: ignore[arg-type]
    for name, weight in net.state_dict().items():
        assert torch.equal(twin.state_dict()[name], weight)
    assert not torch.equal(other.state_dict()["encoder.0.weight"], net.state_dict()["encoder.0.weight"])


def test_it_says_what_it_takes() -> None:
    net = small()
    for x in (data(5, 2, 8), data(5, 3, 8, 8), data(5, 2, 8, 7)):
        with pytest.raises(ShapeError, match=r"\(B, 2, H, W\) with sizes that 2 divides, got .*; pad or crop"):
            net.posterior(x)
    with pytest.raises(ShapeError, match=r"z must have shape \(B, 3, H, W\), got \(5, 2, 4, 4\)"):
        net.decode(data(5, 2, 4, 4))
    with pytest.raises(ConfigError, match="at least one level"):
        small(multipliers=())
    with pytest.raises(DomainError, match="std must lie in"):
        small(std=0.0)
    with pytest.raises(DTypeError, match="latent_channels must be"):
        small(latent_channels=1.5)
    for wrong, kind in (([1.0], DTypeError), (data(5, 2, 8, 8).long(), DTypeError)):
        with pytest.raises(kind, match="x must "):
            net.posterior(wrong)
        with pytest.raises(kind, match="z must "):
            net.decode(wrong)
    with pytest.raises(ShapeError, match=r"z has samples of shape \(3, 0, 4\), which hold no number"):
        net.decode(data(5, 3, 0, 4))
    with pytest.raises(DTypeError, match="multipliers must be a list of sizes"):
        small(multipliers=2)


def test_data_of_another_type_are_taken_and_answered_in_it() -> None:
    """The weights' type is what is computed in."""
    net, x = small().float(), data(3, 2, 8, 8).float()
    mean, log_variance = net.posterior(x)
    for dtype, rough in ((torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        wide = net.posterior(x.to(dtype))
        z = net.decode(mean.to(dtype))
        assert {one.dtype for one in (*wide, z)} == {dtype}
        torch.testing.assert_close(wide[0].float(), mean, rtol=rough, atol=rough)
        torch.testing.assert_close(wide[1].float(), log_variance, rtol=rough, atol=rough)
        torch.testing.assert_close(z.float(), net.decode(mean), rtol=rough, atol=rough)
