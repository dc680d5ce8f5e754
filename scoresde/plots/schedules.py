r"""Diffusions side by side: alpha, sigma, log-SNR, f and g against time.

f = d log alpha/dt is the factor of x in the drift, g multiplies the Wiener increment, and log-SNR is
log(alpha^2/sigma^2). Times are taken at t_min + (t_max - t_min) sin^2(pi k/(2 n)), k = 0 ... n, which are dense at both
ends, where the curves are steep. The axes for sigma, f and g go with asinh(value/0.3), nearly linear around 0 and
logarithmic beyond, so that a noise that stays below 1 and one that explodes are both read off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.plots.style import PALETTE, dress, new_figure, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["schedules"]

Array = np.ndarray[Any, np.dtype[np.float64]]

_INTERVALS: Final = 400
_LINEAR: Final = 0.3  # where the axes for sigma, f and g turn from linear to logarithmic
_EDGE: Final = 20  # intervals at either end that do not stretch the axis of a curve which is infinite there
# Curves may lie on each other: a later one has gaps through which the earlier one is seen.
_DASHES: Final = ("solid", (0, (6, 4)), (0, (1.5, 2)), (0, (9, 3, 2, 3)), (0, (3, 3)), (0, (12, 5)))


@dataclass(frozen=True)
class _Panel:
    """A curve: its axis label, its values, and whether its axis may be that of asinh."""

    label: str
    values: Callable[[GaussianSDE, Tensor], Tensor]
    wide: bool = False


_PANELS: Final = (
    _Panel(r"signal $\alpha$", lambda sde, t: sde.alpha(t)),
    _Panel(r"noise $\sigma$ (units of x)", lambda sde, t: sde.sigma(t), wide=True),
    _Panel(r"log-SNR $\log\,\alpha^2/\sigma^2$ (nats)", lambda sde, t: sde.log_snr(t)),
    _Panel(r"drift rate $f$ (1/t)", lambda sde, t: sde.drift_rate(t), wide=True),
    _Panel(r"diffusion $g$ (units of x / $\sqrt{t}$)", lambda sde, t: sde.diffusion(t), wide=True),
)


def schedules(sdes: Mapping[str, GaussianSDE] | Sequence[GaussianSDE]) -> Figure:
    """Return alpha, sigma, log-SNR, f = d log alpha/dt and g of several diffusions, a panel for each curve.

    The axis of time is t, or t/t_max where a diffusion's t_max is not 1; f and g stay in units of the diffusion's own
    t. A curve that becomes infinite at an end, as log-SNR does where alpha reaches 0, is drawn as far as it is finite
    and a triangle at the panel's edge shows where it goes. The axes for sigma, f and g are nearly linear around 0 and
    logarithmic beyond, if a value beyond 1 is to be seen.

    Args:
        sdes: the diffusions, by the names that the legend shows; a sequence takes the names of their classes.

    Raises:
        DTypeError: something else than diffusions.
        ConfigError: none, two of one name in a sequence, or matplotlib is missing.
    """
    named = _name_sdes(sdes)
    own = any(sde.t_max != 1.0 for sde in named.values())
    with use_style():
        figure = new_figure(11.0, 6.4)
        for k, panel in enumerate(_PANELS):
            axes = figure.add_subplot(2, 3, k + 1)
            _draw(axes, panel, named, scaled=own)
            across = r"time $t\,/\,t_{\mathrm{max}}$" if own else "time $t$"
            dress(axes, xlabel=across if k > 1 else "", ylabel=panel.label)
            axes.set_xlim(-0.03, 1.03)
        keys = figure.add_subplot(2, 3, 6)
        keys.set_axis_off()
        curves = figure.axes[0].get_legend_handles_labels()[0]
        triangle = keys.plot([], [], color="none", marker="v", markerfacecolor="#555555", markeredgewidth=0)
        texts = [
            f"{name}, t from {sde.t_min:g} to {sde.t_max:g}" if sde.t_max != 1.0 else name
            for name, sde in named.items()
        ]
        keys.legend([*curves, *triangle], [*texts, "becomes infinite here"], loc="center", handlelength=3.4)
    return figure


def _name_sdes(sdes: Mapping[str, GaussianSDE] | Sequence[GaussianSDE]) -> dict[str, GaussianSDE]:
    """Return the diffusions by name, checked."""
    if not isinstance(sdes, (Mapping, Sequence)):
        raise DTypeError(f"sdes must be diffusions in a list or by name, got {type(sdes).__name__}; put it in a list")
    if not sdes:
        raise ConfigError("sdes must hold at least one diffusion, got none; for instance [VPSDE(), VESDE()]")
    pairs = list(sdes.items()) if isinstance(sdes, Mapping) else [(type(sde).__name__, sde) for sde in sdes]
    for name, sde in pairs:
        if not isinstance(sde, GaussianSDE):
            raise DTypeError(f"sdes must hold diffusions with alpha and sigma, got {type(sde).__name__} for {name!r}")
    named = dict(pairs)
    if len(named) < len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise ConfigError(f'sdes holds {twice} more than once; name them: {{"one": {twice}(...), "other": ...}}')
    return named


def _draw(axes: Axes, panel: _Panel, sdes: Mapping[str, GaussianSDE], *, scaled: bool) -> None:
    """Draw one curve of every diffusion, and choose the axis."""
    shares = torch.linspace(0.0, math.pi / 2, _INTERVALS + 1, dtype=torch.float64, device="cpu").sin().square()
    seen = []
    for k, (name, sde) in enumerate(sdes.items()):
        t = sde.t_min + (sde.t_max - sde.t_min) * shares
        t[-1] = sde.t_max  # to the bit, so that an end where alpha is 0 is reached
        values: Array = panel.values(sde, t).detach().numpy()
        across: Array = (t / sde.t_max if scaled else t).numpy()
        finite = np.isfinite(values)
        color = PALETTE[k % len(PALETTE)]
        axes.plot(
            across[finite], values[finite], color=color, linestyle=_DASHES[k % len(_DASHES)], label=name, zorder=3 + k
        )
        for end, inside in ((0, 1), (-1, -2)):
            if not finite[end]:
                _point_to_infinity(axes, float(across[end]), values[end] > values[inside], color)
        kept = values if finite.all() else values[_EDGE:-_EDGE]
        seen.append(kept[np.isfinite(kept)])
    limits = np.concatenate(seen)
    _scale(axes, min(float(limits.min()), 0.0), max(float(limits.max()), 0.0), wide=panel.wide)


def _scale(axes: Axes, low: float, high: float, *, wide: bool) -> None:
    """Set the limits with a margin of a twentieth as seen on the axis, and ticks that fit an asinh axis if wide."""
    there: Callable[[float], float] = float
    back: Callable[[float], float] = float
    if wide and max(high, -low) > 1.0:
        axes.set_yscale("asinh", linear_width=_LINEAR)
        there, back = math.asinh, math.sinh
        decades = range(1 + math.ceil(math.log10(max(high, -low))))
        sizes = [size * 10.0**k for k in decades for size in (0.3, 1.0)]
        ticks = [*(-size for size in reversed(sizes)), 0.0, *sizes]
        axes.set_yticks([tick for tick in ticks if low <= tick <= high], minor=False)
        axes.set_yticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = there(low / _LINEAR), there(high / _LINEAR)
    margin = 0.05 * ((high - low) or 1.0)
    axes.set_ylim(_LINEAR * back(low - margin), _LINEAR * back(high + margin))


def _point_to_infinity(axes: Axes, across: float, up: bool, color: str) -> None:
    """Draw a triangle at the upper or lower edge of the panel."""
    axes.plot(
        [across],
        [1.0 if up else 0.0],
        transform=axes.get_xaxis_transform(),
        color=color,
        marker="^" if up else "v",
        markeredgewidth=0,
        clip_on=False,
        zorder=20,
    )
