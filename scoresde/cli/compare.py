"""``scoresde compare``: one checkpoint, many samplers, one table and one figure."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from scoresde.cli.files import BAD_IMAGES
from scoresde.cli.held_out import open_data_of
from scoresde.cli.options import (
    NAMES,
    Int,
    OptionalInt,
    Work,
    find_device,
    is_interactive,
    show_choices,
    show_default,
    show_default_by_kind,
)
from scoresde.cli.own_flow import OWN_FLOW, choose_preset, draws_noise, make_flow_yardstick
from scoresde.cli.pictures import SMALL, to_pixels
from scoresde.cli.presets import DATA
from scoresde.cli.run_folder import RunFolder, check_folder, open_run, write_json
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.cli.yardsticks import Yardstick, make_yardstick
from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import check_integer
from scoresde.metrics.floors import Comparison
from scoresde.models.score_model import ScoreModel
from scoresde.noise import check_seed
from scoresde.plots.curves import comparison
from scoresde.plots.samples import image_grid, scatter
from scoresde.plots.style import save, use_style
from scoresde.sampling.compare import DEFAULT_SAMPLERS, compare, format_table
from scoresde.sampling.samplers import Sampler, parse_sampler

__all__ = ["Compare"]

SHOWN = 20  # images of each sampler in the figure


@dataclass(frozen=True, kw_only=True)
class Compare(Work):
    """Draw from one model with many samplers and measure the samples against held-out data.

    Prints a table: each sampler's network evaluations per sample, seconds, and distances beside their floor, which is
    what as many real samples measure. Writes table.json, comparison.png and samples.png. All samplers start from the
    same noise. Ctrl-C keeps the rows that are done. Where no data are known, as of a model of diffusers, the samples
    are measured against the model's own flow, finely integrated.

    Args:
        checkpoint: folder of a run, of a saved model, or of a pipeline of diffusers.
        samplers: each "name:steps", with "@samples" behind it for a number of samples of its own.
        n: number of samples of each sampler.
        seed: of the noise, in [0, 2^64).
        data: the data to measure against, a name, a folder of images or a file, as for train.
        on_bad_image: what to do about an image of a folder that cannot be used.
        out: folder for the results; files of these names are replaced.
        chunk_size: largest number of samples given to the network at once.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    samplers: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME:STEPS@SAMPLES|FILE",
            help=f"samplers; @samples gives one a number of samples of its own (ddpm:1000@100). {NAMES}",
        ),
    ] = DEFAULT_SAMPLERS
    n: Annotated[OptionalInt, show_default_by_kind("samples")] = None
    seed: Int = 0
    data: Annotated[
        str | None, show_choices([*DATA, "FOLDER", "FILE"]), show_default(f"the run's, else {OWN_FLOW}")
    ] = None
    on_bad_image: Annotated[str | None, show_choices(BAD_IMAGES), show_default("as in the run's training")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER"), show_default("CHECKPOINT/comparison")] = None
    chunk_size: Annotated[OptionalInt, show_default("all")] = None

    def run(self) -> int:
        """Draw, measure, write."""
        check_seed(self.seed)
        if self.n is not None:
            check_integer(self.n, "n", 2)
        with use_style():  # says what to do where matplotlib is missing
            pass
        run = open_run(self.checkpoint, find_device(self.device))
        known = self.data is not None or run.data is not None
        name, data = open_data_of(run, self.data, self.on_bad_image) if known else (OWN_FLOW, None)
        if data is None and self.on_bad_image is not None:
            raise ConfigError("--on-bad-image is for folders of images, and no data are named; add --data FOLDER")
        samplers = self._read_samplers(run.model)
        out = check_folder("out", run.folder / "comparison" if self.out is None else self.out)
        with use_threads(choose_threads(self.threads, run.model.net)):
            count = (choose_preset(run.shape) if data is None else data.preset).samples if self.n is None else self.n
            yard = self._judge(run, count) if data is None else make_yardstick(name, data, classes=run.classes)
            shape = tuple(yard.held_out.shape[1:])
            if shape != run.shape:
                raise ConfigError(f"the model's samples have shape {tuple(run.shape)}, those of {name} {shape}")
            out.mkdir(parents=True, exist_ok=True)
            found = _Results(run, name, yard, self.seed, out, samplers)
            print(f"results in {out}/", file=sys.stderr, flush=True)
            try:
                compare(
                    run.model,
                    samplers,
                    yard.metrics,
                    samples=count,
                    event=run.event,
                    floors=yard.floors,
                    cond=functools.partial(_tell, run, yard) if run.classes or run.features else None,
                    seed=self.seed,
                    chunk_size=self.chunk_size,
                    progress=is_interactive(),
                    on_row=found.add,
                )
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"{len(found.rows)} of {len(samplers)} samplers are done, in {out}/") from stop
            finally:
                found.finish()
        return 0

    def _judge(self, run: RunFolder, count: int) -> Yardstick:
        """Return how samples are judged by the model's own flow."""
        print(f"drawing {2 * count} samples of {OWN_FLOW}, to measure against", file=sys.stderr, flush=True)
        return make_flow_yardstick(run, count, seed=self.seed, chunk_size=self.chunk_size)

    def _read_samplers(self, model: ScoreModel) -> list[Sampler]:
        """Read the samplers; of the default ones, those that this SDE can carry."""
        if not self.samplers:
            raise ConfigError("--samplers must name at least one, e.g. --samplers dpmpp_2m:20", parameter="samplers")
        able = []
        for text in self.samplers:
            try:
                able.append(parse_sampler(text, model.sde, model=model))
            except ConfigError as error:
                if self.samplers != DEFAULT_SAMPLERS:
                    raise
                print(f"left out {text}: {error}", file=sys.stderr)
        for one in able:
            check_integer(one.samples or 2, f"samples of {one.name}", 2)
        return able


