"""A forward process with a learned matrix: dx = beta (F x dt + G dw), trained with the network by the bound.

The data are six correlated coordinates, a mixture of four Gaussians behind a random mixing matrix. F = -S/2 + A has a
symmetric part S, positive definite, and an antisymmetric one A, and G G^T = S, so that N(0, 1) is where every such
process ends; x_t given x_0 stays Gaussian and exact. The scalar diffusion is S = 1, A = 0, where training begins. Both
are trained by the whole bound on -log p (prior, integral and reconstruction) with equal networks, draws and numbers of
steps, and judged by ``linear_elbo`` on data that neither has seen.

Run: python examples/learned_matrix.py [--quick] [--seeds N] [--steps N]      (under two minutes on two cores)
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from scoresde import VPSDE, LinearModel, MatrixSDE, linear_elbo
from scoresde.diffusions.blocks import invert
from scoresde.diffusions.linear import LinearPoint
from scoresde.nn import MLP
from scoresde.noise import integers, normal, stream, uniform
from scoresde.training.losses.linear import measure_linear

SIZE, PLACES, SHARED = 6, 48, 4
CLOCK = VPSDE(t_min=1e-4)


def mixed(n: int, key: str) -> tuple[Tensor, float]:
    """Draw n standardised samples, and return their mean -log p in nats, which no bound can go below."""
    means = 2.0 * normal((4, SIZE), stream(0, "means"))
    mixing = normal((SIZE, SIZE), stream(0, "mixing")) * torch.linspace(1.0, 0.15, SIZE)
    pick, z = integers(4, (n,), stream(0, key, "pick")), normal((n, SIZE), stream(0, key, "z"))
    hidden = means[pick] + 0.5 * z
    spread = 0.25 * torch.eye(SIZE) + torch.cov(means.T, correction=0)
    scale = torch.diagonal(mixing @ spread @ mixing.T).sqrt()
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(4)),
        torch.distributions.Independent(torch.distributions.Normal(means, 0.5), 1),
    )
    volume = float(torch.linalg.slogdet(mixing)[1] - scale.log().sum())
    x = ((hidden - means.mean(0)) @ mixing.T) / scale
    return x, float(volume - law.log_prob(hidden).mean())


class Matrix(torch.nn.Module):
    """S and A of F = -S/2 + A, of which S = 1 and A = 0 is the scalar diffusion."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.zeros(SIZE, SIZE, dtype=torch.float64))

    def sde(self) -> MatrixSDE:
        lower, upper = self.numbers.tril(), self.numbers.triu(1)
        noise = torch.linalg.matrix_exp(lower + lower.T)
        return MatrixSDE(-0.5 * noise + upper - upper.T, noise, t_min=CLOCK.t_min)


def bound(model: LinearModel, x0: Tensor, draw: torch.Generator) -> Tensor:
    """Return an estimate of the mean bound in nats, with its graph to the network and to the matrix."""
    sde = model.linear
    # Times even in the scalar diffusion's log-SNR, of which every SHARED samples have one.
    high, low = (float(CLOCK.log_snr(t)) for t in (CLOCK.t_min, CLOCK.t_max))
    u = (torch.arange(PLACES, dtype=torch.float64) + uniform((1,), draw, dtype=torch.float64)) / PLACES
    t = CLOCK.time(high + (low - high) * u)
    rate = (CLOCK.diffusion(t) / CLOCK.sigma(t)).square() / (high - low)  # their density
    z, last = normal(x0.shape, draw), normal(x0.shape, draw)
    some = sde.at(t)
    point = LinearPoint(*(c.repeat_interleave(SHARED, 0) for c in (some.t, some.mean, some.root)), sde)
    losses = measure_linear(model, x0, z, point, "likelihood") / rate.repeat_interleave(SHARED).to(x0)
    ends = sde.at(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    mean, root = ends.mean[0, 0].to(x0), ends.root[0, 0].to(x0)
    prior = 0.5 * ((x0 @ mean.T).square().sum(1) + root.square().sum() - SIZE) - torch.diagonal(root).log().sum()
    inward = (invert(ends.root[1, 0]) @ ends.mean[1, 0]).to(x0)
    state = x0 @ ends.mean[1, 0].to(x0).T + last @ ends.root[1, 0].to(x0).T
    reading = model.at(state, LinearPoint(ends.t[1], ends.mean[1], ends.root[1], sde))
    error = (x0 - reading.data) @ inward.T
    decoder = 0.5 * error.square().sum(1) + 0.5 * SIZE * math.log(2 * math.pi) - torch.linalg.slogdet(inward)[1]
    return (SIZE * losses + prior + decoder).mean()


def train(x: Tensor, *, learned: bool, steps: int, seed: int) -> LinearModel:
    """Train a network, with the matrix or without."""
    matrix, net = Matrix(), MLP(SIZE, width=64, depth=2, seed=seed)
    with torch.no_grad():
        model = LinearModel(net, matrix.sde(), condition_on=CLOCK.log_snr)
    groups = [{"params": list(net.parameters()), "lr": 2e-3}]
    groups += [{"params": list(matrix.parameters()), "lr": 1e-2}] if learned else []
    optimizer = torch.optim.Adam(groups)
    for step in range(steps):
        for group, top in zip(optimizer.param_groups, (2e-3, 1e-2), strict=False):
            group["lr"] = 0.5 * top * (1 + math.cos(math.pi * step / steps))
        if learned:
            model.sde = matrix.sde()  # type: ignore[assignment]
        draw = stream(seed, "step", step)
        loss = bound(model, x[integers(len(x), (PLACES * SHARED,), draw)], draw)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        last = matrix.sde()
        model.sde = MatrixSDE(last.matrix, last.noise, t_min=CLOCK.t_min)  # type: ignore[assignment]
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    steps = 10 if options.quick else options.steps
    data, _ = mixed(20_000, "train")
    unseen, entropy = mixed(200 if options.quick else 4000, "unseen")
    print(f"-log p of the unseen data, exactly: {entropy:.3f} nats")
    for seed in range(options.seeds):
        totals = []
        for name, learned in (("scalar", False), ("learned matrix", True)):
            model = train(data, learned=learned, steps=steps, seed=seed)
            result = linear_elbo(model, unseen, samples=8, seed=1)
            totals.append(result.per_sample)
            print(f"seed {seed}, {name}: bound {result.total:.3f} nats, {result.total - entropy:.3f} above")
        gap = totals[1] - totals[0]
        error = float(gap.std()) / math.sqrt(len(gap))
        print(f"seed {seed}: learned less scalar {float(gap.mean()):.3f} +- {error:.3f} nats (paired)")
        sde = model.linear
        assert isinstance(sde, MatrixSDE)
        assert sde.noise is not None
        rates = ", ".join(f"{r:.2f}" for r in torch.linalg.eigvalsh(sde.noise).tolist())
        turning = float((sde.matrix - sde.matrix.T).norm() / 2)
        print(f"seed {seed}: rates (eigenvalues of S) {rates}; norm of A {turning:.2f}")


if __name__ == "__main__":
    main()
