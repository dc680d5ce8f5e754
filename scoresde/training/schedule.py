r"""How a learned schedule is trained beside the network, from the losses of the network's own steps.

At a time t, uniform on [t_min, t_max], the loss of one sample is L = r e/2 under the likelihood weight, with
r = -d log_snr/dt and e = |z - z_hat|^2/D, which depends on log_snr alone. For each coordinate the bound is

    B = KL of the law at t_max from the prior + 1/2 int_low^high E[e] d log_snr + (E[e at high] - high)/2,

the last term being minus the log density of data under N(x_hat, (sigma/alpha)^2), less a constant. So

* the shape between the ends has no part in the bound, whatever the network. It has in the variance of L:
  E[L^2] is proportional to int E[e^2] r d log_snr, where r is a function of log_snr, and its gradient on the numbers
  phi of the shape is

      d log E[L^2]/d phi = E[L^2 g]/E[L^2],      g = d log r/d phi at a log_snr that stays,

  for which the losses of a step are enough. (The gradient on phi through the network's input at a time that stays is
  the same in the mean; for a mixture of three Gaussians its standard deviation was 1 to 43 times as large, 5 times in
  the median of the numbers.) E[L^2] is least where r is proportional to E[e^2]^{-1/2};
* the ends go down the gradient of B itself,

      dB/d low = d KL/d low - E[e at low]/2,      dB/d high = (E[e at high] - 1 + d E[e at high]/d high)/2,

  which every sixteenth sample of a batch is asked for at both. With the data's moments in the prior the KL is
  (1/2D) sum log(1 + SNR c) with c their variances, and with the prior N(0, 1) that of the batch.

The optimiser is Adam with ten times the network's rate. There is no average of the schedule, which the network does
not know: it is told log_snr.

Source: Kingma et al. 2021, "Variational diffusion models", arXiv:2107.00630, sections 4 and 5; there both gradients
go through the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scoresde.diffusions.learned import LearnedSchedule
from scoresde.errors.kinds import ConfigError
from scoresde.models.networks import bare_network
from scoresde.models.prediction import Condition, in_mode, select
from scoresde.models.score_model import ScoreModel
from scoresde.ops import move, recording
from scoresde.sampling.processes import World
from scoresde.training.losses.denoising import Multipliers, measure_losses, read_scalars
from scoresde.training.losses.times import TIMES, TimeSampler
from scoresde.training.losses.weights import WEIGHTS, Weight
from scoresde.training.updates import Update

__all__ = ["ScheduleTraining", "give_own_schedule", "make_schedule_training"]

EVERY = 16  # samples of which one is looked at at both ends
RATE = 10.0  # times the network's
OWN_RATE = 0.01  # times the factor on the rates of an optimiser of one's own
HOLD = "train under sde.tabulated(), which stays as it is"


class _Trainer(Protocol):
    """What is asked of the trainer, which is made of this."""

    step: int
    world: World
    autocast: torch.dtype | None

    def whole(self, batch: int) -> tuple[int, slice]:
        """Return the samples of a step of all processes, and which of them are this one's."""
        ...

    def draw_times(self, batch: int, step: int) -> Tensor:
        """Return the times of a step."""
        ...

    def draw_noise(self, x0: Tensor, step: int) -> Tensor:
        """Return the noise of a step."""
        ...


