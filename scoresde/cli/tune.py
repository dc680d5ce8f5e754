"""``scoresde tune``: fit tables of few evaluations to a trained model, and keep them in its checkpoint."""

import functools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from scoresde.cli.options import Int, OptionalInt, Work, find_device, is_interactive, show_default
from scoresde.cli.run_folder import RunFolder, find_checkpoint, open_run
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import check_integer
from scoresde.models import saving
from scoresde.noise import check_seed
from scoresde.sampling.tuning.calibrate import calibrate
from scoresde.sampling.tuning.tune import tune

__all__ = ["Tune"]


@dataclass(frozen=True, kw_only=True)
class Tune(Work):
    """Fit samplers of few evaluations to a trained model, and keep them in its checkpoint.

    Each is a table of numbers: from the best of the fixed ones, fitted to where the model's own flow leads, and kept
    only where it is better on noise that the fit did not see. Draw with "--solver tuned:8"; a table leaves the
    checkpoint as a file with "sample --save-table". A model without a calibration, which the default sampler uses, gets
    one first.

    Args:
        checkpoint: folder of a run, or of a saved model.
        steps: numbers of evaluations of the network, a table for each.
        samples: number of start states of a fit, and as many that judge.
        iterations: iterations of a fit.
        seed: of the start states, in [0, 2^64).
        chunk_size: number of samples given to the network at once.
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    steps: Annotated[tuple[Int, ...], tyro.conf.arg(metavar="STEPS ...")] = (5, 8, 10)
    samples: Annotated[OptionalInt, show_default("64 to 512, by the size of a sample")] = None
    iterations: Int = 12
    seed: Int = 0
    chunk_size: Int = 256

    def run(self) -> int:
        """Fit and keep."""
        if not self.steps:
            raise ConfigError("--steps must name at least one number of evaluations", parameter="steps")
        for steps in self.steps:
            check_integer(steps, "steps", 2)
        if self.samples is not None:
            check_integer(self.samples, "samples", 1)
        check_integer(self.iterations, "iterations", 1)
        check_integer(self.chunk_size, "chunk_size", 1)
        check_seed(self.seed)
        run = open_run(self.checkpoint, find_device(self.device))
        if run.foreign:
            raise ConfigError(
                f"{run.folder} is of diffusers and keeps no tables; in Python, tune(from_diffusers(folder), "
                f"{self.steps[0]}, event={tuple(run.event)}).table.to_json() is a file that --solver reads"
            )
        folder = find_checkpoint(self.checkpoint)
        cond = None if run.classes is None else functools.partial(_tell, run)
        with use_threads(choose_threads(self.threads, run.model.net)):
            if run.model.calibration is None:
                print(calibrate(run.model, cond=cond, chunk_size=self.chunk_size, progress=is_interactive()))
                saving.keep_tables(folder, run.model)
            for steps in self.steps:
                started = time.perf_counter()
                found = tune(
                    run.model,
                    steps,
                    samples=self.samples,
                    held_out=self.samples,
                    iterations=self.iterations,
                    cond=cond,
                    chunk_size=self.chunk_size,
                    seed=self.seed,
                    progress=is_interactive(),
                )
                saving.keep_tables(folder, run.model)
                print(f"{found} ({time.perf_counter() - started:.1f} seconds)")
                sys.stdout.flush()
        print(f"kept in {folder}/; draw with --solver tuned:{self.steps[0]}")
        return 0


def _tell(run: RunFolder, n: int) -> dict[str, Tensor]:
    return run.make_labels(n) or {}
