r"""One step of training.

A step draws times and noise, takes the gradient of the mean loss, scales it to a norm of at most ``clip_norm``, makes
one Adam step (Kingma, Ba 2015, arXiv:1412.6980; decoupled weight decay of Loshchilov, Hutter 2019, arXiv:1711.05101)
or one of an optimiser of your own, restores the lengths of weights that have one (``nn.MagnitudeUNet``), and moves the
averages of the weights. The batch may be given to the network in parts, whose gradients add up to that of the whole.
A step whose loss or gradient is not finite changes nothing. Whatever is random in step k depends on (seed, k) alone, so
that a run can stop anywhere and go on without the state of any generator. Nothing in a step waits for the device.

The loss is the denoising loss, or an ``objective``: a function (model, x0, generator, cond) -> losses (B,), such as a
chain's (``losses.ChainLoss``), whose generator of step k comes from (seed, k) as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, show
from scoresde.errors.names import explain_keywords, pick
from scoresde.errors.tensors import check_floating, check_values
from scoresde.errors.values import check_integer, check_number
from scoresde.models.networks import bare_network
from scoresde.models.prediction import Condition, check_condition, select
from scoresde.models.score_model import ScoreModel
from scoresde.models.sde_model import SDEModel
from scoresde.models.sharded import is_sharded, plain_class
from scoresde.noise import check_seed, normal, seeded_torch, stream
from scoresde.ops import move, recording
from scoresde.sampling.processes import World
from scoresde.training.losses.bins import LossBins
from scoresde.training.losses.defaults import choose_loss, describe_loss
from scoresde.training.losses.denoising import Multipliers, check_scalars, measure_losses, read_scalars
from scoresde.training.losses.linear import choose_linear
from scoresde.training.losses.simulated import ObjectiveName
from scoresde.training.losses.times import TIMES, TimeSampler, TimesName, correct_weight
from scoresde.training.losses.weights import WEIGHTS, Weight, WeightName
from scoresde.training.schedule import ScheduleTraining, make_schedule_training
from scoresde.training.sharding import average_over, norm_over
from scoresde.training.sources import ALONE
from scoresde.training.trainable import (
    Normalised,
    Objective,
    Stateful,
    check_objective,
    check_shapes,
    check_trainable,
    hold_rate,
    make_averages,
    make_uncertainty,
    not_yet,
)
from scoresde.training.updates import MakeOptimizer, Update

__all__ = ["Trainer"]

# Times are turned into coefficients for many steps at once, where that saves more than it costs.
BLOCK_STEPS, BLOCK_SIZE = 64, 32768
HALVES = torch.bfloat16, torch.float16
UNCERTAINTY = "uncertainty"  # before the names of its parameters
OBJECTIVE = "objective"  # before the names of what it has learned
WHOLE = ("value", OBJECTIVE)  # what begins with these is sharded never


class Trainer:
    """One step of training at a time: ``loss = trainer(x0, cond)``, the batch's mean loss, 0-d, on the device.

    Args:
        model: the model; its network must be on the device on which it is to stay. Both may be in wrappers: of the
            network (``torch.compile``, ``DistributedDataParallel``) they are called, of the model they are left aside.
        learning_rate: a number, or a function of the step k = 0, 1, ...; by default 1e-3. With an ``optimizer``, a
            factor on the rates that it was made with, by default 1.
        weight: a key of ``losses.WEIGHTS`` or a function; None for what suits the prediction (``losses.defaults``).
        times: a key of ``losses.TIMES``, a ``losses.TimeLaw`` or a function; None for what suits.
        objective: the losses (B,) of a batch in the place of the denoising loss with this weight and these times; of
            an SDEModel its name, by default "reverse" (``losses.SimulatedLoss``).
        weight_decay: decoupled, a share of the learning rate.
        clip_norm: largest norm of the gradient of the mean loss; None for no limit.
        ema_decay: of the average of the weights.
        sigma_rel: relative widths of power-function averages, at most eight, in the place of that average
            (``training.ema``); the first is the model's.
        optimizer: a ``torch.optim.Optimizer`` of the network's parameters, or a function of a list of parameters that
            makes one; None for AdamW. Clipping is done before it. One without a fused kernel waits for the device.
        accumulate: parts in which a step's batch goes through the network, one after the other: the same step up to
            rounding, in the memory of a part. An objective draws for each part what it draws.
        uncertainty: learn the weight of each log-SNR beside the network (``losses.uncertainty``).
        autocast: torch.bfloat16 or torch.float16 to let the network compute in it where torch thinks it safe; for
            float16 the loss is scaled.
        seed: times and noise of step k come from (seed, k).

    Raises:
        DTypeError, DomainError, ConfigError: options out of range, a network without trainable parameters, a loss
            that is not finite somewhere on [t_min, t_max], ``DistributedDataParallel`` around the model and not around
            its network in a group of several processes.
    """

    @explain_keywords(lr="learning_rate", ema="ema_decay", loss="objective", grad_clip="clip_norm", optim="optimizer")
    def __init__(
        self,
        model: ScoreModel | SDEModel,
        *,
        learning_rate: float | Callable[[int], float] | None = None,
        weight: WeightName | Weight | None = None,
        times: TimesName | TimeSampler | None = None,
        objective: Objective | ObjectiveName | None = None,
        weight_decay: float = 0.0,
        clip_norm: float | None = 1.0,
        ema_decay: float = 0.999,
        sigma_rel: float | Sequence[float] | None = None,
        optimizer: MakeOptimizer | None = None,
        accumulate: int = 1,
        uncertainty: bool = False,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.net = check_trainable(model)
        self.model.tables.clear()  # tuned for the weights that now change
        self.model.calibration = None
        objective, weight, times = choose_linear(self.model, objective, weight, times)
        self.objective = objective = check_objective(objective, weight, times, self.model)
        self.loss_names = {} if objective is not None else describe_loss(self.model, weight, times)
        sde = self.model.sde
        self.schedule: ScheduleTraining | None = None
        if objective is not None:
            make_schedule_training(self.model, None, None, uncertainty)  # refuses a schedule that learns
        else:
            weight, times = choose_loss(self.model, weight, times)
            self.times = pick("time sampler", times, TIMES)
            self.weight = correct_weight(pick("weight", weight, WEIGHTS), self.times)
            self.schedule = make_schedule_training(self.model, self.weight, self.times, uncertainty)
            ends = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64, device="cpu")
            check_scalars(read_scalars(self.model, sde.at(ends), self.weight), ends)
        if learning_rate is None:
            learning_rate = 1e-3 if optimizer is None else 1.0
        self.rate = learning_rate if callable(learning_rate) else hold_rate(learning_rate)
        self.clip_norm = None if clip_norm is None else check_number(clip_norm, "clip_norm", 0.0, open_low=True)
        given: object = autocast
        if not (given is None or (isinstance(given, torch.dtype) and given in HALVES)):
            raise ConfigError(f"autocast must be None, torch.bfloat16 or torch.float16, got {show(autocast)}")
        self.autocast, self.seed = autocast, check_seed(seed)
        self.accumulate = check_integer(accumulate, "accumulate", 1)
        self.bare = bare_network(self.net)
        self.normalised = self.bare if isinstance(self.bare, Normalised) else None
        self.buffers = [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]
        # Of the built-in networks, which leave their buffers as they are, only one with dropout draws.
        built_in = plain_class(self.bare).__module__.startswith("scoresde.nn.")
        self.drawing = not built_in or getattr(self.bare, "dropout", 0.0) > 0
        if any(isinstance(part, nn.Embedding) and part.sparse for part in self.net.modules()):
            raise ConfigError("an Embedding(sparse=True) gives gradients that cannot be clipped here; make it dense")
        self.averages = make_averages(self.net, ema_decay, sigma_rel)
        self.ema = self.averages[0]
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.device = trained[0].device
        self.dtype = torch.promote_types(torch.float32, trained[0].dtype)
        named = dict(zip(self.ema.names, trained, strict=True))
        self.uncertainty = make_uncertainty(uncertainty, objective, sde, self.device)
        if self.uncertainty is not None:
            named |= {f"{UNCERTAINTY}.{name}": p for name, p in self.uncertainty.named_parameters()}
        self.parameters = list(named.values())
        self.sharded = any(map(is_sharded, self.parameters))
        if self.sharded and self.schedule is not None:
            raise ConfigError("a LearnedSchedule is not trained under shard=; leave it out, and each process has all")
        decay = check_number(weight_decay, "weight_decay", 0.0)
        self.update = Update(
            named, optimizer, weight_decay=decay, clip_norm=self.clip_norm, scaled=autocast == torch.float16
        )
        self.weight_decay = decay
        self.gradient_norm = torch.zeros((), dtype=torch.float32, device=self.device)
        self.skipped = torch.zeros((), dtype=torch.bool, device=self.device)
        self.step, self.updating = 0, False
        self.world, self.size = ALONE, 0
        self.bins = LossBins(sde, self.device)
        self._block: tuple[int, int] | None = None
        # Multipliers (5, B), c_noise, bins and places of log-SNR (B,) of each step.
        self._prepared: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser."""
        return self.update.optimizer

    def join(self, world: World, size: int) -> None:
        """Be one of several processes: a call takes this one's share of a step of ``size`` samples.

        Times and noise are those that one process would draw for all of them. The network averages the gradients
        (``DistributedDataParallel``).
        """
        self.world, self.size = world, size

    def whole(self, batch: int) -> tuple[int, slice]:
        """Return the samples of a step of all processes, and which of them are this one's."""
        return (batch, slice(None)) if self.world.size == 1 else (self.size, self.world.share(self.size))

    def draw_times(self, batch: int, step: int) -> Tensor:
        """Return the times (B,) of a step, in float64 on the CPU."""
        return self.times(batch, self.model.sde, stream(self.seed, "times", step))

    def draw_noise(self, x0: Tensor, step: int) -> Tensor:
        """Return the noise of a step, like x0; of several processes this one's share."""
        whole, mine = self.whole(len(x0))
        generator = stream(self.seed, "noise", step, device=x0.device)
        return normal((whole, *x0.shape[1:]), generator, dtype=x0.dtype)[mine]

    def _prepare(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return a step's multipliers (5, B) in the data's type, c_noise, bins and places of log-SNR, on the device."""
        # Blocks begin at multiples of their length whatever step a run starts at: a vectorised exponential may differ
        # in its last bit with the position in the array.
        # Under a schedule that is learned no two steps have the same curves.
        length = 1 if self.schedule is not None else max(1, min(BLOCK_STEPS, BLOCK_SIZE // batch))
        block, place = divmod(self.step, length)
        if self._block != (block, batch):
            whole, mine = self.whole(batch)
            t = torch.stack([self.draw_times(whole, block * length + i)[mine] for i in range(length)])
            scalars = read_scalars(self.model, self.model.sde.at(t), self.weight)
            numbers = torch.stack(scalars.multipliers, dim=1).to(dtype)  # (length, 5, B)
            c_noise = self.model.c_noise_for(scalars.c_noise, numbers)
            parts = [numbers, c_noise, self.bins.find(scalars.log_snr)]
            if self.uncertainty is not None:
                parts.append(self.uncertainty.places(scalars.log_snr))
            self._prepared = tuple(move(part, self.device).unbind(0) for part in parts)
            self._block = block, batch
        return tuple(part[place] for part in self._prepared)

    def losses(self, x0: Tensor, cond: Condition = None) -> Tensor:
        """Return the losses (B,) of this step, before a learned weight."""
        return torch.cat([losses for _, losses, _ in self._losses(x0, cond)])

    def _losses(self, x0: Tensor, cond: Condition) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
        """Yield the parts of a batch with their losses (b,) and, but for an objective's, bins and places of log-SNR."""
        slices = self._cut(len(x0))
        if self.objective is not None:
            who = () if self.world.size == 1 else (self.world.rank,)
            generator = stream(self.seed, "objective", self.step, *who)
            for part in slices:
                x, told = (x0, cond) if len(slices) == 1 else (x0[part], select(cond, part))
                with torch.autocast(x0.device.type, self.autocast, enabled=self.autocast is not None):
                    losses = self.objective(self.model, x, generator, told)
                if not isinstance(losses, Tensor):
                    raise DTypeError(f"objective must return losses of shape ({len(x)},), got {show(losses)}")
                if losses.shape != x.shape[:1]:
                    raise ShapeError(f"objective must return losses of shape ({len(x)},), got {tuple(losses.shape)}")
                yield part, losses, ()
            return
        noise = self.draw_noise(x0, self.step)
        numbers, c_noise, *places = self._prepare(len(x0), x0.dtype)
        if len(slices) == 1:
            multipliers = Multipliers(*numbers.unbind(0))
            losses = measure_losses(self.model, x0, noise, multipliers, c_noise, cond, self.autocast)
            yield slices[0], losses, tuple(places)
            return
        for part in slices:
            multipliers = Multipliers(*numbers[:, part].unbind(0))
            told = select(cond, part)
            losses = measure_losses(self.model, x0[part], noise[part], multipliers, c_noise[part], told, self.autocast)
            yield part, losses, tuple(place[part] for place in places)

    def _cut(self, batch: int) -> list[slice]:
        """Return the parts of a batch, of which every process has as many: each gathers a sharded network anew."""
        count = min(self.accumulate, batch if self.world.size == 1 else self.size // self.world.size)
        return [slice(batch * i // count, batch * (i + 1) // count) for i in range(count)]

    def __call__(self, x0: Tensor, cond: Condition = None) -> Tensor:
        """Make one step with data x0 (B, *) of the network's type (at least float32) and device.

        Raises DTypeError, ShapeError, ConfigError for what is no dense floating tensor with values.
        """
        check_values(check_floating(x0, "x0"), "x0")
        cond = check_condition(cond, len(x0), each=True)
        if len(x0) == 0 and self.world.size == 1:
            raise ShapeError("x0 is empty: a step needs at least one sample")
        with recording():
            return self._step(x0, cond)

    def _step(self, x0: Tensor, cond: Condition) -> Tensor:
        rate = check_number(self.rate(self.step), "learning_rate", 0.0)
        if self.sharded and self.world.size == 1:
            raise ConfigError(
                "the network's parameters are sharded (fully_shard): pass it whole, to fit(world=, shard=)"
            )
        for p in self.parameters:
            p.grad = None
        before = [buffer.clone() for buffer in self.buffers]
        scale = self.update.scale
        draws = seeded_torch(self.device, self.seed, "network", self.step, self.world.rank) if self.drawing else None
        with draws or nullcontext():
            means = self._backward(x0, cond)
        loss = means[0] if len(means) == 1 else torch.stack(means).sum()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = norm_over(gradients, self.dtype)
        self.gradient_norm = norm = norm if scale is None else norm / scale
        # The gradient is the same in every process, the loss of one is not.
        self.skipped = torch.isfinite(norm if self.world.size > 1 else norm + loss).logical_not()
        self.updating = True
        self.update(norm, self.skipped, rate)
        if self.schedule is not None:
            self.schedule.step(self.skipped, rate, own=self.update.own)
        for buffer, kept in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(self.skipped, kept, buffer))
            if self.sharded and self.drawing:
                torch.distributed.broadcast(buffer, 0)  # as DistributedDataParallel does for a whole network
        if self.normalised is not None:
            self.normalised.normalise_()
        for average in self.averages:
            average.update()
        self.step, self.updating = self.step + 1, False
        return loss

    def _backward(self, x0: Tensor, cond: Condition) -> list[Tensor]:
        """Leave the gradient with the parameters, and return the means of the parts, each with its share."""
        means: list[Tensor] = []
        found: list[Tensor] = []
        scale = self.update.scale
        # The mean over all samples, where the network takes the mean over the processes.
        part_of = len(x0) * self.world.size / self.whole(len(x0))[0]
        for part, losses, places in self._losses(x0, cond):
            share = (part.stop - part.start) / len(x0) * part_of
            if places:
                self.bins.add(places[0], losses.detach())
            weighed = losses if self.uncertainty is None else self.uncertainty.weigh(losses, places[1])
            mean = weighed.mean() if share == 1 else weighed.mean() * share
            shown = mean if self.uncertainty is None else losses.mean() * share
            means.append(shown.detach())
            found.append(losses.detach())
            last = part.stop == len(x0)
            with nullcontext() if last else not_yet(self.net):
                total = mean if scale is None else mean * scale
                total.backward()
        if self.schedule is not None:
            self.schedule.backward(self, x0, cond, torch.cat(found))
        if self.world.size > 1:
            # What averages the network's gradients knows those alone, and nothing of parameters that are not sharded.
            own = [] if self.uncertainty is None else [*self.uncertainty.parameters()]
            average_over([p for p in self.parameters if not is_sharded(p)] if self.sharded else own, self.world)
        return means

    def _beside(self) -> dict[str, Tensor]:
        """Return what is learned beside the network, by its names in a checkpoint."""
        if self.schedule is not None:
            return {**self.schedule.state(), "value.schedule.edges": self.bins.edges}
        learned = () if self.uncertainty is None else self.uncertainty.named_parameters()
        return {f"value.{UNCERTAINTY}.{name}": p.detach() for name, p in learned}

    def state(self) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Return what another Trainer of the same options needs to go on: numbers, and tensors by name."""
        numbers, tensors = self.update.state()
        for k, average in enumerate(self.averages):
            mark = "" if k == 0 else str(k)
            for name, base, offset in average.state():
                tensors[f"base{mark}.{name}"], tensors[f"offset{mark}.{name}"] = base, offset
        tensors |= self._beside()
        if isinstance(self.objective, Stateful):
            tensors |= {f"{OBJECTIVE}.{name}": value for name, value in self.objective.state_dict().items()}
        # The sums since the last record of the log.
        tensors["loss_bins"] = self.bins.sums
        return {
            "step": self.step,
            "updates": self.ema.updates,
            "seed": self.seed,
            **self.loss_names,
            **numbers,
        }, tensors

    @torch.no_grad()
    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor], *, change: bool = False) -> None:
        """Go on from ``state``; the network's own weights must be those of that moment already.

        With ``change`` what has no counterpart there begins anew: averages at the weights, another optimiser.

        Raises:
            CheckpointError: a tensor that is missing, of another shape, or not finite; nothing is taken up then.
        """
        self._check_state(tensors, change=change)
        self.step = int(numbers["step"])
        for k, average in enumerate(self.averages):
            mark, average.updates = "" if k == 0 else str(k), int(numbers["updates"])
            if f"base{mark}.{average.names[0]}" not in tensors:
                average.begin_anew()
                continue
            kept = {name: (tensors[f"base{mark}.{name}"], tensors[f"offset{mark}.{name}"]) for name in average.names}
            average.restore(kept)
        for name, value in self._beside().items():
            value.copy_(tensors.get(name, value))
        if self.schedule is not None:
            self.schedule.update.restore({}, tensors)
        self.update.restore(numbers, tensors, change=change)
        if isinstance(self.objective, Stateful):
            mark = f"{OBJECTIVE}."
            own = {name.removeprefix(mark): value for name, value in tensors.items() if name.startswith(mark)}
            if own:
                self.objective.load_state_dict(own)
        if "loss_bins" in tensors and self.world.is_main:  # checkpoints of earlier versions have none
            self.bins.sums.copy_(tensors["loss_bins"])

    def find_alike(self, places: Iterable[str]) -> dict[str, Tensor]:
        """Return, for the places of ``state`` that belong to a sharded parameter, that parameter."""
        split = {self.update.names[id(p)]: p for p in self.parameters if is_sharded(p)}
        named = {place: place.partition(".") for place in places}
        return {place: split[name] for place, (key, _, name) in named.items() if name in split and key not in WHOLE}

    def _check_state(self, tensors: Mapping[str, Tensor], *, change: bool) -> None:
        shapes: dict[str, torch.Size] = {}
        for k, average in enumerate(self.averages):
            mark = "" if k == 0 else str(k)
            for name, base, _ in average.state():
                shapes[f"base{mark}.{name}"] = shapes[f"offset{mark}.{name}"] = base.shape
        shapes |= {name: value.shape for name, value in self._beside().items()}
        adam = {} if self.update.own else {self.update.names[id(p)]: p.shape for p in self.parameters}
        if self.schedule is not None:
            adam |= {name: p.shape for name, p in self.schedule.parameters.items()}
        check_shapes(tensors, shapes, adam, change=change)