class ScheduleTraining:
    """The learning of a model's schedule: ``backward`` after the network's backward pass, then ``step``.

    Args:
        model: its ``sde`` is the schedule, which changes in place.
    """

    def __init__(self, model: ScoreModel) -> None:
        assert isinstance(model.sde, LearnedSchedule)
        self.model, self.sde = model, model.sde
        # Without a wrapper for several processes, of which not all look at every step.
        self.alone = model.with_sde(model.sde)
        self.alone.net = bare_network(model.net)
        learned = {"ends": self.sde.ends, "bends": self.sde.bends}
        if not self.sde.learn_ends:
            del learned["ends"]
        # They share the memory of the schedule's numbers.
        self.parameters = {
            f"schedule.{name}": nn.Parameter(value, requires_grad=False) for name, value in learned.items()
        }
        self.update = Update(self.parameters, None, weight_decay=0.0, clip_norm=None, scaled=False)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Record how the curves depend on the schedule's numbers."""
        numbers = self.sde.ends, self.sde.bends
        for value in numbers:
            value.requires_grad_(True)
        try:
            with recording():
                yield
        finally:
            for value in numbers:
                value.requires_grad_(False)

    def backward(self, trainer: _Trainer, x0: Tensor, cond: Condition, losses: Tensor) -> None:
        """Leave the gradient with the schedule's numbers.

        Args:
            trainer: of the step.
            x0: data (B, *).
            cond: conditions.
            losses: (B,), of the step.
        """
        whole, mine = trainer.whole(len(x0))
        squares = losses.to("cpu", torch.float64).square()
        on_bends = self.of_shape(trainer.draw_times(whole, trainer.step)[mine], squares)
        # What is added up over all processes.
        sums = [on_bends.reshape(-1), squares.sum()[None]]
        if self.sde.learn_ends:
            sums += [self._look_at_ends(trainer, x0, cond, mine.start or 0)]
            square = x0.detach().double().square().sum().cpu() / max(1, x0[:1].numel())
            sums += [torch.stack([square, torch.tensor(len(x0), dtype=torch.float64, device="cpu")])]
        total = torch.cat(sums)
        if trainer.world.size > 1:
            total = torch.stack(trainer.world.gather(total)).sum(0)
        size = on_bends.numel()
        self.parameters["schedule.bends"].grad = (total[:size] / total[size]).reshape(on_bends.shape)
        if self.sde.learn_ends:
            (low, high, seen), bent, (square, count) = torch.split(total[size + 1 :], [3, 2, 2])
            self.parameters["schedule.ends"].grad = self._of_ends(low / seen, high / seen, bent / seen, square / count)

    def of_shape(self, t: Tensor, squares: Tensor) -> Tensor:
        """Return the sum of L^2 d log r/d phi over times (n,), at log_snr that stay, with respect to the bends."""
        with self._recording():
            place, slope = self.sde.log_snr(t), self.sde.log_snr_rate(t).detach()
            moved = t - (place - place.detach()) / slope  # to first order, where that log_snr now is
            log_rate = (-self.sde.log_snr_rate(moved)).log()
            (gradient,) = torch.autograd.grad(log_rate, [self.sde.bends], squares)
        return gradient

    def _look_at_ends(self, trainer: _Trainer, x0: Tensor, cond: Condition, first: int) -> Tensor:
        """Return sums over some samples: of e at t_max and t_min, of how many, and of d e/d ends at t_min; (5,)."""
        # The same samples, whatever the number of processes.
        place = slice(-first % EVERY, None, EVERY)
        noise = trainer.draw_noise(x0, trainer.step)[place]
        x0, cond, count = x0[place], select(cond, place), len(noise)
        if count == 0:
            return torch.zeros(5, dtype=torch.float64, device="cpu")
        ends = torch.tensor([self.sde.t_max, self.sde.t_min], dtype=torch.float64, device="cpu")
        with self._recording():
            scalars = read_scalars(self.model, self.sde.at(ends.repeat_interleave(count)), WEIGHTS["simple"])
            held = torch.stack(scalars.multipliers), scalars.c_noise
        numbers = held[0].detach().to(x0.dtype)
        c_noise = self.model.c_noise_for(held[1].detach(), numbers)
        leaves = [move(part, x0.device).requires_grad_(True) for part in (numbers, c_noise)]
        both = torch.arange(count, device=x0.device).repeat(2)
        with in_mode(self.alone, training=False), recording():
            multipliers, told = Multipliers(*leaves[0].unbind(0)), select(cond, both)
            errors = measure_losses(self.alone, x0[both], noise[both], multipliers, leaves[1], told, trainer.autocast)
            gradients = torch.autograd.grad(errors[count:].sum(), leaves)
        with self._recording():
            wide = [gradient.to("cpu", torch.float64) for gradient in gradients]
            (bent,) = torch.autograd.grad(held, [self.sde.ends], wide)
        low, high = errors.detach().to("cpu", torch.float64).reshape(2, count).sum(1)
        return torch.cat([torch.stack([low, high, torch.full_like(low, count)]), bent])

    def _of_ends(self, low: Tensor, high: Tensor, bent: Tensor, square: Tensor) -> Tensor:
        """Return dB/d ends, (2,), given means of e at t_max and t_min, of its gradient there, and of |x_0|^2/D."""
        with self._recording():
            last = self.sde.log_snr(torch.tensor(self.sde.t_min, dtype=torch.float64, device="cpu"))
            total = self._measure_prior(square) - 0.5 * low * self.sde.ends[0] + 0.5 * (high - 1) * last
            (gradient,) = torch.autograd.grad(total, [self.sde.ends])
        return gradient + 0.5 * bent

    def _measure_prior(self, square: Tensor) -> Tensor:
        """Return the KL of the law at t_max from the prior for each coordinate."""
        low, moments = self.sde.ends[0], self.model.moments
        if moments is not None:
            return 0.5 * torch.log1p(low.exp() * moments.variance.to("cpu", torch.float64)).mean()
        return 0.5 * (torch.sigmoid(low) * square + torch.sigmoid(-low) - 1 - logsigmoid(-low))

    def step(self, skipped: Tensor, rate: float, *, own: bool) -> None:
        """Move the schedule, unless the network's step was left out; its numbers stay in their ranges."""
        good = all(bool(torch.isfinite(p.grad).all()) for p in self.parameters.values() if p.grad is not None)
        left_out = skipped.to("cpu", copy=True).logical_or_(torch.tensor(not good, dtype=torch.bool, device="cpu"))
        self.update(torch.zeros((), dtype=torch.float32, device="cpu"), left_out, rate * (OWN_RATE if own else RATE))
        self.sde.keep_in_range()

    def state(self) -> dict[str, Tensor]:
        """Return the schedule's numbers by their names in a checkpoint, and what their optimiser keeps."""
        return {**{f"value.{name}": p.detach() for name, p in self.parameters.items()}, **self.update.state()[1]}


