"""``scoresde restore``: samples of what was measured in part, by a trained model."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from scoresde.cli.options import Float, Int, Work, find_device, is_interactive, show_choices, show_default
from scoresde.cli.pictures import ARRAYS, PICTURES, SMALL, check_drawable, to_pixels, write_whole
from scoresde.cli.run_folder import RunFolder, check_file, open_run
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.data.arrays import arrays_from_file
from scoresde.errors.kinds import ConfigError
from scoresde.errors.names import unknown
from scoresde.errors.values import check_integer, check_number
from scoresde.models.guidance.methods import METHODS
from scoresde.models.guidance.operators import Blur, Downsample, Grey, Mask, Operator
from scoresde.noise import check_seed
from scoresde.plots.samples import image_grid, scatter
from scoresde.plots.style import save, use_style
from scoresde.sampling.inverse import SAMPLERS, sample_posterior

__all__ = ["OPERATORS", "Restore"]

OPERATORS: Final = ("mask", "blur", "downsample", "grey")
NAMES: Final = (*METHODS, *SAMPLERS)


@dataclass(frozen=True, kw_only=True)
class Restore(Work):
    """Draw what the data may have been, given measurements of them: inpainting, deblurring, enlarging, colouring.

    For a mask the file holds the data with NaN where nothing was seen; else what the operator makes of them. Each
    measurement is given several samples, so that one sees what it leaves open.

    Args:
        checkpoint: folder of a run, or of a saved model.
        data: file of measurements in the data's units, (N, ...): .npy, .npz, .pt or .safetensors; "file.npz:name"
            names one of several arrays.
        operator: how the data were measured.
        blur: standard deviation of the Gaussian blur, in pixels.
        factor: side of the blocks, in pixels, whose means a downsampled image holds.
        noise_std: standard deviation of the noise of a measurement, in the unit of the data.
        method: how the posterior is sampled; docs/posteriors.md says which is calibrated when.
        steps: number of evaluations of the network for each sample, about.
        n: number of samples of each measurement.
        label: name of the class of every sample, for conditional models.
        seed: of the noise, in [0, 2^64).
        out: file: a picture (.png, .svg, .pdf), a row for each measurement, or the samples (N, n, ...) as an array
            (.npy, .npz).
    """

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    data: Annotated[str, tyro.conf.arg(metavar="FILE")]
    operator: Annotated[str, show_choices(OPERATORS)] = "mask"
    blur: Float = 1.0
    factor: Int = 2
    noise_std: Float = 0.0
    method: Annotated[str, show_choices(NAMES)] = "mmps"
    steps: Int = 50
    n: Int = 4
    label: Annotated[str | None, tyro.conf.arg(metavar="NAME"), show_default("")] = None
    seed: Int = 0
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("restored.png")

    def run(self) -> int:
        """Restore and write."""
        check_integer(self.n, "n", 1)
        check_integer(self.steps, "steps", 1)
        check_number(self.noise_std, "noise_std", 0.0)
        check_seed(self.seed)
        if self.operator not in OPERATORS:
            raise unknown("operator", self.operator, OPERATORS, parameter="operator")
        if self.method not in NAMES:
            raise unknown("method", self.method, NAMES, parameter="method")
        ending = self.out.suffix.lower()
        if ending not in PICTURES + ARRAYS:
            raise unknown("ending of --out", self.out.suffix, PICTURES + ARRAYS, parameter="out")
        check_file("out", self.out)
        if ending in PICTURES:
            with use_style():  # says what to do where matplotlib is missing
                pass
        run = open_run(self.checkpoint, find_device(self.device))
        if ending in PICTURES:
            check_drawable(run.shape)
        measured = self._read(run)
        drawn = []
        with use_threads(choose_threads(self.threads, run.model.net)):
            for k, y in enumerate(tqdm(measured, desc="restoring", unit="sample", disable=not is_interactive())):
                operator, seen = self._measure(y)
                cond = run.make_labels(1, self.label) if self.label is not None else None
                found = sample_posterior(
                    run.model,
                    operator,
                    seen.to(find_device(self.device)),
                    self.n,
                    noise_std=self.noise_std,
                    method=self.method,
                    steps=self.steps,
                    cond=None if cond is None else {"label": int(cond["label"][0])},
                    event=tuple(run.event),
                    seed=self.seed + k,
                )
                drawn.append(found.x.cpu())
                if not is_interactive() and len(measured) > 1:
                    print(f"restoring    {k + 1} of {len(measured)}", file=sys.stderr, flush=True)
        self._write(run, measured, torch.stack(drawn))
        print(f"wrote {self.out}: {self.n} samples of each of {len(measured)} measurements by {self.method}")
        return 0

    def _read(self, run: RunFolder) -> Tensor:
        """Return the measurements (N, *)."""
        path, colon, key = self.data.rpartition(":")
        file, name = (path, key) if colon and Path(path).suffix else (self.data, None)
        whole = arrays_from_file(file, name, missing=self.operator == "mask")
        measured = whole.float()
        if self.operator == "mask":
            wanted = tuple(run.shape)
        else:
            wanted = tuple(self._operator()(torch.zeros((1, *run.shape), dtype=torch.float32, device="cpu")).shape[1:])
        if measured.shape[1:] != wanted and run.layout is not None and len(measured.shape) == run.layout.dimensions:
            measured = run.layout.read(measured)
        if measured.shape[1:] != wanted:
            raise ConfigError(
                f"{self.data} holds measurements of shape {tuple(measured.shape[1:])}, and {self.operator} of the "
                f"model's samples has {wanted}",
                parameter="data",
            )
        return measured

    def _operator(self) -> Operator:
        makers: Mapping[str, Callable[[], Operator]] = {
            "blur": lambda: Blur.gaussian(check_number(self.blur, "blur", 0.0, open_low=True)),
            "downsample": lambda: Downsample(self.factor),
            "grey": lambda: Grey(),
        }
        return makers[self.operator]()

    def _measure(self, y: Tensor) -> tuple[Operator, Tensor]:
        """Return the operator of one measurement, and the measurement."""
        if self.operator != "mask":
            return self._operator(), y
        keep = ~y.isnan()
        if not bool(keep.any()):
            raise ConfigError(f"a sample of {self.data} is NaN everywhere: draw it with scoresde sample")
        return Mask(keep), y[keep]

    def _write(self, run: RunFolder, measured: Tensor, drawn: Tensor) -> None:
        ending = self.out.suffix.lower()
        if ending == ".npy":
            write_whole(self.out, lambda file: np.save(file, drawn.numpy()))
        elif ending == ".npz":
            write_whole(self.out, lambda file: np.savez(file, samples=drawn.numpy(), measurements=measured.numpy()))
        elif drawn.ndim == 5:
            first = measured.nan_to_num(float(measured.nan_to_num().min()))
            if first.shape[1:] == run.shape:
                drawn = torch.cat([first[:, None], drawn], 1)
            images = to_pixels(run, drawn.flatten(0, 1))
            grid = image_grid(images, rows=len(drawn), smooth=images.shape[-1] <= SMALL)
            write_whole(self.out, lambda file: save(grid, file))
        else:
            figure = scatter(drawn.flatten(0, 1), None)
            write_whole(self.out, lambda file: save(figure, file))
