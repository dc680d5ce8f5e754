"""``scoresde sample``: draw samples from a trained model."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import torch
import tyro
from torch import Tensor

from scoresde.cli.files import LABELS
from scoresde.cli.foreign import find_network
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
from scoresde.cli.run_folder import RunFolder, check_file, check_folder, open_run, shape_of_data
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.data.arrays import arrays_from_file
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, printable
from scoresde.errors.names import unknown
from scoresde.errors.values import check_integer
from scoresde.models.guidance.combine import guided
from scoresde.models.prediction import Condition, Predictor, select
from scoresde.models.score_model import ScoreModel
from scoresde.nn.unet import UNet
from scoresde.noise import check_seed
from scoresde.plots.style import use_style
from scoresde.sampling.part import Ending
from scoresde.sampling.processes import World, processes
from scoresde.sampling.sample import SampleResult, sample
from scoresde.sampling.samplers import COMPOSED, USUAL, Sampler, parse_sampler
from scoresde.sampling.shards import SAMPLES, read_shards, write_shards
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.solvers.build import FINALS, build_table
from scoresde.solvers.named import DEFAULT
from scoresde.solvers.tableau import Tableau

__all__ = ["Sample", "make_table"]

CHUNK = 512
Draw = Callable[[int, int], SampleResult]


def _name_usual_steps() -> str:
    """Return the numbers of steps of samplers that are given none, in words."""
    return ", ".join(["20", *(f"{steps} for {name}" for name, (_, steps) in COMPOSED.items())])


@dataclass(frozen=True, kw_only=True)
class Sample(Work):
    """Draw samples from a trained model: a picture, an animation, or arrays.

    Sample k depends on the seed and k alone, whatever the number of samples, the chunks and the processes: under
    torchrun each process draws its share. Ctrl-C in a single one writes the chunks that are done.

    Args:
        checkpoint: folder of a run, of a saved model, or of a pipeline of diffusers.
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
            data's units as an array (.npy), or as "samples" with "labels" (.npz). Without an ending a folder, in which
            each process writes the samples that it draws: they may be more than the memory holds.
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
        if ending and ending not in ENDINGS:
            raise unknown("ending of --out", self.out.suffix, ENDINGS, parameter="out")
        (check_file if ending else check_folder)("out", self.out)
        if self.save_table is not None:
            if self.save_table.suffix.lower() != ".json":
                raise unknown("ending of --save-table", self.save_table.suffix, [".json"], parameter="save_table")
            check_file("save_table", self.save_table)
        if ending and ending not in ARRAYS:
            with use_style():  # says what to do where matplotlib is missing
                pass
        with processes(find_device(self.device)) as world:
            return self._run(world, ending)

    def _run(self, world: World, ending: str) -> int:
        if ending in ANIMATIONS and world.size > 1:
            raise ConfigError(f"--out {self.out} is drawn by one process; start it without torchrun", parameter="out")
        run = open_run(self.checkpoint, world.device)
        event = self._size_event(run)
        if ending and ending not in ARRAYS:
            check_drawable(shape_of_data(run.model, event))
        sampler = self._read_sampler(run.model)
        final = _choose_final(self.final, sampler)
        labels = self._read_conditions(run)
        model = self._guide(run)
        if self.save_table is not None and world.is_main:
            table = make_table(sampler, run.model.sde, final)
            write_whole(self.save_table, lambda file: file.write_text(table.to_json() + "\n", encoding="utf-8"))
        started = time.perf_counter()

        def draw(first: int, last: int) -> SampleResult:
            return self._draw(model, event, sampler, final, labels, slice(first, last))

        with use_threads(choose_threads(self.threads, run.model.net)):
            if world.size > 1 or not ending:
                nfe = self._share(world, run, draw, labels)
            else:
                nfe = self._draw_all(run, sampler, final, draw, labels)
        took = time.perf_counter() - started
        cost = torch.cat(world.gather(nfe)).double().mean()
        evaluations = f"{float(cost):.4g} evaluations each, {took:.1f} seconds"
        name = sampler.solver.name if sampler.name == USUAL and isinstance(sampler.solver, Tableau) else sampler.name
        print(f"wrote {self.out}{'' if ending else '/'}: {self.n} samples by {printable(name)}, {evaluations}")
        return 0

    def _draw_all(self, run: RunFolder, sampler: Sampler, final: str, draw: Draw, labels: Condition) -> Tensor:
        """Draw and write one file; return the evaluations of each sample."""
        parts: list[SampleResult] = []
        try:
            while (done := sum(len(part.x) for part in parts)) < self.n:
                self._tell(done, self.n)
                parts.append(draw(done, min(done + self.chunk_size, self.n)))
        except KeyboardInterrupt as stop:
            if not parts:
                raise
            self._write(run, sampler, final, parts, labels)
            done = sum(len(part.x) for part in parts)
            raise KeyboardInterrupt(f"{done} of {self.n} samples are in {self.out}") from stop
        self._write(run, sampler, final, parts, labels)
        return torch.cat([part.nfe for part in parts])

    def _share(self, world: World, run: RunFolder, draw: Draw, labels: Condition) -> Tensor:
        """Draw this process's share into a folder, from which the first makes the file that was asked for, if any."""
        cost = [torch.zeros(0, dtype=torch.int64, device="cpu")]
        mine, last = world.share(self.n), bool(self.out.suffix)
        layout = None if last else run.layout

        def draw_rows(rows: slice) -> dict[str, Tensor]:
            self._tell(rows.start - mine.start, mine.stop - mine.start, f" of process {world.rank}" * (world.size > 1))
            part = draw(rows.start, rows.stop)
            cost.append(part.nfe.cpu())
            found = {SAMPLES: part.x.cpu() if layout is None else layout.write(part.x.cpu())}
            return found if labels is None or "label" not in labels else {**found, LABELS: labels["label"][rows]}

        folder = self.out.with_name(f".{self.out.name}.shards") if last else self.out
        about: dict[str, object] = {name: getattr(self, name) for name in ("solver", "steps", "seed", "guidance")}
        about["checkpoint"] = str(self.checkpoint)
        about |= {} if run.classes is None else {"classes": list(run.names)}
        try:
            write_shards(folder, self.n, draw_rows, world=world, chunk_size=self.chunk_size, about=about)
            if last and world.is_main:
                found = None if labels is None or "label" not in labels else labels["label"]
                write_samples(run, read_shards(folder), self.out, labels=found, in_turn=self.label is None)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{self.out} is as it was") from stop
        finally:
            if last and world.is_main:
                shutil.rmtree(folder, ignore_errors=True)
        return torch.cat(cost)

    def _tell(self, done: int, count: int, whose: str = "") -> None:
        """Tell how far it is, where no bar does."""
        if done and not is_interactive():
            print(f"sampling     {done} of {count}{whose}", file=sys.stderr, flush=True)

    def _size_event(self, run: RunFolder) -> torch.Size:
        """Return the shape of a sample: that of the training, or images of another size."""
        if self.size is None:
            return run.event
        side = check_integer(self.size, "size", 1)
        network = find_network(run.model)
        if len(run.event) != 3 or not (isinstance(network, UNet) or type(network).__name__ == "UNet2DModel"):
            raise ConfigError(
                f"--size is for images of a U-Net, {run.folder} holds a {type(network).__name__} for samples of "
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
            rows = torch.tensor(
                [[float(part) for part in self.context.split(",")]], dtype=torch.float32, device="cpu"
            ).expand(self.n, -1)
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
                cure="leave it out" if run.foreign else "train with --conditional",
            )
        return guided(run.model, self.guidance)

    def _draw(
        self, model: Predictor, event: Sequence[int], sampler: Sampler, final: str, labels: Condition, rows: slice
    ) -> SampleResult:
        """Draw some of the samples."""
        return sample(
            model,
            (rows.stop - rows.start, *event),
            solver=sampler.solver,
            steps=sampler.steps,
            final=cast(Ending, final),
            kernels=sampler.kernels,
            prior=None if self.size is None else model.sde.prior(),
            cond=select(labels, rows),
            seed=self.seed,
            first_sample=rows.start,
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
