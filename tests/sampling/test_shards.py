"""Samples in a folder: what is written is what is read, and a failure leaves what was there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import ConfigError, DataError, DomainError, DTypeError, ShapeError, read_shards, write_shards
from scoresde.sampling.processes import World

X = torch.arange(28.0).reshape(7, 2, 2)


def rows_of(x: Tensor, seen: list[slice] | None = None):
    def draw(rows: slice) -> Tensor:
        if seen is not None:
            seen.append(rows)
        return x[rows]

    return draw


def test_rows_come_back_in_chunks_of_the_size_asked_for(tmp_path: Path) -> None:
    seen: list[slice] = []
    write_shards(tmp_path / "new" / "x", 7, rows_of(X, seen), chunk_size=3, about={"seed": 1})
    assert seen == [slice(0, 3), slice(3, 6), slice(6, 7)]
    folder = tmp_path / "new" / "x"
    assert torch.equal(read_shards(folder), X)
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(read_shards(folder, start=start, stop=stop), X[start:stop])
    index = json.loads((folder / "index.json").read_text())
    assert (index["n"], index["about"]) == (7, {"seed": 1})
    (shard,) = index["arrays"]["samples"]["shards"]
    data = (folder / shard["file"]).read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard["sha256"], shard["bytes"])
    assert np.array_equal(np.load(folder / shard["file"], allow_pickle=False), X.numpy()), "an ordinary file of NumPy"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_types_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    x = (X % 2).to(dtype)
    write_shards(tmp_path, 7, rows_of(x), chunk_size=2)
    found = read_shards(tmp_path)
    assert found.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.equal(found, x.to(found.dtype))


def test_no_samples_are_no_files(tmp_path: Path) -> None:
    write_shards(tmp_path, 0, rows_of(X))
    assert [file.name for file in tmp_path.iterdir()] == ["index.json"]
    with pytest.raises(ConfigError, match="unknown array of"):
        read_shards(tmp_path)


def test_a_second_job_takes_the_place_of_the_first_at_its_end(tmp_path: Path) -> None:
    write_shards(tmp_path, 7, lambda rows: {"samples": X[rows], "label": torch.arange(7)[rows]})
    seen: list[int] = []

    def draw(rows: slice) -> Tensor:
        seen.append(len(read_shards(tmp_path)))
        return -X[rows]

    write_shards(tmp_path, 4, draw, chunk_size=1)
    assert seen == [7, 7, 7, 7], "the first stands until the second has ended"
    assert torch.equal(read_shards(tmp_path), -X[:4])
    assert len(list(tmp_path.iterdir())) == 2


def half(rows: slice) -> Tensor:
    if rows.start:
        raise KeyboardInterrupt("Ctrl-C")
    return X[rows]


def mixed(rows: slice) -> Tensor:
    return X[rows] if rows.start else X[rows, :1]


def other(rows: slice) -> Mapping[str, Tensor]:
    return {"samples": X[rows]} if rows.start else {"label": X[rows]}


@pytest.mark.parametrize(
    ("draw", "kind", "message"),
    [
        (half, KeyboardInterrupt, "Ctrl-C"),
        (mixed, ShapeError, "draw returned 'samples' of float32"),
        (other, ConfigError, "draw returned samples, before label"),
        (lambda rows: X[:1], ShapeError, "draw returned 7 rows of 'samples' for 14; return one for each"),
        (lambda rows: X[rows].tolist(), DTypeError, "draw must return a tensor, or tensors by name, got list for"),
        (lambda rows: {"../x": X[rows]}, ConfigError, r"by names of letters, digits and _, got '\.\./x'"),
        (lambda rows: torch.tensor(1.0), ConfigError, r"draw must return tensors \(rows, \*\)"),
    ],
)
def test_a_failure_leaves_what_was_there(draw, kind: type[BaseException], message: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "x", 7, rows_of(X))
    before = {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()}
    with pytest.raises(kind, match=message):
        write_shards(tmp_path / "x", 14, draw, chunk_size=2)
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_folders_and_options_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    calls: list[slice] = []
    with pytest.raises(ConfigError, match="file is a file; name a folder"):
        write_shards(tmp_path / "file", 7, rows_of(X, calls))
    with pytest.raises(ConfigError, match="holds 'file', which is no file of samples; name an empty or a new folder"):
        write_shards(tmp_path, 7, rows_of(X, calls))
    with pytest.raises(DomainError, match="chunk_size must be at least 1, got 0"):
        write_shards(tmp_path / "x", 7, rows_of(X, calls), chunk_size=0)
    with pytest.raises(DTypeError, match="about must be what JSON can hold, finite and not too deep"):
        write_shards(tmp_path / "x", 7, rows_of(X, calls), about={"loss": float("nan")})
    assert calls == []
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no index\.json, which is written last: what draws its samples has not"):
        read_shards(tmp_path)
    write_shards(tmp_path, 7, rows_of(X))
    with pytest.raises(ConfigError, match=r"unknown array of .* 'sample'; did you mean 'samples'"):
        read_shards(tmp_path, "sample")
    with pytest.raises(DomainError, match=r"stop must be in \[0, 7\], got 8"):
        read_shards(tmp_path, stop=8)
    with pytest.raises(DomainError, match=r"start must be in \[0, 3\], got 4"):
        read_shards(tmp_path, start=4, stop=3)
    (file,) = tmp_path.glob("samples-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"has {len(whole) - 1} bytes, its index says {len(whole)}; draw the samples"):
        read_shards(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="is missing; draw the samples again"):
        read_shards(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    for text, message in (
        ("{", "is damaged"),
        ("[]", "is no index of samples"),
        (json.dumps({**index, "version": 2}), "has version 2, this scoresde reads up to 1; update scoresde"),
    ):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_shards(tmp_path)


def test_a_share_is_written_by_its_own_process_alone(tmp_path: Path) -> None:
    """Without a group a process of several cannot tell the others; what it drew is not taken for the whole."""
    with pytest.raises(ConfigError, match="is not connected"):
        write_shards(tmp_path, 7, rows_of(X), world=World(1, 2))
    assert not (tmp_path / "index.json").exists()
