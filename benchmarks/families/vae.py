r"""Variational autoencoders of one and of two stochastic layers.

One layer: log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z)), and with k draws the importance-weighted bound

    log p(x) >= E log (1/k) sum_j p(x | z_j) p(z_j)/q(z_j | x),

which rises with k (Burda et al. 2016, arXiv:1509.00519).

Two layers, z_1 next to the data and z_2 above it, q(z_1, z_2 | x) = q(z_1 | x) q(z_2 | z_1): one KL divergence a layer,

    log p(x) >= E log p(x | z_1) - E KL(q(z_1 | x) || p(z_1 | z_2)) - E KL(q(z_2 | z_1) || p(z_2)).

All laws of z are diagonal Gaussians. The decoder gives each pixel a law on the 17 levels: free (a softmax), or a
logistic density's mass in the bins, whichever suits the images to choose by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from families.common import LEVELS, SIDE, Split, count, train
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

__all__ = ["VAE", "fit", "fit_hierarchical"]

PIXELS = SIDE * SIDE


def mlp(inputs: int, outputs: int, width: int, dropout: float = 0.1) -> nn.Sequential:
    """Return two hidden layers."""
    hidden = [nn.Linear(inputs, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def normal(values: Tensor) -> Normal:
    """Read a mean and a log standard deviation."""
    mean, log_std = values.chunk(2, -1)
    return Normal(mean, log_std.clamp(-6, 3).exp())


class Pixels(nn.Module):
    """p(x | z): a law on the levels for each pixel."""

    def __init__(self, latent: int, width: int, law: str) -> None:
        super().__init__()
        self.law = law
        self.net = mlp(latent, PIXELS * (LEVELS if law == "softmax" else 2), width)

    def logits(self, z: Tensor) -> Tensor:
        """Return log probabilities up to a constant, (*, 64, 17)."""
        out = self.net(z)
        if self.law == "softmax":
            return out.unflatten(-1, (PIXELS, LEVELS))
        mean, log_scale = out.unflatten(-1, (PIXELS, 2)).unbind(-1)
        ends = torch.arange(LEVELS + 1, device=z.device) - 0.5
        scaled = (ends - 8 * (1 + mean[..., None])) * (-log_scale[..., None].clamp(-4, 4)).exp()
        below = torch.sigmoid(scaled)
        below = torch.cat([torch.zeros_like(below[..., :1]), below[..., 1:-1], torch.ones_like(below[..., :1])], -1)
        return below.diff().clamp_min(1e-7).log()

    def log_prob(self, z: Tensor, levels: Tensor) -> Tensor:
        """Return log p(x | z), (*, N), for z (*, N, D) and levels (N, 8, 8)."""
        logs = functional.log_softmax(self.logits(z), -1)
        index = levels.reshape(len(levels), PIXELS, 1).expand(*logs.shape[:-1], 1)
        return logs.gather(-1, index)[..., 0].sum(-1)


def scaled(levels: Tensor) -> Tensor:
    """Return levels as the encoder's input, (N, 64) in [-1, 1]."""
    return levels.reshape(len(levels), -1).float() / 8 - 1


class VAE(nn.Module):
    """One layer of latents, or two."""

    kind = "bound"

    def __init__(self, *, latent: int = 16, top: int = 0, width: int = 256, law: str = "softmax") -> None:
        super().__init__()
        self.latent, self.top = latent, top
        self.encoder = mlp(PIXELS, 2 * latent, width)
        self.decoder = Pixels(latent, width, law)
        if top:
            self.up, self.down = mlp(latent, 2 * top, width), mlp(top, 2 * latent, width)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return count(self)

    def layers(self, levels: Tensor, draws: int = 1) -> dict[str, Tensor]:
        """Return the terms of the bound for ``draws`` draws, each (draws, N): reconstruction and one KL a layer."""
        q1 = normal(self.encoder(scaled(levels)))
        z1 = q1.rsample((draws,))
        terms = {"reconstruction": self.decoder.log_prob(z1, levels)}
        if not self.top:
            standard = Normal(torch.zeros(()), torch.ones(()))
            terms["KL z1"] = torch.distributions.kl_divergence(q1, standard).sum(-1).expand(draws, -1)
            terms["log weight"] = terms["reconstruction"] + (standard.log_prob(z1) - q1.log_prob(z1)).sum(-1)
            return terms
        q2, standard = normal(self.up(z1)), Normal(torch.zeros(()), torch.ones(()))
        z2 = q2.rsample()
        p1 = normal(self.down(z2))
        terms["KL z1"] = torch.distributions.kl_divergence(q1, p1).sum(-1)
        terms["KL z2"] = torch.distributions.kl_divergence(q2, standard).sum(-1)
        own = (p1.log_prob(z1) - q1.log_prob(z1)).sum(-1) + (standard.log_prob(z2) - q2.log_prob(z2)).sum(-1)
        terms["log weight"] = terms["reconstruction"] + own
        return terms

    def elbo(self, levels: Tensor, draws: int = 1) -> Tensor:
        """Return the bound, (N,), a mean over draws."""
        terms = self.layers(levels, draws)
        return (terms["reconstruction"] - terms["KL z1"] - terms.get("KL z2", torch.zeros(()))).mean(0)

    @torch.no_grad()
    def log_prob(self, levels: Tensor, draws: int = 1000) -> Mapping[str, Tensor]:
        """Return the importance-weighted bound with ``draws`` draws as the value, and the plain one beside it."""
        parts = [self.layers(part, draws) for part in levels.split(64)]
        weights = torch.cat([part["log weight"] for part in parts], 1)
        found = {"value": torch.logsumexp(weights, 0) - math.log(draws)}
        for k in (1, 10, 100):
            if k < draws:
                groups = weights[: draws // k * k].reshape(-1, k, weights.shape[1])
                found[f"{k} draws"] = (torch.logsumexp(groups, 1) - math.log(k)).mean(0)
        for name in ("reconstruction", "KL z1", "KL z2"):
            if name in parts[0]:
                found[name] = torch.cat([part[name] for part in parts], 1).mean(0)
        return found

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return n images as levels, drawn from the decoder's law."""
        z = torch.randn(n, self.top or self.latent)
        z = normal(self.down(z)).sample() if self.top else z
        return torch.distributions.Categorical(logits=self.decoder.logits(z)).sample().reshape(n, SIDE, SIDE)


def fit(split: Split, *, top: int = 0, quick: bool = False) -> VAE:
    """Train with both laws of the pixels and take the one that suits the images to choose by."""
    best: tuple[float, VAE] | None = None
    for law in ("softmax", "logistic"):
        net = VAE(top=top, law=law)
        name = f"{'hierarchical ' * bool(top)}VAE, {law}"
        value = train(net, lambda x, net=net: -net.elbo(x, 4), split, steps=60 if quick else 2500, name=name)
        if best is None or value < best[0]:
            best = value, net
    assert best is not None
    return best[1]


def fit_hierarchical(split: Split, *, quick: bool = False) -> VAE:
    """Train two layers of latents."""
    return fit(split, top=8, quick=quick)
