"""The loop itself: steps, records, checkpoints, the watch over the loss, and Ctrl-C.

Losses stay on the device until they are logged.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.errors.kinds import SolverError
from scoresde.models.prediction import in_mode
from scoresde.models.sharded import local_rows
from scoresde.training.averages import keep_averages
from scoresde.training.batches import Batches
from scoresde.training.identity import RUN, Run
from scoresde.training.judge import Best, Watch, look
from scoresde.training.keeping import BEST, CHECKPOINT, copy_checkpoint, keep_last
from scoresde.training.log import Log, Record
from scoresde.training.sharding import write_together
from scoresde.training.trainer import Trainer

__all__ = ["RECENT", "Loop", "Progress"]

PATIENCE = 3
RECENT = "recent_losses"  # in the training's state: since the last record
Progress = bool | Callable[[int, int, float], None]


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
        log: Log,
        run: Run | None,
        judge: Callable[[], float] | None,
        best: Best,
        watch: Watch | None = None,
        keep: int = 1,
        carried: Tensor | None = None,
    ) -> None:
        self.trainer, self.batches, self.folder, self.steps = trainer, batches, folder, steps
        self.save_every, self.log_every, self.log = save_every, log_every, log
        self.run, self.judge, self.best, self.watch, self.keep = run, judge, best, watch, keep
        self.first = trainer.step
        # Losses since the last record that an earlier process made.
        self.carried = torch.empty(0, dtype=torch.float32, device="cpu") if carried is None else carried
        self.logged = self.first
        self.losses = torch.full((max(0, steps - self.first),), math.nan, dtype=torch.float32, device=trainer.device)
        self.bad_checks = 0
        self.started = time.perf_counter()

    def __call__(self, *, progress: Progress) -> Tensor:
        """Go on to the last step, with a bar where ``progress`` is True, and return the losses."""
        trainer = self.trainer
        shown = progress is True and trainer.world.is_main
        bar = tqdm(total=self.steps, initial=trainer.step, desc="training", unit="step", disable=not shown, leave=False)
        begun = time.perf_counter()
        try:
            with bar, in_mode(trainer.net, training=True), _defer_interrupt() as interrupted:
                while trainer.step < self.steps and not interrupted() and not self.best.is_over:
                    k = trainer.step
                    loss = trainer(*self.batches(k))
                    self.losses[k - self.first] = loss.masked_fill(trainer.skipped, math.nan)
                    bar.update()
                    if not isinstance(progress, bool):
                        progress(trainer.step, self.steps, time.perf_counter() - begun)
                    last = trainer.step == self.steps
                    due = last or trainer.step % self.save_every == 0
                    looked = due and (self.judge is not None or self.watch is not None)
                    is_best = False
                    if due:
                        self.check_weights()
                    if last or trainer.step % self.log_every == 0 or looked:
                        with self.saved_at_least(due=due):
                            mean, is_best = self.record(judged=due)
                        bar.set_postfix_str(f"loss {mean:.4g}")
                    if due:
                        self.save(is_best=is_best)
                if interrupted():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # Without _defer_interrupt's help it may come in the middle of an update, which is not worth keeping; of
            # several processes each is stopped at a step of its own.
            if not trainer.updating and trainer.world.size == 1:
                self.save()
            raise
        finally:
            self.batches.source.close()
            trainer.update.rest()
        losses = self.losses[: trainer.step - self.first].cpu()
        return losses if trainer.world.size == 1 else torch.stack(trainer.world.gather(losses)).mean(0)

    def split_recent(self) -> tuple[Tensor, Tensor]:
        """Return the losses since the last record, and the finite ones among them, in float64 on the CPU."""
        here = self.losses[self.logged - self.first : self.trainer.step - self.first].cpu()
        losses = torch.cat([self.carried.double(), here.double()])
        if self.trainer.world.size > 1:
            losses = torch.stack(self.trainer.world.gather(losses)).mean(0)
        return losses, losses[torch.isfinite(losses)]

    def record(self, *, judged: bool = False) -> tuple[float, bool]:
        """Write a record; return its loss and whether the held-out loss is the best so far.

        Raises:
            SolverError: the loss has stayed non-finite too long.
        """
        trainer = self.trainer
        recent, good = self.split_recent()
        mean = float(good.mean()) if len(good) else math.nan
        record: Record = {
            "step": trainer.step,
            "loss": _to_json(mean),
            "log_snr": trainer.bins.centres,
            "loss_by_log_snr": trainer.bins.take_means(trainer.world.gather if trainer.world.size > 1 else None),
            "learning_rate": trainer.rate(trainer.step - 1) * (trainer.update.rates[0] if trainer.update.own else 1.0),
            "gradient_norm": _to_json(float(trainer.gradient_norm)),
            "skipped": len(recent) - len(good),
            "seconds": round(time.perf_counter() - self.started, 3),
        }
        is_best = False
        if judged and self.judge is not None:
            # One answer for all, by which all stop or go on.
            held_out = float(trainer.world.gather(torch.tensor([self.judge()], dtype=torch.float64, device="cpu"))[0])
            record["held_out_loss"] = _to_json(held_out)
            is_best = self.best.see(held_out, trainer)
        if judged and self.watch is not None and trainer.world.is_main:
            record["watched"] = look(trainer, self.watch)
        self.logged, self.carried = trainer.step, torch.empty(0, dtype=torch.float32, device="cpu")
        self.log.add(record)
        # The first steps in float16 overflow until the scale of the loss is found.
        scale = trainer.update.scale
        searching = scale is not None and float(scale) > 1
        self.bad_checks = self.bad_checks + 1 if 2 * len(good) < len(recent) and not searching else 0
        if self.bad_checks == PATIENCE or (self.bad_checks and trainer.step == self.steps):
            raise self.describe_failure()
        return mean, is_best

    @contextmanager
    def saved_at_least(self, *, due: bool) -> Iterator[None]:
        """Save where a look at the model, a tracker or a function of the log fails at a step that is to be kept."""
        try:
            yield
        except SolverError:
            raise
        except Exception:
            if due and self.trainer.world.size == 1:
                self.save()
            raise

    def check_weights(self) -> None:
        """Raise SolverError where the weights are no longer finite; the last good checkpoint stands."""
        trainer = self.trainer
        values = map(local_rows, [*trainer.parameters, *trainer.buffers])
        finite = all(bool(torch.isfinite(value).all()) for value in values)
        fine = torch.tensor([finite], dtype=torch.bool, device="cpu")
        if bool(torch.cat(trainer.world.gather(fine) if trainer.sharded else (fine,)).all()):
            return
        raise SolverError(
            f"weights are not finite after step {trainer.step - 1}, learning rate "
            f"{trainer.rate(trainer.step - 1):.3g}; {self.say_what_stands()}. Lower learning_rate, lengthen warmup or "
            "lower clip_norm"
        )

    def say_what_stands(self) -> str:
        """Return in words which checkpoint there is."""
        if self.folder is not None and (self.folder / CHECKPOINT).is_dir():
            return f"the last good checkpoint is in {self.folder / CHECKPOINT}"
        return "no checkpoint was written"

    def describe_failure(self) -> SolverError:
        """Describe the last step that was skipped; where no other came after it, with the weights that it had."""
        trainer = self.trainer
        done = trainer.step
        skipped = torch.isnan(self.losses[: done - self.first]).nonzero()
        step = self.first + int(skipped[-1]) if len(skipped) else done - 1
        where, bad = "the gradient is not", torch.zeros(0, dtype=torch.bool, device="cpu")
        if not self.batches.source.state():  # any batch can be read again
            trainer.step = step
            x0, cond = self.batches(step)
            with torch.no_grad():
                bad = ~torch.isfinite(trainer.losses(x0, cond)).cpu()
            trainer.step = done
        else:
            where = "the loss or its gradient is not"
        if bool(bad.any()):
            where = f"{int(bad.sum())} of {len(bad)} samples"
            if trainer.objective is None:
                t = trainer.draw_times(len(x0), step)[bad]
                where += f", at t from {float(t.min()):.3g} to {float(t.max()):.3g}"
        return SolverError(
            f"the loss is not finite at step {step}, learning rate {trainer.rate(step):.3g}: {where}; "
            f"{self.say_what_stands()}. Lower learning_rate, lengthen warmup, lower clip_norm or look at the scale of "
            "the data"
        )

    def save(self, *, is_best: bool = False) -> None:
        """Write a checkpoint, unless the loss is not finite at present; of several processes as ``write_together``."""
        if self.folder is None or self.bad_checks:
            return
        trainer, best = self.trainer, self.best
        recent, good = self.split_recent()
        if trainer.world.size > 1:
            trainer.bins.sums.copy_(torch.stack(trainer.world.gather(trainer.bins.sums)).sum(0))
            if not trainer.world.is_main:
                trainer.bins.sums.zero_()
        if 2 * len(good) < len(recent) or not (trainer.world.is_main or trainer.sharded):
            return
        over = best.is_over or trainer.step == self.steps
        # The model of a training with patience is the best one; what goes on is in the training's state.
        averaged = best.weights if over and best.weights is not None else trainer.ema.state_dict()
        documents, tensors = trainer.model.contents(averaged)
        numbers, state = trainer.state()
        numbers |= {"source": self.batches.source.state(), "best": best.to_dict()}
        state |= {RECENT: recent}
        documents = {**documents, "training": numbers, **({} if self.run is None else {RUN: self.run.document})}
        write_together(self.folder / CHECKPOINT, documents, {**tensors, "training_state": state}, world=trainer.world)
        if trainer.world.is_main:
            keep_last(self.folder, trainer.step, self.keep)
            if is_best:
                copy_checkpoint(self.folder / CHECKPOINT, self.folder / BEST)
        if trainer.ema.sigma_rel is not None:
            keep_averages(self.folder, trainer.step, trainer.averages, trainer.world)


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
