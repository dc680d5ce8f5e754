"""The held-out data of a run, which its verbs measure against."""

from __future__ import annotations

import sys

from scoresde.cli.files import open_data
from scoresde.cli.presets import DataSet
from scoresde.cli.run_folder import RunFolder, digest
from scoresde.errors import ConfigError

__all__ = ["open_data_of"]


def open_data_of(run: RunFolder, named: str | None, on_bad_image: str | None) -> tuple[str, DataSet]:
    """Return the data to measure against: those named, or the run's as they were then, or with a word that they differ.

    Raises:
        ConfigError: none are named and no run.json names them. ConfigError, DataError: as ``open_data``.
    """
    name = run.data if named is None else named
    if name is None:
        raise ConfigError(
            f"{run.folder} has no run.json that names its data; say which with --data digits", parameter="data"
        )
    options = run.about.get("options")
    usual = options.get("on_bad_image", "raise") if isinstance(options, dict) and name == run.data else "raise"
    # The images of a folder are brought to the size of the model's.
    context = options.get("context") if isinstance(options, dict) else None
    side = run.event[-1] if len(run.event) == 3 and run.event[-1] == run.event[-2] else None
    data = open_data(name, size=side, on_bad_image=on_bad_image or str(usual), context=context)
    if name == run.data and data.path is not None:
        known = run.about.get("samples")
        if isinstance(known, dict) and known.get("sha256") != digest(data.load()[0]):
            print(f"note: {name} has changed since the training; its held-out part may be known", file=sys.stderr)
    return name, data
