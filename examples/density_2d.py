"""A density in the plane from scratch: the network, the training loop and the sampler, all in sight.

The library's part is the diffusion, the loss, and ``sample`` to compare with. The picture has the data, samples of the
sampler below, samples of ``sample`` with a fiftieth of the calls, and the score field that both follow.

Run: python examples/density_2d.py [--quick] [--out PICTURE]      (a minute on two cores)
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from scoresde import VPSDE, ScoreModel, denoising_score_matching, sample
from scoresde.data import pinwheel
from scoresde.metrics import floor, sliced_wasserstein


class Net(nn.Module):
    """The prediction at x (B, 2); the log-SNR (B,) comes in as sines and cosines."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = [2 + 16, width, width, width, width]
        hidden = [part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))
        for layer in hidden[::2]:
            nn.init.kaiming_normal_(layer.weight)  # torch's own first weights are so small that learning starts late

    def forward(self, x, c_noise):
        angles = c_noise[:, None] * 2.0 ** torch.arange(-5, 3)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))


def train(model: ScoreModel, data: torch.Tensor, steps: int, generator: torch.Generator) -> None:
    """Minimise the denoising loss: the loop that ``fit`` wraps."""
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        batch = data[torch.randint(len(data), (512,), generator=generator)]
        loss = denoising_score_matching(model, batch, generator=generator).mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step(), decay.step()
        if step % 2000 == 0 or step == steps - 1:
            print(f"step {step:>5}, loss {loss:.3f}")


@torch.no_grad()
def euler_maruyama(model: ScoreModel, n: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Follow dx = (f - g^2 score) dt + g dw from the prior at t_max back to t_min."""
    reverse = model.sde.reverse(model)
    x = torch.randn(n, 2, generator=generator)
    for t, s in pairwise(torch.linspace(1.0, model.sde.t_min**0.5, steps + 1, dtype=torch.float64).square()):
        z = torch.randn(n, 2, generator=generator)
        x = x + reverse.drift(x, t) * (s - t) + reverse.diffusion(t) * (t - s).sqrt() * z
    return x


def draw(sets: dict[str, torch.Tensor], model: ScoreModel, t: float, path: Path) -> None:
    """Draw each set of points, and the model's score at time t."""
    figure, panels = plt.subplots(1, len(sets) + 1, figsize=(4.0 * len(sets) + 4.0, 4.3), layout="constrained")
    for axes, (name, points) in zip(panels, sets.items(), strict=False):
        axes.scatter(*points.T, s=2, color="#0072B2", alpha=0.6, linewidths=0)
        axes.set_title(name)
    line = torch.linspace(-2.6, 2.6, 24)
    grid = torch.cartesian_prod(line, line)
    panels[-1].scatter(*sets["data"].T, s=2, color="#BBBBBB", linewidths=0)
    with torch.no_grad():
        score = model(grid, t).score
    length = score.norm(dim=1)
    field = panels[-1].quiver(*grid.T, *(score / length[:, None]).T, length, cmap="cividis", scale=28, width=0.004)
    panels[-1].set_title(f"score at t = {t:g}")
    figure.colorbar(field, ax=panels[-1], label="length of the score", shrink=0.8)
    for axes in panels:
        axes.set(xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/density_2d.png"))
    options = parser.parse_args()

    torch.manual_seed(0)  # the network's first weights
    generator = torch.Generator().manual_seed(0)
    model = ScoreModel(Net(), VPSDE(), predicts="v")
    train(model, pinwheel(50_000), 200 if options.quick else 4000, generator)

    held_out = pinwheel(4000, seed=1)
    steps = 50 if options.quick else 1000
    by_hand = euler_maruyama(model, 4000, steps, generator)
    by_library = sample(model, (4000, 2), solver="dpmpp_2m", steps=20, seed=0)
    real = floor(sliced_wasserstein, pinwheel(40_000, seed=2), 4000)
    print("sliced Wasserstein-2 distance to 4000 held-out points:")
    print(f"  the loop above        {sliced_wasserstein(by_hand, held_out):.3f}")
    print(f"  sample, 20 steps      {sliced_wasserstein(by_library, held_out):.3f}")
    print(f"  as many real points   {real.mean:.3f} ± {real.std:.3f}")
    sets = {"data": held_out, f"Euler-Maruyama, {steps} steps": by_hand, "DPM-Solver++, 20 steps": by_library}
    draw(sets, model, 0.1, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
