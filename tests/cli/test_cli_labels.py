"""Each sample is told its own class: by name, in turn, and across chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import QUICK, main
from torch import Tensor

from scoresde import SampleResult
from scoresde.cli import sample as verb

KINDS = ("ash", "birch", "cedar")


@pytest.mark.parametrize("label", [None, "birch"])
def test_a_sample_keeps_its_class_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str | None
) -> None:
    table, run, out = tmp_path / "trees.csv", tmp_path / "run", tmp_path / "x.npz"
    rows = [f"{k},{k * k % 11},{KINDS[k % 3]}" for k in range(30)]
    table.write_text("\n".join(["height,width,kind", *rows]), encoding="utf-8")
    assert main(["train", "--data", f"{table}:kind", "--conditional", "--out", str(run), *QUICK]) == 0
    told: list[Tensor] = []
    numbers: list[int] = []
    usual = verb.sample

    def sample(*args: object, **options: object) -> SampleResult:
        told.append(options["cond"]["label"])
        numbers.append(options["first_sample"])
        return usual(*args, **options)

    monkeypatch.setattr(verb, "sample", sample)
    argv = ["sample", "--checkpoint", str(run), "--solver", "ddim:1", "--n", "13", "--chunk-size", "5"]
    assert main([*argv, *(["--label", label] if label else []), "--out", str(out)]) == 0
    wanted = torch.ones(13, dtype=torch.long) if label else torch.arange(13) % 3
    assert torch.equal(torch.cat(told), wanted)
    assert [len(part) for part in told] == [5, 5, 3]
    assert numbers == [0, 5, 10]
    with np.load(out) as arrays:
        assert arrays["labels"].tolist() == [KINDS[k] for k in wanted.tolist()]
