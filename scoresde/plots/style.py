"""One style for all figures: colours, type sizes and paper.

The palette is that of Okabe and Ito (2008), which readers with any colour vision can tell apart; markers say the same
a second time. Figures have an opaque white background and dark ink, so that they read on a dark page, and type that is
still legible at half size (11 points at 150 dots per inch). A user's own matplotlib style does not leak in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scoresde.errors.kinds import ConfigError, DTypeError
from scoresde.errors.names import unknown
from scoresde.errors.values import check_path, check_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["GREY", "INK", "MARKERS", "PALETTE", "PAPER", "dress", "new_figure", "plain_log_ticks", "save", "use_style"]

PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
INK: Final = "#222222"
GREY: Final = "#8A8A8A"
PAPER: Final = "#FFFFFF"

_DPI: Final = 150
_STYLE: Final[dict[str, object]] = {
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.labelsize": 11.0,
    "legend.fontsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 7.5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


@contextmanager
def use_style() -> Iterator[None]:
    """Draw in the house style; the user's settings come back afterwards. ConfigError if matplotlib is missing."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise ConfigError('figures need matplotlib; in the repository run pip install ".[plots]"') from error
    with style.context(["default", _STYLE]):
        yield


def new_figure(width: float, height: float, *, dpi: float = _DPI, square: bool = False) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches whose layout keeps labels apart.

    ``square`` says that its panels have equal scales on both axes, and moves them together.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, compress=square)
    return Figure(figsize=(width, height), dpi=dpi, facecolor=PAPER, layout=layout)


def dress(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "", grid: bool = True) -> None:
    """Label the axes and fix the colours of what matplotlib only makes when it draws (ticks, grid)."""
    axes.set_xlabel(check_text(xlabel, "xlabel"))
    axes.set_ylabel(check_text(ylabel, "ylabel"))
    axes.set_title(check_text(title, "title"))
    axes.tick_params(which="both", color=INK, labelcolor=INK, labelsize=10.0)
    if grid:
        axes.grid(visible=True, which="major", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)


def plain_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Write 0.05 and 20, not powers of ten; intermediate ticks only where few decades leave room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(high / low)
    steps = ((0.5, range(1, 10)), (1.1, (1, 2, 3, 5, 7)), (1.7, (1, 2, 5)), (2.5, (1, 3)), (math.inf, (1,)))
    axis.set_major_locator(LogLocator(subs=next(subs for limit, subs in steps if decades <= limit)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .png, .svg or .pdf on an opaque background and return the path; folders are made.

    Raises:
        DTypeError: not a figure.
        ConfigError: another ending of the file's name.
    """
    with use_style():
        from matplotlib.figure import Figure

        if not isinstance(figure, Figure):
            raise DTypeError(
                f"figure must be a matplotlib Figure, got {type(figure).__name__}; plots' functions make one"
            )
        target = check_path(path)
        if target.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise unknown("figure format", target.suffix, (".png", ".svg", ".pdf"))
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=_DPI, facecolor=PAPER)
    return target
