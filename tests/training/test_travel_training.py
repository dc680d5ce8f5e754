"""What training makes and takes survives pickle and deepcopy, and goes on as the original would."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import DDPM, EMA, VPSDE, ScoreModel, fit
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import DECAYS, Trainer
from scoresde.training.judge import Judge
from scoresde.training.losses import (
    TIMES,
    WEIGHTS,
    ChainLoss,
    ImportanceIndices,
    TimeLaw,
    edm,
    held_out_loss,
    log_normal,
    min_snr,
    p2,
    sigmoid,
)
from scoresde.training.losses.bins import LossBins
from scoresde.training.losses.times import correct_weight
from scoresde.training.rates import LearningRate

F64 = torch.float64
SDE = VPSDE()
DATA = normal((40, 2), stream(0, "travel"))
POINT = SDE.at(torch.linspace(SDE.t_min, SDE.t_max, 9, dtype=F64))
COPIES: dict[str, Callable[[object], object]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
}
each_way = pytest.mark.parametrize("travel", COPIES.values(), ids=COPIES)


def small() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1, seed=1), SDE)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@each_way
@pytest.mark.parametrize(
    "weight",
    [
        *(*WEIGHTS.values(), min_snr(2.0), edm(1.0), sigmoid(1.0), p2(2.0, 0.5)),
        correct_weight(min_snr(), TIMES["importance"]),
    ],
)
def test_weights(weight: Callable[..., Tensor], travel: Callable[..., Callable[..., Tensor]]) -> None:
    assert torch.equal(travel(weight)(POINT, SDE), weight(POINT, SDE))


@each_way
@pytest.mark.parametrize("law", [*TIMES.values(), log_normal(-1.0, 0.5)], ids=lambda law: law.name)
def test_laws_of_the_time(law: TimeLaw, travel: Callable[[TimeLaw], TimeLaw]) -> None:
    made = travel(law)
    assert made.name == law.name
    assert torch.equal(made(11, SDE, stream(2)), law(11, SDE, stream(2)))
    assert (made.ratio is None) is (law.ratio is None)


@each_way
@pytest.mark.parametrize("decay", DECAYS)
def test_learning_rates(decay: str, travel: Callable[[object], object]) -> None:
    rate = LearningRate(0.1, None, 100, decay)
    made = travel(rate)
    assert made == rate
    assert [made(k) for k in range(100)] == [rate(k) for k in range(100)]
    assert travel(DECAYS[decay])(0.3) == DECAYS[decay](0.3)


@each_way
def test_objectives_on_a_chain(travel: Callable[[ChainLoss], ChainLoss]) -> None:
    chain, model = DDPM.cosine(6), small()
    indices = ImportanceIndices(6, history=1)
    indices.update(torch.arange(6), torch.arange(1.0, 7.0))
    for loss in (ChainLoss.simple(chain), ChainLoss.bound(chain, variance="large", indices=indices)):
        for used in (False, True):
            made = travel(loss)
            with torch.no_grad():
                assert torch.equal(made(model, DATA, stream(3)), loss(model, DATA, stream(3))), used
    assert torch.equal(made.indices.probabilities, indices.probabilities)
    # The copy's history is its own.
    made.indices.update(torch.arange(6), torch.ones(6))
    assert not torch.equal(made.indices.probabilities, indices.probabilities)


@each_way
def test_an_average_goes_on_with_its_own_network(travel: Callable[[EMA], EMA]) -> None:
    """The weights are read through views: those of a copy must be of the copied network."""
    net = MLP(2, width=8, depth=1, seed=1)
    net.tied = net.output
    ema = EMA(net, 0.5, warmup=True)
    ema.update()
    made = travel(ema)
    assert made.module is not net
    assert made.module.tied is made.module.output
    for one in (ema, made):
        with torch.no_grad():
            for parameter in one.module.parameters():
                parameter.add_(1.0)
        one.update()
    assert made.updates == ema.updates == 2
    assert same(made.copy(), ema.copy())
    assert not same(made.copy(), made.module)


@each_way
def test_a_trainer_goes_on_to_the_same_bits(travel: Callable[[Trainer], Trainer]) -> None:
    trainer = Trainer(small(), weight="min_snr", times="importance", seed=4)
    for _ in range(10):
        trainer(DATA[:8])
    made = travel(trainer)
    for _ in range(10):
        assert torch.equal(made(DATA[:8]), trainer(DATA[:8]))
    assert made.model.net is made.net is made.ema.module
    assert same(made.net, trainer.net)
    assert same(made.ema.copy(), trainer.ema.copy())


@each_way
def test_bins_and_held_out_losses(travel: Callable[..., object]) -> None:
    bins = LossBins(SDE, torch.device("cpu"))
    bins.add(torch.tensor([0, 3, 3]), torch.tensor([1.0, 2.0, 4.0]))
    made = travel(bins)
    assert made.take_means() == bins.take_means() == [1.0, None, None, 3.0, *[None] * 6]
    found = held_out_loss(small(), DATA)
    assert travel(found) == found
    trainer = Trainer(small())
    for _ in range(3):
        trainer(DATA[:8])
    judge = Judge(trainer, DATA, None, "min_snr", "uniform")
    assert travel(judge)() == judge() != found.mean


@each_way
def test_results(tmp_path: Path, travel: Callable[..., object]) -> None:
    options = {"steps": 4, "batch_size": 8, "log_every": 2, "progress": False, "weight": min_snr(3.0)}
    result = fit(small(), DATA, folder=tmp_path / "run", **options)
    made = travel(result)
    assert same(made.model, result.model)
    assert torch.equal(made.losses, result.losses)
    assert torch.equal(made.model.moments.mean, result.model.moments.mean)
    assert (made.log, made.steps, made.seconds, made.seed, made.folder) == (
        result.log,
        result.steps,
        result.seconds,
        result.seed,
        tmp_path / "run",
    )


def test_losses_and_laws_say_what_they_are_in_a_line() -> None:
    indices = ImportanceIndices(6, history=2)
    assert repr(indices) == "<ImportanceIndices of 6, a history of 2, not full yet>"
    indices.update(torch.arange(12) % 6, torch.ones(12))
    assert repr(indices) == "<ImportanceIndices of 6, a history of 2, full>"
    chain = DDPM.cosine(6)
    assert repr(ChainLoss.simple(chain)) == f"<ChainLoss 1 L_simple + 0 L_bound, small variance, on {chain!r}>"
    loss = ChainLoss.hybrid(chain, indices=indices)
    assert repr(loss) == f"<ChainLoss 1 L_simple + 0.006 L_bound, learned variance, on {chain!r}, {indices!r}>"
    assert repr(TIMES["edm"]) == "<TimeLaw edm>"
    assert repr(TIMES["uniform"]) == "<TimeLaw uniform, independent draws>"
    assert repr(log_normal(-1.0, 0.5)) == "<TimeLaw log_normal(-1, 0.5)>"


def test_a_result_says_in_a_line_what_it_is_and_shows_its_log(tmp_path: Path) -> None:
    options = {"batch_size": 8, "log_every": 5, "seed": 7, "progress": False}
    result = fit(small(), DATA, steps=100, folder=tmp_path / "<run>", held_out=DATA, save_every=50, **options)
    text = repr(result)
    assert text == (
        f"<TrainResult 100 steps in {result.seconds:.3g} s, loss {result.log[-1]['loss']:.4g}, "
        f"weight simple, times low_discrepancy, seed 7, in {tmp_path / '<run>'}>"
    )
    page = result._repr_html_()
    assert page.startswith(f"<p>&lt;TrainResult 100 steps in {result.seconds:.3g} s")
    assert "<run>" not in page
    assert "<br>ScoreModel(MLP of 1,075 parameters, VPSDE(" in page
    # A line of names and the last ten of twenty records.
    assert page.count("<tr>") == 11
    assert "<th>held out loss</th>" in page
    for record in result.log[-10:]:
        assert f"<tr><td>{record['step']}</td><td>{record['loss']:.4g}</td>" in page
    assert f"<td>{result.log[-1]['held_out_loss']:.4g}</td>" in page
    short = fit(small(), DATA, steps=1, **options)
    assert "held out" not in short._repr_html_()
    assert repr(short).endswith("seed 7>")
