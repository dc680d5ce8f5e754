"""``scoresde likelihood``: what a checkpoint says of held-out data, by the flow and by two bounds, each with its error.

The data are taken in parts of ``PART``. What is done stands in values.safetensors, which is replaced atomically, so
that an interrupted run goes on where it stopped, with the noise that it would have had. Of several processes
(``torchrun``) each takes one part of a round, and the first keeps the values of all: they are the same for any number.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from scoresde.chains.ddpm import DDPM
from scoresde.cli.files import BAD_IMAGES
from scoresde.cli.held_out import open_data_of
from scoresde.cli.options import (
    Float,
    Int,
    OptionalFloat,
    OptionalInt,
    Work,
    find_device,
    is_interactive,
    show_choices,
    show_default,
)
from scoresde.cli.presets import DATA, Levels
from scoresde.cli.run_folder import RunFolder, check_folder, open_run, read_json, write_json
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import CheckpointError, ConfigError, DomainError
from scoresde.errors.values import check_integer, check_number
from scoresde.likelihood.chain import variational_bound
from scoresde.likelihood.continuous import continuous_elbo
from scoresde.likelihood.decoders import LevelsDecoder
from scoresde.likelihood.flow import log_likelihood
from scoresde.likelihood.starts import Dequantisation
from scoresde.models.prediction import Condition
from scoresde.noise import check_seed, stream
from scoresde.plots.densities import histogram
from scoresde.plots.style import save, use_style
from scoresde.sampling.processes import World, processes
from scoresde.solvers.adaptive import ProbabilityFlow
from scoresde.training.sources import digest

__all__ = ["Likelihood"]

PART = 64  # samples between two savings
MOST = 500  # samples, unless asked
PROBES = 4
CHAIN = 1000
TABLE, VALUES, PICTURE = "likelihood.json", "values.safetensors", "histogram.png"
NAMES = {"flow": "flow", "continuous": "continuous bound", "chain": f"bound of {CHAIN} steps"}
ERRORS = ("standard_error", "solver_error", "prior_mismatch", "truncation")
Measure = Callable[[Tensor, Condition, int], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Likelihood(Work):
    """Measure log p of held-out data: along the flow, and by the bounds in continuous time and of a chain.

    Data on levels (digits, images) get lower bounds of the levels' log probability, in bits per dimension too; other
    data a log density in their own units. Prints a table with 95% confidence intervals over the data, and what of the
    flow's value is not exact. Writes likelihood.json, values.safetensors (each sample's values) and histogram.png. What
    is done is kept: the same command goes on where it was stopped, also with another number of processes.

    Args:
        checkpoint: folder of a run, or of a saved model.
        data: the data to measure, a name, a folder of images or a file, as for train; their held-out part.
        on_bad_image: what to do about an image of a folder that cannot be used.
        n: number of held-out samples, the first of them.
        levels: number of values that a coordinate takes, evenly spaced; 0 for data that take any.
        low: the lowest of these values, in the data's units.
        high: the highest of these values.
        probes: groups of coordinates of the divergence's probes, 0 for the exact divergence.
        draws: draws of the probes' signs.
        importance: draws for each sample of data on levels; more give a tighter bound.
        tolerance: of the flow, relative and absolute.
        samples: draws of noise and time for each sample of the continuous bound, and steps drawn of the chain's.
        seed: of all noise, in [0, 2^64).
        out: folder for the results.
        fresh: begin anew, where the folder holds results of other options.
        chunk_size: largest number of samples given to the network at once.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    data: Annotated[str | None, show_choices([*DATA, "FOLDER", "FILE"]), show_default("the run's")] = None
    on_bad_image: Annotated[str | None, show_choices(BAD_IMAGES), show_default("as in the run's training")] = None
    n: Annotated[OptionalInt, show_default("500, or all")] = None
    levels: Annotated[OptionalInt, show_default("the data's: 17 for digits, 256 for images")] = None
    low: Annotated[OptionalFloat, show_default("the data's")] = None
    high: Annotated[OptionalFloat, show_default("the data's")] = None
    probes: Annotated[OptionalInt, show_default("4, or the exact divergence up to 4 coordinates")] = None
    draws: Int = 4
    importance: Int = 1
    tolerance: Float = 1e-2
    samples: Int = 64
    seed: Int = 0
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER"), show_default("CHECKPOINT/likelihood")] = None
    fresh: bool = False
    chunk_size: Int = 256

    def run(self) -> int:
        """Measure, part by part."""
        with processes(find_device(self.device)) as world:
            return self._run(world)

    def _run(self, world: World) -> int:
        for name in ("draws", "importance", "samples", "chunk_size"):
            check_integer(getattr(self, name), name, 1)
        check_number(self.tolerance, "tolerance", 0.0, open_low=True)
        check_seed(self.seed)
        with use_style():  # says what to do where matplotlib is missing
            pass
        run = open_run(self.checkpoint, world.device)
        name, data = open_data_of(run, self.data, self.on_bad_image)
        held_out, labels = data.test()
        n = min(MOST, len(held_out)) if self.n is None else check_integer(self.n, "n", 1, len(held_out))
        x = held_out[:n]
        if x.shape[1:] != run.shape:
            raise ConfigError(
                f"the model's samples have shape {tuple(run.shape)}, those of {name} {tuple(x.shape[1:])}"
            )
        if run.classes is not None and labels is None:
            raise ConfigError(f"{run.folder} was trained with labels, and {name} has none", parameter="data")
        if run.features and data.contexts is None:
            raise ConfigError(f"{run.folder} was trained with contexts, and {name} has none", parameter="data")
        cond = {} if run.classes is None or labels is None else {"label": labels[:n]}
        if run.features and data.contexts is not None:
            cond["context"] = data.contexts[1][:n]
        levels = self._choose_levels(data.levels)
        out = check_folder("out", run.folder / "likelihood" if self.out is None else self.out)
        measures = self._make_measures(run, levels)
        with use_threads(choose_threads(self.threads, run.model.net)):
            settings = self._describe(run, name, x, cond, levels)
            found = _Values(out, settings, n, fresh=self.fresh) if world.is_main else None
            print(f"results in {out}/", file=sys.stderr, flush=True)
            try:
                self._measure(world, found, measures, x.to(world.device), cond)
            except KeyboardInterrupt as stop:
                done = "what is done is" if found is None else f"{found.done} of {n} samples are"
                raise KeyboardInterrupt(f"{done} in {out}/; the same command goes on") from stop
        if found is not None:
            found.finish(run, levels, name)
        return 0

    def _measure(
        self,
        world: World,
        found: "_Values | None",
        measures: Sequence[Measure],
        x: Tensor,
        told: Mapping[str, Tensor],
    ) -> None:
        """Measure the samples that are left, a part for each process in a round; the first process keeps them."""
        done = int(world.gather(torch.tensor([0 if found is None else found.done], dtype=torch.int64, device="cpu"))[0])
        bar = tqdm(total=len(x), initial=done, desc="likelihood", unit="sample", disable=not is_interactive())
        with bar:
            while done < len(x):
                first, started = done + world.rank * PART, time.perf_counter()
                rows, values = slice(first, first + PART), dict[str, Tensor]()
                cond = {name: one[rows].to(x.device) for name, one in told.items()} or None
                for measure in measures if first < len(x) else ():
                    values.update(measure(x[rows], cond, first))
                columns = list(values.values())  # all of them float64 on the CPU
                # Rows one after another, so that a process without any need not know how many columns there are.
                flat = (
                    torch.stack(columns, 1).flatten() if columns else torch.zeros(0, dtype=torch.float64, device="cpu")
                )
                everyone = torch.cat(world.gather(flat))
                if found is not None:
                    columns = list(everyone.view(-1, len(values)).unbind(1))
                    found.add(dict(zip(values, columns, strict=True)), time.perf_counter() - started)
                done, before = min(done + world.size * PART, len(x)), done
                bar.update(done - before)

    def _choose_levels(self, usual: Levels | None) -> Levels | None:
        """Return the values that a coordinate takes: as asked, else the data's."""
        number = self.levels if self.levels is not None else 0 if usual is None else usual.number
        low = usual.low if self.low is None and usual is not None else self.low
        high = usual.high if self.high is None and usual is not None else self.high
        if number == 0:
            if self.low is not None or self.high is not None:
                raise ConfigError("--low and --high are the ends of levels; say how many with --levels 256")
            return None
        check_integer(number, "levels", 2)
        if low is None or high is None or not low < high:
            raise ConfigError(f"--levels {number} lie between --low and --high; say where, e.g. --low 0 --high 255")
        return Levels(number, low, high)

    def _describe(
        self, run: RunFolder, name: str, x: Tensor, told: Mapping[str, Tensor], levels: Levels | None
    ) -> dict[str, object]:
        """Return what decides the values, by which a run that may go on is known."""
        return {
            "checkpoint": digest(torch.cat([p.detach().flatten().float().cpu() for p in run.model.parameters()])),
            "sde": repr(run.model.sde),
            "data": name,
            "samples": digest(x),
            "labels": {key: digest(value.nan_to_num(nan=1e30)) for key, value in told.items()} or None,
            "levels": None if levels is None else list(levels),
            "probes": self.probes,
            "draws": self.draws,
            "importance": self.importance,
            "tolerance": self.tolerance,
            "bound_samples": self.samples,
            "seed": self.seed,
        }

    def _make_measures(self, run: RunFolder, levels: Levels | None) -> list[Measure]:
        """Return what is measured of each part; a bound that this SDE does not have is left out, with a word."""
        model, size = run.model, math.prod(run.event)
        if levels is not None:
            # The bounds begin where the flow's draws in the bins lie.
            start = Dequantisation(*levels).choose_time(
                model.sde, model.transform, torch.zeros(1, *run.event, dtype=torch.float32, device="cpu")
            )
            model = model.with_sde(model.sde.starting_at(start))
        probes = (0 if size <= PROBES else PROBES) if self.probes is None else self.probes
        check_integer(probes, "probes", 0, size)
        decoder = None if levels is None else LevelsDecoder(*levels)

        def flow(x: Tensor, cond: Condition, first: int) -> dict[str, Tensor]:
            found = log_likelihood(
                model,
                x,
                divergence="probes" if probes else "exact",
                probes=probes or None,
                draws=self.draws if probes else None,
                solver=ProbabilityFlow(rtol=self.tolerance, atol=self.tolerance),
                decoder=None if levels is None else Dequantisation(*levels),
                importance=1 if levels is None else self.importance,
                cond=cond,
                seed=self.seed,
                first_sample=first,
                chunk_size=self.chunk_size,
            )
            errors = {name: getattr(found, name) for name in ERRORS}
            return {"flow": found.values, "nfe": found.nfe.double(), **errors}

        def continuous(x: Tensor, cond: Condition, first: int) -> dict[str, Tensor]:
            bound = continuous_elbo(
                model,
                model.sde,
                x,
                decoder=decoder,
                samples=self.samples,
                cond=cond,
                seed=stream(self.seed, "continuous", first).initial_seed(),
                chunk_size=self.chunk_size,
            )
            return {"continuous": -bound.per_sample}

        def chain(x: Tensor, cond: Condition, first: int) -> dict[str, Tensor]:
            bound = variational_bound(
                model,
                DDPM.from_sde(model.sde, CHAIN),
                x,
                decoder=decoder,
                indices=self.samples,
                cond=cond,
                seed=stream(self.seed, "chain", first).initial_seed(),
                chunk_size=self.chunk_size,
            )
            return {"chain": -bound.per_sample}

        measures: list[Measure] = [flow]
        tries: list[tuple[str, Measure, Callable[[], object]]] = [
            ("continuous", continuous, lambda: _check_end(model.sde)),
            ("chain", chain, lambda: DDPM.from_sde(model.sde, CHAIN)),
        ]
        for name, measure, make in tries:
            try:
                make()
                measures.append(measure)
            except (ConfigError, DomainError) as error:
                print(f"left out the {NAMES[name]}: {error}", file=sys.stderr)
        return measures


