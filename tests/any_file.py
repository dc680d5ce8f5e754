"""Strategies of files: arrays and tables of any type, shape and values, and what is spoilt in a file."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_bytes

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


def spoil(content: bytes, how: str) -> bytes:
    """Return the bytes of a file as they are ("whole"), or spoilt in one of these ways."""
    return {"whole": content, "cut": content[: len(content) * 2 // 3], "empty": b"", "bytes": b"\x00\xff" * 40}[how]
