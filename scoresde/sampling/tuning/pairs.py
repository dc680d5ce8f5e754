"""What tables are judged by: start states, and where the model's own flow takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import check_callable, check_mapping, check_sizes
from scoresde.models.prediction import Condition, Predictor, select
from scoresde.noise import SampleNoise, integers, stream
from scoresde.ops import chunks, flat
from scoresde.sampling.executor import execute
from scoresde.sampling.sample import sample
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.tableau import Tableau

__all__ = ["Conditions", "Errors", "Pairs", "draw_starts", "make_pairs"]

Conditions = Callable[[int], Mapping[str, Tensor]]
"""Number of samples -> their conditions."""


@dataclass(frozen=True)
class Errors:
    """Root mean squares per coordinate: over all samples, and the median over the samples of the same of one."""

    rms: float
    median: float

    @classmethod
    def of(cls, each: Tensor) -> Errors:
        """Return both of the samples' own root mean squares (B,)."""
        return cls(float(each.square().mean().sqrt()), float(each.median()))

    def below(self, other: Errors) -> bool:
        """Say whether neither is larger than the other's."""
        return self.rms <= other.rms and self.median <= other.median

    @property
    def product(self) -> float:
        """Rms times median, which ranks by both; infinite where one is no number."""
        value = self.rms * self.median
        return value if value == value else float("inf")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Start states in units of r, (B, *), where the flow takes them, and their conditions."""

    start: Tensor
    end: Tensor
    cond: Condition

    def __len__(self) -> int:
        return len(self.start)

    def parts(self, size: int) -> Iterator[Pairs]:
        """Yield parts of at most ``size`` samples."""
        for part in chunks(len(self), size):
            yield Pairs(self.start[part], self.end[part], select(self.cond, part))

    def first(self, count: int) -> Pairs:
        """Return the first ``count`` of them."""
        return next(self.parts(count))

    def measure(self, x: Tensor) -> Tensor:
        """Return each sample's root mean square error (B,), in float64 on the CPU."""
        return flat(x.double() - self.end.double()).square().mean(1).sqrt().cpu()

    @torch.no_grad()
    def run(self, model: Predictor, table: Tableau, size: int, seed: int = 0) -> Tensor:
        """Return what a table makes of the start states, (B, *)."""
        scale = float(table.start.point().r)
        noise, done = [], 0
        for part in self.parts(size):
            source = SampleNoise(seed, done)
            x = scale * part.start
            noise.append(execute(table, model.prepare(table.points, x, part.cond), x, source))
            done += len(part)
        return torch.cat(noise)


def make_pairs(
    model: Predictor,
    count: int,
    *key: int | str,
    event: tuple[int, ...] | None,
    cond: Conditions | None,
    tolerance: float,
    size: int,
) -> tuple[Pairs, int]:
    """Return pairs of a model's flow in its own coordinates, and the evaluations that they cost, each sample's counted.

    Args:
        model: the model; it keeps its transform to itself.
        count: how many.
        key: names the noise.
        event: the shape of one sample; None for that of the moments.
        cond: what gives the conditions.
        tolerance: of the flow, relative and absolute.
        size: largest batch given to the network at once.

    Raises ConfigError where no shape is known.
    """
    x, told = draw_starts(model, count, *key, event=event, cond=cond)
    out = sample(
        model,
        x_init=x,
        solver=ProbabilityFlow(rtol=tolerance, atol=tolerance),
        cond=told,
        chunk_size=size,
        full_output=True,
    )
    scale = float(model.sde.at(torch.tensor(model.sde.t_max, dtype=torch.float64, device="cpu")).r)
    return Pairs(x / scale, out.x, told), int(out.nfe.sum())


def draw_starts(
    model: Predictor, count: int, *key: int | str, event: tuple[int, ...] | None, cond: Conditions | None
) -> tuple[Tensor, Condition]:
    """Return start states from the prior, (count, *event), and their conditions; see ``make_pairs``."""
    if event is None and model.moments is None:
        raise ConfigError("the model knows no moments, so no event; pass event=, the shape of one sample")
    own = () if model.moments is None else tuple(model.moments.mean.shape)
    shape = own if event is None else check_sizes(event, "event", 1)
    check_callable(cond, "cond", "of a number of samples")
    z = torch.empty((count, *shape), dtype=torch.float32, device=model.device or "cpu")
    SampleNoise(int(integers(2**31, (1,), stream(0, *key)))).fill(z)
    told = (
        None
        if cond is None
        else {name: value.to(z.device) for name, value in check_mapping(cond(count), "cond(n)", "tensors").items()}
    )
    return model.sde.prior(None, model.moments).from_noise(z), told
