"""``scoresde compare``: one checkpoint, many samplers, one table and one figure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from scoresde.cli.names import DATA
from scoresde.cli.options import NAMES, Command, Int, OptionalInt, chosen, device, interactive, words
from scoresde.cli.runs import Run, check_folder, open_run, write_json
from scoresde.cli.sample import SMALL, labels_of
from scoresde.cli.yardsticks import Yardstick, yardstick
from scoresde.comparison import DEFAULT_SAMPLERS, Sampler, compare, format_table, parse_sampler
from scoresde.errors import ConfigError, check_integer
from scoresde.metrics import Comparison
from scoresde.noise import check_seed
from scoresde.plots import comparison, image_grid, save, scatter
from scoresde.plots.style import styled
from scoresde.sde import GaussianSDE

__all__ = ["Compare"]

SHOWN = 20  # images of each sampler in the figure


def _preset() -> str:
    points, images = (next(one for one in DATA.values() if one.kind == kind) for kind in ("points", "images"))
    return f"(default: {images.samples} for digits, {points.samples} for points)"


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Draw from one model with many samplers and measure the samples against held-out data.

    Prints a table: each sampler's network evaluations per sample, seconds, and distances beside their floor, which is
    what as many real samples measure. Writes table.json, comparison.png and samples.png. All samplers start from the
    same noise. Ctrl-C keeps the rows that are done.

    Args:
        checkpoint: folder of a run, or of a saved model.
        samplers: each "name:steps", with "@samples" behind it for a number of samples of its own.
        n: number of samples of each sampler.
        seed: of the noise, in [0, 2^64).
        data: the data to measure against; by default those that run.json names.
        out: folder for the results; files of these names are replaced.
        chunk_size: largest number of samples given to the network at once; by default all.
        device: cpu, cuda, ...; auto takes CUDA where there is one.
        debug: show the traceback of an error.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    samplers: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME:STEPS@SAMPLES",
            help=f"samplers; @samples gives one a number of samples of its own (ddpm:1000@100). {NAMES}",
        ),
    ] = DEFAULT_SAMPLERS
    n: Annotated[OptionalInt, tyro.conf.arg(help_behavior_hint=_preset())] = None
    seed: Int = 0
    data: Annotated[str | None, words(DATA, "(default: the run's)")] = None
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: CHECKPOINT/comparison)")
    ] = None
    chunk_size: Annotated[OptionalInt, tyro.conf.arg(help_behavior_hint="(optional)")] = None
    device: str = "auto"
    debug: bool = False

    def run(self) -> int:
        """Draw, measure, write."""
        check_seed(self.seed)
        with styled():  # says what to do where matplotlib is missing
            pass
        run = open_run(self.checkpoint, device(self.device))
        name = run.data if self.data is None else self.data
        if name is None:
            raise ConfigError(f"{run.folder} has no run.json that names its data; say which with --data digits")
        data = chosen("data set", name, DATA)
        if self.n is not None:
            check_integer(self.n, "n", 2)
        samplers = self._samplers(run.model.sde)
        for one in samplers:
            check_integer(one.samples or 2, f"samples of {one.name}", 2)
        out = check_folder("--out", run.folder / "comparison" if self.out is None else self.out)
        shape = tuple(data.held_out().shape[1:])
        if shape != tuple(run.event):
            raise ConfigError(f"the model's samples have shape {tuple(run.event)}, those of {name} {shape}")
        yard = yardstick(name, classes=run.classes)
        out.mkdir(parents=True, exist_ok=True)
        found = _Results(run, name, yard, self.seed, out, len(samplers))
        print(f"results in {out}/", file=sys.stderr, flush=True)
        try:
            compare(
                run.model,
                samplers,
                yard.metrics,
                samples=data.samples if self.n is None else self.n,
                floors=yard.floors,
                cond=None if run.classes is None else lambda n: labels_of(run, n),
                seed=self.seed,
                chunk_size=self.chunk_size,
                progress=interactive(),
                on_row=found.add,
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{len(found.rows)} of {len(samplers)} samplers are done, in {out}/") from stop
        finally:
            found.finish()
        return 0

    def _samplers(self, sde: GaussianSDE) -> list[Sampler]:
        """Read the samplers; of the default ones, those that this SDE can carry."""
        if self.samplers != DEFAULT_SAMPLERS:
            if not self.samplers:
                raise ConfigError("--samplers must name at least one, e.g. --samplers dpmpp_2m:20")
            return [parse_sampler(text, sde) for text in self.samplers]
        able = []
        for text in self.samplers:
            try:
                able.append(parse_sampler(text, sde))
            except ConfigError as error:
                print(f"left out {text}: {error}", file=sys.stderr)
        return able


class _Results:
    """Rows and samples as they come, written as they come."""

    def __init__(self, run: Run, data: str, yard: Yardstick, seed: int, out: Path, expected: int) -> None:
        self.run, self.data, self.yard, self.seed, self.out, self.expected = run, data, yard, seed, out, expected
        self.rows: list[Comparison] = []
        self.samples: list[Tensor] = []

    def add(self, row: Comparison, x: Tensor) -> None:
        """Keep a row, in table.json too."""
        self.rows.append(row)
        self.samples.append(x.cpu())
        write_json(
            self.out / "table.json",
            {
                "data": self.data,
                "checkpoint": str(self.run.folder),
                "sde": repr(self.run.model.sde),
                "seed": self.seed,
                "held_out": len(self.yard.held_out),
                "complete": len(self.rows) == self.expected,
                "rows": [one.to_dict() for one in self.rows],
            },
        )
        if not interactive():
            print(f"{row.sampler}: {row.seconds:.1f} seconds ({len(self.rows)} of {self.expected})", file=sys.stderr)

    def finish(self) -> None:
        """Print the table and draw the figures of the rows that are there."""
        if not self.rows:
            return
        print(format_table(self.rows))
        for note in self.yard.notes:
            print(f"  {note}")
        title = f"Samplers on {self.data}, {type(self.run.model.sde).__name__}"
        figure = comparison(self.rows, labels=self.yard.labels, linear=self.yard.linear, title=title)
        save(figure, self.out / "comparison.png")
        self._draw_samples()
        print(f"wrote {self.out}/table.json, comparison.png, samples.png")

    def _draw_samples(self) -> None:
        names = [f"{row.sampler}, {row.nfe:.0f} NFE" for row in self.rows]
        if self.yard.examples.ndim == 4:
            sets = [*self.samples, self.yard.examples]
            columns = min(SHOWN, *map(len, sets))
            figure = image_grid(
                torch.cat([x[:columns] for x in sets]),
                row_labels=[*names, "held-out data"],
                smooth=self.yard.examples.shape[-1] <= SMALL,
            )
        else:
            # A sampler may be listed twice at one cost; a set of panels needs names of its own.
            titles = [name + " " * names[:k].count(name) for k, name in enumerate(names)]
            figure = scatter(dict(zip(titles, self.samples, strict=True)), self.yard.examples)
        save(figure, self.out / "samples.png")
