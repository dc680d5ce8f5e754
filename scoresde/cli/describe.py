"""``scoresde describe``: say what a checkpoint, a diffusion, a sampler or a saved table is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from scoresde.cli.foreign import describe_foreign, open_foreign
from scoresde.cli.options import Command, OptionalInt, choose, show_choices, show_default
from scoresde.cli.presets import DIFFUSIONS, SDES
from scoresde.cli.run_folder import find_checkpoint, read_about
from scoresde.cli.sample import make_table
from scoresde.diffusions.named import sde_from_dict
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.names import unknown
from scoresde.errors.values import LARGEST_NUMBER
from scoresde.models import checkpoint, saving
from scoresde.models.manifest import MANIFEST
from scoresde.sampling.calibration import Calibration
from scoresde.sampling.samplers import COMPOSED, parse_sampler, read_table
from scoresde.sampling.stability import measure_excess
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.build import FINALS
from scoresde.solvers.named import SOLVERS, by_name
from scoresde.solvers.solver import Solver
from scoresde.solvers.tableau import Tableau
from scoresde.training.identity import RUN
from scoresde.training.log import LOG, read_records

__all__ = ["Describe"]

STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Describe(Command):
    """Say what something is: a trained model, a diffusion, a sampler, a saved table.

    Args:
        what: the folder of a run, of a saved model or of diffusers; the name of a diffusion (vp, VPSDE, ...); the name
            of a sampler (dpmpp_2m, or dpmpp_2m:5 with its steps), whose table is shown; or a .json file with a table.
        steps: number of steps of a sampler.
        sde: the diffusion that a sampler is for.
        final: what the last step of a sampler gives: clean data, a sample at the SDE's smallest time, or its mean.
        debug: show the traceback of an error.
    """

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER|NAME|FILE")]
    steps: Annotated[OptionalInt, show_default(f"{STEPS}")] = None
    sde: Annotated[str, show_choices(SDES)] = "vp"
    final: Annotated[str, show_choices(FINALS)] = "denoise"
    debug: bool = False

    def run(self) -> int:
        """Print it."""
        sde = choose("sde", self.sde, DIFFUSIONS).build()
        name = self.what.partition(":")[0]
        path = Path(self.what)
        if path.is_dir():
            lines = _describe_checkpoint(path)
        elif path.suffix.lower() == ".json":
            lines = _describe_table(read_table(path))
        else:
            # One word may name both.
            lines = [DIFFUSIONS[self.what].build().describe()] if self.what in DIFFUSIONS else []
            if name in SOLVERS or name in COMPOSED:
                lines += self._describe_sampler(name, sde)
            if not lines:
                known = {*DIFFUSIONS, *SOLVERS, *COMPOSED}
                error = unknown("thing to describe", self.what, known, parameter="what")
                raise error.with_cure(f"{error.cure}; or a folder, or a .json file")
        print("\n".join(lines))
        return 0

    def _describe_sampler(self, name: str, sde: GaussianSDE) -> list[str]:
        steps = self.steps
        if (
            steps is None
            and ":" not in self.what
            and not (name in SOLVERS and isinstance(by_name(name), ProbabilityFlow))
        ):
            steps = STEPS
        sampler = parse_sampler(self.what, sde, steps=steps)
        lines = [f"sampler      {sampler.name} under {sde}"]
        if isinstance(sampler.solver, Solver) and sampler.solver.paper:
            lines.append(f"source       {sampler.solver.paper}")
        if isinstance(sampler.solver, ProbabilityFlow):
            return [*lines, f"adaptive     {sampler.solver}: it chooses its own steps for each sample and has no table"]
        lines += [f"corrector    {kernel}, applied before each step" for kernel in sampler.kernels]
        choose("final", self.final, dict.fromkeys(FINALS))
        predictor = dataclasses.replace(sampler, kernels=())
        return [*lines, *_describe_table(make_table(predictor, sde, self.final))]


def _describe_table(table: Tableau) -> list[str]:
    orders = {kind: order for kind, order in dataclasses.asdict(table.order).items() if order is not None}
    said = ", ".join(f"{order:g} ({kind})" for kind, order in orders.items()) or "not declared"
    return [
        f"amplifies    a constant error in the data prediction {table.amplification():.3g} times",
        f"variance     {measure_excess(table, 1.0):.3g} times that of Gaussian data of variance 1",
        f"order        {said}",
        f"memory       {table.memory} earlier predictions",
        f"ends at      t = {table.end.t:g}, alpha = {table.end.alpha:g}, sigma = {table.end.sigma:g}",
        f"table        {table}",
    ]


def _describe_checkpoint(path: Path) -> list[str]:
    if not (checkpoint.find(path) / MANIFEST).is_file() and (foreign := open_foreign(path)) is not None:
        return describe_foreign(path, foreign)
    folder = find_checkpoint(path)
    contents = checkpoint.read(folder)
    model = contents.document("model")
    run, about = read_about(folder)
    weights = contents.stored("weights")
    network = model["network"]
    config = ", ".join(f"{key}={value}" for key, value in (network["config"] or {}).items())
    types = sorted({str(one).removeprefix("torch.") for one in {dtype for _, dtype in weights.described.values()}})
    trained, current = (None if one is None else _describe_sde(one) for one in (model["trained_sde"], model["sde"]))
    lines = [
        f"checkpoint   {folder}/",
        f"network      {network['kind']}({config})" + ("" if network["config"] else ", your own"),
        f"weights      {weights.elements} in {len(weights.described)} tensors of {', '.join(types)}"
        + (", raw and averaged" if "ema" in contents.parts else ""),
        f"sde          {trained}" + (f", in use {current}" if current else ""),
        f"predicts     {model['predicts']}, sigma_data {model['sigma_data']}, conditioned on {model['condition_on']}",
        f"transform    {json.dumps(model['transform']) if model['transform'] else 'none'}",
        f"moments      {_describe_moments(contents)}",
    ]
    lines += [
        f"classes      {name}: {len(names)}, {', '.join(names)}"
        for name, names in (model.get("class_names") or {}).items()
    ]
    if "tables" in contents.documents:
        counts = sorted(int(steps) for steps in contents.document("tables"))
        lines.append(f"tuned        {', '.join(map(str, counts))} evaluations")
    if "calibration" in contents.documents:
        found = Calibration.from_json(json.dumps(contents.document("calibration")))
        lines += [f"calibrated   {r.steps} evaluations: {found.candidate(r.steps)}" for r in found.rungs[:1]]
        lines += [f"             {r.steps}: {found.candidate(r.steps)}" for r in found.rungs[1:]]
    if "training" in contents.documents:
        state = contents.document("training")
        told = {key: value for key, value in state.items() if not isinstance(value, dict)}
        lines.append(f"training     {', '.join(f'{key} {value}' for key, value in told.items())}")
        best = state.get("best", {})
        if best.get("loss") is not None:
            lines.append(f"best         step {best['step']}, held-out loss {best['loss']:.4g}")
    if RUN in contents.documents:
        kept = contents.document(RUN)
        lines.append(f"trained on   {kept['identity']['data']}")
        lines += [
            f"changed      at step {one['step']}, {name} was {value}"
            for one in kept["changes"]
            for name, value in one["was"].items()
        ]
    last: Mapping[str, Any] = next(reversed(read_records(run / LOG)), {})
    every = {key: value for key, value in last.items() if isinstance(value, int | float)}
    numbers = {key: value for key, value in every.items() if abs(value) < LARGEST_NUMBER}
    if numbers:
        lines.append(f"last record  {', '.join(f'{key} {value:.4g}' for key, value in numbers.items())}")
    options = about.get("options")
    if isinstance(options, dict):
        given = {key: value for key, value in options.items() if value is not None}
        lines.append(f"options      {', '.join(f'{key} {value}' for key, value in given.items())}")
    return lines


def _describe_sde(document: Mapping[str, Any]) -> str:
    return f"{document['class']}, your own" if document["kind"] is None else str(sde_from_dict(dict(document)))


def _describe_moments(contents: checkpoint.Contents) -> str:
    moments = saving.load_moments(contents)
    if moments is None:
        return "none: the shape of a sample is not known"
    mean, total = moments.mean, float(moments.variance.sum())
    kind = "one variance a coordinate" if moments.basis is None else "full covariance"
    return (
        f"samples of shape {tuple(mean.shape)}; mean {float(mean.min()):.3g} to {float(mean.max()):.3g}, standard "
        f"deviation {math.sqrt(total / max(1, mean.numel())):.3g} (root mean square), in the model's units; {kind}"
    )
