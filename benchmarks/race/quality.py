"""Part 1 of the race: error against evaluations, of every configuration of every library, on the same noises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from peers import SDE, Ask, Configuration
from torch import Tensor
from tqdm import tqdm

from scoresde import GaussianMixtureModel, ProbabilityFlow, calibrate, sample, select, tune
from scoresde.errors import ScoreSDEError
from scoresde.metrics import sliced_wasserstein
from scoresde.models.prediction import Predictor
from scoresde.noise import normal, stream
from scoresde.ops import flat

BUDGETS = (3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
TUNED, SELECTED = 10, 30  # most evaluations for which a table is tuned, and selected
WORST = 1e6  # an error above it is one: the run exploded

Method = Callable[[Tensor, int], Tensor | None]


@dataclass(frozen=True)
class Row:
    """What one way made of one target.

    Args:
        target: its name.
        who: the library, or "scoresde".
        name: the configuration.
        calls: evaluations of the model.
        rms: root mean square error a coordinate, over all samples; NaN with noise.
        median: the median over the samples of the same of one.
        sw2: sliced Wasserstein-2 distance to independent exact samples.
        usual: whether it is its library's default.
        why: why there is no figure.
    """

    target: str
    who: str
    name: str
    calls: int
    rms: float = math.nan
    median: float = math.nan
    sw2: float = math.nan
    usual: bool = False
    why: str = ""


class Target:
    """A model, start states of the race's own, where its flow takes them, and independent exact samples.

    Args:
        name: of the target.
        model: under VPSDE.
        samples: how many.
    """

    def __init__(self, name: str, model: Predictor, samples: int) -> None:
        self.name, self.model = name, model.in_its_own_coordinates().eval()
        self.network = not isinstance(model, GaussianMixtureModel)
        assert self.model.moments is not None
        shape = (samples, *self.model.moments.mean.shape)
        self.z, other, again = (normal(shape, stream(2026, "race", name, k)) for k in range(3))
        self.exact = self._follow(self.z)
        self.fresh = self._draw(other)
        self.floor = sliced_wasserstein(flat(self._draw(again)), flat(self.fresh))

    def _follow(self, z: Tensor) -> Tensor:
        # A network's own rounding is the limit.
        tolerance, dtype = (1e-6, torch.float32) if self.network else (1e-9, torch.float64)
        solver = ProbabilityFlow(rtol=tolerance, atol=tolerance)
        return sample(self.model, x_init=z.to(dtype), solver=solver, dtype=dtype, chunk_size=500).double()

    def _draw(self, z: Tensor) -> Tensor:
        return self._follow(z).float()

    def measure(self, who: str, name: str, calls: int, x: Tensor, *, noise: bool, usual: bool = False) -> Row:
        """Return what a result is worth."""
        sw2 = math.inf if not bool(torch.isfinite(x).all()) else sliced_wasserstein(flat(x.float()), flat(self.fresh))
        if noise:
            return Row(self.name, who, name, calls, sw2=sw2, usual=usual)
        each = flat(x.double() - self.exact).square().mean(1)
        each = torch.where(torch.isfinite(each), each, WORST**2).clamp_max(WORST**2)
        rms, median = float(each.mean().sqrt()), float(each.sqrt().median())
        return Row(self.name, who, name, calls, rms, median, sw2, usual)


@torch.no_grad()
def run_peer(target: Target, one: Configuration, calls: int) -> Row:
    """Run a configuration; what it cannot do is said in the row."""
    ask = Ask(target.model)
    torch.manual_seed(0)
    try:
        x = one.run(ask, target.z.double(), calls)
    except Exception as error:
        return Row(target.name, one.library, one.name, calls, why=f"{type(error).__name__}: {error}"[:200])
    if x is None:
        return Row(target.name, one.library, one.name, calls, why="has no run of so many evaluations")
    if ask.calls != calls:
        return Row(target.name, one.library, one.name, calls, why=f"asked {ask.calls} times")
    return target.measure(one.library, one.name, calls, x, noise=one.noise, usual=one.usual)


def run_ours(target: Target, budgets: Sequence[int]) -> Iterable[tuple[Row, float]]:
    """Yield our rows, with the seconds that making the table took."""
    model = target.model

    def draw(name: str, calls: int, seconds: float = 0.0, **options: object) -> tuple[Row, float]:
        x = sample(model, x_init=target.z if target.network else target.z.double(), **options)
        return target.measure("scoresde", name, calls, x, noise=False, usual=name == "default"), seconds

    model.calibration = None
    for calls in budgets:
        yield draw("flow_abm", calls, solver="flow_abm", steps=calls)
        yield draw("default, not calibrated", calls, steps=calls)
    started = time.perf_counter()
    calibrate(model)
    took = time.perf_counter() - started
    for calls in budgets:
        yield draw("default", calls, took, steps=calls)
        if calls <= SELECTED:
            started = time.perf_counter()
            found = select(model, calls)
            yield draw("select", calls, time.perf_counter() - started, solver=found)
        if calls <= TUNED:
            started = time.perf_counter()
            table = tune(model, calls, keep=False).table
            yield draw("tune", calls, time.perf_counter() - started, solver=table, final="sample")


def race(
    target: Target, configurations: Sequence[Configuration], budgets: Sequence[int]
) -> tuple[list[Row], list[dict[str, object]]]:
    """Return the rows of everyone on a target, and what our tables cost."""
    rows: list[Row] = []
    costs: list[dict[str, object]] = []
    for row, seconds in tqdm(run_ours(target, budgets), desc=f"{target.name}: scoresde", unit="run"):
        rows.append(row)
        if seconds:
            costs.append({"target": row.target, "name": row.name, "calls": row.calls, "seconds": seconds})
    for one in tqdm(configurations, desc=f"{target.name}: peers", unit="configuration"):
        rows += [run_peer(target, one, calls) for calls in budgets]
    return rows, costs


def check_start(target: Target) -> None:
    """Raise where our own start is not the peers': z itself, at the top of VPSDE."""
    if repr(target.model.sde) != repr(SDE):
        raise ScoreSDEError(f"the race is under {SDE!r}, {target.name} under {target.model.sde!r}")
