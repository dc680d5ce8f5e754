"""What every way of sampling shares: where a run starts, how it is watched, how it ends, and what a chunk gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag
from scoresde.models.prediction import Condition, Prediction, Predictor
from scoresde.models.scored_sde import ScoredSDE
from scoresde.sampling.kernels import Kernel
from scoresde.solvers.build import FINALS
from scoresde.solvers.rows import Knot

__all__ = ["Ending", "Observer", "Part", "Start", "Step", "Watch", "check_final", "denoised"]


@dataclass(frozen=True, eq=False)
class Step:
    """What an observer sees after a row: read-only; x is reused by the loop, clone it to keep it.

    Args:
        index: number of the row.
        t: time of the call.
        s: time of the new state.
        x: the new state (B, *).
        prediction: what the model said at t.
    """

    index: int
    t: float
    s: float
    x: Tensor
    prediction: Prediction


Observer = Callable[[Step], None]
Ending = Literal["denoise", "sample", "mean"]


@dataclass(frozen=True, eq=False)
class Part:
    """The result of one chunk; ``SampleResult`` says what the fields are."""

    x: Tensor
    nfe: Tensor
    trajectory: Tensor | None
    status: Tensor
    accepted: Tensor
    rejected: Tensor

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Part:
        """Return the result of no samples, of shape (0, *) for samples (B, *)."""
        none = torch.zeros(0, dtype=torch.long, device="cpu")
        return cls(torch.empty((0, *shape[1:]), dtype=dtype, device=device), none, None, none, none, none)

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """Return the results of several chunks as one."""
        x, nfe, status, accepted, rejected = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("x", "nfe", "status", "accepted", "rejected")
        )
        kept = [part.trajectory for part in parts if part.trajectory is not None]
        return cls(x, nfe, torch.cat(kept, 1) if kept else None, status, accepted, rejected)


@dataclass(frozen=True)
class Start:
    """Where a run starts, and the standard deviation of its zero-mean prior where the data's moments are unknown."""

    knot: Knot
    prior_std: float

    @classmethod
    def at(cls, sde: SDE, t: float) -> Start | None:
        """Return the start at time t; None for an SDE without alpha and sigma."""
        if not isinstance(sde, GaussianSDE):
            return None
        return cls(Knot.of(sde.at(torch.tensor([t], dtype=torch.float64, device="cpu")))[0], float(sde.prior_std(t)))

    def state(self, z: Tensor, moments: Moments | None) -> Tensor:
        """Return the start state for standard normal z, whose memory it may use."""
        if moments is None:
            return z.mul_(self.prior_std)
        return moments.at(self.knot.alpha, self.knot.sigma).from_noise(z)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a caller wants of a run beside its end: ``sample`` has the words for each."""

    kernels: Sequence[Kernel] = ()
    on_step: Observer | None = None
    on_nonfinite: str = "raise"
    trajectory: bool = False
    differentiable: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        check_choice("on_nonfinite", self.on_nonfinite, ("raise", "freeze"))
        for name in ("trajectory", "differentiable", "progress"):
            check_flag(getattr(self, name), name)

    def beyond(self, *, trajectory: bool = False, differentiable: bool = False) -> list[str]:
        """Return what is wanted but only a table can do, or what the solver says that it can."""
        wanted = {
            "kernels": bool(self.kernels),
            "on_step": self.on_step is not None,
            "on_nonfinite='freeze'": self.on_nonfinite == "freeze",
            "trajectory": self.trajectory and not trajectory,
            "differentiable": self.differentiable and not differentiable,
        }
        return [name for name, asked in wanted.items() if asked]


def check_final(sde: SDE, final: str) -> None:
    """Raise ConfigError for an unknown end, or for one that this SDE has not."""
    check_choice("final", final, FINALS)
    if isinstance(sde, LinearSDE):
        raise ConfigError(f"a linear SDE is sampled by tables alone, by a solver's name or build_blocks; got {sde!r}")
    if final == "denoise" and not isinstance(sde, GaussianSDE):
        raise ConfigError(
            f"final='denoise' needs alpha and sigma, which {type(sde).__name__} has not; pass final='sample' or 'mean'"
        )


def denoised(model: Predictor | ScoredSDE, x: Tensor, t: float, cond: Condition) -> Tensor:
    """Return the data prediction at x (B, *) and t: the jump to clean data."""
    assert isinstance(model, Predictor)  # check_final has refused the others
    return model.at(x, model.sde.at(t), cond).data
