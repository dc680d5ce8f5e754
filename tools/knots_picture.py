"""Draw the first picture of docs/discrete-and-continuous.md: a photograph becomes noise, at knots and without gaps.

The path is one forward path of a chain of 400 steps under the cosine SDE. Above is the photograph at six knots, below
are the values of three of its pixels at all times, with a dot where the photographs above have them.

    python tools/knots_picture.py FILE.png
"""

from __future__ import annotations

import sys

import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_sample_images
from torch.nn.functional import avg_pool2d

from scoresde import DDPM, CosineVPSDE, forward_path, plots
from scoresde.plots.style import GREY, INK, PALETTE, dress, new_figure, use_style

STEPS, KNOTS = 400, 5
PIXELS = ((6, 6), (24, 25), (37, 20))  # row, column: background, heart, petal


def draw_path(seed: int) -> torch.Tensor:
    """Return the photograph (3, 50, 50) in [-1, 1] on its way to noise, (STEPS + 1, 3, 50, 50)."""
    flower = torch.tensor(load_sample_images().images[1]).permute(2, 0, 1)[None, :, 10:410, 120:520]
    x0 = avg_pool2d(flower.float() / 127.5 - 1, 8)
    return forward_path(DDPM.from_sde(CosineVPSDE(), STEPS), x0, seed=seed)[:, 0]


def draw_photographs(axes: Axes, path: torch.Tensor, width: float) -> None:
    """Show the photograph at the knots, each above its time, and the steps between them."""
    for k in range(KNOTS + 1):
        picture = path[k * STEPS // KNOTS].permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5
        at = k / KNOTS
        axes.imshow(
            picture.numpy(), extent=(at - width / 2, at + width / 2, 0, 1), aspect="auto", interpolation="nearest"
        )
        axes.plot([at, at], [-0.02, -0.1], color=GREY, linewidth=1.2, clip_on=False)
        if k < KNOTS:
            ends = {"xytext": (at + width / 2 + 0.004, 0.5), "xy": (at + 1 / KNOTS - width / 2 - 0.004, 0.5)}
            axes.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8})


def draw_values(axes: Axes, path: torch.Tensor) -> None:
    """Draw the pixels over time, and where the knots see them."""
    times = torch.linspace(0, 1, STEPS + 1).numpy()
    for k, (i, j) in enumerate(PIXELS):
        values = path[:, 0, i, j].numpy()
        axes.plot(times, values, color=PALETTE[k], linewidth=1.2)
        axes.plot(times[:: STEPS // KNOTS], values[:: STEPS // KNOTS], "o", color=PALETTE[k], markeredgecolor="white")
    for k in range(KNOTS + 1):
        axes.axvline(k / KNOTS, color=GREY, linewidth=1.2, zorder=0)


def main(arguments: list[str]) -> int:
    """Draw the picture into the file named; return the exit code."""
    if len(arguments) != 1:
        print("usage: python tools/knots_picture.py FILE.png", file=sys.stderr)
        return 2
    path, width = draw_path(seed=3), 0.155
    with use_style():
        figure = new_figure(10.0, 4.6)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.75))
        draw_photographs(above, path, width)
        draw_values(below, path)
        dress(above, title="discrete: a few large steps, each a photograph", grid=False)
        above.set_xlim(-0.09, 1.09)
        above.set_ylim(0, 1)
        above.axis("off")
        title = "continuous: the same noising without gaps, for three of the pixels"
        across = "time t: from the photograph to pure noise"
        dress(below, xlabel=across, ylabel="value of a pixel", title=title, grid=False)
        below.set_xticks([k / KNOTS for k in range(KNOTS + 1)])
        plots.save(figure, arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
