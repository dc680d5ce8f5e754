"""Two writers of one folder: one works, the other is told who does; a killed one keeps nobody out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from checkpoints import files, same_weights, small

from scoresde import CheckpointError, ScoreModel
from scoresde.models import checkpoint, lock
from scoresde.models.lock import LOCK, locked
from scoresde.models.manifest import MANIFEST

PREPARE = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from scoresde import VPSDE, CheckpointError, ScoreModel
from scoresde.models import checkpoint
from scoresde.models.lock import locked
from scoresde.nn import MLP

folder = Path(sys.argv[1])
def model(value):
    net = MLP(3, width=8, depth=1)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)
    return ScoreModel(net, VPSDE())
def value(folder=folder):
    loaded = {float(p.detach().flatten()[0]) for p in ScoreModel.load(folder).parameters()}
    assert len(loaded) == 1, loaded
    return loaded.pop()
def child(work):
    number = os.fork()
    if number == 0:
        try:
            work()
        finally:
            sys.stdout.flush()
            os._exit(0)
    return number
"""

WRITERS = """
# Two processes save as fast as they can; a pipe that both read lets them begin together.
start, go = os.pipe()
said, tell = os.pipe()
one, other = model(1.0), model(2.0)
def write(mine):
    os.read(start, 1)
    for _ in range(40):
        try:
            mine.save(folder)
            answer = "saved"
        except CheckpointError as error:
            answer = str(error)
        except BaseException as error:
            answer = repr(error)
        os.write(tell, (answer.replace(str(folder), "FOLDER") + "\\n").encode())
children = [child(lambda: write(one)), child(lambda: write(other))]
os.write(go, b"12")
for number in children:
    os.waitpid(number, 0)
os.close(tell)
answers = os.fdopen(said).read().splitlines()
print(json.dumps({"answers": answers, "children": children, "value": value(),
                  "files": sorted(f.name.split("-")[0] for f in folder.iterdir())}))
"""

KILLED = """
run = folder / "run"
model(1.0).save(run / "checkpoint")
ready, tell = os.pipe()
def hold():
    # It dies in the middle of a save, of which a part and a temporary file are there.
    with locked(run):
        (run / "checkpoint" / "weights-0123456789abcdef.safetensors").write_bytes(b"cut")
        (run / "checkpoint" / ".manifest.json.123456789.tmp").write_bytes(b"cut")
        os.write(tell, b".")
        signal.pause()
holder = child(hold)
os.read(ready, 1)
try:
    model(2.0).save(run / "checkpoint")
    said = "saved"
except CheckpointError as error:
    said = str(error)
before = value(run)
os.kill(holder, signal.SIGKILL)
os.waitpid(holder, 0)
left = (run / ".lock").is_file()
with locked(run) as abandoned:
    model(2.0).save(run / "checkpoint")
print(json.dumps({"said": said, "holder": holder, "before": before, "left": left, "abandoned": abandoned,
                  "value": value(run), "files": sorted(f.name.split("-")[0] for f in run.rglob("*"))}))
"""

READER = """
one, other = model(1.0), model(2.0)
one.save(folder)
def write():
    while True:
        other.save(folder)
        one.save(folder)
writer = child(write)
seen = []
try:
    for _ in range(100):
        seen.append(value())
finally:
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
print(json.dumps({"seen": seen}))
"""

