"""Training through torch.compile and DistributedDataParallel: plain names, the same bits, gradients that meet."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import EMA, VPSDE, ScoreModel, fit, sample
from scoresde.nn import MLP
from scoresde.noise import normal, stream

DATA = normal((60, 2), stream(0, "wrapped"))
OPTIONS = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "progress": False}


def compiled(module: nn.Module) -> nn.Module:
    """Wrap as torch.compile does; the eager backend needs no compiler."""
    return torch.compile(module, backend="eager")


def small() -> MLP:
    return MLP(2, width=8, depth=1, seed=3)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_compiled_network_trains_to_the_bits_of_a_plain_one_and_leaves_no_prefix(tmp_path: Path) -> None:
    plain, net = ScoreModel(small(), VPSDE()), small()
    model = ScoreModel(compiled(net), VPSDE())
    expected = fit(plain, DATA, folder=tmp_path / "plain", **OPTIONS)
    result = fit(model, DATA, folder=tmp_path / "compiled", held_out=DATA[:20], **OPTIONS)
    assert torch.equal(result.losses, expected.losses)
    assert same(net.state_dict(), plain.net.state_dict())
    assert same(result.model.net.state_dict(), expected.model.net.state_dict())
    assert type(result.model.net) is MLP
    assert not same(result.model.net.state_dict(), net.state_dict())
    for weights in ("ema", "raw"):
        loaded, wanted = (ScoreModel.load(tmp_path / name, weights=weights) for name in ("compiled", "plain"))
        assert same(loaded.net.state_dict(), wanted.net.state_dict())
    assert sample(result.model, 3, steps=2, seed=0).shape == (3, 2)


def test_a_wrapped_model_trains_as_the_model_inside() -> None:
    plain, inside = ScoreModel(small(), VPSDE()), ScoreModel(small(), VPSDE())
    expected, result = (fit(model, DATA, **OPTIONS) for model in (plain, compiled(nn.DataParallel(inside))))
    assert torch.equal(result.losses, expected.losses)
    assert same(inside.net.state_dict(), plain.net.state_dict())
    torch.testing.assert_close(inside.moments.mean, DATA.double().mean(0))
    assert type(result.model) is ScoreModel


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_to_the_same_bits_after_wrapping(tmp_path: Path, first: bool) -> None:
    """Half of it wrapped and half not, in either order, against a run of plain networks that is resumed too."""

    def train(wrap: bool, folder: str, steps: int, resume: bool) -> dict[str, Tensor]:
        net = small()
        model = ScoreModel(compiled(net) if wrap else net, VPSDE())
        options = {**OPTIONS, "steps": steps, "decay": "constant", "warmup": 0, "resume": resume}
        result = fit(model, DATA, folder=tmp_path / folder, **options)
        return {**net.state_dict(), **{f"ema.{k}": v for k, v in result.model.net.state_dict().items()}}

    train(first, "mixed", 5, False)
    train(False, "plain", 5, False)
    assert same(train(not first, "mixed", 12, True), train(False, "plain", 12, True))


def test_an_average_of_a_wrapped_network_has_the_names_of_the_network() -> None:
    net = small()
    ema, plain = EMA(compiled(nn.DataParallel(net)), 0.5), EMA(net, 0.5)
    raw = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    ema.update()
    plain.update()
    assert ema.names == plain.names == [name for name, _ in net.named_parameters()]
    assert same(ema.state_dict(), plain.state_dict())
    made = ema.copy()
    assert type(made) is MLP
    assert same(made.state_dict(), plain.state_dict())
    with ema.applied():
        assert same(net.state_dict(), made.state_dict())
    assert all(torch.equal(net.state_dict()[name], raw[name] + 1.0) for name, _ in net.named_parameters())


class Outer(nn.Module):
    """A network with a compiled part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = compiled(small())

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.part(x, c_noise)


