"""Any small file, under any options: read and said how, or refused in one line; no traceback, stray file or change."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cli_helpers import contents, main
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_bytes

from scoresde.cli.layouts import LAYOUTS

NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "?", ">f4", ">i2")
ENDINGS = (".npy", ".NPY", ".npz", ".Npz", ".pt", ".PTH", ".safetensors", ".csv", ".CSV")
SPOILT = ("cut", "empty", "bytes")


def sometimes(draw: st.DrawFn, usual: st.SearchStrategy, odd: st.SearchStrategy) -> Any:
    """Draw from the usual in eleven cases of twelve: there are ten such draws."""
    return draw(odd if draw(st.integers(0, 11)) == 11 else usual)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw an array of any of these types, shapes, orders and values."""
    kind = np.dtype(sometimes(draw, st.sampled_from(NUMBERS), st.sampled_from(("c8", "U3", "M8[s]", "O"))))
    count = sometimes(draw, st.sampled_from((3, 8, 12)), st.integers(0, 2))
    usual = st.lists(st.integers(1, 9), max_size=1) | st.sampled_from([(1, 8), (9, 2), (8, 8), (3, 4, 4), (4, 4, 1)])
    event_shape = sometimes(draw, usual, st.lists(st.integers(1, 6), max_size=5))
    shape = (count, *event_shape)
    scales = st.sampled_from([(0.0, 1.0), (128.0, 60.0), (1.7e9, 20.0)])
    centre, width = sometimes(draw, scales, st.sampled_from([(0.0, 0.0), (0.0, 1e300)]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = np.random.default_rng(draw(st.integers(0, 5)))
        values = centre + width * generator.standard_normal(shape)
        if draw(st.integers(0, 9)) == 9 and values.size:
            values.flat[values.size // 2] = draw(st.sampled_from([np.nan, np.inf]))
        if kind.kind in "iuM":
            values = np.nan_to_num(np.clip(values, -1e18, 1e18))
        array = values.astype("i8").astype(kind) if kind.kind == "M" else values.astype(kind)
    return np.asfortranarray(array) if draw(st.booleans()) else array


@st.composite
def columns(draw: st.DrawFn, count: int) -> np.ndarray:
    """Draw labels: integers, words, truths, or what is none."""
    kind = sometimes(
        draw, st.sampled_from(("small", "far", "words")), st.sampled_from(("truth", "halves", "short", "square"))
    )
    k = np.arange(count) % 3
    return {
        "small": k,
        "far": np.array([1, -7, 10**9])[k],
        "words": np.array(["cat", "dog", "ф"])[k],
        "truth": k == 1,
        "halves": k + 0.5,
        "short": k[:-1],
        "square": np.stack([k, k], 1),
    }[kind]


def serialise(ending: str, tensors: dict[str, np.ndarray]) -> bytes:
    """Return the bytes of a file; what a format cannot hold raises ValueError or TypeError."""
    first, file = next(iter(tensors.values())), io.BytesIO()
    if ending == ".npz":
        np.savez(file, **tensors)
    elif ending in (".pt", ".pth"):
        given_ = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
        torch.save(given_ if len(given_) > 1 else given_["x"], file)
    elif ending == ".safetensors":
        return safetensors_bytes({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    elif ending == ".csv":
        rows = first.reshape(len(first), -1) if first.ndim > 1 and len(first) else first.reshape(-1, 1)
        lines = [",".join(f"c{k}" for k in range(rows.shape[1]))]
        return "\n".join(lines + [",".join(map(str, row)) for row in rows.tolist()]).encode()
    else:
        np.save(file, first, allow_pickle=True)
    return file.getvalue()


@contextlib.contextmanager
def somewhere() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def call(argv: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_file_is_read_and_said_how_or_refused_in_one_line(data: st.DataObject) -> None:
    draw = data.draw
    array, ending = draw(arrays(), "samples"), sometimes(draw, st.sampled_from(ENDINGS), st.sampled_from((".txt", "")))
    several = st.sampled_from((("samples", "labels"), ("X", "y"), ("samples", "labels", "more")))
    names = sometimes(draw, st.just(("x",)), several) if ending in (".npy", ".csv") else draw(st.just(("x",)) | several)
    tensors: dict[str, Any] = {names[0]: array}
    if len(names) > 1:
        tensors[names[1]] = draw(columns(len(array)) if len(array) else st.just(np.zeros(0)), "labels")
    if len(names) > 2:
        tensors[names[2]] = np.ones((len(array), 2), dtype=np.float32)
    try:
        content = serialise(ending.lower(), tensors)
    except Exception as error:
        event(f"no such file can be: {type(error).__name__}")
        return
    spoilt = sometimes(draw, st.just("whole"), st.sampled_from(SPOILT))
    content = {"whole": content, "cut": content[: len(content) * 2 // 3], "empty": b"", "bytes": b"\x00\xff" * 40}[
        spoilt
    ]
    key = sometimes(draw, st.just("" if names[0] != "X" else ":X"), st.sampled_from((f":{names[0]}", ":nothing", "")))
    some = {
        "layout": st.sampled_from([("--layout", name) for name in LAYOUTS]),
        "conditional": st.just(("--conditional",)),
        "context": st.sampled_from([("--context", names[-1]), ("--context", "c0")]),
        "a folder's": st.sampled_from([("--size", "8"), ("--background", "white")]),
    }
    options = [word for words in some.values() for word in sometimes(draw, st.just(()), words)]
    with somewhere() as here:
        file = here / f"file{ending}"
        file.write_bytes(content)
        argv = ["train", "--data", f"{file.name}{key}", "--out", "run", "--steps", "1", "--batch-size", "2", *options]
        code, out, err = call([*argv, "--threads", "1"])
        left = {name: value for name, value in contents(here).items() if not name.startswith("run/")}
        assert left == {file.name: content}
        said = [line for line in err.splitlines() if line.startswith("scoresde: error: ")]
        if code == 2:
            event("refused")
            assert len(said) == 1, err
            assert len(said[0]) > 40, "a line says what is wrong and what to do"
            assert "Traceback" not in err + out
            return
        event("read")
        assert code == 0, err
        assert said == []
        assert "\ndata         " in f"\n{out}"
        assert "\nlayout       " in out
        assert call(["sample", "--checkpoint", "run", "--n", "2", "--solver", "ddim:2", "--out", "y.npy"])[0] == 0
        drawn = np.load(here / "y.npy", allow_pickle=False)
        assert np.isfinite(drawn).all()
        assert drawn.dtype in (np.float32, np.float64)
        if ending.lower() != ".csv" and array.ndim > 1 and names[0] in ("x", "samples") and key in ("", f":{names[0]}"):
            assert drawn.shape[1:] == array.shape[1:], "samples come back as the data were laid out"
