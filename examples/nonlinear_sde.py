"""SDEs of one's own without alpha and sigma: learned on simulated paths, run backwards, told where to end.

A double well, geometric Brownian motion (noise that grows with the state) and three bodies in the plane. Each score is
2 f/g^2, or what takes its place where the noise depends on the state, plus a network; a network alone loses its paths
in the double well. Laws are compared with data that no training saw, and with the Fokker-Planck equation. At the end
Doob's transform sends paths through a door.

Run: python examples/nonlinear_sde.py [--quick] [--out PICTURE]      (two minutes on two cores)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from scoresde import (
    SDE,
    VPSDE,
    ConditionedSDE,
    SDEModel,
    SolverError,
    bridge,
    evolve_density,
    fit,
    losses,
    metrics,
    sample,
)
from scoresde.nn import MLP
from scoresde.noise import integers, normal, stream, uniform

BLUE, RED, GREY, GREEN = "#0072B2", "#D55E00", "#8A8A8A", "#009E73"


class DoubleWell(SDE):
    """dx = (x - x^3) dt + 0.7 dw."""

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, t):
        return torch.full_like(torch.as_tensor(t), 0.7)


class Growth(SDE):
    """Geometric Brownian motion, dx = 0.3 x dt + 0.5 x dw: log x_t is Gaussian for log-normal data."""

    def drift(self, x, t):
        return 0.3 * x

    def diffusion_at(self, x, t):
        return 0.5 * x


class ThreeBodies(SDE):
    """Three bodies in the plane, x (B, 6): each pair attracts far off and repels near by, and noise of size 0.5."""

    def drift(self, x, t):
        place = x.reshape(-1, 3, 2)
        apart = place[:, :, None] - place[:, None]  # (B, 3, 3, 2)
        square = apart.square().sum(-1, keepdim=True)
        pull = 1.5 / (square + 0.3) - 0.8
        return ((pull * apart).sum(2) - 0.5 * place).reshape(x.shape)

    def diffusion(self, t):
        return torch.full_like(torch.as_tensor(t), 0.5)


def wells(n, seed):
    """Return (n, 1): seven tenths about -1, three about 0.6."""
    left = (uniform((n, 1), stream(seed, "side")) < 0.7).float()
    return left * (-1 + 0.25 * normal((n, 1), stream(seed, "left"))) + (1 - left) * (
        0.6 + 0.15 * normal((n, 1), stream(seed, "right"))
    )


def triangles(n, seed):
    """Return (n, 6): a triangle with sides of 1, 1.6 and 1.9, turned by any angle, and a little noise."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.6]])
    angle = 6.2832 * uniform((n,), stream(seed, "angle"))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(n, 2, 2)
    places = (corners - corners.mean(0)) @ turn
    return places.flatten(1) + 0.08 * normal((n, 6), stream(seed, "noise"))


def train(sde, data, steps, objective, baseline="equilibrium", **size):
    model = SDEModel(MLP(data.shape[1], **size), sde, baseline=baseline)
    return fit(
        model, data, steps=steps, batch_size=256, learning_rate=3e-3, objective=objective, seed=0, progress=False
    ).model


def backwards(model, n, steps=150, **options):
    """Sample on times that are uniform in the root of t: short steps at the data."""
    sde = model.sde
    times = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(1, 0, steps + 1, dtype=torch.float64).square()
    shape = (n, model.moments.mean.numel())
    return sample(model, shape, solver=bridge.TorchSDE(), times=times, final="sample", seed=1, **options)


def sides(x):
    place = x.reshape(-1, 3, 2)
    return torch.cat([(place[:, i] - place[:, j]).norm(dim=1) for i, j in ((0, 1), (0, 2), (1, 2))])


def distance(x, y):
    """Return the largest difference of the distribution functions of two samples of one coordinate."""
    both = torch.cat([x, y]).reshape(-1).sort().values
    share = [torch.searchsorted(one.reshape(-1).sort().values, both, right=True) / len(one) for one in (x, y)]
    return float((share[0] - share[1]).abs().max())


