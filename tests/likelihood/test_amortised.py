"""A posterior as the package sbi calls it: exact laws, sbi's own diagnostics, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from sbi.diagnostics import check_tarp, run_sbc, run_tarp
from sbi.diagnostics.sbc import check_uniformity_frequentist
from torch import Tensor, nn

from scoresde import VPSDE, ConfigError, DTypeError, Moments, RectifiedFlow, SBIPosterior, ScoreModel, ShapeError
from scoresde.noise import normal, stream
from scoresde.transforms import Affine

D, STD = 2, 0.5
POSTERIOR_VARIANCE = STD**2 / (1 + STD**2)


class Told(nn.Module):
    """E[theta | theta_t, x] for theta ~ N(0, 1) and x = theta + STD z."""

    def forward(self, state: Tensor, log_snr: Tensor, *, context: Tensor) -> Tensor:
        alpha, sigma = torch.sigmoid(log_snr).sqrt()[:, None], torch.sigmoid(-log_snr).sqrt()[:, None]
        gain = alpha * POSTERIOR_VARIANCE / (alpha.square() * POSTERIOR_VARIANCE + sigma.square())
        mean = context / (1 + STD**2)
        return mean + gain * (state - alpha * mean)


def make(**options: object) -> SBIPosterior:
    moments = Moments.exact(torch.zeros(D), torch.ones(D))
    return SBIPosterior(ScoreModel(Told(), RectifiedFlow(), predicts="data", moments=moments), "context", **options)


def test_draws_have_the_posteriors_law() -> None:
    x = torch.tensor([[1.0, -2.0]])
    theta = make().sample((4, 5000), x, seed=0)
    assert theta.shape == (4, 5000, D)
    torch.testing.assert_close(theta.mean((0, 1)), x[0] / (1 + STD**2), rtol=0, atol=0.02)
    torch.testing.assert_close(theta.var((0, 1)), torch.full((D,), POSTERIOR_VARIANCE), rtol=0.05, atol=0)
    kept = make().set_default_x(x[0])
    torch.testing.assert_close(kept.sample((4, 5000), seed=0), theta)
    assert kept.sample().shape == (D,)
    assert not torch.equal(kept.sample((3,)), kept.sample((3,)))


def test_a_batch_of_observations_keeps_its_places() -> None:
    x = torch.tensor([[1.0, -2.0], [5.0, 0.0], [-3.0, 3.0]])
    theta = make(chunk_size=1000).sample_batched((2, 2000), x, seed=0)
    assert theta.shape == (2, 2000, 3, D)
    torch.testing.assert_close(theta.mean((0, 1)), x / (1 + STD**2), rtol=0, atol=0.05)


def test_what_the_network_is_told_is_encoded() -> None:
    scale = Affine(2.0, 3.0)
    x = torch.tensor([[1.0, -2.0]])
    plain, encoded = make(), make(encode=scale.forward)
    torch.testing.assert_close(encoded.sample((5,), scale.inverse(x), seed=0), plain.sample((5,), x, seed=0))


def test_log_densities_are_the_posteriors() -> None:
    x = normal((3, D), stream(0, "x"))
    theta = normal((4, 3, D), stream(0, "theta"))
    away = (theta - x / (1 + STD**2)).square().sum(2)
    wanted = -0.5 * away / POSTERIOR_VARIANCE - 0.5 * D * math.log(2 * math.pi * POSTERIOR_VARIANCE)
    got = make().log_prob_batched(theta, x)
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=2e-3)
    for call in (make().log_prob, make().potential):
        torch.testing.assert_close(call(theta[:, 1], x[1:2]), got[:, 1])
    torch.testing.assert_close(make().log_prob(theta[0, 1], x[1]), got[:1, 1])


def test_the_diagnostics_of_sbi_take_it() -> None:
    """They pass the exact posterior, and find one that is too narrow."""
    thetas = normal((200, D), stream(1, "theta"))
    xs = thetas + STD * normal((200, D), stream(1, "x"))

    def p_values(posterior: SBIPosterior) -> Tensor:
        ranks, _ = run_sbc(thetas, xs, posterior, num_posterior_samples=100, show_progress_bar=False)
        return torch.as_tensor(check_uniformity_frequentist(ranks, 100))

    posterior = make(steps=15)
    posterior.sample_batched = partial(posterior.sample_batched, seed=0)

    class Narrow(SBIPosterior):
        def sample_batched(self, shape: tuple[int, ...], x: Tensor, *bar: bool, **more: object) -> Tensor:
            theta = super().sample_batched(shape, x, seed=0)
            return theta.mean(0) + 0.3 * (theta - theta.mean(0))

    with torch.random.fork_rng():  # sbi draws from torch's own generator
        torch.manual_seed(0)
        assert float(p_values(posterior).min()) > 0.01
        coverage, alpha = run_tarp(thetas, xs, posterior, num_posterior_samples=100, show_progress_bar=False)
        assert abs(check_tarp(coverage, alpha)[0]) < 2
        assert float(p_values(Narrow(posterior.model, "context", steps=15)).max()) < 1e-6


FAULTS: Mapping[str, tuple[Callable[[], object], type[Exception], str]] = {
    "model": (lambda: SBIPosterior(torch.neg, "x"), DTypeError, "model must be a ScoreModel"),
    "moments": (
        lambda: SBIPosterior(ScoreModel.from_callable(lambda x, t: -x, VPSDE()), "context"),
        ConfigError,
        "knows no moments, so no shape of theta",
    ),
    "none": (lambda: make().sample((3,)), ConfigError, r"pass x=, or set_default_x\(x\) first"),
    "type": (lambda: make().sample((3,), [1.0, 2.0]), DTypeError, "x must be a tensor, got list"),
    "several": (
        lambda: make().sample((3,), torch.zeros(2, D)),
        ShapeError,
        "one observation, .*see sample_batched",
    ),
    "theta": (lambda: make().log_prob(torch.zeros(4, 3), torch.zeros(1, D)), ShapeError, "theta must hold events of"),
    "count": (
        lambda: make().log_prob_batched(torch.zeros(4, 3, D), torch.zeros(2, D)),
        ShapeError,
        "for 2 observations",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_gets_one_line(name: str) -> None:
    call, kind, words = FAULTS[name]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
