r"""How a learned schedule is trained beside the network, from the network's own backward pass.

At a time t the loss of one sample is L = w |F - F*|^2/D under the likelihood weight. t enters it through few numbers
n(t): what multiplies data and noise, c_noise, w. They are functions of the schedule's numbers phi
(``diffusions.learned``), in float64 on the CPU. The backward pass of the mean loss leaves dL_i/dn_i with the numbers of
each sample, and the chain rule gives both gradients that are asked for:

* the shape between the ends has no part in the bound, (t_max - t_min) D E[L] + prior + reconstruction, whatever the
  network; it has in the variance of L at a random t, so that it goes down the gradient of log E[L^2],
  2 sum_i L_i (dL_i/dn_i)(dn_i/dphi) / sum_i L_i^2;
* the ends go down the gradient of the bound itself, for each coordinate

      (t_max - t_min) E[L]  +  KL of the law at t_max from the prior  +  (E|z - z_hat|^2/D - log_snr)/2 at t_min,

  of which the last is minus the log density of the data under N(x_hat, (sigma/alpha)^2) less a constant, measured with
  every eighth sample of a batch. The KL is (1/2D) sum log(1 + SNR c) with c the variances of data whose moments are the
  prior's, and with the prior N(0, 1) that of the batch.

The optimiser is Adam with ten times the network's rate. There is no average of the schedule, which the network does
not know: it is told log_snr.

Source: Kingma et al. 2021, "Variational diffusion models", arXiv:2107.00630, sections 4 and 5 and appendix I.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scoresde.diffusions.learned import HIGHEST, LOWEST, NEAREST, LearnedSchedule
from scoresde.errors import ConfigError
from scoresde.models.prediction import Condition, in_mode, select
from scoresde.models.score_model import ScoreModel
from scoresde.ops import move, recording
from scoresde.sampling.processes import World
from scoresde.training.losses.bins import LossBins
from scoresde.training.losses.denoising import Multipliers, measure_losses, read_scalars
from scoresde.training.losses.times import TIMES, TimeSampler
from scoresde.training.losses.weights import WEIGHTS, Weight
from scoresde.training.trainable import not_yet
from scoresde.training.updates import Update

__all__ = ["ScheduleTraining", "give_own_schedule", "make_schedule_training"]

EVERY = 8  # samples of which one is looked at where the noise is least
RATE = 10.0  # times the network's
OWN_RATE = 0.01  # times the factor on the rates of an optimiser of one's own
HOLD = "train under sde.tabulated(), which stays as it is"


class _Trainer(Protocol):
    """What is asked of the trainer, which is made of this."""

    step: int
    world: World
    device: torch.device
    autocast: torch.dtype | None
    bins: LossBins
    update: Update

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
    """The learning of a model's schedule: ``prepare`` before the network's backward pass, then ``backward``, ``step``.

    Args:
        model: its ``sde`` is the schedule, which changes in place.
        weight: of the loss.
    """

    def __init__(self, model: ScoreModel, weight: Weight) -> None:
        assert isinstance(model.sde, LearnedSchedule)
        self.model, self.sde, self.weight = model, model.sde, weight
        learned = {"ends": self.sde.ends, "bends": self.sde.bends}
        if not self.sde.learn_ends:
            del learned["ends"]
        # They share the memory of the schedule's numbers.
        self.parameters = {
            f"schedule.{name}": nn.Parameter(value, requires_grad=False) for name, value in learned.items()
        }
        self.update = Update(self.parameters, None, weight_decay=0.0, clip_norm=None, scaled=False)
        self._held: tuple[Tensor, ...] = ()
        self._leaves: tuple[Tensor, ...] = ()

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

    def _read(self, t: Tensor, weight: Weight, like: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """Return what is recorded at times (B,), and multipliers (5, B) and c_noise (B,) as leaves beside the data."""
        with self._recording():
            scalars = read_scalars(self.model, self.sde.at(t), weight)
            held = torch.stack(scalars.multipliers), scalars.c_noise, scalars.log_snr
        numbers = held[0].detach().to(like.dtype)
        c_noise = self.model.c_noise_for(held[1].detach(), numbers)
        first, second = (move(part, like.device).requires_grad_(True) for part in (numbers, c_noise))
        return held, (first, second)

    def prepare(self, trainer: _Trainer, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return multipliers (5, B) and c_noise (B,) of a step, which take up a gradient, and bins of log-SNR."""
        whole, mine = trainer.whole(batch)
        t = trainer.draw_times(whole, trainer.step)[mine]
        self._held, self._leaves = self._read(t, self.weight, torch.empty(0, dtype=dtype, device=trainer.device))
        return *self._leaves, move(trainer.bins.find(self._held[2].detach()), trainer.device)

    def backward(self, trainer: _Trainer, x0: Tensor, cond: Condition, losses: Tensor, part_of: float) -> None:
        """Leave the gradient with the schedule's numbers, after that of the network.

        Args:
            trainer: of the step.
            x0: data (B, *).
            cond: conditions.
            losses: (B,), of the step.
            part_of: what the backward pass took the mean of these losses times, before any scale.
        """
        factor = part_of / len(losses) * (1.0 if trainer.update.scale is None else float(trainer.update.scale))
        found = losses.to("cpu", torch.float64)
        of_numbers, of_c_noise = ((leaf.grad / factor).to("cpu", torch.float64) for leaf in self._leaves)  # type: ignore[operator]
        on_bends = self._chain(self._held[:2], self.sde.bends, (of_numbers * found, of_c_noise * found))
        # What is added up over all processes.
        sums = [2 * on_bends.reshape(-1), found.square().sum()[None]]
        if self.sde.learn_ends:
            on_ends = self._chain(self._held[:2], self.sde.ends, (of_numbers, of_c_noise))
            on_last, looked = self._reconstruct(trainer, x0, cond)
            square = x0.detach().double().square().sum().cpu() / max(1, x0[:1].numel())
            numbers = torch.tensor([float(square), len(x0), looked], dtype=torch.float64, device="cpu")
            sums += [on_ends, on_last, numbers]
        total = torch.cat(sums)
        if trainer.world.size > 1:
            total = torch.stack(trainer.world.gather(total)).sum(0)
        size = on_bends.numel()
        self.parameters["schedule.bends"].grad = (total[:size] / total[size]).reshape(on_bends.shape)
        if self.sde.learn_ends:
            on_ends, on_last, (square, count, seen) = total[size + 1 :].split([2, 2, 3])
            span = self.sde.t_max - self.sde.t_min
            gradient = span * on_ends / count + self._of_prior(square / count)
            self.parameters["schedule.ends"].grad = gradient + on_last / seen

    def _chain(self, held: tuple[Tensor, ...], of: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        """Return the gradient with respect to some of the schedule's numbers, given those with respect to ``held``."""
        (gradient,) = torch.autograd.grad(held, [of], gradients, retain_graph=True)
        return gradient

    def _reconstruct(self, trainer: _Trainer, x0: Tensor, cond: Condition) -> tuple[Tensor, int]:
        """Return the gradient of a sum of (|z - z_hat|^2/D - log_snr)/2 at t_min by the ends, (2,), and of how many."""
        # The same samples, whatever the number of processes.
        first = trainer.whole(len(x0))[1].start or 0
        place = torch.arange(-first % EVERY, len(x0), EVERY, device=x0.device)
        if len(place) == 0:
            return torch.zeros(2, dtype=torch.float64, device="cpu"), 0
        noise = trainer.draw_noise(x0, trainer.step)[place]
        x0, cond = x0[place], select(cond, place)
        t = torch.full((len(place),), self.sde.t_min, dtype=torch.float64, device="cpu")
        held, leaves = self._read(t, WEIGHTS["simple"], x0)
        multipliers = Multipliers(*leaves[0].unbind(0))
        with in_mode(self.model.net, training=False), not_yet(self.model.net):
            errors = measure_losses(self.model, x0, noise, multipliers, leaves[1], cond, trainer.autocast)
            gradients = torch.autograd.grad(0.5 * errors.sum(), leaves)
        wide = [gradient.to("cpu", torch.float64) for gradient in gradients]
        return self._chain(held, self.sde.ends, (*wide, torch.full_like(t, -0.5))), len(place)

    def _of_prior(self, square: Tensor) -> Tensor:
        """Return the gradient of the prior's KL for each coordinate with respect to the ends, (2,)."""
        moments = self.model.moments
        with self._recording():
            low = self.sde.ends[0]
            if moments is not None:
                kl = 0.5 * torch.log1p(low.exp() * moments.variance.to("cpu", torch.float64)).mean()
            else:
                kl = 0.5 * (torch.sigmoid(low) * square + torch.sigmoid(-low) - 1 - logsigmoid(-low))
            (gradient,) = torch.autograd.grad(kl, [self.sde.ends])
        return gradient

    def step(self, skipped: Tensor, rate: float, *, own: bool) -> None:
        """Move the schedule, unless the network's step was left out; the ends stay in their range."""
        good = all(bool(torch.isfinite(p.grad).all()) for p in self.parameters.values() if p.grad is not None)
        left_out = skipped.to("cpu", copy=True).logical_or_(torch.tensor(not good, device="cpu"))
        self.update(torch.zeros((), device="cpu"), left_out, rate * (OWN_RATE if own else RATE))
        self.sde.ends[0].clamp_(LOWEST, -NEAREST)
        self.sde.ends[1].clamp_(NEAREST, HIGHEST)

    def state(self) -> dict[str, Tensor]:
        """Return the schedule's numbers by their names in a checkpoint, and what their optimiser keeps."""
        return {**{f"value.{name}": p.detach() for name, p in self.parameters.items()}, **self.update.state()[1]}


def make_schedule_training(
    model: ScoreModel, weight: Weight, times: TimeSampler, objective: object, uncertainty: bool
) -> ScheduleTraining | None:
    """Return the learning of a model's schedule, where it has one that learns.

    Raises:
        ConfigError: options under which it could not be learned, with those that serve.
    """
    sde = model.sde
    if not isinstance(sde, LearnedSchedule):
        return None
    if objective is not None:
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
    return ScheduleTraining(model, weight)


def give_own_schedule(model: ScoreModel) -> None:
    """Give a model a schedule of its own, which no further training of another changes."""
    if not isinstance(model.sde, LearnedSchedule):
        return
    shared = model.trained_sde is model.sde
    model.sde = model.sde.copy()
    if shared:
        model.trained_sde = model.sde
