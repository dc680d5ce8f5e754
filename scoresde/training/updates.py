r"""The update of the weights from gradients: clipped, unscaled and, where something is not finite, left out.

A gradient g of S times the loss (float16's small gradients need a scale S) becomes g/(S max(1, |g|/(S clip))). Adam's
fused kernel divides by that number as it reads the gradient and does nothing where it is told so, on the device:
clipping costs no pass of its own, and nothing waits. An optimiser without such a kernel gets the gradients divided
before it, and whether to step is asked of the device.

S starts at 2^16, halves where a gradient overflows and doubles after 2000 steps without (Micikevicius et al. 2018,
arXiv:1710.03740).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.errors.kinds import CheckpointError, ConfigError, DTypeError, show
from scoresde.models.sharded import is_sharded, local_rows, sharding

__all__ = ["MakeOptimizer", "Update", "describe_optimizer"]

MakeOptimizer = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]

FIRST_SCALE, GROWTH, BACKOFF, PATIENCE = 2.0**16, 2.0, 0.5, 2000
KEPT = bool | int | float | str | None


class _AdamW(torch.optim.AdamW):
    """Adam whose kernel divides the gradient by ``grad_scale`` and does nothing where ``found_inf`` is 1."""

    def __getstate__(self) -> dict[str, Any]:
        # Torch's own leaves out which options were found to serve.
        return vars(self).copy()


class Update:
    """One update after another.

    Args:
        parameters: all that are trained, by name.
        make: an optimiser of these parameters, or a function that makes one of a list of them; None for AdamW, whose
            rate is the number that a call takes. For one of your own that number is a factor on the rates it was made
            with.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient; None for no limit.
        scaled: whether the loss is scaled.

    Raises:
        ConfigError: an optimiser of other parameters, or that calls the loss itself. DTypeError: no optimiser.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: MakeOptimizer | None,
        *,
        weight_decay: float,
        clip_norm: float | None,
        scaled: bool,
    ) -> None:
        self.names = {id(p): name for name, p in parameters.items()}
        self.parameters = list(parameters.values())
        self.clip_norm, self.own = clip_norm, make is not None
        self.sharded = any(map(is_sharded, self.parameters))
        if make is None:
            # No kernel takes sharded parameters and whole ones together.
            kinds = [[p for p in self.parameters if is_sharded(p) is sharded] for sharded in (True, False)]
            groups = [{"params": kind} for kind in kinds if kind]
            self.optimizer: torch.optim.Optimizer = _AdamW(groups, lr=1.0, weight_decay=weight_decay, fused=True)
        else:
            self.optimizer = _check_optimizer(make, self.parameters, weight_decay)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        device = self.parameters[0].device
        self.scale = torch.full((), FIRST_SCALE, dtype=torch.float32, device=device) if scaled else None
        self.growth = torch.zeros((), dtype=torch.int32, device=device)
        self.fused = bool(getattr(self.optimizer, "_step_supports_amp_scaling", False))

    @property
    def kind(self) -> str | None:
        """The name of an optimiser of one's own."""
        return type(self.optimizer).__name__ if self.own else None

    def __call__(self, norm: Tensor, skipped: Tensor, rate: float) -> None:
        """Update with the gradients that are there, of this norm without the scale; ``skipped`` is 0-d, boolean."""
        limit = math.inf if self.clip_norm is None else self.clip_norm
        divisor = (norm / limit).clamp_min(1.0).float()
        if self.scale is not None:
            divisor = divisor * self.scale
        for group, own in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * own if self.own else rate
        if self.fused:
            vars(self.optimizer)["grad_scale"], vars(self.optimizer)["found_inf"] = divisor, skipped.float()
            self.optimizer.step()
        elif not bool(skipped):
            # An optimiser without a step of its own for it: one look at the device.
            torch._foreach_div_([local_rows(p.grad) for p in self.parameters if p.grad is not None], divisor)
            self._step_own()
        if self.scale is not None:
            torch._amp_update_scale_(self.scale, self.growth, skipped.float(), GROWTH, BACKOFF, PATIENCE)

    def _step_own(self) -> None:
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not (self.sharded and ("DTensor" in str(error) or "placement" in str(error))):
                raise
            raise ConfigError(
                f"{type(self.optimizer).__name__} does not take sharded parameters ({str(error).partition('. ')[0]}); "
                "train with world= alone, or with the usual optimizer"
            ) from error

    def state(self) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Return numbers, JSON-able, and tensors by ``key.name of the parameter``.

        Raises:
            ConfigError: the optimiser keeps something else.
        """
        numbers: dict[str, object] = {}
        tensors: dict[str, Tensor] = {}
        for p in self.parameters:
            for key, value in self.optimizer.state.get(p, {}).items():
                place = f"{key}.{self.names[id(p)]}"
                if isinstance(value, Tensor) and (not is_sharded(value) or sharding(value) == sharding(p)):
                    tensors[place] = value
                elif isinstance(value, KEPT):
                    numbers[place] = value
                else:
                    raise ConfigError(
                        f"a checkpoint cannot keep the state {key!r} of {type(self.optimizer).__name__}, a "
                        f"{type(value).__name__}; train without folder=, or with another optimizer="
                    )
        if self.scale is not None:
            tensors |= {"loss_scale": self.scale, "loss_scale_growth": self.growth}
        kept: dict[str, object] = {"state": numbers} if numbers else {}
        if self.own:
            kept["kind"] = self.kind
            kept["groups"] = [_keep_numbers(group) for group in self.optimizer.param_groups]
        return ({"optimizer": kept} if kept else {}), tensors

    def rest(self) -> None:
        """Give an optimiser of one's own the rates that it was made with."""
        if self.own:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor], *, change: bool = False) -> None:
        """Go on from ``state``; with ``change`` another optimiser begins anew, and options are the new ones."""
        if change and numbers.get("optimizer", {}).get("kind") != self.kind:
            return
        known = {name: p for p in self.parameters for name in [self.names[id(p)]]}
        kept = numbers.get("optimizer", {})
        for place, value in [*tensors.items(), *kept.get("state", {}).items()]:
            key, _, name = place.partition(".")
            if name not in known or key in ("base", "offset", "value", "objective"):
                continue
            p = known[name]
            # Steps are counted where the optimiser counts them.
            held = (
                value.to(p.device if value.ndim or self.fused else "cpu", copy=True)
                if isinstance(value, Tensor)
                else value
            )
            self.optimizer.state[p][key] = held
        groups = kept.get("groups")
        if groups is not None and not change:
            if len(groups) != len(self.optimizer.param_groups):
                raise CheckpointError(f"the checkpoint's optimiser has {len(groups)} groups of parameters, not as many")
            for group, numbers_of in zip(self.optimizer.param_groups, groups, strict=True):
                group.update({key: tuple(v) if isinstance(v, list) else v for key, v in numbers_of.items()})
        if self.scale is not None and "loss_scale" in tensors:
            self.scale.copy_(tensors["loss_scale"])
            self.growth.copy_(tensors["loss_scale_growth"])