def histogram(axes, samples, exact, bins, title, label):
    axes.hist(exact.reshape(-1).numpy(), bins, density=True, color="#CCCCCC", label="held-out data")
    axes.hist(samples.reshape(-1).numpy(), bins, density=True, histtype="step", color=BLUE, lw=1.8, label="samples")
    axes.set(title=title, xlabel=label, ylabel="density", ylim=(0, 1.35 * axes.get_ylim()[1]))
    axes.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the networks have hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/nonlinear_sde.png"))
    options = parser.parse_args()
    n = 500 if options.quick else 4000
    figure, panels = plt.subplots(2, 3, figsize=(12.0, 6.8), layout="constrained")
    panels = panels.reshape(-1)

    well, data = DoubleWell(t_min=1e-3, t_max=2.0), wells(8000, 0)
    model = train(well, data, 6 if options.quick else 700, "implicit", width=64, depth=2)
    plain = train(well, data, 6 if options.quick else 700, "implicit", baseline="none", width=64, depth=2)
    run = backwards(model, n, trajectory=True, full_output=True)
    held_out = wells(n, 1)
    apart, floor = distance(run.x, held_out), distance(wells(n, 2), held_out)
    print(f"double well: samples are {apart:.3f} from held-out data (Kolmogorov-Smirnov), other data {floor:.3f}")
    density = evolve_density(
        well,
        lambda x: sum(
            w * torch.distributions.Normal(m, s).log_prob(x[:, 0]).exp()
            for w, m, s in ((0.7, -1, 0.25), (0.3, 0.6, 0.15))
        ),
        [(-3.0, 3.0, 300)],
        torch.tensor([1e-3, 0.125, 0.5], dtype=torch.float64),
    )
    for t, p in zip(density.times[1:].tolist(), density.values[1:], strict=True):
        row = min(range(len(run.times)), key=lambda k: abs(run.times[k] - t))
        inside = (run.trajectory[row] <= density.axes[0]).double().mean(0)  # at the cells' centres
        exact = (p.cumsum(0) - p / 2) * density.volume
        print(f"at t = {run.times[row]:.3f}: {float((inside - exact).abs().max()):.3f} from the Fokker-Planck equation")
    bins = torch.linspace(-2.2, 2.2, 50).numpy()
    histogram(panels[0], run.x, held_out, bins, "double well, 2 f/g² + network", "x")
    panels[1].hist(run.trajectory[row].reshape(-1).numpy(), bins, density=True, histtype="step", color=BLUE, lw=1.8)
    panels[1].fill_between(density.axes[0], density.values[-1], color="#CCCCCC", label="Fokker-Planck equation")
    panels[1].set(title="the same run at t = 0.5", xlabel="x", ylabel="density", xlim=(-2.2, 2.2))
    panels[1].set_ylim(top=1.05)
    panels[1].legend(frameon=False)

    start, times = torch.linspace(-2.3, 2.3, 6 if options.quick else 24)[:, None], torch.tensor(run.times)
    steady = backwards(model, len(start), x_init=start, trajectory=True, full_output=True).trajectory[..., 0]
    lost = []
    panels[2].plot(times, steady, color=BLUE, lw=0.8)
    for k, one in enumerate(start):
        try:
            path = backwards(plain, 1, x_init=one[None], first_sample=k, trajectory=True, full_output=True).trajectory
            panels[2].plot(times, path[:, 0, 0], color=RED, lw=0.8, ls="--")
        except SolverError as error:
            lost.append(float(one))
            said = error
    print(
        f"a network alone: {len(lost)} of {len(start)} paths run away from |x| up to 2.3"
        + (f"\n  {said}" if lost else "")
    )
    panels[2].plot([times[0]] * len(lost), lost, "x", color=RED, label="network alone: to infinity")
    panels[2].plot([], [], color=RED, ls="--", label="network alone")
    panels[2].plot([], [], color=BLUE, label="2 f/g² + network")
    panels[2].set(title="reverse paths", xlabel="t", ylabel="x", ylim=(-2.6, 4.4))
    panels[2].legend(frameon=False, loc="upper center", fontsize=9)
    panels[2].invert_xaxis()

    growth, logs = Growth(t_min=1e-3, t_max=1.0), 0.2 * normal((8000, 1), stream(0, "logs"))
    model = train(growth, logs.exp(), 6 if options.quick else 600, "implicit", width=64, depth=2)
    x, held_out = backwards(model, n), (0.2 * normal((n, 1), stream(1, "logs"))).exp()
    mean, variance = (0.3 - 0.125) * 0.5, 0.04 + 0.25 * 0.5
    points = (mean + variance**0.5 * normal((2000, 1), stream(2))).exp()
    exact = -(1 + (points.log() - mean) / variance) / points
    with torch.no_grad():
        missed = (points * (model(points, 0.501) - exact)).norm() / (points * exact).norm()
    print(f"multiplicative noise: {distance(x, held_out):.3f} from held-out data, other data {1.23 / n**0.5:.3f};")
    print(f"  g score at t = 0.5 is {float(missed):.1%} off the exact one (root mean square)")
    histogram(panels[3], x, held_out, torch.linspace(0.3, 2.0, 50).numpy(), "geometric Brownian motion", "x")

    bodies, data = ThreeBodies(t_min=1e-3, t_max=3.0), triangles(8000, 0)
    objective = losses.SimulatedLoss("reverse", steps=40, picks=8)
    model = train(bodies, data, 3 if options.quick else 350, objective, width=128, depth=3)
    x, held_out = backwards(model, n), triangles(n, 1)
    floor = metrics.sliced_wasserstein(triangles(n, 2), held_out)
    ends = metrics.sliced_wasserstein(model.law.states[integers(len(model.law.states), (n,), stream(0))], held_out)
    found = metrics.sliced_wasserstein(x, held_out)
    print(f"three bodies: {found:.3f} from held-out data (sliced Wasserstein-2), {ends:.3f} at t_max, data {floor:.3f}")
    histogram(panels[4], sides(x), sides(held_out), torch.linspace(0.5, 2.5, 60).numpy(), "three bodies", "side")

    # Paths of an Ornstein-Uhlenbeck process from 0: to above 1.5, where one in nineteen ends by itself, and to -1.
    sde = VPSDE(1.0, 3.0, t_max=1.0)
    times = 1 - 0.99 * torch.linspace(1, 0, 100, dtype=torch.float64).square()  # short steps at the end
    for towards, color, dashes, label in (
        (ConditionedSDE.to_box(sde, 1.5, float("inf")), GREEN, "-", "told to end above 1.5"),
        (ConditionedSDE.to_point(sde, torch.tensor([-1.0])), RED, "--", "told to end at -1"),
    ):
        ends = bridge.simulate(towards, torch.zeros(30, 1), times, method="euler", seed=0)[..., 0]
        panels[5].plot(times, ends, color=color, lw=0.7, ls=dashes)
        panels[5].plot([], [], color=color, ls=dashes, label=label)
        print(f"{label}: the lowest end is {float(ends[-1].min()):.3f}, the highest {float(ends[-1].max()):.3f}")
    panels[5].axhline(1.5, color=GREY, lw=1.0, ls=":")
    panels[5].set(title="Doob's transform", xlabel="t", ylabel="x", ylim=(-3.0, 4.8))
    panels[5].legend(frameon=False, loc="upper left")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=62)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
