"""What a training gave, and how a notebook shows it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scoresde.models.score_model import ScoreModel
from scoresde.training.log import Record

__all__ = ["TrainResult"]

ROWS = 10  # of the log in a notebook


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a training gave.

    Args:
        model: the model with the averaged weights, to sample from, those of the best held-out loss under ``patience``;
            the trained model itself keeps the raw ones. An ``SDEModel`` where one was trained.
        losses: the mean loss of each step of this call, (steps,), on the CPU; NaN where the step was skipped.
        log: the records that went to the log; ``plots.training`` draws them.
        steps: steps made in all.
        seconds: time spent in this call.
        seed: the seed that was used.
        weight: the name of the loss's weight, "your own" for a function, None where there was an ``objective``.
        times: the name of the law of the times, likewise.
        folder: where the log and the checkpoint are, or None.
        best_step: the step of the least held-out loss; None without ``held_out``.
    """

    model: ScoreModel
    losses: Tensor
    log: tuple[Record, ...]
    steps: int
    seconds: float
    seed: int
    weight: str | None
    times: str | None
    folder: Path | None
    best_step: int | None = None

    def __repr__(self) -> str:
        where = "" if self.folder is None else f", in {self.folder}"
        loss = self.log[-1]["loss"] if self.log else None
        text = "" if loss is None else f", loss {loss:.4g}"
        how = "" if self.weight is None else f", weight {self.weight}, times {self.times}"
        return f"<TrainResult {self.steps} steps in {self.seconds:.3g} s{text}{how}, seed {self.seed}{where}>"

    def _repr_html_(self) -> str:
        """Show the figures, the model and the last records of the log as a table, for notebooks."""
        names = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm", "seconds")
        rows: list[Mapping[str, object]] = [*self.log[-ROWS:]]
        shown = [name for name in names if any(name in row for row in rows)]
        title = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in shown)
        lines = ("".join(f"<td>{_show(row.get(name, ''))}</td>" for name in shown) for row in rows)
        table = "".join(f"<tr>{line}</tr>" for line in (title, *lines))
        figures = "<br>".join(html.escape(repr(part)) for part in (self, self.model))
        return f"<p>{figures}</p><table>{table}</table>"


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not finite" if value is None else str(value)
