r"""One step of training.

A step draws times and noise, takes the gradient of the mean loss, scales it to a norm of at most ``clip_norm``, makes
one Adam step (Kingma, Ba 2015, arXiv:1412.6980; decoupled weight decay of Loshchilov, Hutter 2019, arXiv:1711.05101)
and moves the average of the weights.
A step whose loss or gradient is not finite changes nothing. Whatever is random in step k depends on (seed, k) alone, so
that a run can stop anywhere and go on without the state of any generator. Nothing in a step waits for the device.

The loss is the denoising loss, or an ``objective``: a function (model, x0, generator, cond) -> losses (B,), such as a
chain's (``losses.ChainLoss``), whose generator of step k comes from (seed, k) as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scoresde.errors import ConfigError, DTypeError, ShapeError, check_number, explain_keywords, pick
from scoresde.models.checks import check_differentiable, check_score_model
from scoresde.models.prediction import Condition
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed, normal, stream
from scoresde.ops import move, recording
from scoresde.training.ema import EMA, choose_stride
from scoresde.training.losses.bins import LossBins
from scoresde.training.losses.defaults import choose_loss, describe_loss
from scoresde.training.losses.denoising import Multipliers, check_scalars, measure_losses, read_scalars
from scoresde.training.losses.times import TIMES, TimeSampler, TimesName, correct_weight
from scoresde.training.losses.weights import WEIGHTS, Weight, WeightName

__all__ = ["Objective", "Trainer"]

Objective = Callable[[ScoreModel, Tensor, torch.Generator, Condition], Tensor]

# Times are turned into coefficients for many steps at once, where that saves more than it costs.
BLOCK_STEPS, BLOCK_SIZE = 64, 32768


class _AdamW(torch.optim.AdamW):
    """Adam whose kernel divides the gradient by ``grad_scale`` and does nothing where ``found_inf`` is 1."""

    grad_scale: Tensor
    found_inf: Tensor

    def __getstate__(self) -> dict[str, Any]:
        # Torch's own leaves out which options were found to serve.
        return vars(self).copy()


class Trainer:
    """One step of training at a time: ``loss = trainer(x0, cond)``, the batch's mean loss, 0-d, on the device.

    Args:
        model: the model; its network must be on the device on which it is to stay. Both may be in wrappers: of the
            network (``torch.compile``, ``DistributedDataParallel``) they are called, of the model they are left aside.
        learning_rate: a number, or a function of the step k = 0, 1, ...
        weight: a key of ``losses.WEIGHTS`` or a function; None for what suits the prediction (``losses.defaults``).
        times: a key of ``losses.TIMES``, a ``losses.TimeLaw`` or a function; None for what suits.
        objective: the losses (B,) of a batch in the place of the denoising loss with this weight and these times.
        weight_decay: decoupled, a share of the learning rate.
        clip_norm: largest norm of the gradient of the mean loss; None for no limit.
        ema_decay: of the average of the weights.
        autocast: torch.bfloat16 to let the network compute in it where torch thinks it safe.
        seed: times and noise of step k come from (seed, k).

    Raises:
        DTypeError, DomainError, ConfigError: options out of range, a network without trainable parameters, a loss
            that is not finite somewhere on [t_min, t_max], ``DistributedDataParallel`` around the model and not around
            its network in a group of several processes.
    """

    @explain_keywords(lr="learning_rate", ema="ema_decay", loss="objective", grad_clip="clip_norm")
    def __init__(
        self,
        model: ScoreModel,
        *,
        learning_rate: float | Callable[[int], float] = 1e-3,
        weight: WeightName | Weight | None = None,
        times: TimesName | TimeSampler | None = None,
        objective: Objective | None = None,
        weight_decay: float = 0.0,
        clip_norm: float | None = 1.0,
        ema_decay: float = 0.999,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.net = _check_trainable(model)
        self.model.tables.clear()  # tuned for the weights that now change
        self.model.calibration = None
        self.objective = _check_objective(objective, weight, times)
        self.loss_names = {} if objective is not None else describe_loss(self.model, weight, times)
        weight, times = choose_loss(self.model, weight, times)
        self.times = pick("time sampler", times, TIMES)
        self.weight = correct_weight(pick("weight", weight, WEIGHTS), self.times)
        sde = self.model.sde
        if objective is None:
            ends = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
            check_scalars(read_scalars(self.model, sde.at(ends), self.weight), ends)
        self.rate = learning_rate if callable(learning_rate) else _hold_rate(learning_rate)
        self.clip_norm = None if clip_norm is None else check_number(clip_norm, "clip_norm", 0.0, open_low=True)
        if autocast not in (None, torch.bfloat16):
            raise ConfigError(f"autocast must be None or torch.bfloat16, got {autocast}; float16 gradients underflow")
        self.autocast, self.seed = autocast, check_seed(seed)
        average = check_number(ema_decay, "ema_decay", 0.0, 1.0, open_high=True)
        self.ema = EMA(self.net, average, warmup=True, every=choose_stride(average))
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        decay = check_number(weight_decay, "weight_decay", 0.0)
        self.optimizer = _AdamW(self.parameters, lr=0.0, weight_decay=decay, fused=True)
        self.device = self.parameters[0].device
        self.dtype = torch.promote_types(torch.float32, self.parameters[0].dtype)
        self.gradient_norm = torch.zeros((), device=self.device)
        self.skipped = torch.zeros((), dtype=torch.bool, device=self.device)
        self.step, self.updating = 0, False
        self.bins = LossBins(sde, self.device)
        self._block: tuple[int, int] | None = None
        self._prepared: tuple[tuple[Tensor, ...], ...] = ()  # multipliers (5, B), c_noise and bins (B,) of each step

    def draw_times(self, batch: int, step: int) -> Tensor:
        """Return the times (B,) of a step, in float64 on the CPU."""
        return self.times(batch, self.model.sde, stream(self.seed, "times", step))

    def draw_noise(self, x0: Tensor, step: int) -> Tensor:
        """Return the noise of a step, like x0."""
        return normal(x0.shape, stream(self.seed, "noise", step, device=x0.device), dtype=x0.dtype)

    def _prepare(self, batch: int, dtype: torch.dtype) -> tuple[Multipliers, Tensor, Tensor]:
        """Return this step's multipliers in the data's type, c_noise, and the bins of log-SNR, on the device."""
        # Blocks begin at multiples of their length whatever step a run starts at: a vectorised exponential may differ
        # in its last bit with the position in the array.
        length = max(1, min(BLOCK_STEPS, BLOCK_SIZE // batch))
        block, place = divmod(self.step, length)
        if self._block != (block, batch):
            t = torch.stack([self.draw_times(batch, block * length + i) for i in range(length)])
            scalars = read_scalars(self.model, self.model.sde.at(t), self.weight)
            numbers = torch.stack(scalars.multipliers, dim=1).to(dtype)  # (length, 5, B)
            c_noise = self.model.c_noise_for(scalars.c_noise, numbers)
            parts = (numbers, c_noise, self.bins.find(scalars.log_snr))
            self._prepared = tuple(move(part, self.device).unbind(0) for part in parts)
            self._block = block, batch
        numbers, c_noise, bins = (part[place] for part in self._prepared)
        return Multipliers(*numbers.unbind(0)), c_noise, bins

    def losses(self, x0: Tensor, cond: Condition = None) -> Tensor:
        """Return the losses (B,) that this step would minimise the mean of."""
        return self._losses(x0, cond)[0]

    def _losses(self, x0: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """Return the losses and their bins, (B,) each; an objective has no bins."""
        if self.objective is not None:
            generator = stream(self.seed, "objective", self.step)
            with torch.autocast(x0.device.type, self.autocast, enabled=self.autocast is not None):
                losses = self.objective(self.model, x0, generator, cond)
            if losses.shape != x0.shape[:1]:
                raise ShapeError(f"objective must return losses of shape ({len(x0)},), got {tuple(losses.shape)}")
            return losses, None
        multipliers, c_noise, bins = self._prepare(len(x0), x0.dtype)
        noise = self.draw_noise(x0, self.step)
        return measure_losses(self.model, x0, noise, multipliers, c_noise, cond, self.autocast), bins

    def __call__(self, x0: Tensor, cond: Condition = None) -> Tensor:
        """Make one step with data x0 (B, *) of the network's type (at least float32) and device."""
        with recording():
            return self._step(x0, cond)

    def _step(self, x0: Tensor, cond: Condition) -> Tensor:
        losses, bins = self._losses(x0, cond)
        loss = losses.mean()
        if bins is not None:
            self.bins.add(bins, losses.detach())
        for p in self.parameters:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm(gradients, 2, self.dtype)
        self.gradient_norm = norm = torch.linalg.vector_norm(torch.stack(norms))
        # Clipping costs no pass of its own: Adam's kernel divides by this scale as it reads the gradient.
        limit = math.inf if self.clip_norm is None else self.clip_norm
        self.optimizer.grad_scale = (norm / limit).clamp_min(1.0).float()
        self.skipped = torch.isfinite(norm + loss.detach()).logical_not()
        self.optimizer.found_inf = self.skipped.float()
        self.optimizer.param_groups[0]["lr"] = self.rate(self.step)
        self.updating = True
        self.optimizer.step()
        self.ema.update()
        self.step, self.updating = self.step + 1, False
        return loss.detach()

    def state(self) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Return what another Trainer of the same options needs to go on: numbers, and tensors by name."""
        tensors: dict[str, Tensor] = {}
        for name, p, base, offset in zip(self.ema.names, self.parameters, self.ema.base, self.ema.offset, strict=True):
            tensors[f"base.{name}"], tensors[f"offset.{name}"] = base, offset
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[p].items()}
        return {"step": self.step, "updates": self.ema.updates, "seed": self.seed, **self.loss_names}, tensors

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from ``state``; the network's own weights must be those of that moment already."""
        self.step, self.ema.updates = int(numbers["step"]), int(numbers["updates"])
        for i, (name, p) in enumerate(zip(self.ema.names, self.parameters, strict=True)):
            self.ema.base[i].copy_(tensors[f"base.{name}"])
            self.ema.offset[i].copy_(tensors[f"offset.{name}"])
            if f"step.{name}" in tensors:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[p] = {key: tensors[f"{key}.{name}"].to(self.device, copy=True) for key in keys}


