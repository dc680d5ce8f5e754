"""Models and networks in the wrappers of torch.compile, DistributedDataParallel and accelerate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import Own, filled, same_weights
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    CheckpointError,
    ConfigError,
    DTypeError,
    EnergyModel,
    ScoreModel,
    decode,
    encode,
    map_prediction,
    sample,
)
from scoresde.models.checks import check_model, check_score_model, unwrap_model
from scoresde.models.networks import bare_network, network_state
from scoresde.models.saving import load_weights, network_to_dict
from scoresde.nn import MLP, UNet


def compiled(module: nn.Module) -> nn.Module:
    """Wrap as torch.compile does; the eager backend needs no compiler."""
    return torch.compile(module, backend="eager")


def small(seed: int = 0) -> MLP:
    return filled(MLP(3, width=8, depth=1, classes=2), seed)


def test_a_compiled_model_is_accepted_where_a_model_is() -> None:
    model = ScoreModel(small(), VPSDE())
    for wrapped in (compiled(model), nn.DataParallel(model), nn.DataParallel(compiled(model))):
        assert check_model(wrapped) is check_score_model(wrapped) is unwrap_model(wrapped) is model
        assert map_prediction(wrapped, lambda p: p.data).model is model
    x = sample(model, (5, 3), seed=0, steps=4)
    assert torch.equal(sample(compiled(model), (5, 3), seed=0, steps=4), x)
    z = encode(compiled(model), x, solver="heun", steps=4)
    assert torch.equal(z, encode(model, x, solver="heun", steps=4))
    assert torch.equal(decode(compiled(model), z, solver="heun"), decode(model, z, solver="heun"))
    assert compiled(model)(x, 0.4).data.shape == x.shape


def test_what_is_no_model_stays_none() -> None:
    for wrong in (compiled(small()), small(), 3, None):
        assert unwrap_model(wrong) is (wrong if not isinstance(wrong, nn.Module) else bare_network(wrong))
        with pytest.raises(DTypeError, match="model must be a ScoreModel, got"):
            check_model(wrong)
    with pytest.raises(DTypeError, match="MappedModel changes a model; pass that model"):
        check_score_model(compiled(map_prediction(ScoreModel(small(), VPSDE()), lambda p: p.data)))


def test_a_compiled_network_samples_and_is_saved_without_a_prefix(tmp_path: Path) -> None:
    net = small()
    model, plain = ScoreModel(compiled(net), VPSDE()), ScoreModel(net, VPSDE())
    label = {"label": torch.tensor([0, 1, -1, 0])}
    x = sample(plain, (4, 3), steps=4, seed=0, cond=label)
    torch.testing.assert_close(sample(model, (4, 3), steps=4, seed=0, cond=label), x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="unknown condition 'labels'; did you mean 'label'"):
        sample(model, (4, 3), steps=4, cond={"labels": label["label"]})
    plain.save(tmp_path / "plain")
    for k, wrapped in enumerate(
        (model, ScoreModel(compiled(nn.DataParallel(net)), VPSDE()), ScoreModel(nn.DataParallel(net), VPSDE()))
    ):
        # An average may be of the wrapped network or of the one inside.
        for j, average in enumerate((None, wrapped.net.state_dict(), net.state_dict())):
            folder = tmp_path / f"{k}-{j}"
            wrapped.save(folder, ema=average)
            for weights in ("raw", None if average is None else "ema"):
                loaded = ScoreModel.load(folder, weights=weights)
                assert type(loaded.net) is MLP
                assert same_weights(loaded, plain)
        assert {f.name for f in (tmp_path / "plain").iterdir()} <= {f.name for f in (tmp_path / f"{k}-0").iterdir()}
    assert network_to_dict(compiled(net)) == network_to_dict(net)
    assert repr(model) == repr(plain)


def test_weights_are_loaded_into_a_wrapped_network(tmp_path: Path) -> None:
    ScoreModel(small(1), VPSDE()).save(tmp_path)
    net = small(0)
    model = ScoreModel.load(tmp_path, net=compiled(net))
    assert model.net is not net
    assert same_weights(net, small(1))
    other = UNet(1, width=8)
    with pytest.raises(CheckpointError, match="does not fit the network UNet: missing"):
        ScoreModel.load(tmp_path, net=compiled(other))


class Outer(nn.Module):
    """A network with a compiled part, and an attribute that only looks like a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Own()
        self.block = compiled(nn.Linear(3, 3))
        self.chain = nn.Sequential(compiled(nn.Linear(3, 3)), nn.Identity())

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.module(x, c_noise) + self.chain(self.block(x))


