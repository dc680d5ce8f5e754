"""What samplers are measured against where no data are named: the model's own flow, finely integrated.

Its samples say how well a sampler draws from the model, and nothing of how well the model knows the data. Two things
are measured. *flow_error*, for samplers without noise of their own, is the root mean square per coordinate between a
sample and where the flow takes the same start. The distances, for all samplers, are to as many samples of the flow from
other starts; their floor is what two such sets measure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from scoresde.cli.layouts import Kind
from scoresde.cli.options import is_interactive
from scoresde.cli.presets import PRESETS, Preset
from scoresde.cli.run_folder import RunFolder
from scoresde.cli.yardsticks import MEASURES, REPEATS, Measure, Yardstick
from scoresde.diffusions.sde import GaussianSDE
from scoresde.metrics.floors import Floor, floor
from scoresde.plots.curves import LABELS
from scoresde.sampling.sample import sample
from scoresde.sampling.samplers import Sampler
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.build import build_table

__all__ = ["FLOW_ERROR", "OWN_FLOW", "choose_preset", "draws_noise", "make_flow_yardstick"]

OWN_FLOW, FLOW_ERROR = "the model's own flow", "flow_error"
FINE = 1e-5  # a tenth of what the adaptive sampler takes
KINDS: Mapping[int, Kind] = {1: "vectors", 2: "series", 3: "images", 4: "volumes"}


def choose_preset(event: tuple[int, ...]) -> Preset:
    """Return what suits samples of a shape."""
    return PRESETS["points" if event == (2,) else KINDS.get(len(event), "vectors")]


def draws_noise(sampler: Sampler, sde: GaussianSDE) -> bool:
    """Return whether a sampler draws more than its start."""
    if isinstance(sampler.solver, ProbabilityFlow) or sampler.kernels:
        return bool(sampler.kernels)
    return build_table(sde, sampler.solver, steps=sampler.steps, final="denoise").stochastic


def make_flow_yardstick(run: RunFolder, count: int, *, seed: int, chunk_size: int | None) -> Yardstick:
    """Draw twice ``count`` samples of a model's flow, and return how samplers are judged by them.

    Args:
        run: the model.
        count: number of samples of each sampler.
        seed: of the samplers' noise: the first ``count`` samples start where theirs do.
        chunk_size: largest number of samples given to the network at once.
    """
    labels = run.make_labels(count)
    drawn = sample(
        run.model,
        (2 * count, *run.event),
        solver=ProbabilityFlow(rtol=FINE, atol=FINE),
        cond=None if labels is None else {name: torch.cat([rows, rows]) for name, rows in labels.items()},
        seed=seed,
        chunk_size=chunk_size,
        progress=is_interactive(),
    ).cpu()
    transform = run.model.transform

    def scaled(x: Tensor) -> Tensor:
        return (x.cpu() if transform is None else transform.forward(x.cpu())).float()

    every = scaled(drawn)
    same, others = every[:count], every[count:]
    measures = {one: MEASURES[one] for one in choose_preset(run.shape).metrics}

    def measure_error(x: Tensor) -> float:
        n = min(len(x), count)
        return float((scaled(x[:n]) - same[:n]).double().square().mean().sqrt())

    @functools.cache
    def floors(size: int) -> Mapping[str, Floor]:
        if size > count:
            return {}
        return {one: floor(measure, every, size, other=count, repeats=REPEATS) for one, measure in measures.items()}

    def against(measure: Measure) -> Callable[[Tensor], float]:
        return lambda x: measure(scaled(x), others)

    units = f"units of the {'samples' if transform is None else 'model'}"
    return Yardstick(
        held_out=drawn[count:],
        examples=drawn[:count],
        metrics={FLOW_ERROR: measure_error, **{one: against(measure) for one, measure in measures.items()}},
        floors=floors,
        labels={**LABELS, FLOW_ERROR: f"error to the flow (rms, {units})"},
        classes=None if run.classes is None else torch.arange(run.classes, device="cpu"),
        paired=(FLOW_ERROR,),
        reference=OWN_FLOW,
        notes=(
            f"no data: measured against {OWN_FLOW}, which knows nothing of the network's own errors; --data names some",
            f"{FLOW_ERROR}: root mean square per coordinate to where the flow takes the same noise, in {units}; "
            "samplers that draw noise on the way have none",
            f"distances to {count} samples of the flow from other noise; floor: those between two such sets",
        ),
    )
