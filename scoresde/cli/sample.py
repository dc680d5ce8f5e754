"""``scoresde sample``: draw samples from a trained model."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import torch
import tyro

from scoresde.cli.options import (
    NAMES,
    Int,
    OptionalFloat,
    OptionalInt,
    Work,
    find_device,
    is_interactive,
    show_choices,
    show_default,
)
from scoresde.cli.pictures import ANIMATIONS, ARRAYS, ENDINGS, check_drawable, write_samples, write_whole
from scoresde.cli.run_folder import RunFolder, check_file, open_run
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.data.arrays import arrays_from_file
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors import ConfigError, check_integer, printable, unknown
from scoresde.models.guidance.combine import guided
from scoresde.models.prediction import Condition, Predictor, select
from scoresde.models.score_model import ScoreModel
from scoresde.nn.unet import UNet
from scoresde.noise import check_seed
from scoresde.plots.style import use_style
from scoresde.sampling.part import Ending
from scoresde.sampling.sample import SampleResult, sample
from scoresde.sampling.samplers import COMPOSED, USUAL, Sampler, parse_sampler
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.build import FINALS, build_table
from scoresde.solvers.named import DEFAULT
from scoresde.solvers.tableau import Tableau

__all__ = ["Sample", "make_table"]

CHUNK = 512


def _name_usual_steps() -> str:
    """Return the numbers of steps of samplers that are given none, in words."""
    return ", ".join(["20", *(f"{steps} for {name}" for name, (_, steps) in COMPOSED.items())])


@dataclass(frozen=True, kw_only=True)
class Sample(Work):
    """Draw samples from a trained model: a picture, an animation, or arrays.

    Sample k depends on the seed and k alone, whatever the number of samples and the chunks. Ctrl-C writes the chunks
    that are done.

    Args:
        checkpoint: folder of a run, or of a saved model.
        n: number of samples.
        size: side in pixels of the images, another than in the training, which a U-Net can draw; they start from noise
            without the moments of the data.
        solver: sampler, or a table from a file; names as below.
        steps: number of steps, instead of ":STEPS" behind the sampler's name.
        final: what the last step gives: clean data, a sample at the SDE's smallest time, or the mean of that one.
        seed: of the noise, in [0, 2^64).
        label: name of the class of every sample, for conditional models; by default the classes come in turn.
        context: what a model trained with contexts is told: numbers with commas between them for all samples, or a
            file with a row for each (.npy, .npz); by default nothing.
        guidance: scale of classifier-free guidance, for conditional models; 1 is the model itself, more leads away from
            what is likely without the class.
        out: file: a picture (.png, .svg, .pdf), an animation of the way from noise (.gif), or the samples in the
            data's units as an array (.npy), or as "samples" with "labels" (.npz).
        save_table: file (.json) for the sampler as a table of numbers, which the solver option reads.
        chunk_size: number of samples given to the network at once.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    n: Int = 64
    size: Annotated[OptionalInt, show_default("as in the training")] = None
    solver: Annotated[
        str, tyro.conf.arg(metavar="NAME:STEPS|FILE", help=f"sampler, with its number of steps. {NAMES}")
    ] = USUAL
    steps: Annotated[OptionalInt, show_default(_name_usual_steps())] = None
    final: Annotated[str | None, show_choices(FINALS), show_default("denoise; a table from a file ends as it is")] = (
        None
    )
    seed: Int = 0
    label: Annotated[str | None, tyro.conf.arg(metavar="NAME"), show_default("")] = None
    context: Annotated[str | None, tyro.conf.arg(metavar="NUMBERS|FILE"), show_default("")] = None
    guidance: Annotated[OptionalFloat, show_default("none")] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("samples.png")
    save_table: Annotated[Path | None, tyro.conf.arg(metavar="FILE"), show_default("")] = None
    chunk_size: Int = CHUNK

    def run(self) -> int:
        """Draw and write."""
        check_integer(self.n, "n", 1)
        check_integer(self.chunk_size, "chunk_size", 1)
        check_seed(self.seed)
        ending = self.out.suffix.lower()
        if ending not in ENDINGS:
            raise unknown("ending of --out", self.out.suffix, ENDINGS, parameter="out")
        check_file("out", self.out)
        if self.save_table is not None:
            if self.save_table.suffix.lower() != ".json":
                raise unknown("ending of --save-table", self.save_table.suffix, [".json"], parameter="save_table")
            check_file("save_table", self.save_table)
        if ending not in ARRAYS:
            with use_style():  # says what to do where matplotlib is missing
                pass
        run = open_run(self.checkpoint, find_device(self.device))
        event = self._size_event(run)
        if ending not in ARRAYS:
            check_drawable(event)
        sampler = self._read_sampler(run.model)
        final = _choose_final(self.final, sampler)
        labels = self._read_conditions(run)
        model = self._guide(run)
        if self.save_table is not None:
            table = make_table(sampler, run.model.sde, final)
            write_whole(self.save_table, lambda file: file.write_text(table.to_json() + "\n", encoding="utf-8"))
        parts: list[SampleResult] = []
        started = time.perf_counter()
        try:
            with use_threads(choose_threads(self.threads, run.model.net)):
                while (done := sum(len(part.x) for part in parts)) < self.n:
                    if done and not is_interactive():
                        print(f"sampling     {done} of {self.n}", file=sys.stderr, flush=True)
                    parts.append(self._draw(model, event, sampler, final, labels, done))
        except KeyboardInterrupt as stop:
            if not parts:
                raise
            self._write(run, sampler, final, parts, labels)
            done = sum(len(part.x) for part in parts)
            raise KeyboardInterrupt(f"{done} of {self.n} samples are in {self.out}") from stop
        took = time.perf_counter() - started
        self._write(run, sampler, final, parts, labels)
        cost = torch.cat([part.nfe for part in parts]).double().mean()
        evaluations = f"{float(cost):.4g} evaluations each, {took:.1f} seconds"
        name = sampler.solver.name if sampler.name == USUAL and isinstance(sampler.solver, Tableau) else sampler.name
        print(f"wrote {self.out}: {self.n} samples by {printable(name)}, {evaluations}")
        return 0

    def _size_event(self, run: RunFolder) -> torch.Size:
        """Return the shape of a sample: that of the training, or images of another size."""
        if self.size is None:
            return run.event
        side = check_integer(self.size, "size", 1)
        if len(run.event) != 3 or not isinstance(run.model.net, UNet):
            raise ConfigError(
                f"--size is for images of a U-Net, {run.folder} holds a {type(run.model.net).__name__} for samples of "
                f"shape {tuple(run.event)}; leave it out",
                parameter="size",
            )
        return torch.Size((run.event[0], side, side))

    def _read_sampler(self, model: ScoreModel) -> Sampler:
        # What is calibrated ends in clean data.
        name = DEFAULT if self.solver == USUAL and self.final not in (None, "denoise") else self.solver
        sampler = parse_sampler(name, model.sde, steps=self.steps, model=model)
        if sampler.samples is not None:
            raise ConfigError(
                f"--solver {self.solver!r}: the number of samples is --n here; leave out the @", parameter="solver"
            )
        if isinstance(sampler.solver, ProbabilityFlow) and self.out.suffix.lower() in ANIMATIONS:
            raise ConfigError(
                f"--out {self.out} shows the states of a solver with steps, and {sampler.name} is adaptive; take "
                "another, e.g. --solver heun:20",
                parameter="out",
            )
        return sampler

    def _read_conditions(self, run: RunFolder) -> Condition:
        """Return the labels and the contexts of the samples."""
        cond = run.make_labels(self.n, self.label) or {}
        if self.context is None:
            return cond or None
        if not run.features:
            raise ConfigError(
                f"--context {self.context}: {run.folder} was trained without",
                parameter="context",
                got=self.context,
                cure="train with --context",
            )
        try:
            rows = torch.tensor([[float(part) for part in self.context.split(",")]], device="cpu").expand(self.n, -1)
        except ValueError:
            path, colon, key = self.context.rpartition(":")
            file, name = (path, key) if colon and Path(path).suffix else (self.context, None)
            rows = arrays_from_file(file, name, missing=True).float()
            rows = rows[:, None] if rows.ndim == 1 else rows
        if rows.shape != (self.n, run.features):
            raise ConfigError(
                f"--context {self.context} must hold {run.features} numbers, or as many for each of {self.n} samples, "
                f"got shape {tuple(rows.shape)}",
                parameter="context",
            )
        return {**cond, "context": rows}

    def _guide(self, run: RunFolder) -> Predictor:
        """Return the model, under guidance where it is asked for."""
        if self.guidance is None:
            return run.model
        if run.classes is None and (not run.features or self.context is None):
            raise ConfigError(
                f"--guidance leads to a class or a context, and {run.folder} is told none",
                parameter="guidance",
                got=self.guidance,
                cure="train with --conditional",
            )
        return guided(run.model, self.guidance)

    def _draw(
        self, model: Predictor, event: Sequence[int], sampler: Sampler, final: str, labels: Condition, first: int
    ) -> SampleResult:
        """Draw the next samples, of which ``first`` is the first."""
        size = min(self.chunk_size, self.n - first)
        return sample(
            model,
            (size, *event),
            solver=sampler.solver,
            steps=sampler.steps,
            final=cast(Ending, final),
            kernels=sampler.kernels,
            prior=None if self.size is None else model.sde.prior(),
            cond=select(labels, slice(first, first + size)),
            seed=self.seed,
            first_sample=first,
            trajectory=self.out.suffix.lower() in ANIMATIONS,
            progress=is_interactive(),
            full_output=True,
        )

    def _write(
        self, run: RunFolder, sampler: Sampler, final: str, parts: list[SampleResult], labels: Condition
    ) -> None:
        x = torch.cat([part.x for part in parts]).cpu()
        states = [part.trajectory for part in parts if part.trajectory is not None]
        table = None
        if states and not isinstance(sampler.solver, ProbabilityFlow):
            table = build_table(run.model.sde, sampler.solver, steps=sampler.steps, final=final)
        write_samples(
            run,
            x,
            self.out,
            labels=None if labels is None or "label" not in labels else labels["label"][: len(x)],
            in_turn=self.label is None,
            states=torch.cat(states, 1) if states else None,
            table=table,
        )


def _choose_final(final: str | None, sampler: Sampler) -> str:
    """Return how sampling ends: as asked; else in clean data, and a table from a file where it ends."""
    if final is not None and final not in FINALS:
        raise unknown("final", final, FINALS)
    return final or ("sample" if isinstance(sampler.solver, Tableau) else "denoise")


def make_table(sampler: Sampler, sde: GaussianSDE, final: str) -> Tableau:
    """Return the table that a sampler runs.

    Raises:
        ConfigError: it is adaptive, or has correctors, which no table holds.
    """
    if isinstance(sampler.solver, ProbabilityFlow):
        raise ConfigError(
            f"{sampler.name} is adaptive and has no table; take a solver with steps, e.g. heun:20", parameter="solver"
        )
    if sampler.kernels:
        raise ConfigError(
            f"{sampler.name} has correctors that depend on the state, which no table holds", parameter="solver"
        )
    return build_table(sde, sampler.solver, steps=sampler.steps, final=final)