def test_prefixes_go_at_any_depth_and_names_of_your_own_stay(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        net, other = Outer(), Outer()
    names = {"module.scale", "module.shift", "block.weight", "block.bias", "chain.0.weight", "chain.0.bias"}
    assert set(network_state(net)) == set(network_state(compiled(net))) == names
    assert bare_network(net) is net
    filled(net)
    load_weights(compiled(other), network_state(compiled(net)), tmp_path)
    assert same_weights(net, other)
    # The tensors themselves, not copies.
    assert network_state(compiled(net))["block.weight"].data_ptr() == net.block.weight.data_ptr()
    ScoreModel(compiled(net), VPSDE()).save(tmp_path / "m")
    assert same_weights(ScoreModel.load(tmp_path / "m", net=other).net, net)


class Bowl(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return (self.gain * x.square()).sum(1)


def test_a_compiled_energy_network(tmp_path: Path) -> None:
    net = Bowl()
    model = EnergyModel(compiled(net), VPSDE())
    x = torch.ones(2, 3)
    torch.testing.assert_close(model(x, 0.3).score, EnergyModel(net, VPSDE())(x, 0.3).score)
    model.save(tmp_path)
    fresh = Bowl()
    with torch.no_grad():
        net.gain.fill_(0.0)
    ScoreModel.load(tmp_path, net=fresh)
    assert float(fresh.gain.detach()) == pytest.approx(0.3)


def run(script: str, folder: Path) -> str:
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1)\n" + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


DISTRIBUTED = """
import sys
from pathlib import Path
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from scoresde import VPSDE, ScoreModel, sample
from scoresde.models.checks import check_model
from scoresde.nn import MLP

folder = Path(sys.argv[1])
dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 1), rank=0, world_size=1)
net = MLP(3, width=8, depth=1, seed=1)
plain, wrapped = ScoreModel(net, VPSDE()), ScoreModel(DDP(net), VPSDE())
assert check_model(DDP(plain)) is plain
x = sample(plain, (4, 3), steps=3, seed=0)
torch.testing.assert_close(sample(wrapped, (4, 3), steps=3, seed=0), x)
torch.testing.assert_close(sample(DDP(plain), (4, 3), steps=3, seed=0), x)
wrapped.save(folder / "m")
loaded = ScoreModel.load(folder / "m")
assert type(loaded.net) is MLP
assert loaded.net.state_dict().keys() == net.state_dict().keys()
ScoreModel.load(folder / "m", net=DDP(MLP(3, width=8, depth=1)))
wrapped(torch.zeros(4, 3), 0.5).noise.square().sum().backward()
assert all(p.grad is not None for p in net.parameters())
dist.destroy_process_group()
print("done")
"""

ACCELERATE = """
import sys, warnings
warnings.simplefilter("error")
from accelerate import Accelerator
from scoresde import VESDE, VPSDE, ScoreModel, sample
from scoresde.models.checks import check_model
from scoresde.nn import MLP

model = ScoreModel(MLP(3, width=8, depth=1, seed=1), VPSDE())
x = sample(model, (4, 3), steps=3, seed=0)
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
prepared = accelerator.prepare(model)
assert check_model(prepared) is model
torch.testing.assert_close(sample(prepared, (4, 3), steps=3, seed=0), x)
# Its forward is bound to this model; under another SDE the model has its own.
ones = torch.ones(2, 3)
torch.testing.assert_close(prepared.with_sde(VESDE())(ones, 0.5).data, ones)
prepared.save(sys.argv[1])
assert ScoreModel.load(sys.argv[1]).net.state_dict().keys() == model.net.state_dict().keys()
inside = ScoreModel(accelerator.prepare(MLP(3, width=8, depth=1, seed=1)), VPSDE())
assert sample(inside, (4, 3), steps=3, seed=0).shape == x.shape
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs gloo and a file store")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    assert run(DISTRIBUTED, tmp_path).endswith("done")


def test_accelerate(tmp_path: Path) -> None:
    assert run(ACCELERATE, tmp_path / "m").endswith("done")