FORK = """
# A child forked by the holder holds nothing: the lock ends with its parent's block while the child still runs.
ready, tell = os.pipe()
with locked(folder):
    sleeper = child(signal.pause)
    def attempt():
        try:
            model(3.0).save(folder)
            os.write(tell, b"saved")
        except CheckpointError as error:
            os.write(tell, str(error).encode())
    os.waitpid(child(attempt), 0)
    said = os.read(ready, 4096).decode()
os.waitpid(child(lambda: model(1.0).save(folder)), 0)
os.kill(sleeper, signal.SIGKILL)
os.waitpid(sleeper, 0)
print(json.dumps({"said": said, "value": value(), "parent": os.getpid()}))
"""

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def run(script: str, folder: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + script, str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@needs_fork
def test_of_two_writers_each_save_works_or_names_the_other(tmp_path: Path) -> None:
    found = run(WRITERS, tmp_path / "m")
    answers = found["answers"]
    assert len(answers) == 80
    refused = [answer for answer in answers if answer != "saved"]
    assert len(refused) < len(answers)
    for answer in refused:
        assert answer.startswith("FOLDER is in use by process "), answer
        assert answer.endswith("; wait until it ends, or choose another folder"), answer
        assert any(f"process {number} on" in answer for number in found["children"]) or "process unknown" in answer
    assert found["value"] in (1.0, 2.0)
    assert found["files"] == ["manifest.json", "model", "weights"]


@needs_fork
def test_the_lock_of_a_killed_holder_is_taken_over_and_what_it_left_is_removed(tmp_path: Path) -> None:
    found = run(KILLED, tmp_path)
    assert f"run is in use by process {found['holder']} on " in found["said"]
    assert "\n" not in found["said"]
    assert (found["before"], found["value"]) == (1.0, 2.0)
    assert (found["left"], found["abandoned"]) == (True, True)
    assert found["files"] == ["checkpoint", "manifest.json", "model", "weights"]


@needs_fork
def test_a_reader_beside_a_writer_sees_one_state_or_the_other(tmp_path: Path) -> None:
    seen = run(READER, tmp_path / "m")["seen"]
    assert len(seen) == 100
    assert set(seen) == {1.0, 2.0}


@needs_fork
def test_a_forked_child_neither_holds_nor_keeps_its_parents_lock(tmp_path: Path) -> None:
    found = run(FORK, tmp_path / "m")
    assert f"is in use by process {found['parent']} on" in found["said"]
    assert found["value"] == 1.0


def test_the_lock_of_a_run_is_that_of_its_checkpoint_and_may_be_taken_again(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        small(0).save(tmp_path / "run" / "checkpoint")
        with locked(tmp_path / "run" / "checkpoint"):
            small(1).save(tmp_path / "run" / "checkpoint")
        assert (tmp_path / "run" / LOCK).is_file()
        # Who copies the folder reads the lock file, and releases nothing; the copy is held by nobody.
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        small(2).save(tmp_path / "copy" / "checkpoint")
        assert in_thread(tmp_path / "run") == [f"{tmp_path / 'run'} is in use by another thread of this process"]
    assert not (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "copy" / LOCK).exists()
    assert in_thread(tmp_path / "run") == []
    assert same_weights(ScoreModel.load(tmp_path / "run"), small(3))
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "run"):
        raise ZeroDivisionError
    assert in_thread(tmp_path / "run") == []


def in_thread(folder: Path) -> list[str]:
    said: list[str] = []

    def save() -> None:
        try:
            small(3).save(folder / "checkpoint")
        except CheckpointError as error:
            said.append(str(error).partition(";")[0])

    thread = threading.Thread(target=save)
    thread.start()
    thread.join()
    return said


def test_where_the_file_system_has_no_locks_the_record_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_grip", lambda handle: False)
    host, born = lock.platform.node(), lock._find_birth(os.getpid())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for record, cure in (
        ({"process": os.getpid(), "host": host, "born": born}, "if it no longer runs, remove"),
        ({"process": 1, "host": "elsewhere", "born": "1"}, "process 1 on elsewhere .*; if it no longer runs, remove"),
        ({"process": gone.pid, "host": host, "born": "1"}, None),
        ({"process": os.getpid(), "host": host, "born": "another"}, None),
        ({"process": 10**30, "host": host}, None),
        ("no record", None),
    ):
        (tmp_path / LOCK).write_text(json.dumps(record), "utf-8")
        if cure is None or (sys.platform == "win32" and record != "no record"):
            with locked(tmp_path):
                pass
        else:
            with pytest.raises(CheckpointError, match=cure), locked(tmp_path):
                pass
            (tmp_path / LOCK).unlink()
        assert not (tmp_path / LOCK).exists()


def test_a_lock_file_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grip, seen = lock._grip, []

    def late(handle: int) -> bool | None:
        # The holder before leaves between our opening of its file and our lock.
        if not seen:
            (tmp_path / LOCK).unlink()
        seen.append(handle)
        return grip(handle)

    monkeypatch.setattr(lock, "_grip", late)
    with locked(tmp_path):
        assert len(seen) == 2
        assert (tmp_path / LOCK).is_file()


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(CheckpointError, match=r"could not lock .*; choose a folder that can be written"):
        locked(tmp_path / "file" / "run").__enter__()
    (tmp_path / "m" / LOCK).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="could not lock"):
        small().save(tmp_path / "m")


def test_a_lock_that_was_removed_by_hand_leaves_the_next_holders_alone(tmp_path: Path) -> None:
    """The next holder's file has the same name; the folder that took the place of a removed one is locked anew."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    with locked(run):
        (run / LOCK).unlink()
        with locked(run):
            assert (run / LOCK).is_file()
        assert not (run / LOCK).exists()
    with locked(run):
        (run / LOCK).rename(run / "mine")
        (run / LOCK).write_text("another's", "utf-8")
        kept = (run / LOCK).stat().st_ino
    assert (run / LOCK).stat().st_ino == kept
    (run / LOCK).unlink()
    with locked(run):
        run.rename(moved)
        with locked(run):
            assert (run / LOCK).is_file()


def test_a_save_removes_what_the_manifest_before_named_and_nothing_else(tmp_path: Path) -> None:
    small(0).save(tmp_path)
    first = files(tmp_path)
    other = "weights-0123456789abcdef.safetensors"
    (tmp_path / other).write_bytes(b"another writer's")
    small(1).save(tmp_path)
    left = files(tmp_path)
    assert other in left
    assert len(left) == len(first) + 1
    # A damaged manifest says nothing, and what no manifest names is of no use.
    (tmp_path / MANIFEST).write_bytes(b"{")
    small(2).save(tmp_path)
    assert len(files(tmp_path)) == len(first)


def test_a_failed_save_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(0).save(tmp_path)
    before = files(tmp_path)
    put = checkpoint._put

    def fail(file: Path, data: bytes) -> None:
        if file.name == MANIFEST:
            raise OSError(28, "No space left on device", str(file))
        put(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_put", fail)
        with pytest.raises(CheckpointError, match="No space left on device"):
            small(1).save(tmp_path)
    assert files(tmp_path) == before
    assert same_weights(ScoreModel.load(tmp_path), small(0))
