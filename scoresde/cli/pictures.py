"""What samples become on disk: pictures, animations, arrays; a file appears whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scoresde.cli.presets import DATA
from scoresde.cli.run_folder import RunFolder
from scoresde.errors.kinds import ConfigError
from scoresde.plots.motion import animation
from scoresde.plots.samples import image_grid, scatter
from scoresde.plots.style import save
from scoresde.solvers.tableau import Tableau
from scoresde.transforms.affine import Affine

__all__ = [
    "ANIMATIONS",
    "ARRAYS",
    "ENDINGS",
    "PICTURES",
    "SMALL",
    "check_drawable",
    "name_labels",
    "to_pixels",
    "write_samples",
    "write_whole",
]

PANELS = 9  # classes of points that get a panel each
SMALL = 16  # pixels a side, up to which the eye reads an image better when it is interpolated
FRAMES = 60  # of an animation, which a longer trajectory is thinned to
PICTURES, ANIMATIONS, ARRAYS = (".png", ".svg", ".pdf"), (".gif",), (".npy", ".npz")
ENDINGS: Final = PICTURES + ANIMATIONS + ARRAYS


def check_drawable(event: Sequence[int]) -> None:
    """Raise ConfigError unless samples of this shape are points in the plane, or images in grey or colour."""
    if not (tuple(event) == (2,) or (len(event) == 3 and event[0] in (1, 3))):
        raise ConfigError(f"samples of shape {tuple(event)} have no picture; write an array, e.g. --out samples.npy")


def to_pixels(run: RunFolder, x: Tensor) -> Tensor:
    """Return images in the data's units as values in [-1, 1], to which an affine transform maps their range."""
    return run.model.transform.forward(x) if isinstance(run.model.transform, Affine) else x


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under another name, which takes its place at the end; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # What writes by the ending wants it in small letters.
    temporary = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def name_labels(names: Sequence[str], labels: Tensor) -> NDArray[Any]:
    """Return labels as the data had them: whole numbers where all names are, else words."""
    whole = all(name.lstrip("-").isdecimal() for name in names)
    array: NDArray[Any] = np.array([int(name) for name in names] if whole else names)
    return np.asarray(array[labels.numpy()])


def write_samples(
    run: RunFolder,
    x: Tensor,
    path: Path,
    *,
    labels: Tensor | None = None,
    in_turn: bool = False,
    states: Tensor | None = None,
    table: Tableau | None = None,
) -> None:
    """Write samples, in the form that the file's ending says.

    Args:
        run: where they come from.
        x: samples (n, *) in the data's units, on the CPU.
        path: a file with one of ``ENDINGS``.
        labels: their classes.
        in_turn: the classes come in turn, so that each is given a column of a grid of images.
        states: for an animation, the way of the samples (calls + 1, n, *) in the model's coordinates.
        table: for an animation, what they went along.
    """
    ending = path.suffix.lower()
    if ending in ARRAYS:
        values = x if run.layout is None else run.layout.write(x)
        array = np.ascontiguousarray(values.numpy())
        if ending == ".npy":
            write_whole(path, lambda file: np.save(file, array))
        elif labels is None:
            write_whole(path, lambda file: np.savez(file, samples=array))
        else:
            named = name_labels(run.names, labels)
            write_whole(path, lambda file: np.savez(file, samples=array, labels=named))
    elif states is not None and table is not None:
        write_whole(path, lambda file: _animate(states, table, file))
    elif x.ndim == 4:
        # One column a class, where the classes come in turn.
        columns = run.names if in_turn and labels is not None and len(run.names) <= len(x) else ()
        title = "" if labels is None or in_turn else run.names[int(labels[0])]
        grid = image_grid(to_pixels(run, x), smooth=x.shape[-1] <= SMALL, column_labels=columns, title=title)
        write_whole(path, lambda file: save(grid, file))
    else:
        behind = DATA[run.data].held_out()[:] if run.data is not None and run.data in DATA else None
        known = [] if labels is None else sorted(set(labels.tolist()))
        sets = {run.names[k]: x[labels == k] for k in known} if 0 < len(known) <= PANELS else x
        if behind is None and isinstance(sets, dict) and len(sets) > 1:
            figure = scatter(sets, x, reference_label="samples of all classes")
        else:
            figure = scatter(sets, behind)
        write_whole(path, lambda file: save(figure, file))


def _animate(states: Tensor, table: Tableau, file: Path) -> None:
    """Write the way from noise to samples; each state is divided by its scale, so that none leaves the window."""
    knots = [table.start, *(row.at for row in table.rows[1:]), table.end]
    count = min(FRAMES, len(knots))
    chosen = [round(k * (len(knots) - 1) / (count - 1)) for k in range(count)]
    images = states.ndim == 5
    animation(
        # Of data of variance one.
        [states[k].cpu() / math.hypot(knots[k].alpha, knots[k].sigma) for k in chosen],
        file,
        kind="images" if images else "points",
        captions=[f"t = {knots[k].t:.3g}" for k in chosen],
        smooth=images and states.shape[-1] <= SMALL,
    )
