"""A saved table is a sampler by its file's name, for ``sample`` and for a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import gaussian

from scoresde import VPSDE, ConfigError, build_table, sample
from scoresde.sampling.samplers import parse_sampler

MODEL = gaussian()


def test_a_file_is_its_table(tmp_path: Path) -> None:
    table = build_table(VPSDE(), "heun", steps=4)
    file = tmp_path / "a@b" / "heun.JSON"
    file.parent.mkdir()
    file.write_text(table.to_json())
    assert torch.equal(sample(MODEL, 5, solver=str(file), seed=1), sample(MODEL, 5, solver=table, seed=1))
    read = parse_sampler(f"{file}@7", VPSDE())
    assert (read.name, read.solver, read.steps, read.samples) == (table.name, table, None, 7)
    assert parse_sampler(str(file), VPSDE(), samples=3).samples == 3
    assert parse_sampler("heun", VPSDE(), steps=4).steps == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent.json", r"the table absent.json cannot be read: No such file or directory; name a .json file"),
        ("bad.json", r"bad.json: this is no saved table"),
    ],
)
def test_a_file_without_a_table_is_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        sample(MODEL, 5, solver=text, seed=0)
    with pytest.raises(ConfigError, match=r"json' names its steps already; leave out steps=4") as caught:
        sample(MODEL, 5, solver=text, steps=4, seed=0)
    assert (caught.value.parameter, caught.value.got, caught.value.cure) == ("steps", 4, "leave out steps=4")
    with pytest.raises(ConfigError, match="the number behind the @ is for comparisons"):
        sample(MODEL, 5, solver="heun:3@4", seed=0)