class _Results:
    """Rows and samples as they come, written as they come."""

    def __init__(
        self, run: RunFolder, data: str, yard: Yardstick, seed: int, out: Path, samplers: Sequence[Sampler]
    ) -> None:
        self.run, self.data, self.yard, self.seed, self.out = run, data, yard, seed, out
        self.samplers = samplers
        self.rows: list[Comparison] = []
        self.samples: list[Tensor] = []

    def add(self, row: Comparison, x: Tensor) -> None:
        """Keep a row, in table.json too."""
        if self.yard.paired and draws_noise(self.samplers[len(self.rows)], self.run.model.sde):
            kept = {name: value for name, value in row.distances.items() if name not in self.yard.paired}
            row = replace(row, distances=kept)
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
                "complete": len(self.rows) == len(self.samplers),
                "rows": [one.to_dict() for one in self.rows],
            },
        )
        if not is_interactive():
            print(
                f"{row.sampler}: {row.seconds:.1f} seconds ({len(self.rows)} of {len(self.samplers)})", file=sys.stderr
            )

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
        drawn = ", samples.png" if self._draw_samples() else ""
        print(f"wrote {self.out}/table.json, comparison.png{drawn}")

    def _draw_samples(self) -> bool:
        """Draw samples of each sampler; False where their shape has no picture."""
        names = [f"{row.sampler}, {row.nfe:.0f} NFE" for row in self.rows]
        examples, event = self.yard.examples, self.run.shape
        if len(event) == 3 and event[0] in (1, 3):
            sets = [*self.samples, examples]
            columns = min(SHOWN, *map(len, sets))
            figure = image_grid(
                torch.cat([to_pixels(self.run, x[:columns]) for x in sets]),
                row_labels=[*names, self.yard.reference],
                smooth=event[-1] <= SMALL,
            )
        elif len(event) == 1 and event[0] >= 2:
            # A sampler may be listed twice at one cost; a set of panels needs names of its own.
            titles = [name + " " * names[:k].count(name) for k, name in enumerate(names)]
            # Of longer vectors the first two coordinates.
            figure = scatter(
                {title: x[:, :2] for title, x in zip(titles, self.samples, strict=True)},
                examples[:, :2],
                reference_label=self.yard.reference,
            )
        else:
            return False
        save(figure, self.out / "samples.png")
        return True


def _tell(run: RunFolder, yard: Yardstick, n: int) -> dict[str, Tensor]:
    """Return what n samples of a run's model are conditioned on."""
    names = {"label": run.classes, "context": run.features}
    return {name: rows for name, rows in (yard.make_labels(n) or {}).items() if names[name]}
