"""``scoresde sample``: draw samples from a trained model."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from scoresde.cli.names import DATA
from scoresde.cli.options import NAMES, Command, Int, OptionalInt, device, interactive
from scoresde.cli.runs import Run, check_file, open_run
from scoresde.comparison import parse_sampler
from scoresde.errors import ConfigError, DomainError, check_integer, unknown
from scoresde.model import Condition
from scoresde.noise import check_seed
from scoresde.plots import image_grid, save, scatter
from scoresde.plots.style import styled
from scoresde.sampling import SampleResult, sample

__all__ = ["SMALL", "Sample", "labels_of"]

SMALL = 16  # pixels a side, up to which the eye reads an image better when it is interpolated
PICTURES, ARRAYS = (".png", ".svg", ".pdf"), (".npy", ".npz")


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Draw samples from a trained model: a picture, or arrays.

    Sample k depends on the seed and k alone, whatever the number of samples and the chunks.

    Args:
        checkpoint: folder of a run, or of a saved model.
        n: number of samples.
        solver: sampler and its number of steps, "name:steps"; names as below.
        seed: of the noise, in [0, 2^64).
        label: class of every sample, for conditional models; by default sample k is of class k modulo their number.
        out: file: a picture (.png, .svg, .pdf), or the samples in the data's units as an array (.npy), or as "samples"
            with "labels" (.npz).
        chunk_size: largest number of samples given to the network at once; by default all.
        device: cpu, cuda, ...; auto takes CUDA where there is one.
        debug: show the traceback of an error.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    n: Int = 64
    solver: Annotated[str, tyro.conf.arg(metavar="NAME:STEPS", help=f"sampler. {NAMES}")] = "dpmpp_2m:20"
    seed: Int = 0
    label: Annotated[OptionalInt, tyro.conf.arg(help_behavior_hint="(optional)")] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("samples.png")
    chunk_size: Annotated[OptionalInt, tyro.conf.arg(help_behavior_hint="(optional)")] = None
    device: str = "auto"
    debug: bool = False

    def run(self) -> int:
        """Draw and write."""
        check_integer(self.n, "n", 1)
        check_seed(self.seed)
        if self.out.suffix.lower() not in PICTURES + ARRAYS:
            raise unknown("ending of --out", self.out.suffix, PICTURES + ARRAYS)
        check_file("--out", self.out)
        if self.out.suffix.lower() in PICTURES:
            with styled():  # says what to do where matplotlib is missing
                pass
        run = open_run(self.checkpoint, device(self.device))
        if self.out.suffix.lower() in PICTURES:
            _check_drawable(run)
        sampler = parse_sampler(self.solver, run.model.sde)
        if sampler.samples is not None:
            raise ConfigError(f"--solver {self.solver!r}: the number of samples is --n here; leave out the @")
        cond = labels_of(run, self.n, self.label)
        started = time.perf_counter()
        result = sample(
            run.model,
            (self.n, *run.event),
            solver=sampler.solver,
            steps=sampler.steps,
            kernels=sampler.kernels,
            cond=cond,
            seed=self.seed,
            chunk_size=self.chunk_size,
            progress=interactive(),
            full_output=True,
        )
        assert isinstance(result, SampleResult)
        took = time.perf_counter() - started
        self._write(run, result.x.cpu(), None if cond is None else cond["label"])
        cost = f"{float(result.nfe.double().mean()):.4g} evaluations each, {took:.1f} seconds"
        print(f"wrote {self.out}: {self.n} samples by {sampler.name}, {cost}")
        return 0

    def _write(self, run: Run, x: Tensor, labels: Tensor | None) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        # The picture or array appears whole or not at all.
        temporary = self.out.with_name(f".{self.out.stem}.part{self.out.suffix}")
        try:
            if self.out.suffix.lower() == ".npy":
                np.save(temporary, x.numpy())
            elif self.out.suffix.lower() == ".npz":
                if labels is None:
                    np.savez(temporary, samples=x.numpy())
                else:
                    np.savez(temporary, samples=x.numpy(), labels=labels.numpy())
            elif x.ndim == 4:
                rows = None
                if labels is not None and self.label is None and run.classes:
                    rows = math.ceil(len(x) / run.classes)  # so that each class has a column
                save(image_grid(x, rows=rows, smooth=x.shape[-1] <= SMALL), temporary)
            else:
                behind = DATA[run.data].held_out() if run.data is not None and run.data in DATA else None
                save(scatter(x, behind), temporary)
            temporary.replace(self.out)
        finally:
            temporary.unlink(missing_ok=True)


def labels_of(run: Run, n: int, label: int | None = None) -> Condition:
    """Return the labels of n samples: one for all, or the classes in turn; None for a model without labels.

    Raises:
        ConfigError: a label for a model without. DomainError: no such class.
    """
    if run.classes is None:
        if label is not None:
            raise ConfigError(f"--label {label}: {run.folder} was trained without labels; train with --conditional")
        return None
    if label is None:
        return {"label": torch.arange(n) % run.classes}
    if not 0 <= label < run.classes:
        raise DomainError(f"--label must lie in 0..{run.classes - 1}, got {label}")
    return {"label": torch.full((n,), label)}


def _check_drawable(run: Run) -> None:
    shape = tuple(run.event)
    if not (shape == (2,) or (len(shape) == 3 and shape[0] in (1, 3))):
        raise ConfigError(f"samples of shape {shape} have no picture; write an array, e.g. --out samples.npy")
