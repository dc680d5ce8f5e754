"""Figures and animations in one style, drawn with matplotlib's objects and never through pyplot's global state.

Every function checks its input and returns a ``matplotlib.figure.Figure``; ``save`` writes it. ``animation`` writes a
GIF that loops. matplotlib is imported when a function is called (the extra ``plots``).
"""

from __future__ import annotations

from scoresde.plots.curves import comparison
from scoresde.plots.densities import histogram
from scoresde.plots.errors import errors
from scoresde.plots.fields import density_over_time
from scoresde.plots.motion import animation
from scoresde.plots.progress import read_log, training
from scoresde.plots.ranking import ranking
from scoresde.plots.samples import density, image_grid, scatter
from scoresde.plots.schedules import schedules
from scoresde.plots.style import save
from scoresde.plots.tables import tableau

__all__ = [
    "animation",
    "comparison",
    "density",
    "density_over_time",
    "errors",
    "histogram",
    "image_grid",
    "ranking",
    "read_log",
    "save",
    "scatter",
    "schedules",
    "tableau",
    "training",
]
