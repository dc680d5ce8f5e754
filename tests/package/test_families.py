"""The small models of ``benchmarks/families``: their likelihoods are what they say."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import ROOT
from torch import Tensor
from torch.distributions import Normal

from scoresde.noise import undisturbed


@pytest.fixture(autouse=True)
def _families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Import them as the benchmark does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in [name for name in sys.modules if name == "families" or name.startswith("families.")]:
        del sys.modules[name]


def own_draws(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test use torch's global generator, as these models do, and put it back."""

    @functools.wraps(test)
    def run(*args: object, **options: object) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            test(*args, **options)

    return run


def every(levels: int, side: int) -> Tensor:
    """Return every image there is."""
    return torch.tensor(list(itertools.product(range(levels), repeat=side * side))).reshape(-1, side, side)


@own_draws
def test_a_pixelcnn_is_a_law() -> None:
    from families.pixelcnn import PixelCNN

    net = PixelCNN(width=8, blocks=2, levels=3).eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.3 * torch.randn(p.shape)
    total = net.log_prob(every(3, 2))["value"].exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)
    # A pixel's law depends on the pixels before it, and on all of them that are near.
    x = torch.randint(3, (1, 5, 5))
    base = net(x)
    for i, j in ((0, 0), (2, 2), (4, 1)):
        other = x.clone()
        other[0, i, j] = (other[0, i, j] + 1) % 3
        changed = (net(other) != base).any(1)[0].flatten()
        assert not bool(changed[: 5 * i + j + 1].any())
        assert (i, j) == (4, 1) or bool(changed[5 * i + j + 1 :].any())


@own_draws
def test_bounds_of_an_autoencoder_rise_to_its_likelihood() -> None:
    """Against quadrature over one latent number."""
    from families.vae import VAE

    net = VAE(latent=1, width=16).eval()
    x = torch.randint(17, (3, 8, 8))
    z = torch.linspace(-8, 8, 4001)[:, None, None].expand(-1, 3, 1)
    with torch.no_grad():
        logs = net.decoder.log_prob(z, x) + Normal(0.0, 1.0).log_prob(z[..., 0])
    exact = torch.logsumexp(logs, 0) + math.log(16 / 4000)
    found = net.log_prob(x, draws=3000)
    torch.testing.assert_close(found["value"], exact, rtol=0, atol=0.2)
    means = [float(found[name].sum()) for name in ("1 draws", "10 draws", "100 draws")]
    assert means == sorted(means)
    assert means[0] < float(exact.sum())
    with torch.no_grad():
        assert float(net.elbo(x, 3000).sum()) == pytest.approx(means[0], abs=0.5)


@pytest.mark.parametrize("law", ["softmax", "logistic"])
@own_draws
def test_two_layers_add_one_divergence_each(law: str) -> None:
    from families.vae import VAE

    net = VAE(latent=3, top=2, width=16, law=law).eval()
    x = torch.randint(17, (2, 8, 8))
    terms = net.layers(x, 4000)
    elbo = (terms["reconstruction"] - terms["KL z1"] - terms["KL z2"]).mean(0)
    # The same mean from the log weights, whose divergences are draws.
    torch.testing.assert_close(elbo, terms["log weight"].mean(0), rtol=0, atol=0.2)
    assert bool((terms["KL z1"] >= 0).all() and (terms["KL z2"] >= 0).all())
    logits = net.decoder.logits(torch.randn(4, 3))
    assert logits.shape == (4, 64, 17)
    if law == "logistic":
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(4, 64), rtol=0, atol=1e-4)


@own_draws
def test_a_mixture_gives_the_mass_of_a_bin() -> None:
    """A normal law in each of 64 coordinates: the product of its masses in the bins, from below."""
    with undisturbed():  # scikit-learn's first import moves Python's own generator
        from families.mixture import Mixture
        from sklearn.mixture import GaussianMixture

    made = GaussianMixture(1, random_state=0)
    noise = torch.randn(2000, 64).double()
    made.fit((8 + 3 * noise).numpy())
    mean, std = torch.from_numpy(made.means_[0]), torch.from_numpy(made.covariances_[0]).diagonal().sqrt()
    made.covariances_[0] = (std**2).diag().numpy()
    made.precisions_cholesky_[0] = (1 / std).diag().numpy()
    x = torch.randint(4, 13, (20, 8, 8))
    flat = x.reshape(20, 64).double()
    law = Normal(mean, std)
    exact = (law.cdf(flat + 1) - law.cdf(flat)).log().sum(1)
    found = Mixture(made)
    one, many = (found.log_prob(x, draws=k)["value"] for k in (1, 200))
    assert float(one.mean()) < float(many.mean()) < float(exact.mean()) + 0.05
    torch.testing.assert_close(many.mean(), exact.mean(), rtol=0, atol=0.2)
    assert found.size == 64 + 64 * 65 // 2


def test_levels_and_images_are_each_others_inverse() -> None:
    from families.common import load, to_images, to_levels

    split = load()
    assert len(split.train) + len(split.valid) == 1437
    for part in (split.train, split.valid, split.test):
        assert part.dtype == torch.long
        assert int(part.min()) >= 0
        assert int(part.max()) == 16
        assert torch.equal(to_levels(to_images(part)), part)
