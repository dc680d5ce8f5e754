"""What is looked at now and then in a training: the loss of held-out data, numbers of your own, the best so far."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DTypeError, SolverError, show
from scoresde.errors.values import check_mapping
from scoresde.models.prediction import Condition, in_mode, select
from scoresde.noise import stream
from scoresde.ops import Array, Rows, accept_arrays, accept_rows, chunks
from scoresde.training.log import BINNED, COLUMNS
from scoresde.training.losses.held_out import held_out_loss
from scoresde.training.losses.times import TimeSampler, TimesName
from scoresde.training.losses.weights import Weight, WeightName
from scoresde.training.trainer import Trainer

__all__ = ["Best", "Judge", "Watch", "look"]

Watch = Callable[..., Mapping[str, float] | None]
CHUNK = 512


@dataclass(frozen=True, eq=False)
class Judge:
    """The loss of held-out data with the averaged weights: the denoising loss, or the objective's."""

    trainer: Trainer
    data: Array | Rows
    cond: Mapping[str, Array] | None
    weight: WeightName | Weight | None
    times: TimesName | TimeSampler | None

    def __call__(self) -> float:
        trainer = self.trainer
        with trainer.ema.applied():
            if trainer.objective is not None:
                return self._judge_objective()
            try:
                return held_out_loss(
                    trainer.model, self.data, weight=self.weight, times=self.times, cond=self.cond, seed=trainer.seed
                ).mean
            except SolverError:  # the loop has patience with what is not finite
                return math.nan

    def _judge_objective(self) -> float:
        """Return the objective's mean at draws that are the same at every look."""
        trainer, model = self.trainer, self.trainer.model
        assert trainer.objective is not None
        rows, cond = accept_rows(self.data, "held_out"), accept_arrays(self.cond, "held_out_cond", only_read=True)
        told: Condition = cond  # type: ignore[assignment]
        draw, total = stream(trainer.seed, "held out", "objective"), 0.0
        shift = stream(trainer.seed, "held out", "transform", device=trainer.device)
        with in_mode(model, training=False), torch.no_grad():
            for places in chunks(len(rows), CHUNK):
                x = rows[places].to(trainer.device)
                x = (x if model.transform is None else model.transform.forward(x, shift)).to(trainer.dtype)
                here = select(told, places, trainer.device)
                losses: Tensor = trainer.objective(model, x, draw, here)
                total += float(losses.double().sum())
        return total / len(rows)


@dataclass(eq=False)
class Best:
    """The best averaged weights by the held-out loss, and whether it is time to stop.

    Args:
        patience: looks without a better one after which the training stops; None for never.
        loss: the least so far.
        step: when it was.
        looks: since then.
        weights: the averaged weights of that step, on the CPU.
    """

    patience: int | None
    loss: float = math.inf
    step: int = 0
    looks: int = 0
    weights: dict[str, Tensor] | None = field(default=None, repr=False)

    def see(self, loss: float, trainer: Trainer) -> bool:
        """Take note of a loss, and return whether it is the best so far."""
        if loss < self.loss:
            self.loss, self.step, self.looks = loss, trainer.step, 0
            if self.patience is not None:
                self.weights = {name: value.cpu() for name, value in trainer.ema.state_dict().items()}
            return True
        self.looks += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether to stop."""
        return self.patience is not None and self.looks >= self.patience

    def to_dict(self) -> dict[str, object]:
        """Return what a checkpoint keeps of it."""
        return {"loss": None if math.isinf(self.loss) else self.loss, "step": self.step, "looks": self.looks}


def _takes_step(watch: Watch) -> bool:
    """Return whether a function takes the step beside the model."""
    try:
        parameters = inspect.signature(watch).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return len(needed) == 2


def look(trainer: Trainer, watch: Watch) -> dict[str, float | None]:
    """Return the numbers that a function of one's own finds of the model with the averaged weights.

    Raises:
        DTypeError: what it returns is no mapping of numbers. ConfigError: a name that the log has already.
    """
    with trainer.ema.applied(), in_mode(trainer.model, training=False), torch.no_grad():
        found = watch(trainer.model, trainer.step) if _takes_step(watch) else watch(trainer.model)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise DTypeError(f"watch must return a dict of numbers or None, got {show(found)}")
    check_mapping(found, "what watch returns", "numbers")
    made: dict[str, float | None] = {}
    for name, value in found.items():
        if name in (*COLUMNS, *BINNED):
            raise ConfigError(f"watch returned {name!r}, which the log has already; give it another name")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DTypeError(f"watch returned {show(value)} for {name!r}, which is no number") from error
        made[str(name)] = number if math.isfinite(number) else None
    return made
