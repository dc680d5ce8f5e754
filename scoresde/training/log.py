"""The log of a training: records to ``log.jsonl``, a line each, to ``log.csv`` for spreadsheets, and to trackers.

A record that was being written when the process was killed, or that a power cut left broken, is dropped when the run
goes on, and so are those of steps after the checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from torch import Tensor

from scoresde.errors.kinds import CheckpointError, ConfigError, DTypeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_sequence

__all__ = ["LOG", "TABLE", "TRACKERS", "Log", "Record", "Tracker", "check_trackers", "open_trackers", "read_records"]

LOG, TABLE = "log.jsonl", "log.csv"
COLUMNS = ("step", "loss", "held_out_loss", "learning_rate", "gradient_norm", "skipped", "seconds")
BINNED = ("log_snr", "loss_by_log_snr")  # lists, which have no place in a table
NO_LETTERS = "backslashreplace"  # halves of letters, which JSON may hold and a file cannot
TRACKERS = ("tensorboard", "wandb", "mlflow")  # of those that accelerate knows


class Record(TypedDict):
    """One line of the log; None stands for what is not finite.

    Keys: the step; the mean loss since the last record, and by bins of log(alpha^2/sigma^2), whose middles are
    ``log_snr`` (None: an empty bin); the learning rate; the gradient's norm before clipping; the steps since the last
    record that were not made, their loss or gradient being not finite; the seconds since the start; and with every
    checkpoint that is due the loss of held-out data with the averaged weights, and what ``watch`` gave.
    """

    step: int
    loss: float | None
    log_snr: list[float]
    loss_by_log_snr: list[float | None]
    learning_rate: float
    gradient_norm: float | None
    skipped: int
    seconds: float
    held_out_loss: NotRequired[float | None]
    watched: NotRequired[dict[str, float | None]]


@runtime_checkable
class Tracker(Protocol):
    """What takes numbers with their step, as the trackers of accelerate do."""

    def log(self, values: dict[str, Any], step: int | None = None) -> object:
        """Take the numbers of a step."""
        ...


class Log:
    """The log of a run.

    Args:
        folder: where the files are; None to write none.
        on_log: is called with every record, after the ``trackers`` got its numbers.
    """

    def __init__(self, folder: Path | None, on_log: Callable[[Record], None] | None = None) -> None:
        self.folder, self.on_log = folder, on_log
        self.trackers: list[Tracker] = []
        self.records: list[Record] = []
        self._columns: list[str] = []

    def add(self, record: Record) -> None:
        """Write a record; CheckpointError where the disk takes none."""
        self.records.append(record)
        if self.folder is not None:
            self._append(LOG, json.dumps(record) + "\n")
            row = _flatten(record)
            if not set(row) <= set(self._columns):
                self._columns = list(dict.fromkeys([*COLUMNS, *self._columns, *row]))
                rows = [_flatten(one) for one in read_records(self.folder / LOG)]
                _replace(self.folder / TABLE, _table(self._columns, rows, titled=True))
            else:
                self._append(TABLE, _table(self._columns, [row], titled=False))
        numbers = {name: value for name, value in _flatten(record).items() if name != "step" and value is not None}
        for tracker in self.trackers:
            tracker.log(numbers, step=record["step"])
        if self.on_log is not None:
            self.on_log(record.copy())

    def go_on_from(self, step: int) -> None:
        """Drop what was written after a step, and what is broken; in one atomic change."""
        assert self.folder is not None
        kept = [record for record in read_records(self.folder / LOG) if record["step"] <= step]
        _replace(self.folder / LOG, "".join(json.dumps(record) + "\n" for record in kept))
        rows = [_flatten(record) for record in kept]
        names = [name for row in rows for name in row]
        self._columns = [*COLUMNS, *dict.fromkeys(name for name in names if name not in COLUMNS)] if rows else []
        if rows:
            _replace(self.folder / TABLE, _table(self._columns, rows, titled=True))
        else:
            with contextlib.suppress(OSError):  # a folder of that name, say: the first record says so
                (self.folder / TABLE).unlink()

    def begin(self) -> None:
        """Make an empty log; OSError where the folder cannot be written."""
        assert self.folder is not None
        (self.folder / LOG).write_text("", encoding="utf-8")
        (self.folder / TABLE).unlink(missing_ok=True)

    def _append(self, name: str, text: str) -> None:
        assert self.folder is not None
        file = self.folder / name
        try:
            with file.open("a", encoding="utf-8", errors=NO_LETTERS, newline="") as stream:
                stream.write(text)
        except OSError as error:
            gone = not self.folder.is_dir()
            cure = "the run's folder was removed" if gone else "the last checkpoint stands: make room and go on with "
            raise CheckpointError(
                f"could not write {file}: {error.strerror or error}; {cure}{'' if gone else 'resume=True'}"
            ) from error


def _flatten(record: Record) -> dict[str, Any]:
    """Return the numbers of a record by name, those that were watched beside the others."""
    flat = {name: value for name, value in record.items() if name not in (*BINNED, "watched")}
    return flat | dict(record.get("watched", {}))


def _table(columns: Iterable[str], rows: Sequence[Mapping[str, object]], *, titled: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    if titled:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_records(file: Path) -> list[Record]:
    """Return the records of a log that are whole; none where there is no file."""
    if not file.is_file():
        return []
    found: list[Record] = []
    for line in file.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int and type(record.get("watched", {})) is dict:
            found.append(record)  # type: ignore[arg-type]
    return found


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors=NO_LETTERS, newline="")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {file}: {error.strerror or error}; make room and try again") from error


def check_trackers(trackers: str | Sequence[str | Tracker] | None) -> list[str | Tracker]:
    """Return trackers, of which some are names; ConfigError for an unknown name, DTypeError for no tracker."""
    several: object = () if trackers is None else trackers
    single = isinstance(trackers, str) or _is_tracker(trackers)
    given = (trackers,) if single else check_sequence(several, "trackers", "trackers")
    for one in given:
        if isinstance(one, str):
            check_choice("tracker", one, TRACKERS)
        elif not _is_tracker(one):
            raise DTypeError(f"trackers must be names or have a method log(values, step=), got {show(one)}")
    return list(given)


def _is_tracker(one: object) -> bool:
    """Say whether something has a method ``log`` of its own; a tensor's is the logarithm."""
    return isinstance(one, Tracker) and not isinstance(one, Tensor | type)


def open_trackers(trackers: Iterable[str | Tracker], folder: Path | None) -> list[Tracker]:
    """Return trackers; those given by name are accelerate's. ConfigError where a package is not there."""
    return [_open(one, folder) if isinstance(one, str) else one for one in trackers]


def _open(name: str, folder: Path | None) -> Tracker:
    try:
        from accelerate import PartialState, tracking

        PartialState()
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        run = "scoresde" if folder is None else folder.resolve().name
        place = {"logging_dir": str(folder or ".")} if kind.requires_logging_directory else {}
        tracker: Tracker = kind(run, **place)
        start = getattr(tracker, "start", None)  # newer ones open in a second step
        if start is not None:
            start()
    except (ImportError, KeyError) as error:
        raise ConfigError(f"the tracker {name!r} needs accelerate and {name}: pip install accelerate {name}") from error
    return tracker
