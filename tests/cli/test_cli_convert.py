"""``scoresde convert``: tensors come out as they were, and no file runs anything or leaves a part behind."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import contents, main, refused
from safetensors.torch import load_file
from torch import Tensor, nn

from scoresde import CheckpointError, adapt, sample
from scoresde.models import torch_reader
from scoresde.models.torch_files import convert_weights
from scoresde.models.torch_reader import flatten, read
from scoresde.noise import normal, stream


class Small(nn.Module):
    """Stands for a network of another code."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.all_modules = nn.ModuleList([nn.Linear(3, 4, device="meta"), nn.Linear(4, 2, device="meta")])
        self.to_empty(device="cpu")
        with torch.no_grad():
            for k, weight in enumerate(self.parameters()):
                weight.copy_(0.3 * normal(weight.shape, stream(seed, k)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.all_modules[1](torch.tanh(self.all_modules[0](torch.cat([x, t[:, None]], 1))))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader work in this process, where torch is loaded already."""

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-P", torch_reader.__file__]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            torch_reader._main(*command[3:])
        return subprocess.CompletedProcess(command, 0, said.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", run)


def checkpoint(net: nn.Module, average: nn.Module) -> dict[str, Any]:
    """Return what the reference score-SDE code keeps: the model in DataParallel, and its average as a list."""
    return {
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
        "model": OrderedDict((f"module.{name}", value) for name, value in net.state_dict().items()),
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": [p.detach() for p in average.parameters()]},
        "step": 12,
    }


def test_a_checkpoint_of_the_reference_code_becomes_weights_and_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    net, average = Small(0), Small(1)
    torch.save(checkpoint(net, average), tmp_path / "checkpoint_8.pth")
    file, out = str(tmp_path / "checkpoint_8.pth"), tmp_path / "new" / "weights.safetensors"
    assert main(["convert", file, str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"wrote {out}: 8 tensors, {2 * 26 * 4 / 2**20:.3g} MiB"
    assert said[1].startswith("left out, as no tensor is there: optimizer.param_groups.0.lr, ")
    assert said[1].endswith(" more")
    whole = load_file(out)
    for name, value in net.state_dict().items():
        assert torch.equal(whole[f"model.module.{name}"], value)
    for k, value in enumerate(average.parameters()):
        assert torch.equal(whole[f"ema.shadow_params.{k}"], value)
    request.getfixturevalue("here")
    assert main(["convert", file, str(out), "--part", "model.module"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}: 4 tensors, "), "the old file is replaced"
    made = Small(5)
    made.load_state_dict(load_file(out))
    z = normal((3, 2), stream(9))
    models = [adapt(one, time="time", predicts="noise") for one in (made, net)]
    assert torch.equal(*(sample(one, x_init=z, solver="ddim", steps=4) for one in models))
    assert [f.name for f in out.parent.iterdir()] == [out.name]


@pytest.mark.usefixtures("here")
def test_tensors_of_any_type_and_view_come_out_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    kept = {
        "whole": base,
        "turned": base.T,
        "row": base[1],
        "half": base.half(),
        "brain": base.bfloat16(),
        "count": torch.tensor(3),
        "mask": base > 4,
        "parameter": nn.Parameter(base.clone()),
        "nothing": torch.zeros(0, 3),
        2: [base.double()],
    }
    for legacy in (False, True):
        torch.save(kept, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        done = convert_weights(tmp_path / "a.pt", tmp_path / "a.safetensors")
        assert (done.tensors, done.left_out) == (10, ())
        found = load_file(tmp_path / "a.safetensors")
        assert done.bytes == sum(one.numel() * one.element_size() for one in found.values())
        expected = {**{name: one for name, one in kept.items() if name != 2}, "2.0": base.double()}
        assert found.keys() == expected.keys()
        for name, one in expected.items():
            assert found[name].dtype == one.dtype
            assert torch.equal(found[name], one)
    torch.save(base, tmp_path / "one.pt")
    convert_weights(tmp_path / "one.pt", tmp_path / "one.safetensors")
    assert torch.equal(load_file(tmp_path / "one.safetensors")["tensor"], base)


class Runs:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.mark,)


@pytest.mark.skipif(os.name == "nt", reason="a signal")
def test_a_pickle_is_not_run_in_the_process_that_reads_it(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": Runs(tmp_path / "ran")}, tmp_path / "code.pt")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"more than tensors: it names posix\.mkdir, of which nothing was run"):
        convert_weights(tmp_path / "code.pt", tmp_path / "out.safetensors")
    assert contents(tmp_path) == before
    assert not (tmp_path / "ran").exists()
    dies = tmp_path / "dies.py"
    dies.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_reader, "__file__", str(dies))
        with pytest.raises(
            CheckpointError, match=r"that read \S+code.pt ended by SIGKILL; the file is damaged, or the"
        ):
            convert_weights(tmp_path / "code.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.usefixtures("here")
def test_no_broken_file_leaves_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark, out = tmp_path / "ran", tmp_path / "out.safetensors"
    out.write_bytes(b"an older file")
    net, lists = Small(), [torch.zeros(1)]
    for _ in range(20):
        lists = [lists, lists]
    nothing: list[Any] = []
    for _ in range(60):
        nothing = [nothing, nothing]
    circle: list[Any] = []
    circle.append(circle)
    files = {
        "module.pt": (net, "more than tensors: it names test_cli_convert.Small, of which nothing was run; save "),
        "lists.pt": (lists, "holds more than 100000 values"),
        "nothing.pt": (nothing, "holds more than 100000 values"),
        "complex.pt": ({"a": torch.zeros(1, dtype=torch.complex128)}, "holds a of torch.complex128, which safetensors"),
        "named.pt": ({"__metadata__": torch.zeros(1)}, "holds __metadata__ of torch.float32, which safetensors"),
        "meta.pt": ({"a": torch.zeros(1, device="meta")}, "holds a, which is no dense tensor with values"),
        "circle.pt": (circle, "holds containers within one another without end"),
        "wide.pt": (torch.zeros(1).expand(2**33), "holds more than 16 GiB of tensors; --limit allows more"),
        "sparse.pt": ({"a": torch.eye(2).to_sparse()}, "holds a, which is no dense tensor"),
        "twice.pt": ({"a": {"b": net.all_modules[0].bias}, "a.b": torch.zeros(1)}, "holds two tensors named a.b"),
        "numbers.pt": ({"step": 3}, "numbers.pt holds no tensors"),
    }
    for name, (value, _) in files.items():
        torch.save(value, tmp_path / name)
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(Runs(mark), protocol=2))
    whole = (tmp_path / "module.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_bytes(b"hello there")
    (tmp_path / "ready.safetensors").write_bytes(b"")
    more = {
        "raw.pkl": "holds more than tensors: it names posix.mkdir, of which nothing was run",
        "cut.pt": "is cut, damaged or no file of torch.save (RuntimeError: PytorchStreamReader failed",
        "empty.pt": "is cut, damaged or no file of torch.save (EOFError",
        "text.pt": "is cut, damaged or no file of torch.save",
        "ready.safetensors": "is of safetensors already",
        "absent.pt": "does not exist; name a file that torch.save wrote",
        ".": "is a folder; name the file in it",
    }
    before = contents(tmp_path)
    for name, words in {**{name: words for name, (_, words) in files.items()}, **more}.items():
        with pytest.raises(CheckpointError) as caught:
            convert_weights(tmp_path / name, out)
        assert words in str(caught.value), name
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert not mark.exists()
    message = refused(capsys, ["convert", str(tmp_path / "module.pt"), str(tmp_path / "x.pt")])
    assert message == "unknown ending of OUT '.pt'; choices: .safetensors"
    assert "limit must lie in (0, inf)" in refused(capsys, ["convert", "a.pt", str(out), "--limit", "0"])
    assert "holds more than tensors" in refused(capsys, ["convert", str(tmp_path / "module.pt"), str(out)])
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("here")
def test_a_limit_and_a_part(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1000)}, "step": 3}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"has .* GiB, more than 1e-07; --limit allows more"):
        convert_weights(tmp_path / "a.pt", tmp_path / "out.safetensors", limit=1e-7)
    with pytest.raises(ValueError, match=r"holds no tensors under 'modle'; it holds model, step"):
        read(str(tmp_path / "a.pt"), "modle", 10**6)
    with pytest.raises(ValueError, match=r"holds more than .* GiB of tensors"):
        read(str(tmp_path / "a.pt"), "", 3999)
    tensors, left_out = read(str(tmp_path / "a.pt"), "", 4000)
    assert (list(tensors), left_out) == (["model.w"], ["step"])
    tensors, left_out = read(str(tmp_path / "a.pt"), "model", 4000)
    assert (list(tensors), left_out) == (["w"], [])
    with pytest.raises(CheckpointError, match=r"b.safetensors could not be written \(.*\); make room or choose"):
        convert_weights(tmp_path / "a.pt", tmp_path / "nowhere" / "b.safetensors")
    assert list(flatten({"a": [1, {"b": 2}], 3: ()})) == [("a.0", 1), ("a.1.b", 2), ("3", ())]
