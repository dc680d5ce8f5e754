"""A density in one dimension over time, with particles or lines of the flow on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoresde.errors.kinds import DTypeError, ShapeError
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_mapping, check_sequence, check_text
from scoresde.likelihood.fokker_planck.densities import Densities
from scoresde.plots.style import INK, PALETTE, dress, new_figure, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["density_over_time"]

Paths = Mapping[str, tuple[Tensor, Tensor]]


def density_over_time(densities: Densities, paths: Paths | None = None, *, title: str = "") -> Figure:
    """Return a map of the density p(x, t), time to the right in the order of its computation, x upwards.

    Colours go with the square root of the density, so that a wide law and a narrow one are both seen. Each set of paths
    has a panel of its own, in which its lines lie on the density.

    Args:
        densities: of one dimension, at two times or more; what lies between is interpolated.
        paths: name -> (times (K,), states (K, N)): N paths at K times of their own.
        title: text above the panel where there are no paths.

    Raises:
        DTypeError: no Densities. ShapeError: densities in the plane, paths of other shapes. ConfigError: matplotlib is
            missing.
    """
    if not isinstance(densities, Densities):
        raise DTypeError(f"densities must be what evolve_density returns, got {type(densities).__name__}")
    if len(densities.axes) != 1:
        raise ShapeError("densities must have one dimension; draw a density in the plane with imshow(values[k].T)")
    panels = {} if paths is None else dict(check_mapping(paths, "paths", "times and states"))
    check_text(title, "title")
    for name, pair in panels.items():
        if len(check_sequence(pair, f"paths[{name!r}]", "times and states")) != 2:
            raise ShapeError(f"paths[{name!r}] must be times (K,) and states (K, N), got {len(pair)} parts")
        check_samples(pair[0], f"times of paths[{name!r}]"), check_samples(pair[1], f"states of paths[{name!r}]")
        if pair[0].ndim != 1 or pair[1].ndim != 2 or len(pair[0]) != len(pair[1]):
            shapes = " and ".join(str(tuple(part.shape)) for part in pair)
            raise ShapeError(f"paths[{name!r}] must be times (K,) and states (K, N), got {shapes}")
    times, axis = densities.times.numpy(), densities.axes[0].numpy()
    names = list(panels) or [title]
    with use_style():
        from matplotlib.colors import PowerNorm

        figure = new_figure(0.9 + 4.4 * len(names), 3.9)
        norm = PowerNorm(0.5, vmin=0.0, vmax=float(densities.values.max()))
        for k, name in enumerate(names):
            axes = figure.add_subplot(1, len(names), k + 1)
            picture = axes.pcolormesh(
                times, axis, densities.values.numpy().T, cmap="Blues", norm=norm, shading="gouraud", rasterized=True
            )
            if name in panels:
                across, states = (part.detach().cpu().double().numpy() for part in panels[name])
                axes.plot(across, states, color=PALETTE[1], linewidth=0.9, alpha=0.85)
            dress(axes, title=name, xlabel="time $t$", ylabel="$x$ (data units)" if k == 0 else "", grid=False)
            axes.set(xlim=(times[0], times[-1]), ylim=_reach(axis, densities.values.numpy()))
        bar = figure.colorbar(picture, ax=figure.axes, aspect=18.0, pad=0.02)
        bar.set_label("density $p(x, t)$ (1/x)")
        bar.ax.tick_params(color=INK, labelcolor=INK, labelsize=10.0)
    return figure


def _reach(axis: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the part of the axis where the density, at any time, is above a thousandth of the highest then."""
    seen = axis[(values > 1e-3 * values.max(axis=1, keepdims=True)).any(axis=0)]
    return float(seen.min()), float(seen.max())
