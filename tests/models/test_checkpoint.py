"""Checkpoints: nothing but a whole checkpoint is ever read or left behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import Own, files, filled, same_weights, small
from torch import nn

from scoresde import (
    VPSDE,
    CheckpointError,
    ConfigError,
    ScoreModel,
)
from scoresde.models import checkpoint as format_
from scoresde.models.manifest import MANIFEST
from scoresde.nn import MLP


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small(0).save(tmp_path / "m", ema=small(1).net.state_dict())
    return tmp_path / "m"


def test_every_cut_is_refused(saved: Path) -> None:
    for name, data in files(saved).items():
        for length in {0, 1, 7, 8, len(data) // 3, len(data) // 2, len(data) - 1}:
            (saved / name).write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=name):
                ScoreModel.load(saved)
        (saved / name).write_bytes(data + b"\n")
        with pytest.raises(CheckpointError, match=name):
            ScoreModel.load(saved)
        (saved / name).write_bytes(data)
    assert same_weights(ScoreModel.load(saved, weights="raw"), small(0))


def test_every_flipped_bit_is_refused(saved: Path) -> None:
    for name, data in files(saved).items():
        # Every byte of the manifest, which nothing else guards; some of the others, which its digests guard.
        places = range(len(data)) if name == MANIFEST else range(0, len(data), max(1, len(data) // 7))
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << (place % 8)
            (saved / name).write_bytes(damaged)
            with pytest.raises(CheckpointError, match=name):
                format_.read(saved)
        (saved / name).write_bytes(data)
    assert same_weights(ScoreModel.load(saved, weights="raw"), small(0))


def test_a_missing_file_is_named(saved: Path) -> None:
    for name, data in files(saved).items():
        (saved / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name}"):
            ScoreModel.load(saved)
        (saved / name).write_bytes(data)


def signed(body: dict[str, object]) -> str:
    """Write a manifest as the library writes it."""
    text = json.dumps(body, indent=1, sort_keys=True) + "\n"
    whole = {**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(whole, indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, r"has format version 3, this scoresde reads up to 2; update scoresde"),
        ({"version": 2}, r"manifest.json is damaged"),
        ({"version": 0}, r"manifest.json is damaged"),
        ({"format": "something else"}, r"manifest.json is damaged"),
        ({"files": {"model": {"file": "../secret.json", "bytes": 1, "sha256": ""}}}, r"manifest.json is damaged"),
        ({}, None),
    ],
)
def test_manifest_of_another_format_is_refused(saved: Path, change: dict[str, object], message: str | None) -> None:
    manifest = saved / MANIFEST
    body = json.loads(manifest.read_text("utf-8"))
    body.pop("sha256")
    manifest.write_text(signed(body | change), "utf-8")
    if message is None:
        assert same_weights(ScoreModel.load(saved, weights="raw"), small(0))
        return
    with pytest.raises(CheckpointError, match=message):
        ScoreModel.load(saved)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".bin"])
def test_pickles_are_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    # A pickle that would make a file when loaded.
    victim, trap = tmp_path / "made", tmp_path / f"model{suffix}"
    trap.write_bytes(b"cos\nmkdir\n(S'%s'\ntR." % str(victim).encode())
    with pytest.raises(CheckpointError, match="is a pickle, and loading one runs whatever code it holds: refused"):
        ScoreModel.load(trap)
    with pytest.raises(CheckpointError, match=f"holds no manifest.json.*model{suffix} is a pickle, which is never"):
        ScoreModel.load(tmp_path)
    assert not victim.exists()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        ScoreModel.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no manifest.json: it is no checkpoint, or its first save never"):
        ScoreModel.load(tmp_path)


def test_another_architecture_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    ScoreModel(filled(Own()), VPSDE()).save(tmp_path)

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(3))
            self.shift = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    net = Renamed()
    with pytest.raises(CheckpointError) as error:
        ScoreModel.load(tmp_path, net=net)
    text = str(error.value)
    for part in (
        "does not fit the network Renamed",
        "missing gain",
        "unexpected scale",
        "mismatched shift: (3,) torch.float32 in the file, (4,) torch.float64 in the network",
        "build the network with the options it was saved with",
    ):
        assert part in text
    deeper = MLP(3, width=8, depth=2)
    first = {k: v.clone() for k, v in deeper.state_dict().items()}
    small().save(tmp_path / "mlp")
    with pytest.raises(CheckpointError, match=r"missing first\.1\.bias"):
        ScoreModel.load(tmp_path / "mlp", net=deeper)
    assert all(torch.equal(first[k], v) for k, v in deeper.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# Saving


def test_saving_again_leaves_one_whole_checkpoint_and_no_other_file(tmp_path: Path) -> None:
    for seed in range(3):
        small(seed).save(tmp_path / "m")
        assert len(files(tmp_path / "m")) == 4
    assert same_weights(ScoreModel.load(tmp_path / "m"), small(2))
    before = files(tmp_path / "m")
    small(2).save(tmp_path / "m")
    assert files(tmp_path / "m") == before


def test_what_is_put_into_a_checkpoint_afterwards_is_held_to_its_schema(saved: Path) -> None:
    before = files(saved)
    with pytest.raises(ConfigError, match="a checkpoint cannot hold that"):
        format_.amend(saved, {"calibration": {"levels": [1.0]}})
    assert files(saved) == before


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(CheckpointError, match=r"is not empty: it holds 'notes.txt'; choose an empty or a new folder"):
        small().save(tmp_path)
    with pytest.raises(CheckpointError, match=r"notes.txt is a file; a checkpoint is a folder"):
        small().save(tmp_path / "notes.txt")
    assert files(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(CheckpointError, match=r"could not write .*notes.txt.*bytes are needed and \d+ are free"):
        small().save(tmp_path / "notes.txt" / "m")


PREPARE = """
import os, resource, signal, sys
from pathlib import Path
import torch
from scoresde import VPSDE, CheckpointError, ScoreModel
from scoresde.nn import MLP

