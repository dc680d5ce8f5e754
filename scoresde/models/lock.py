"""One writer of a folder at a time: the file ``.lock`` in it, held by one thread of one process.

The system's own lock on that file decides, and the system releases it when a process ends in whatever way, so that the
file of a killed holder keeps nobody out. What the file says (process, host, since when) is for people; and it decides
where a file system has no locks: a holder on this host is gone where its process is, or where that number now belongs
to a process started at another time. A holder on another host cannot be asked: the error says which file to remove.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scoresde.errors.kinds import CheckpointError
from scoresde.errors.values import check_path

__all__ = ["IN_RUN", "LOCK", "locked"]

LOCK = ".lock"
IN_RUN = "checkpoint"  # the name of the checkpoint in a run's folder
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(eq=False)
class _Hold:
    """A lock that a thread of this process has.

    Args:
        file: the lock file.
        handle: of the file, open as long as the lock is held.
        owner: process and thread.
        abandoned: whether a holder before died without releasing it.
        depth: how often the owner has taken it.
    """

    file: Path
    handle: int
    owner: tuple[int, int]
    abandoned: bool
    depth: int = 0


_holds: dict[tuple[int, int], _Hold] = {}  # by the device and the number of the folder
_guard = threading.Lock()


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold the lock of a folder: no other process, and no other thread of this one, writes a checkpoint there.

    The lock of a run covers the checkpoint in it: ``locked(run)`` and ``locked(run / "checkpoint")`` are one lock, in
    the run's folder. Who holds it may take it again, as ``checkpoint.write`` does. Readers need no lock. A run takes
    it before it looks at what the folder holds, and keeps it to its end:

        with locked(folder):
            ...  # is the folder empty? resume, train, save

    Args:
        folder: of a run or of a checkpoint; made where it does not exist. The file ``LOCK`` is in it meanwhile, and
            after a holder was killed.

    Yields:
        Whether a holder died with the lock, so that files of an unfinished save may lie there.

    Raises:
        CheckpointError: another one holds it, with its process, host and time; or the folder cannot be written.
    """
    where = check_path(folder, "folder")
    # Absolute, so that the file is found again from wherever the lock is released.
    home = (where.parent if where.name == IN_RUN else where).absolute()
    try:
        hold = _enter(home)
    except OSError as error:
        raise CheckpointError(
            f"could not lock {home}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    try:
        yield hold.abandoned
    finally:
        _leave(hold)


def _enter(home: Path) -> _Hold:
    me = os.getpid(), threading.get_ident()
    with _guard:
        home.mkdir(parents=True, exist_ok=True)
        place = home.stat()
        key = place.st_dev, place.st_ino
        # A folder that was removed leaves its number to the next one, which nobody has locked.
        if key in _holds and _holds[key].owner == me and not _is_at(_holds[key].handle, home / LOCK):
            del _holds[key]
        if key in _holds and _holds[key].owner != me:
            raise CheckpointError(
                f"{home} is in use by another thread of this process; wait until it ends, or choose another folder"
            )
        if key not in _holds:
            handle, abandoned = _take(home / LOCK)
            _holds[key] = _Hold(home / LOCK, handle, me, abandoned)
        _holds[key].depth += 1
        return _holds[key]


def _leave(hold: _Hold) -> None:
    with _guard:
        hold.depth -= 1
        # A child process that leaves the block of its parent has nothing to release.
        if hold.depth or hold.owner[0] != os.getpid():
            return
        for key in [key for key, one in _holds.items() if one is hold]:
            del _holds[key]
        # Emptied for where a file that is open cannot be removed; removed while it is held, as _take expects.
        with contextlib.suppress(OSError):
            os.ftruncate(hold.handle, 0)
        with contextlib.suppress(OSError):
            # Someone may have removed ours by hand, and what stands there now is another holder's.
            if _is_at(hold.handle, hold.file):
                hold.file.unlink()
        os.close(hold.handle)


def _take(file: Path) -> tuple[int, bool]:
    """Return the open file, locked, and whether a holder died with it; CheckpointError where one lives."""
    while True:
        # A link is not followed: what it names is not ours to write.
        handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        kept = False
        try:
            sure = _grip(handle)
            record = _read_record(handle)
            if sure is None or (not sure and _is_alive(record)):
                raise _describe_holder(file, record, sure=sure is None)
            # The holder before may have removed the file after it was opened here: its lock would be no one's.
            kept = _is_at(handle, file)
            if kept:
                _write_record(handle)
                return handle, bool(record)
        finally:
            if not kept:
                os.close(handle)


def _grip(handle: int) -> bool | None:
    """Lock an open file; None where another one has it, False where the file system has no locks."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # a byte far behind the record, which others may read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return None
        return True
    import fcntl

    try:
        # Of the open file, not of the process as lockf's: who reads it, to copy the folder say, releases nothing.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except OSError:
        return False


def _write_record(handle: int) -> None:
    process = os.getpid()
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"process": process, "host": platform.node(), "born": _find_birth(process), "since": since}
    # A full disk keeps nobody from the lock: the save itself says what is missing.
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(record).encode())


def _read_record(handle: int) -> dict[str, Any]:
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        record = json.loads(os.read(handle, 4096))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_alive(record: dict[str, Any]) -> bool:
    """Say whether a record's process may still run."""
    process = record.get("process")
    if type(process) is not int:
        return False
    # On Windows the question itself would end the process.
    if record.get("host") != platform.node() or sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return bool(record.get("born") == _find_birth(process))


def _find_birth(process: int) -> str | None:
    """Return when a process was started, in the system's own count; None where the system does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _describe_holder(file: Path, record: dict[str, Any], *, sure: bool) -> CheckpointError:
    who = f"process {record.get('process', 'unknown')} on {record.get('host', 'an unknown host')}"
    cure = "" if sure else f"; if it no longer runs, remove {file}"
    return CheckpointError(
        f"{file.parent} is in use by {who} since {record.get('since', 'just now')}; wait until it ends, or choose "
        f"another folder{cure}"
    )


def _forget() -> None:
    """Let a forked child hold nothing, so that its parent's locks end with the parent."""
    for hold in _holds.values():
        with contextlib.suppress(OSError):
            os.close(hold.handle)
    _holds.clear()
    _guard.release()


if sys.platform != "win32":
    # No fork in the middle of a change: the child would find half of it, and a guard that nobody releases.
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget)