def test_a_compiled_part_leaves_no_prefix_either(tmp_path: Path) -> None:
    net = Outer()
    result = fit(ScoreModel(net, VPSDE()), DATA, folder=tmp_path / "run", held_out=DATA[:20], **OPTIONS)
    ema = EMA(net)
    assert set(ema.names) <= set(ema.state_dict()) == {f"part.{name}" for name in small().state_dict()}
    loaded = ScoreModel.load(tmp_path / "run", Outer())
    x, c_noise = DATA[:4], torch.zeros(4)
    with torch.no_grad():
        assert torch.equal(loaded.net(x, c_noise), result.model.net(x, c_noise))
        assert not torch.equal(net(x, c_noise), result.model.net(x, c_noise))


GROUP = """
import os, sys
import torch
torch.set_num_threads(1)
import torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel as DDP
from scoresde import EMA, VPSDE, ConfigError, ScoreModel, fit
from scoresde.nn import MLP
from scoresde.noise import normal, stream

folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size)
options = {"steps": 6, "batch_size": 8, "progress": False}
data = normal((60, 2), stream(0, rank))

def small():
    return MLP(2, width=8, depth=1, seed=3)

def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
"""

ALONE = """
plain = ScoreModel(small(), VPSDE())
expected = fit(plain, data, folder=folder / "plain", **options)
net, inside = small(), ScoreModel(small(), VPSDE())
for name, model in (("net", ScoreModel(DDP(net), VPSDE())), ("model", DDP(inside))):
    result = fit(model, data, folder=folder / name, **options)
    assert torch.equal(result.losses, expected.losses)
    assert type(result.model.net) is MLP
    assert same(result.model.net.state_dict(), expected.model.net.state_dict())
    assert same(ScoreModel.load(folder / name).net.state_dict(), expected.model.net.state_dict())
assert same(net.state_dict(), plain.net.state_dict()) and same(inside.net.state_dict(), plain.net.state_dict())
wrapped = ScoreModel(DDP(small()), VPSDE())
longer = {**options, "steps": 9, "resume": "change"}
again = fit(wrapped, data, folder=folder / "plain", **longer)
assert torch.equal(again.losses, fit(ScoreModel(small(), VPSDE()), data, folder=folder / "net", **longer).losses)
assert type(EMA(DDP(small())).copy()) is MLP
"""

TOGETHER = """
try:
    fit(torch.compile(DDP(ScoreModel(small(), VPSDE())), backend="eager"), data, **options)
except ConfigError as error:
    assert "put it around the network: ScoreModel(DistributedDataParallel(net), sde)" in str(error)
else:
    raise AssertionError("a model in DDP was taken")
alone, net = small(), small()
fit(ScoreModel(alone, VPSDE()), data, seed=rank, **options)
result = fit(ScoreModel(DDP(net), VPSDE()), data, seed=rank, folder=folder / str(rank), **options)
# Each process has data and noise of its own: only averaged gradients leave both with one network and one average.
for one, equal in ((net, True), (result.model.net, True), (alone, False)):
    flat = torch.cat([value.flatten() for value in one.state_dict().values()])
    both = [torch.zeros_like(flat) for _ in range(size)]
    dist.all_gather(both, flat)
    assert torch.equal(*both) is equal
"""


def run(script: str, folder: Path, size: int) -> None:
    """Run a script in each process of a group; every process must end well."""
    # Nothing is torn down behind the last word: at exit gloo's threads and DDP's may end in an order that aborts.
    code = GROUP + script + "\ndist.barrier()\nprint('done', flush=True)\nos._exit(0)\n"
    group = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(rank), str(size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=120) for process in group]
    finally:
        for process in group:
            process.kill()
    for process, (out, error) in zip(group, said, strict=True):
        assert process.returncode == 0, error
        assert out.strip().endswith("done")


@pytest.mark.skipif(sys.platform == "win32", reason="needs gloo and a file store")
def test_distributed_data_parallel_in_one_process(tmp_path: Path) -> None:
    run(ALONE, tmp_path, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="needs gloo and a file store")
def test_two_processes_average_the_gradients_of_a_network_and_refuse_a_model(tmp_path: Path) -> None:
    run(TOGETHER, tmp_path, 2)
