"""Solvers and tables as schedulers of diffusers; imported where diffusers is."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from scoresde.diffusions.levels import RectifiedFlow
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import Kind
from scoresde.errors.kinds import ConfigError, ScoreSDEError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_integer
from scoresde.models.adapters import sde_of_betas
from scoresde.ops import expand
from scoresde.sampling.stepper import Stepper
from scoresde.solvers.candidates import Candidate
from scoresde.solvers.named import by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["TableScheduler"]

MOST_INDICES = 10**6
KINDS: dict[str, Kind] = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "flow"}


class TableScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver, or a table, with the interface of diffusers' schedulers.

    ``num_inference_steps`` is the number of calls of the network. Timesteps are real numbers between the chain's
    indices where the solver's own grid has them there. Everything is in the configuration, so that a pipeline saves it.

    Args:
        solver: the solver's name; None with a table.
        table: a table as JSON; None with a solver.
        trained_betas: of the chain that the network was trained on; None for flow matching.
        prediction_type: "epsilon", "sample", "v_prediction" or, for flow matching, "flow_prediction".
        num_train_timesteps: indices that the network knows.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        solver: str | None = "dpmpp_2m",
        table: str | None = None,
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
    ) -> None:
        check_choice("prediction_type", prediction_type, KINDS)
        self.solver, self.kind, self.shift = solver, KINDS[prediction_type], float(trained_betas is not None)
        self.count = check_integer(num_train_timesteps, "num_train_timesteps", 1, MOST_INDICES)
        if trained_betas is not None and len(trained_betas) != self.count:
            raise ConfigError(
                f"trained_betas has {len(trained_betas)} numbers, and num_train_timesteps is {self.count}"
            )
        self.sde: GaussianSDE = RectifiedFlow() if trained_betas is None else sde_of_betas(trained_betas)
        self.fixed = None if table is None else Tableau.from_json(table)
        self.init_noise_sigma = 1.0
        self.stepper: Stepper | None = None
        self.timesteps = torch.arange(self.count - 1, -1, -1, dtype=torch.float32, device="cpu")

    def __len__(self) -> int:
        """Return the number of indices that the network knows."""
        return self.count

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **_: object) -> None:  # noqa: ANN401
        """Make the table of so many calls of the network."""
        table = self.fixed
        if table is None:
            steps = check_integer(num_inference_steps, "num_inference_steps", 1)
            known = by_name(str(self.solver))
            if not isinstance(known, Solver):
                raise ConfigError(f"{self.solver!r} is adaptive and has no table; take another, e.g. 'heun'")
            table = _build(Candidate(str(self.solver), known, None, math.inf), self.sde, steps)
        elif num_inference_steps not in (None, table.nfe):
            raise ConfigError(f"the table has {table.nfe} calls, got num_inference_steps={num_inference_steps}")
        if table.lift != (1.0, 0.0):
            raise ConfigError(f"{table.name!r} moves its start state before the first call, which pipelines do not")
        self.stepper = Stepper(table, predicts=self.kind)
        self.init_noise_sigma = table.prior_std
        self.num_inference_steps = table.nfe
        self.timesteps = self._number(table.points.t).to(device=device, dtype=torch.float32)

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """Return the sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: object,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **_: object,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Return the sample after the next step; the steps come in turn."""
        if self.stepper is None:
            raise ConfigError("call set_timesteps(num_inference_steps) first")
        if self.stepper.place in (0, len(self.stepper)):
            self.stepper.begin(sample)
        x = self.stepper(sample, model_output, generator=generator).to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return alpha x_0 + sigma z at these timesteps, (B,); DomainError for one that the chain does not have."""
        times = self.sde.check_time(self._time(timesteps.detach().double().cpu()), name="timesteps", zero=True)
        point = self.sde.at(times)
        alpha, sigma = (expand(c, original_samples) for c in (point.alpha, point.sigma))
        return alpha * original_samples + sigma * noise

    def _number(self, t: Tensor) -> Tensor:
        """Return what diffusers calls a time: n t for flow matching, n t - 1 for a chain."""
        return self.count * t - self.shift

    def _time(self, timesteps: Tensor) -> Tensor:
        return (timesteps + self.shift) / self.count


def _build(candidate: Candidate, sde: GaussianSDE, calls: int) -> Tableau:
    """Return the table of so many calls, or raise with the nearest numbers that there are tables of."""
    try:
        return candidate.build(sde, calls)
    except ConfigError as error:
        able = []
        for near in range(max(1, calls - 3), calls + 4):
            with contextlib.suppress(ScoreSDEError):
                able.append(str(candidate.build(sde, near).nfe))
        raise error.with_cure(
            f"those with tables near it: {', '.join(able)}" if able else "take another solver"
        ) from error