def make_schedule_training(
    model: ScoreModel, weight: Weight | None, times: TimeSampler | None, uncertainty: bool
) -> ScheduleTraining | None:
    """Return the learning of a model's schedule, where it has one that learns; no weight stands for an objective.

    Raises:
        ConfigError: options under which it could not be learned, with those that serve.
    """
    sde = model.sde
    if not isinstance(sde, LearnedSchedule):
        return None
    if weight is None:
        raise ConfigError(f"a LearnedSchedule learns from the denoising loss, not from an objective=; {HOLD}")
    if uncertainty:
        raise ConfigError(
            f"uncertainty= takes the weight of log-SNR out of the loss that a LearnedSchedule needs; {HOLD}"
        )
    if weight is not WEIGHTS["likelihood"]:
        raise ConfigError(
            f"a LearnedSchedule learns under weight='likelihood', whose mean its shape leaves as it is; {HOLD}",
            parameter="weight",
            allowed="'likelihood', or None",
        )
    if times not in (TIMES["low_discrepancy"], TIMES["uniform"]):
        raise ConfigError(
            f"a LearnedSchedule learns at times that are uniform in t, 'low_discrepancy' or 'uniform'; {HOLD}",
            parameter="times",
            allowed=("low_discrepancy", "uniform"),
        )
    if not (model.parameterization.scale_free and model.condition_on == "log_snr"):
        raise ConfigError(
            "under a LearnedSchedule the network must mean the same at equal log_snr, whatever the time: take "
            "condition_on='log_snr' and predicts='noise', 'v', 'data', 'score' or 'edm'",
            parameter="predicts",
        )
    return ScheduleTraining(model)


def give_own_schedule(model: ScoreModel) -> None:
    """Give a model a schedule of its own, which no further training of another changes."""
    if not isinstance(model.sde, LearnedSchedule):
        return
    shared = model.trained_sde is model.sde
    model.sde = model.sde.copy()
    if shared:
        model.trained_sde = model.sde
