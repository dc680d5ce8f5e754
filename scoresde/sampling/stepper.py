"""A table step by step, for who owns the loop."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import TARGETS, Kind, target, unknown_kind, view
from scoresde.errors.kinds import ConfigError, DTypeError, ShapeError, SolverError, printable, show
from scoresde.errors.names import is_name
from scoresde.errors.tensors import check_floating
from scoresde.noise import GeneratorNoise, NoiseSource, SampleNoise, check_seed, fresh_seed
from scoresde.sampling.executor import Run
from scoresde.solvers.rows import Knot
from scoresde.solvers.tableau import Tableau

__all__ = ["Stepper"]


class Stepper:
    """A table in a loop of one's own: it says what the network is asked, and takes what it answers.

        stepper = Stepper(build_table(VPSDE(), "dpmpp_2m", steps=20), predicts="noise")
        x = stepper.start(z)
        for at in stepper:  # at.t, at.alpha, at.sigma
            x = stepper(x, net(x, at.t))

    It is the loop of ``sample``: the same sums in the same order. x may be changed between the steps, in a new tensor;
    every step returns a new one, with the graph where gradients are recorded. A second loop starts anew.

    Args:
        table: the sampler.
        predicts: what the network answers, read literally: "noise", "data", "v", "score", "flow" or "velocity".
        sde: whose velocity it is, for that alone.
        seed: of the draws of a stochastic table; None draws one.

    Raises:
        DTypeError: no table. ConfigError: an unknown prediction, a velocity without its SDE, a table with a learned
            variance. DomainError: a prediction that says nothing at a point of the table, or a seed out of range.
    """

    def __init__(
        self, table: Tableau, *, predicts: Kind = "noise", sde: GaussianSDE | None = None, seed: int | None = None
    ) -> None:
        if not isinstance(table, Tableau):
            raise DTypeError(
                f"table must be a Tableau, e.g. build_table(VPSDE(), 'dpmpp_2m', steps=20), got {show(table)}"
            )
        if table.spread:
            raise ConfigError(f"{table.name!r} takes its variance from the network; use it with variance='small'")
        points = table.points
        if not is_name(predicts, TARGETS):
            raise unknown_kind("prediction", predicts, TARGETS)
        if predicts == "velocity":
            if sde is None:
                raise ConfigError("a velocity is of an SDE's time; pass sde=, or predicts='flow' for z - x_0")
            points = sde.at(points.t)
        a, b = view(target(predicts, points), target(table.prediction, points), points, f"the table {table.name!r}")
        self.weights = tuple(a.tolist()), tuple(b.tolist())
        self.table = table
        self.seed = fresh_seed() if seed is None else check_seed(seed)
        self.place = 0
        self._run: Run | None = None

    def __len__(self) -> int:
        """Return the number of calls of the network."""
        return len(self.table.rows)

    def __repr__(self) -> str:
        return f"<Stepper {printable(self.table.name)}: {self.place} of {len(self)} calls made>"

    def __iter__(self) -> Iterator[Knot]:
        """Yield where the network is asked next, until the table ends."""
        while self.place < len(self):
            place = self.place
            yield self.table.rows[place].at
            if self.place == place:
                raise SolverError("the stepper was not called since it said where to ask: x = stepper(x, output)")

    def start(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the first state that the network sees, from standard normal z (B, *); any loop before is forgotten."""
        x = check_floating(z, "z") * self.table.prior_std
        return self.begin(x, generator=generator)

    def begin(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the first state that the network sees, from the table's start state x (B, *)."""
        wide = check_floating(x, "x").to(torch.promote_types(x.dtype, torch.float32)).clone()
        source: NoiseSource = self._draws() if generator is None else GeneratorNoise(generator)
        self.place = 0
        self._run = Run(self.table, self.weights, wide, source, differentiable=True)
        first = self._run.stages[0].x if len(self) else self._run.result
        return self._run.buffers[first]

    def _draws(self) -> SampleNoise:
        """Return the seed's draws behind the first, which is that of the start state in ``sample``."""
        source = SampleNoise(self.seed)
        source.rewind(1)
        return source

    def __call__(self, x: Tensor, output: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the state after this step, (B, *), given the network's output at x.

        Args:
            x: the state that the network saw.
            output: of x's shape.
            generator: source of this step's draw, in the place of the seed.

        Raises:
            SolverError: it was not started, or the table has ended. DTypeError: what is no tensor. ShapeError: output
                of another shape.
        """
        run = self._run
        if run is None:
            raise SolverError("the stepper was not started: x = stepper.start(z)")
        if self.place == len(self):
            raise SolverError(
                f"{self.table.name!r} has ended after {len(self)} calls; begin again with stepper.start(z)"
            )
        for name, value in (("x", x), ("output", output)):
            if not isinstance(value, Tensor):
                raise DTypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if output.shape != x.shape:
            raise ShapeError(f"output must have the shape {tuple(x.shape)} of x, got {tuple(output.shape)}")
        if generator is not None:
            run.noise = GeneratorNoise(generator)
        stage = run.stages[self.place]
        run.buffers[stage.x] = x
        run.advance(stage, output)
        self.place += 1
        return run.buffers[stage.new]
