"""The loop itself: steps, records, checkpoints, the watch over the loss, and Ctrl-C.

Losses stay on the device until they are logged.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NotRequired, TypedDict

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.errors import SolverError
from scoresde.models import checkpoint
from scoresde.models.prediction import in_mode
from scoresde.ops import Array, Rows
from scoresde.training.batches import Batches
from scoresde.training.identity import RUN, Run
from scoresde.training.losses.held_out import held_out_loss
from scoresde.training.losses.times import TimeSampler, TimesName
from scoresde.training.losses.weights import Weight, WeightName
from scoresde.training.trainer import Trainer

__all__ = ["CHECKPOINT", "LOG", "Judge", "Loop", "Progress", "Record"]

PATIENCE = 3
CHECKPOINT, LOG = "checkpoint", "log.jsonl"
Progress = bool | Callable[[int, int, float], None]


class Record(TypedDict):
    """One line of the log; None stands for what is not finite.

    Keys: the step; the mean loss since the last record, and by bins of log(alpha^2/sigma^2), whose middles are
    ``log_snr`` (None: an empty bin); the learning rate; the gradient's norm before clipping; the steps since the last
    record that were not made, their loss or gradient being not finite; the seconds since the start; and from time to
    time the loss of held-out data with the averaged weights.
    """

    step: int
    loss: float | None
    log_snr: list[float]
    loss_by_log_snr: list[float | None]
    learning_rate: float
    gradient_norm: float | None
    skipped: int
    seconds: float
    held_out_loss: NotRequired[float | None]


@dataclass(frozen=True, eq=False)
class Judge:
    """The loss of held-out data with the averaged weights."""

    trainer: Trainer
    data: Array | Rows
    cond: Mapping[str, Array] | None
    weight: WeightName | Weight | None
    times: TimesName | TimeSampler | None

    def __call__(self) -> float:
        trainer = self.trainer
        with trainer.ema.applied():
            return held_out_loss(
                trainer.model, self.data, weight=self.weight, times=self.times, cond=self.cond, seed=trainer.seed
            ).mean


class Loop:
    """The loop: steps, records, checkpoints, and the watch over the loss."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Batches,
        *,
        folder: Path | None,
        steps: int,
        save_every: int,
        log_every: int,
        on_log: Callable[[Record], None] | None,
        run: Run | None,
        judge: Callable[[], float] | None,
    ) -> None:
        self.trainer, self.batches, self.folder, self.steps = trainer, batches, folder, steps
        self.save_every, self.log_every, self.on_log = save_every, log_every, on_log
        self.run, self.judge = run, judge
        self.first = self.logged = trainer.step
        self.losses = torch.full((max(0, steps - self.first),), math.nan, device=trainer.device)
        self.log: list[Record] = []
        self.bad_checks = 0
        self.started = time.perf_counter()

    def __call__(self, *, progress: Progress) -> Tensor:
        """Go on to the last step, with a bar where ``progress`` is True, and return the losses."""
        trainer = self.trainer
        shown = progress is True
        bar = tqdm(total=self.steps, initial=trainer.step, desc="training", unit="step", disable=not shown, leave=False)
        begun = time.perf_counter()
        try:
            with bar, in_mode(trainer.net, training=True), _defer_interrupt() as interrupted:
                while trainer.step < self.steps and not interrupted():
                    k = trainer.step
                    loss = trainer(*self.batches(k))
                    self.losses[k - self.first] = loss.masked_fill(trainer.skipped, math.nan)
                    bar.update()
                    if not isinstance(progress, bool):
                        progress(trainer.step, self.steps, time.perf_counter() - begun)
                    last = trainer.step == self.steps
                    due = last or trainer.step % self.save_every == 0
                    if last or trainer.step % self.log_every == 0 or (due and self.judge is not None):
                        bar.set_postfix_str(f"loss {self.record(judged=due):.4g}")
                    if due:
                        self.save()
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # Without _defer_interrupt's help it may come in the middle of an update, which is not worth keeping.
            if not trainer.updating:
                self.save()
            raise
        return self.losses.cpu()

    def split_recent(self) -> tuple[Tensor, Tensor]:
        """Return the losses since the last record, and the finite ones among them, in float64 on the CPU."""
        losses = self.losses[self.logged - self.first : self.trainer.step - self.first].double().cpu()
        return losses, losses[torch.isfinite(losses)]

    def record(self, *, judged: bool = False) -> float:
        """Write a record, return its loss, and raise where the loss has stayed non-finite too long."""
        trainer = self.trainer
        recent, good = self.split_recent()
        mean = float(good.mean()) if len(good) else math.nan
        record: Record = {
            "step": trainer.step,
            "loss": _to_json(mean),
            "log_snr": trainer.bins.centres,
            "loss_by_log_snr": trainer.bins.take_means(),
            "learning_rate": trainer.rate(trainer.step - 1),
            "gradient_norm": _to_json(float(trainer.gradient_norm)),
            "skipped": len(recent) - len(good),
            "seconds": round(time.perf_counter() - self.started, 3),
        }
        if judged and self.judge is not None:
            record["held_out_loss"] = _to_json(self.judge())
        self.logged = trainer.step
        self.log.append(record)
        if self.folder is not None:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self.on_log is not None:
            self.on_log(record.copy())
        self.bad_checks = self.bad_checks + 1 if 2 * len(good) < len(recent) else 0
        if self.bad_checks == PATIENCE or (self.bad_checks and trainer.step == self.steps):
            raise self.describe_failure()
        return mean

    def describe_failure(self) -> SolverError:
        """Describe the last step that was skipped; where no other came after it, with the weights that it had."""
        trainer = self.trainer
        done = trainer.step
        step = trainer.step = self.first + int(torch.isnan(self.losses[: done - self.first]).nonzero()[-1])
        x0, cond = self.batches(step)
        with torch.no_grad():
            bad = ~torch.isfinite(trainer.losses(x0, cond)).cpu()
        trainer.step = done
        where = "the gradient is not"
        if bool(bad.any()):
            where = f"{int(bad.sum())} of {len(bad)} samples"
            if trainer.objective is None:
                t = trainer.draw_times(len(x0), step)[bad]
                where += f", at t from {float(t.min()):.3g} to {float(t.max()):.3g}"
        kept = "no checkpoint was written"
        if self.folder is not None and (self.folder / CHECKPOINT).is_dir():
            kept = f"the last good checkpoint is in {self.folder / CHECKPOINT}"
        return SolverError(
            f"the loss is not finite at step {step}, learning rate {trainer.rate(step):.3g}: {where}; {kept}. "
            "Lower learning_rate, lengthen warmup, lower clip_norm or look at the data's scale"
        )

    def save(self) -> None:
        """Write a checkpoint, unless the loss is not finite at present."""
        if self.folder is None or self.bad_checks:
            return
        recent, good = self.split_recent()
        if 2 * len(good) < len(recent):
            return
        documents, tensors = self.trainer.model.contents(self.trainer.ema.state_dict())
        numbers, state = self.trainer.state()
        documents = {**documents, "training": numbers, **({} if self.run is None else {RUN: self.run.document})}
        checkpoint.write(self.folder / CHECKPOINT, documents, {**tensors, "training_state": state})


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


@contextmanager
def _defer_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of the step, so that the checkpoint is a whole one; a second one does not wait.

    It acts where Ctrl-C would raise KeyboardInterrupt here: in the main thread, under Python's own handler.
    """
    asked: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
