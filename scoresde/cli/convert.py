"""``scoresde convert``: weights of a file of torch.save, as safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scoresde.cli.options import Command, Float
from scoresde.cli.run_folder import check_file
from scoresde.errors.names import unknown
from scoresde.errors.values import check_number
from scoresde.models.torch_files import convert_weights

__all__ = ["Convert"]

ENDING = ".safetensors"
SHOWN = 5  # names of what was left out


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Write the tensors of a file that torch.save wrote (.pt, .pth, .ckpt, .bin) as safetensors.

    Such a file is a pickle, which can run any code; none of it runs here: a process of its own reads the tensors alone,
    and a file that holds more is refused. Names of nested containers are joined by dots. The weights then go into a
    network of your own, and the network into scoresde.adapt.

    Args:
        file: what torch.save wrote.
        target: the file of safetensors, which is replaced.
        part: only the tensors under this name, e.g. model.module, without it in their names.
        limit: largest size of the file and of its tensors, in GiB.
        debug: show the traceback of an error.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    part: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: all)")] = ""
    limit: Float = 16.0
    debug: bool = False

    def run(self) -> int:
        """Read and write."""
        check_number(self.limit, "limit", 0.0, open_low=True)
        if self.target.suffix.lower() != ENDING:
            raise unknown("ending of OUT", self.target.suffix, [ENDING], parameter="out")
        check_file("out", self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        done = convert_weights(self.file, self.target, part=self.part, limit=self.limit)
        many = "s" * (done.tensors != 1)
        print(f"wrote {self.target}: {done.tensors} tensor{many}, {done.bytes / 2**20:.3g} MiB")
        if done.left_out:
            rest = len(done.left_out) - SHOWN
            more = f" and {rest} more" if rest > 0 else ""
            print(f"left out, as no tensor is there: {', '.join(done.left_out[:SHOWN])}{more}")
        return 0
