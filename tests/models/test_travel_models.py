"""Models that travel: pickled, copied, written by torch.save, sent to another process, they say the same to the bit."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    Affine,
    EmpiricalModel,
    EnergyModel,
    GaussianMixtureModel,
    GaussianModel,
    Moments,
    Prediction,
    ReverseSDE,
    ScoreModel,
    map_prediction,
)
from scoresde.models.parameterization import PARAMETERIZATIONS, Parameterization
from scoresde.models.prediction import Predictor
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream

F64 = torch.float64
SDE = VPSDE()
DATA = normal((20, 3), stream(0, "data"), dtype=F64)


def through_pickle(thing: object) -> object:
    return pickle.loads(pickle.dumps(thing))


def through_a_file(thing: object) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[object], object]] = {
    "pickle": through_pickle,
    "deepcopy": copy.deepcopy,
    "torch.save": through_a_file,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


class Own(nn.Module):
    """A user's network, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.tanh(self.gain * x)


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return (self.gain * x.square()).flatten(1).sum(1)


def score(x: Tensor, t: Tensor) -> Tensor:
    return -x * t.to(x)[:, None]


def clip(prediction: Prediction) -> Tensor:
    return prediction.data.clamp(-1, 1)


def own_target(point: object, sigma_data: float) -> tuple[Tensor, Tensor]:
    return torch.ones_like(point.alpha), torch.ones_like(point.alpha)


def own_conditioning(t: Tensor) -> Tensor:
    return 1000 * t


def filled(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(0.2 * normal(p.shape, stream(k, "weights")))
    return net


MODELS: dict[str, Predictor] = {
    **{f"MLP-{kind}": ScoreModel(filled(MLP(3, width=8)), SDE, predicts=kind) for kind in PARAMETERIZATIONS},
    "UNet": ScoreModel(filled(UNet(1, dims=1, width=4, multipliers=(1, 2))), VESDE(), predicts="edm", sigma_data=0.4),
    "own network": ScoreModel(Own(), SDE, condition_on=own_conditioning, transform=Affine(1.0, 2.0)),
    "own parameterisation": ScoreModel(Own(), SDE, predicts=Parameterization("sum", own_target)),
    "learned variance": ScoreModel(filled(MLP(3, width=8, out_channels=6)), SDE, variance="learned"),
    "moments": ScoreModel(Own(), SDE, moments=Moments.of(DATA)),
    "callable": ScoreModel.from_callable(score, SDE),
    "literal velocity": ScoreModel.from_callable(score, SDE, predicts="velocity"),
    "under another SDE": ScoreModel.from_callable(score, SDE).with_sde(VESDE()),
    "Gaussian": GaussianModel(sde=SDE, mean=DATA[0], covariance=DATA.T @ DATA),
    "mixture": GaussianMixtureModel(sde=SDE, weights=torch.ones(20), means=DATA, std=0.1),
    "empirical": EmpiricalModel(sde=SDE, data=DATA, chunk_size=7),
    "energy": EnergyModel(Energy(), SDE),
    "mapped": map_prediction(GaussianModel(sde=SDE, mean=DATA[0], covariance=DATA.T @ DATA), clip),
}


def ask(model: Predictor) -> tuple[Tensor, ...]:
    """Every number that a model gives at a few points."""
    x = DATA[:4, None].float() if isinstance(getattr(model, "net", None), UNet) else DATA[:4].float()
    said = model(x, torch.tensor([0.1, 0.3, 0.7, 1.0]))
    moments = [] if model.moments is None else [model.moments.mean, model.moments.covariance]
    fraction = [] if said.variance_fraction is None else [said.variance_fraction]
    return tuple(part.detach() for part in (said.data, said.noise, said.score, said.velocity, *fraction, *moments))


@every_way
@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_the_same_afterwards(name: str, way: Callable[[object], object]) -> None:
    model = MODELS[name]
    model.train(False)
    other = way(model)
    assert type(other) is type(model)
    assert not other.training
    assert (repr(other), repr(other.sde)) == (repr(model), repr(model.sde))
    for got, expected in zip(ask(other), ask(model), strict=True):
        assert torch.equal(got, expected)
    for p, q in zip(other.parameters(), model.parameters(), strict=True):
        assert p is not q


@every_way
def test_a_copy_is_saved_as_the_original_is(way: Callable[[object], object], tmp_path: Path) -> None:
    for k, name in enumerate(("MLP-edm", "UNet", "learned variance")):
        model = MODELS[name]
        model.save(tmp_path / f"{k}-original")
        way(model).save(tmp_path / f"{k}-copy")
        first, second = tmp_path / f"{k}-original", tmp_path / f"{k}-copy"
        assert {f.name for f in first.iterdir()} == {f.name for f in second.iterdir()}
        assert all((second / f.name).read_bytes() == f.read_bytes() for f in first.iterdir())
        for got, expected in zip(ask(ScoreModel.load(second)), ask(model), strict=True):
            assert torch.equal(got, expected)


@every_way
def test_what_a_model_says_and_is_made_of(way: Callable[[object], object]) -> None:
    said = MODELS["own network"](DATA[:4].float(), 0.3)
    again = way(Prediction(said.x, said.output.detach(), said.readout))
    for kind in ("data", "noise", "v", "score", "velocity", "flow"):
        assert torch.equal(again.view(kind), said.view(kind).detach())
    moments = Moments.of(DATA)
    assert torch.equal(way(moments).covariance, moments.covariance)
    law = moments.at(0.5, 0.3)
    assert torch.equal(way(law).log_prob(DATA), law.log_prob(DATA))
    for how in PARAMETERIZATIONS.values():
        assert way(how) == how
    reverse = SDE.reverse(MODELS["own network"], eta=0.5)
    assert isinstance(way(reverse), ReverseSDE)
    assert torch.equal(way(reverse).drift(DATA, 0.3), reverse.drift(DATA, 0.3))


# What a worker process gets is pickled; spawned, it knows nothing of its parent.
WORKER = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_travel_models as here


def work(models, queue):
    queue.put({name: [part.tolist() for part in here.ask(model)] for name, model in models.items()})


if __name__ == "__main__":
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    models = {name: here.MODELS[name].eval() for name in here.MODELS}
    worker = context.Process(target=work, args=(models, queue))
    worker.start()
    got = queue.get(timeout=120)
    worker.join()
    assert worker.exitcode == 0
    for name, model in models.items():
        # Another process may have other instructions at hand: the same numbers, but for their rounding.
        for numbers, part in zip(got[name], here.ask(model), strict=True):
            torch.testing.assert_close(torch.tensor(numbers, dtype=part.dtype), part, rtol=1e-5, atol=1e-5)
    print("the same")
"""


def test_a_spawned_process_gets_the_same_model(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, "utf-8")
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the same"