class _Values:
    """The values of the samples that are done, written as they come."""

    def __init__(self, out: Path, settings: dict[str, object], n: int, *, fresh: bool) -> None:
        self.out, self.settings, self.n = out, settings, n
        self.values: dict[str, Tensor] = {}
        self.seconds = 0.0
        if not fresh and (out / TABLE).is_file():
            self._read()
        out.mkdir(parents=True, exist_ok=True)
        self._write_table()

    @property
    def done(self) -> int:
        """How many samples are."""
        return len(self.values["flow"]) if self.values else 0

    def _read(self) -> None:
        """Read what an earlier run of the same settings has done; ConfigError where they were others."""
        about = read_json(self.out / TABLE)
        known, seconds = about.get("settings"), about.get("seconds")
        known = known if isinstance(known, dict) else {}
        differ = [name for name, value in self.settings.items() if known.get(name) != json.loads(json.dumps(value))]
        if differ:
            raise ConfigError(
                f"{self.out} holds the likelihood of another {', '.join(differ)}; choose another --out, or begin anew "
                "with --fresh"
            )
        if not (self.out / VALUES).is_file():
            return
        try:
            self.values = load_file(self.out / VALUES)
        except SafetensorError as error:
            raise CheckpointError(f"{self.out / VALUES} is damaged: {error}; begin anew with --fresh") from error
        shapes = {one.shape for one in self.values.values()}
        if not self.values.keys() >= {"flow", *ERRORS, "nfe"} or len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise CheckpointError(
                f"{self.out / VALUES} is damaged: its values are not those of so many samples; begin anew with --fresh"
            )
        self.seconds = float(seconds) if isinstance(seconds, int | float) else 0.0

    def add(self, values: dict[str, Tensor], seconds: float) -> None:
        """Keep a part."""
        old = self.values
        self.values = {name: torch.cat([old[name], one]) if old else one.clone() for name, one in values.items()}
        self.seconds += seconds
        temporary = self.out / f".{VALUES}.tmp"
        save_file(self.values, temporary)
        temporary.replace(self.out / VALUES)
        self._write_table()
        if not is_interactive():
            print(f"likelihood: {self.done} of {self.n} samples, {self.seconds:.0f} seconds", file=sys.stderr)

    def _write_table(self, **found: object) -> None:
        about = {"samples": self.n, "done": self.done, "seconds": self.seconds, **found}
        write_json(self.out / TABLE, {"settings": self.settings, **about})

    def finish(self, run: RunFolder, levels: Levels | None, data: str) -> None:
        """Print the table, write it, and draw the histogram."""
        size, rows = math.prod(run.event), []
        scale, unit = (-1 / (size * math.log(2)), "bits/dim") if levels else (1 / size, "nats/dim")
        print(f"log p of {self.n} held-out samples of {data}, {_say_what(levels)}, with 95% intervals")
        print(f"{'':18}{'nats a sample':>20}{unit:>20}")
        for name, title in NAMES.items():
            if name not in self.values:
                continue
            values, lower = self.values[name], name != "flow" or levels is not None
            mean, half = float(values.mean()), 1.96 * float(values.std(correction=0)) / math.sqrt(self.n)
            each = f"{scale * mean:.4f} ± {abs(scale) * half:.4f}"
            print(f"{title:18}{f'{mean:.2f} ± {half:.2f}':>20}{each:>20}{'  a lower bound' * lower}")
            rows.append({"name": name, "nats": mean, "nats_95": half, unit: scale * mean, "lower_bound": lower})
        errors = {name: float(self.values[name].mean()) for name in (*ERRORS, "nfe")}
        probes, solver, prior, truncation, nfe = (f"{value:.2g}" for value in errors.values())
        print(
            f"the flow's value of a sample: ±{probes} by probes, solver {solver}, prior {prior}, "
            f"truncation {truncation} nats, {nfe} evaluations"
        )
        told = {name: None if math.isnan(value) else value for name, value in errors.items()}
        self._write_table(rows=rows, flow=told)
        shown = {title: self.values[name] for name, title in NAMES.items() if name in self.values}
        if levels:
            shown = {title: scale * one for title, one in shown.items()}
        label = "bits per dimension" if levels else "log density of a sample, nats"
        title = f"{self.n} held-out samples of {data}, {type(run.model.sde).__name__}"
        save(histogram(shown, xlabel=label, title=title), self.out / PICTURE)
        print(f"wrote {self.out}/{TABLE}, {VALUES}, {PICTURE}")


def _say_what(levels: Levels | None) -> str:
    """Return what is measured, and the option that decides it."""
    if levels is None:
        return "a density in the data's units (--levels: of few values)"
    return f"on {levels.number} levels in [{levels.low:g}, {levels.high:g}] (--levels 0: a density)"


def _check_end(sde: GaussianSDE) -> None:
    """Raise ConfigError where the integral of the continuous bound does not end."""
    if float(sde.alpha(torch.tensor(sde.t_max, dtype=torch.float64, device="cpu"))) == 0:
        raise ConfigError(f"{sde!r} reaches alpha = 0, where log-SNR is minus infinity")
