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
from any_file import ENDINGS, SPOILT, arrays, columns, serialise, sometimes, spoil
from cli_helpers import contents, main
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from scoresde.cli.layouts import LAYOUTS


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
    content = spoil(content, spoilt)
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
