"""What ``scoresde train --watch`` does with every checkpoint: draws samples, measures them, and keeps a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scoresde.cli.pictures import check_drawable, write_samples
from scoresde.cli.presets import DataSet
from scoresde.cli.run_folder import RunFolder
from scoresde.cli.yardsticks import make_yardstick
from scoresde.errors.kinds import ConfigError
from scoresde.models.score_model import ScoreModel
from scoresde.sampling.sample import sample

if TYPE_CHECKING:
    from scoresde.cli.train import Train

__all__ = ["WATCHED", "make_watch"]

WATCHED = "samples"  # the folder of the pictures in a run's
STEPS, SHOWN = 20, 64


def make_watch(
    options: Train, data: DataSet, event: tuple[int, ...], folder: Path
) -> Callable[[ScoreModel, int], dict[str, float]]:
    """Return what looks at a model in training: numbers by name, and a picture of some samples in the folder.

    Args:
        options: settled.
        data: what it is trained on, of which the held-out part is the measure.
        event: the shape of a sample.
        folder: of the run.
    """
    name = options.data if data.path is None else data.path.name
    yard = make_yardstick(name, data, classes=len(data.classes) if options.conditional else None)
    labels = yard.classes if options.conditional else None
    count = data.preset.samples
    told = yard.make_labels(count) or {}
    cond = {key: value for key, value in told.items() if {"label": labels, "context": yard.contexts}[key] is not None}

    def look(model: ScoreModel, step: int) -> dict[str, float]:
        x = sample(model, (count, *event), steps=STEPS, seed=options.seed, cond=cond or None, progress=False).cpu()
        run = RunFolder(folder, model, {}, options.data, x.shape[1:], len(data.classes), data.classes, 0)
        try:
            check_drawable(event)
        except ConfigError:  # there is no picture of such data
            pass
        else:
            chosen = slice(SHOWN if data.kind == "images" else count)
            shown = cond["label"][chosen] if "label" in cond else None
            write_samples(run, x[chosen], folder / WATCHED / f"step-{step:08d}.png", labels=shown, in_turn=False)
        return {metric: measure(x) for metric, measure in yard.metrics.items()}

    return look