def _check_trainable(model: object) -> tuple[ScoreModel, nn.Module]:
    """Return a model, out of its wrappers, and its network, in its own, if they can be trained."""
    known = check_score_model(model)
    net = known.net
    if torch.is_inference_mode_enabled():
        raise ConfigError("training differentiates, which torch.inference_mode() forbids; train outside of it")
    check_differentiable(net)
    if not isinstance(net, nn.Module) or not any(p.requires_grad for p in net.parameters()):
        raise ConfigError("the model's network has no trainable parameters; training needs a torch.nn.Module with some")
    outside = set(model.modules()) - set(known.modules()) if isinstance(model, nn.Module) else set()
    for part in outside:
        # The loss asks the network, not the wrapper, whose own call is what would average the gradients.
        if isinstance(part, DistributedDataParallel) and torch.distributed.get_world_size(part.process_group) > 1:
            raise ConfigError(
                "DistributedDataParallel is around the model, where it averages no gradients; put it around the "
                "network: ScoreModel(DistributedDataParallel(net), sde)"
            )
    return known, net


def _check_objective(objective: object, weight: object, times: object) -> Objective | None:
    """Return the objective, which leaves no room for a weight and times."""
    if objective is None:
        return None
    if not callable(objective):
        raise DTypeError(f"objective must be a function (model, x0, generator, cond) -> losses (B,), got {objective!r}")
    if weight is not None or times is not None:
        raise ConfigError("weight= and times= belong to the denoising loss; an objective= has its own, leave them out")
    return objective


def _hold_rate(value: float) -> Callable[[int], float]:
    """Return the learning rate that is the same at every step."""
    return partial(_keep_rate, check_number(value, "learning_rate", 0.0, open_low=True))


def _keep_rate(rate: float, step: int) -> float:
    return rate
