"""A sampler as a module: straight-line code that ``torch.export`` takes whole.

A table's weights, and all that a model's readout needs of its points, are numbers before the loop starts. What is left
of a deterministic sampler is calls of the network and sums with constant weights, from the start state to the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Gaussian
from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.values import check_dtype, check_sizes
from scoresde.models.checks import check_event, check_model
from scoresde.models.prediction import Condition, Predictor, check_condition
from scoresde.noise import TapeNoise
from scoresde.sampling.executor import execute
from scoresde.sampling.part import Ending
from scoresde.sampling.samplers import find_default
from scoresde.solvers.build import build_table
from scoresde.solvers.grids import Grid
from scoresde.solvers.named import SolverName
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau

__all__ = ["SamplingModule"]


class SamplingModule(nn.Module):
    """A deterministic sampler of a model at a fixed shape: ``module(z)`` carries standard normal z to samples.

    It gives what ``sample`` gives from the start state that belongs to z, without its checks of what is finite.
    ``torch.export.export(module, (z,))`` makes of it a program that needs no scoresde; ``torch.compile`` takes it too.

    Args:
        model: the model; its network is put into evaluation mode here.
        shape: (B, *) of z and of the samples.
        solver: a name, a Solver or a built Tableau that draws no noise; by default as in ``sample``.
        steps: number of intervals, as in ``sample``.
        times: as in ``sample``.
        final: as in ``sample``.
        cond: conditions of the batch, fixed.
        dtype: of z and of the samples, float32 or float64.

    Raises:
        ConfigError: a table that draws noise. DTypeError, ShapeError, DomainError: as ``sample``.
    """

    def __init__(
        self,
        model: Predictor,
        shape: Sequence[int],
        *,
        solver: SolverName | Solver | Tableau | None = None,
        steps: int | None = None,
        times: Tensor | Grid | None = None,
        final: Ending = "denoise",
        cond: Condition = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model = check_model(model).eval()
        sde = self.model.sde
        self.table = (
            find_default(self.model).table(sde, steps, times, final)
            if solver is None
            else build_table(sde, solver, steps=steps, times=times, final=final)
        )
        if self.table.stochastic:
            raise ConfigError(f"{self.table.name!r} draws noise, and a module has none; use a deterministic solver")
        sizes = check_sizes(shape, "shape")
        check_dtype(dtype)
        check_event(self.model.moments, sizes, "shape")
        self.shape = tuple(sizes)
        like = torch.empty(self.shape, dtype=dtype, device=self.model.device or "cpu")
        self._prepared = self.model.prepare(self.table.points, like, check_condition(cond, self.shape[0], like.device))
        self._prepared.weights(self.table.prediction)
        self._start: Gaussian | None = None
        if self.model.moments is not None:
            law = self.model.moments.at(self.table.start.alpha, self.table.start.sigma)
            # In place where the states will be: a captured graph may copy nothing from the CPU.
            basis = None if law.basis is None else law.basis.to(like.device)
            self._start = Gaussian(law.mean.to(like.device), law.variance.to(like.device), basis)

    def forward(self, z: Tensor) -> Tensor:
        """Return samples in the data's units, of z's shape (B, *) but for what the model's transform changes."""
        if z.shape != self.shape:
            raise ShapeError(f"z must have the shape {self.shape} that the module was made for, got {tuple(z.shape)}")
        x = z * self.table.prior_std if self._start is None else self._start.from_noise(z)
        out = execute(self.table, self._prepared, x, TapeNoise(()), differentiable=True)
        return out if self.model.transform is None else self.model.transform.inverse(out)
