"""The weight and the times of a training that names none: one table, level where it says so, and no warning of it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator

import pytest
import torch
from small_models import DATA, F64

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DomainError,
    GaussianSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    fit,
)
from scoresde.errors import TrainingWarning
from scoresde.models.parameterization import PARAMETERIZATIONS, Parameterization
from scoresde.nn import MLP
from scoresde.noise import stream
from scoresde.training import Trainer
from scoresde.training.cautions import measure_heaviest, warn_of_loss
from scoresde.training.losses import WEIGHTS, denoising_score_matching, edm, held_out_loss
from scoresde.training.losses.defaults import choose_loss, name_loss
from scoresde.training.losses.denoising import read_scalars

SDES = (VPSDE(), CosineVPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow())


def model_of(predicts: str | Parameterization, sde: GaussianSDE, **options: float) -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1), sde, predicts=predicts, **options)


def legal() -> Iterator[ScoreModel]:
    for sde in SDES:
        for predicts in PARAMETERIZATIONS:
            try:
                yield model_of(predicts, sde)
            except DomainError:
                assert (type(sde), predicts) in ((RectifiedFlow, "noise"), (RectifiedFlow, "score"))


MODELS = {f"{type(m.sde).__name__}, {m.parameterization.name}": m for m in legal()}


def test_the_table() -> None:
    found = {predicts: name_loss(predicts, VPSDE()) for predicts in PARAMETERIZATIONS}
    assert found == {
        "noise": ("simple", "low_discrepancy"),
        "data": ("bounded", "cauchy"),
        "v": ("v", "low_discrepancy"),
        "score": ("simple", "low_discrepancy"),
        "velocity": ("velocity", "low_discrepancy"),
        "edm": ("edm", "low_discrepancy"),
    }
    assert name_loss("edm", EDMSDE()) == ("edm", "edm")
    assert name_loss("literal score", VPSDE()) == name_loss("score", VPSDE())
    # A target of your own is trained as v.
    own = Parameterization("mine", PARAMETERIZATIONS["data"].target)
    assert choose_loss(model_of(own, VPSDE()), None, None) == ("v", "low_discrepancy")
    assert choose_loss(model_of("v", VPSDE()), "simple", None) == ("simple", "low_discrepancy")
    assert choose_loss(model_of("v", VPSDE()), None, "edm") == ("v", "edm")


@pytest.mark.parametrize("name", [n for n in MODELS if n.split(", ")[1] in ("noise", "v", "velocity", "edm")])
def test_the_networks_own_error_counts_the_same_at_every_time(name: str) -> None:
    model = MODELS[name]
    sde = model.sde
    kind = {"noise": "simple"}.get(model.parameterization.name, model.parameterization.name)
    t = torch.linspace(sde.t_min, sde.t_max, 50, dtype=F64)[:-1]
    factors = read_scalars(model, sde.at(t), WEIGHTS[kind]).multipliers.loss
    torch.testing.assert_close(factors, torch.ones_like(t), rtol=1e-9, atol=0)


def test_the_edm_weight_has_the_models_own_scale() -> None:
    model = model_of("edm", EDMSDE(), sigma_data=1.0)
    weight, _ = choose_loss(model, None, None)
    at = model.sde.at(torch.logspace(-2, 1, 7, dtype=F64))
    assert callable(weight)
    torch.testing.assert_close(weight(at, model.sde), edm(1.0)(at, model.sde), rtol=0, atol=0)
    torch.testing.assert_close(read_scalars(model, at, weight).multipliers.loss, torch.ones(7, dtype=F64))


@pytest.mark.parametrize("name", MODELS)
def test_everything_that_takes_a_loss_takes_the_tables(name: str) -> None:
    model = MODELS[name]
    weight, times = name_loss(model.parameterization.name, model.sde)
    named = {"weight": weight, "times": times}
    losses = [denoising_score_matching(model, DATA[:8], generator=stream(1), **how) for how in ({}, named)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    means = [held_out_loss(model, DATA[:8], **how).mean for how in ({}, named)]
    assert means[0] == pytest.approx(means[1], rel=1e-6)
    trainer = Trainer(model)
    assert trainer.loss_names == named
    torch.testing.assert_close(trainer.losses(DATA[:8]), Trainer(model, **named).losses(DATA[:8]), rtol=1e-6, atol=0)
    assert trainer.state()[0].items() >= named.items()


@pytest.mark.parametrize("name", MODELS)
def test_no_default_is_warned_of_but_of_what_spans_decades(name: str) -> None:
    model = MODELS[name]
    wide = model.parameterization.name == "score" or name == "VESDE, velocity"
    with pytest.warns(TrainingWarning, match='take predicts="noise"') if wide else warnings.catch_warnings():
        if not wide:
            warnings.simplefilter("error")
        warn_of_loss(model, None, None)
    assert measure_heaviest(MODELS[name]) < 0.7


def test_the_result_says_what_was_taken() -> None:
    result = fit(model_of("data", VPSDE()), DATA, steps=2, batch_size=8, progress=False)
    assert (result.weight, result.times) == ("bounded", "cauchy")
    assert "weight bounded, times cauchy, seed 0" in repr(result)
    mine = fit(model_of("v", VPSDE()), DATA, steps=2, batch_size=8, progress=False, weight=edm(1.0))
    assert (mine.weight, mine.times) == ("your own", "low_discrepancy")
    other = fit(
        model_of("v", VPSDE()), DATA, steps=2, progress=False, objective=lambda m, x, g, c: m.net(x, x[:, 0])[:, 0]
    )
    assert (other.weight, other.times) == (None, None)
    assert pickle.loads(pickle.dumps(result)).weight == "bounded"


# ---------------------------------------------------------------------------------------------------------------------
# Warnings


def evenly(n: int, sde: GaussianSDE, generator: torch.Generator) -> torch.Tensor:
    return torch.linspace(sde.t_min, sde.t_max, n, dtype=F64)


@pytest.mark.parametrize(
    ("predicts", "sde", "weight", "times"),
    [
        ("data", SubVPSDE(), "simple", "low_discrepancy"),
        ("data", SubVPSDE(), "simple", "uniform"),
        ("data", SubVPSDE(), lambda point, sde: point.sigma**-3, evenly),
        ("data", RectifiedFlow(), "simple", "low_discrepancy"),
        ("data", VPSDE(), "likelihood", "low_discrepancy"),
    ],
)
def test_a_weight_that_a_few_times_carry_is_warned_of(
    predicts: str, sde: GaussianSDE, weight: object, times: object
) -> None:
    model = model_of(predicts, sde)
    assert measure_heaviest(model, weight, times) > 0.99
    usual = r'carry (99|100)\.\d% .*take weight="bounded" with times="cauchy"'
    with pytest.warns(TrainingWarning, match=usual) as told:
        fit(model, DATA, steps=1, batch_size=4, weight=weight, times=times, progress=False)
    assert told[0].filename == __file__


@pytest.mark.parametrize("times", ["low_discrepancy", evenly])
def test_the_heaviest_times_have_the_share_that_an_integral_gives(times: object) -> None:
    # w = sigma^2 is sigma^4 on the noise's error under VESDE, and log sigma is linear in t: the last twentieth of the
    # times carries (1 - r^-0.05)/(1 - 1/r) with r = (sigma(t_max)/sigma(t_min))^4.
    sde = VESDE()
    found = measure_heaviest(model_of("noise", sde), lambda point, sde: point.sigma.square(), times)
    low, high = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=F64))
    r = float((2 * (high - low)).exp())
    assert found == pytest.approx((1 - r**-0.05) / (1 - 1 / r), rel=1e-3)


@pytest.mark.parametrize("weight", ["likelihood", "sigmoid"])
def test_a_factor_that_is_counted_twice_is_warned_of(weight: str) -> None:
    def train(predicts: str, sde: GaussianSDE, times: str) -> None:
        fit(model_of(predicts, sde), DATA, steps=1, batch_size=4, weight=weight, times=times, progress=False)

    with pytest.warns(TrainingWarning, match='second time; take times="importance"'):
        train("noise", VPSDE(), "log_snr")
    with pytest.warns(TrainingWarning, match='second time; take times="low_discrepancy"'):
        train("v", RectifiedFlow(), "log_snr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train("noise", VPSDE(), "importance")
        train("noise", VPSDE(), "low_discrepancy")
        # Log-SNR is linear in the time of VESDE: its density is a constant there.
        train("noise", VESDE(), "log_snr")
