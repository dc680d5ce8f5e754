r"""Moving averages of the weights, exponential or by a power of the step, in float32 without stagnation.

The average of a weight p is s <- d s + (1 - d) p. Near d = 1 a float32 s stops moving while it is still 2^-24/(1 - d)
of itself away from p. Here s is the unevaluated sum b + e of a base and a small offset, both float32: e <- e + (1 - d)
((p - b) - e) keeps the digits that s would lose, and from time to time the error-free sum of both (Knuth's two-sum)
becomes the new base and offset. With ``warmup`` d is min(decay, (1 + k)/(10 + k)) at step k, so that the first values
of the weights do not linger.

Weights of neighbouring steps are all but the same, so an average over many steps may take every m-th of them with d^m:
its mean age is the same and the cost is an m-th. ``choose_stride(decay)`` is the m at which one update moves by a
hundredth.

The power-function average (Karras et al. 2024, arXiv:2312.02696) has d_t = (1 - 1/t)^{gamma + 1} at its t-th update,
and so the profile p(s) ~ s^gamma over the steps s <= t: it forgets the first values by itself and is as wide, in shares
of the training, at any time. Over m updates it keeps ((t - m)/t)^{gamma + 1} exactly. The width is the standard
deviation of the profile over t,

    sigma_rel^2 = (gamma + 1)/((gamma + 2)^2 (gamma + 3)).

Of a network that is sharded over processes each keeps the averages of the rows that it holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.errors.kinds import ConfigError, DomainError
from scoresde.errors.values import check_flag, check_instance, check_integer, check_number
from scoresde.models.networks import bare_network, network_state, plain_names
from scoresde.models.sharded import local_rows, shard_like, whole

__all__ = ["EMA", "LONGEST_STRIDE", "WIDEST", "choose_stride", "power_of"]

WIDEST = 12**-0.5  # sigma_rel of the plain mean, gamma = 0

REBASE_EVERY = 64
LONGEST_STRIDE = 8
BEGINNING = 64  # steps of which an average with a warm-up, or of a power function, takes every one


def choose_stride(decay: float) -> int:
    """Return how many steps one update may stand for: 0.01/(1 - decay), between 1 and 8."""
    return max(1, min(LONGEST_STRIDE, round(0.01 / (1 - decay))))


def power_of(sigma_rel: float) -> float:
    """Return gamma >= 0 of a relative width; DomainError outside (0, 12^-1/2], the width of the plain mean."""
    check_number(sigma_rel, "sigma_rel", 0.0, WIDEST, open_low=True)
    # (gamma + 2)^2 (gamma + 3) = (gamma + 1)/sigma_rel^2 has one root that is not negative.
    t = sigma_rel**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max()))


class EMA:
    """The moving average of a network's trainable parameters; the network itself is never changed.

    Args:
        module: the network; of one in a wrapper (``torch.compile``, ``DistributedDataParallel``) the network inside is
            meant, so that names and copies are those of the network itself.
        decay: d in [0, 1), of one step.
        warmup: take min(decay, (1 + k)/(10 + k)) at step k = 0, 1, ..., and every one of the first 64 steps (or the
            last multiple of ``every`` before).
        every: steps that one update stands for: every so many calls of ``update`` move the average, by d^every. One of
            1, 2, 4, 8 for a power-function average, which takes every step of the first 64.
        sigma_rel: the relative width of a power-function average, which this then is: decay and warmup say nothing.

    Raises:
        DomainError: a decay outside [0, 1), ``every`` < 1, a width outside (0, 12^-1/2]. ConfigError: on update,
            parameters that are not those it began with.
    """

    def __init__(
        self,
        module: nn.Module,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        every: int = 1,
        sigma_rel: float | None = None,
    ) -> None:
        check_instance(module, nn.Module, "module", "a torch.nn.Module")
        self.decay = check_number(decay, "decay", 0.0, 1.0, open_high=True)
        self.sigma_rel = None if sigma_rel is None else check_number(sigma_rel, "sigma_rel")
        self.power = None if sigma_rel is None else power_of(sigma_rel)
        self.every = check_integer(every, "every", 1)
        if self.power is not None and BEGINNING % self.every:
            raise DomainError(f"every must be 1, 2, 4, 8, ... up to {BEGINNING} with sigma_rel=, got {every}")
        self.module, self.warmup, self.updates = bare_network(module), check_flag(warmup, "warmup"), 0
        plain = plain_names(self.module)
        self.names = [plain.get(name, name) for name, p in self.module.named_parameters() if p.requires_grad]
        self._find_parameters()
        self.base = [p.to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in self._values]
        self.offset = [torch.zeros_like(b) for b in self.base]

    def _find_parameters(self) -> None:
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]
        self._values = [local_rows(p.detach()) for p in self._parameters]

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a parameter has a memory of its own, which its copied views would not follow.
        return {name: value for name, value in vars(self).items() if name not in ("_parameters", "_values")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._find_parameters()

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Take the parameters as they are now for the average."""
        for base, offset, value in zip(self.base, self.offset, self._values, strict=True):
            base.copy_(value)
            offset.zero_()

    def update(self) -> None:
        """Count a step, and at every ``every``-th move the average towards the parameters as they are now."""
        k = self.updates
        self.updates = k + 1
        if self.updates % self._stride(k):
            return
        torch._foreach_lerp_(self.offset, torch._foreach_sub(self._values, self.base), 1 - self._keep(k))
        if self.updates // self._stride(k) % REBASE_EVERY == 0:
            self._check()
            self._rebase()

    def _stride(self, k: int) -> int:
        """Return how many steps an update at the k-th stands for: one at the beginning, where weights move most."""
        begins = k < BEGINNING - BEGINNING % self.every and (self.power is not None or self.warmup)
        return 1 if begins else self.every

    @property
    def time(self) -> int:
        """The last step of which the average knows."""
        return self.updates // self._stride(self.updates - 1) * self._stride(self.updates - 1)

    def _keep(self, k: int) -> float:
        """Return how much of the average an update leaves that stands for the steps up to k + 1."""
        if self.power is not None:
            return float((1 - self._stride(k) / (k + 1)) ** (self.power + 1))
        decay = min(self.decay, (1 + k) / (10 + k)) if self.warmup else self.decay
        return float(decay ** self._stride(k))

    def _rebase(self) -> None:
        """Replace (base, offset) by their rounded sum and its rounding error."""
        total = torch._foreach_add(self.base, self.offset)
        virtual = torch._foreach_sub(total, self.base)
        lost = torch._foreach_sub(self.base, torch._foreach_sub(total, virtual))
        self.base, self.offset = list(total), list(torch._foreach_add(lost, torch._foreach_sub(self.offset, virtual)))

    def _check(self) -> None:
        now = [p for p in self.module.parameters() if p.requires_grad]
        same = len(now) == len(self._parameters) and all(p is q for p, q in zip(now, self._parameters, strict=True))
        if not same or any(_has_moved(p, v) for p, v in zip(now, self._values, strict=True)):
            raise ConfigError(
                f"the network's parameters are not the {len(self._parameters)} that the average began with "
                "(replaced, frozen or moved to another device); make a new EMA after such a change"
            )

    def values(self) -> dict[str, Tensor]:
        """Return the averages by the parameters' names, in at least float32; copies, sharded as the parameters are."""
        totals = [total.to(b.dtype) for total, b in zip(self._sums(), self.base, strict=True)]
        return {name: shard_like(p, t) for name, p, t in zip(self.names, self._parameters, totals, strict=True)}

    def state(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield each parameter's name, base and offset, sharded as the parameters are."""
        for name, p, base, offset in zip(self.names, self._parameters, self.base, self.offset, strict=True):
            yield name, shard_like(p, base), shard_like(p, offset)

    def restore(self, state: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take up bases and offsets by names, as ``state`` gave them."""
        for name, base, offset in zip(self.names, self.base, self.offset, strict=True):
            base.copy_(local_rows(state[name][0]))
            offset.copy_(local_rows(state[name][1]))

    def _sums(self) -> Iterator[Tensor]:
        for b, e in zip(self.base, self.offset, strict=True):
            yield b.double() + e.double() if b.device.type != "mps" else b + e

    def state_dict(self) -> dict[str, Tensor]:
        """Return the network's state dict with averages, in the parameters' types, for parameters; copies.

        Its names carry no prefixes of wrappers around the network or its parts.
        """
        self._check()
        pairs = zip(self._parameters, self._sums(), strict=True)
        average = {id(p): shard_like(p, total.to(p.dtype)) for p, total in pairs}
        state, plain = self.module.state_dict(keep_vars=True), plain_names(self.module)
        return {plain[name]: average[id(v)] if id(v) in average else v.detach().clone() for name, v in state.items()}

    def copy(self, weights: Mapping[str, Tensor] | None = None, *, of: nn.Module | None = None) -> nn.Module:
        """Return a copy of the network with the averaged weights, or with others that ``state_dict`` gave before.

        Args:
            weights: the others.
            of: the network to copy where the one that is averaged is sharded; all processes must call this then.
        """
        made = copy.deepcopy(self.module if of is None else bare_network(of))
        made.zero_grad(set_to_none=True)
        state = self.state_dict() if weights is None else weights
        _set_state(made, {name: whole(value) for name, value in state.items()})
        return made if of is None else made.to(self._values[0].device)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the network itself, and its own weights back at the end, also after an exception."""
        own = {name: v.clone() for name, v in network_state(self.module).items()}
        _set_state(self.module, self.state_dict())
        try:
            yield
        finally:
            _set_state(self.module, own)


def _has_moved(parameter: Tensor, values: Tensor) -> bool:
    return local_rows(parameter.detach()).data_ptr() != values.data_ptr()


@torch.no_grad()
def _set_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in network_state(module).items():
        tensor.copy_(state[name])
