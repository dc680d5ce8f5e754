"""A power cut: what was not synced is thrown away, and the run still goes on to the same weights.

A file's content lasts when the file was synced, a name when its folder was. At a cut before any sync of a training the
disk is what had been synced until then: other names are gone, other contents are empty.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import DATA, same, tiny, weights

from scoresde import CheckpointError, ScoreModel, fit

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds the name of what is synced in /proc"
)
OPTIONS: dict[str, Any] = {"steps": 6, "batch_size": 16, "progress": False, "save_every": 2, "log_every": 1}


class Cut(BaseException):
    """The power is gone."""


class Disk:
    """What a disk holds for good of the folders below ``root``."""

    def __init__(self, root: Path, side: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.side, self.left = root, side, sys.maxsize
        self.contents: dict[int, bytes] = {}
        self.names: dict[Path, dict[str, int | None]] = {}
        self.syncs = 0
        sync: Callable[[int], None] = os.fsync

        def fsync(handle: int) -> None:
            self.syncs += 1
            if self.syncs > self.left:
                raise Cut
            sync(handle)
            self._note(Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_ino)

        monkeypatch.setattr(os, "fsync", fsync)

    def _note(self, path: Path, inode: int) -> None:
        if path.is_dir():
            self.names[path] = {f.name: None if f.is_dir() else f.stat().st_ino for f in path.iterdir()}
            return
        self.contents[inode] = path.read_bytes()
        kept = self.side / str(inode)
        if not kept.exists():
            os.link(path, kept)  # so that no later file is given the same number

    def restore(self, target: Path) -> None:
        """Write what the disk holds to another folder."""
        target.mkdir()
        self._fill(self.root, target)

    def _fill(self, source: Path, target: Path) -> None:
        for name, inode in self.names.get(source, {}).items():
            if inode is None:
                (target / name).mkdir()
                self._fill(source / name, target / name)
            else:
                (target / name).write_bytes(self.contents.get(inode, b""))


def test_a_run_goes_on_after_a_power_cut_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny()
    fit(whole, DATA, **OPTIONS)
    with monkeypatch.context() as patch:
        (tmp_path / "side").mkdir()
        disk = Disk(tmp_path / "all", tmp_path / "side", patch)
        fit(tiny(), DATA, folder=tmp_path / "all", **OPTIONS)
    resumed = 0
    for cut in range(disk.syncs):
        root = tmp_path / f"run{cut}"
        (tmp_path / f"side{cut}").mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(root, tmp_path / f"side{cut}", patch)
            disk.left = cut
            with pytest.raises(Cut):
                fit(tiny(), DATA, folder=root, **OPTIONS)
        after = tmp_path / f"after{cut}"
        disk.restore(after)
        model = tiny()
        try:
            fit(model, DATA, folder=after, resume=True, **OPTIONS)
            resumed += 1
        except CheckpointError:
            # Nothing was saved for good yet: the run begins anew in its folder.
            assert resumed == 0
            fit(model, DATA, folder=after, **OPTIONS)
        assert same(weights(model), weights(whole))
        assert same(weights(ScoreModel.load(after, weights="raw")), weights(whole))
    assert resumed > disk.syncs // 2