folder = Path(sys.argv[1])
def model(value):
    net = MLP(3, width=32, depth=1)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(value)
    return ScoreModel(net, VPSDE())
def value():
    loaded = {float(p.flatten()[0]) for p in ScoreModel.load(folder).parameters()}
    assert len(loaded) == 1, loaded
    return loaded.pop()
model(1.0).save(folder)
"""

KILL = """
# A child dies at its n-th look at the disk, for every n, until one comes through.
outcomes, n = [], 0
while True:
    n += 1
    child = os.fork()
    if child == 0:
        left = n
        def dying(call):
            def wrapped(*args, **kwargs):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = call(*args, **kwargs)
                return done
            return wrapped
        os.fsync, Path.replace, Path.unlink = dying(os.fsync), dying(Path.replace), dying(Path.unlink)
        Path.open = dying(Path.open)
        model(2.0).save(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    outcomes.append(value())
    if os.WIFEXITED(status):
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    model(1.0).save(folder)
    assert value() == 1.0
print(outcomes, sorted(f.name.split("-")[0] for f in folder.iterdir()))
"""

LIMIT = """
def limited(limit):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        model(2.0).save(folder)
    except CheckpointError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
before = {f.name: f.read_bytes() for f in folder.iterdir()}
for limit in (0, 100, 4096):
    message = limited(limit)
    assert "bytes are needed and" in message and "File too large" in message, message
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert value() == 1.0
assert limited(10**6) is None
print(value())
"""


def run(script: str, folder: Path) -> str:
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1)\n" + PREPARE + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_save_killed_anywhere_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    outcomes, names = run(KILL, tmp_path / "m").split("] [")
    values = [float(v) for v in outcomes.strip("[").split(",")]
    # Old up to the rename of the manifest, new from there on.
    assert values == sorted(values)
    assert values.count(1.0) >= 8
    assert values.count(2.0) >= 2
    assert names.count("weights") == names.count("manifest.json") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs file-size limits")
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    assert run(LIMIT, tmp_path / "m") == "2.0"


def test_a_copied_folder_loads(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    assert same_weights(ScoreModel.load(tmp_path / "copy", weights="raw"), small(0))