def describe_optimizer(update: Update) -> str | None:
    """Return an optimiser of one's own in words, for what a run is."""
    if not update.own:
        return None
    groups = [
        {**_keep_numbers(group), "lr": rate}
        for group, rate in zip(update.optimizer.param_groups, update.rates, strict=True)
    ]
    told = [{key: value for key, value in sorted(group.items()) if value not in (None, False)} for group in groups]
    said = "; ".join(", ".join(f"{key}={value!r}" for key, value in group.items()) for group in told)
    return f"{type(update.optimizer).__name__}({said})"


def _keep_numbers(group: Mapping[str, Any]) -> dict[str, object]:
    def plain(value: object) -> bool:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return all(isinstance(part, KEPT) for part in value)
        return isinstance(value, KEPT)

    return {key: value for key, value in group.items() if key != "params" and plain(value)}


def _check_optimizer(make: object, parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    if weight_decay:
        raise ConfigError("weight_decay= is that of the usual optimiser; give it to your own, and leave it out here")
    function = callable(make) and not (isinstance(make, type) and not issubclass(make, torch.optim.Optimizer))
    made = make(parameters) if function and not isinstance(make, torch.optim.Optimizer) else make  # type: ignore[operator]
    if not isinstance(made, torch.optim.Optimizer):
        raise DTypeError(
            "optimizer must be a torch.optim.Optimizer, or a function of the list of parameters that makes one, e.g. "
            f"functools.partial(torch.optim.SGD, lr=0.1), got {show(made)}"
        )
    if isinstance(made, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS calls the loss several times a step, and every step here has noise of its own; take another"
        )
    known = {id(p) for p in parameters}
    held = [p for group in made.param_groups for p in group["params"]]
    foreign = [p for p in held if id(p) not in known and p.requires_grad]
    missing = len(known) - len({id(p) for p in held} & known)
    if missing and not foreign:
        raise ConfigError(
            f"the optimizer lacks {missing} of the {len(known)} parameters to train; pass a function that makes it of "
            "a list of all (also those of uncertainty=), or freeze what stays with requires_grad_(False)"
        )
    if foreign or not held:
        raise ConfigError(
            f"the optimizer holds {len(foreign)} parameters that are not the network's trainable ones; make it of "
            "model.net.parameters(), or pass a function that makes it"
        )
    return made
