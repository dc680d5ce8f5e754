"""How a training went: the loss against the step, and by noise level."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.errors.kinds import ConfigError, DataError
from scoresde.errors.values import check_integer, check_mapping, check_number, check_path, check_sequence, check_text
from scoresde.plots.style import GREY, PALETTE, dress, new_figure, plain_log_ticks, use_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["read_log", "training"]

BY_LEVEL = "log_snr", "loss_by_log_snr"
STAGES = 4  # moments of the training in the panel by noise level


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a run's ``log.jsonl``, or of the folder that holds it.

    Raises:
        DataError: no such file, or a line that is no record, with its number.
    """
    file = check_path(path)
    file = file / "log.jsonl" if file.is_dir() else file
    if not file.is_file():
        raise DataError(f"{file} is no log of a training; give the folder of a run, or its log.jsonl")
    records = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"line {number} of {file} is no record of a training: {line[:60]!r}") from error
    return records


def training(log: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Return the loss against the step, with the held-out loss where it was taken, and the loss by noise level.

    The second panel shows means over the records of up to four equal parts of the training, so that one sees at which
    log-SNR the network still learns.

    Args:
        log: the records, ``fit(...).log`` or ``read_log(folder)``.
        title: text above both panels.

    Raises:
        ConfigError: no record with a finite loss, or matplotlib is missing. DTypeError, DomainError: a record that
            holds other things than finite numbers.
    """
    log = [_check_record(one, f"log[{k}]") for k, one in enumerate(check_sequence(log, "log", "records"))]
    check_text(title, "title")
    losses = [(record["step"], record["loss"]) for record in log if record.get("loss") is not None]
    if not losses:
        raise ConfigError("log must hold at least one record with a finite loss; pass fit(...).log or read_log(folder)")
    held_out = [(record["step"], record["held_out_loss"]) for record in log if record.get("held_out_loss") is not None]
    with use_style():
        figure = new_figure(9.6, 3.9 + (0.3 if title else 0.0))
        if title:
            figure.suptitle(title, fontweight="bold")
        left, right = figure.subplots(1, 2)
        left.plot(*zip(*losses, strict=True), color=GREY, linewidth=1.3, label="training, mean since the last record")
        if held_out:
            left.plot(
                *zip(*held_out, strict=True), color=PALETTE[1], marker="o", label="held-out data, averaged weights"
            )
        if min(value for _, value in losses + held_out) > 0:
            left.set_yscale("log")
            plain_log_ticks(left.yaxis, *left.get_ylim())
        left.legend()
        dress(left, xlabel="step", ylabel="loss per coordinate")
        parts = min(STAGES, len(log))
        for k in range(parts):
            part = log[k * len(log) // parts : (k + 1) * len(log) // parts]
            means = _bin_means(part)
            if means:
                shade = 0.25 + 0.75 * (k + 1) / parts
                steps = f"steps {part[0]['step'] if k else 0} to {part[-1]['step']}"
                right.plot(*zip(*means, strict=True), color=PALETTE[0], alpha=shade, marker="o", label=steps)
        if right.lines:
            right.set_yscale("log")
            right.invert_xaxis()
            right.legend()
        dress(right, xlabel="log-SNR (from data to noise)", ylabel="loss per coordinate")
    return figure


def _check_record(given: object, name: str) -> Mapping[str, Any]:
    """Return a record whose step and losses are finite numbers, its losses by noise level one for each level."""
    record = check_mapping(given, name, "numbers")
    found = dict(record)
    found["step"] = check_integer(record.get("step"), f"{name}['step']")
    for key in ("loss", "held_out_loss"):
        if record.get(key) is not None:
            found[key] = check_number(record[key], f"{name}[{key!r}]")
    places, means = (check_sequence(record.get(key, ()), f"{name}[{key!r}]", "numbers") for key in BY_LEVEL)
    if len(places) != len(means):
        raise ConfigError(f"{name} has {len(places)} levels of log_snr and {len(means)} losses; give one for each")
    found["log_snr"] = [check_number(one, f"{name}['log_snr']") for one in places]
    # A mean that is not finite is left out of the picture.
    found["loss_by_log_snr"] = [
        v if v is None or isinstance(v, float) else check_number(v, f"{name}['loss_by_log_snr']") for v in means
    ]
    return found


def _bin_means(part: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return (log-SNR, mean loss) of the bins that are not empty; positive means only, for a logarithmic axis."""
    sums: dict[float, list[float]] = {}
    for record in part:
        for place, loss in zip(record.get("log_snr", ()), record.get("loss_by_log_snr", ()), strict=True):
            if loss is not None and math.isfinite(loss):
                sums.setdefault(place, []).append(loss)
    means = [(place, sum(values) / len(values)) for place, values in sorted(sums.items())]
    return [(place, mean) for place, mean in means if mean > 0]
