"""One vocabulary: what the command line calls a sampler, ``sample`` takes too."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import Net, gaussian

from scoresde import (
    DDPM,
    SMLD,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    Langevin,
    Moments,
    Sampler,
    ScoreModel,
    ShapeError,
    compare,
    decode,
    encode,
    sample,
    solvers,
)
from scoresde.sampling.samplers import read_solver

MODEL = gaussian()


def same(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_a_name_with_its_steps() -> None:
    same(sample(MODEL, (4,), solver="dpmpp_2m:7", seed=1), sample(MODEL, (4,), solver="dpmpp_2m", steps=7, seed=1))
    result = sample(MODEL, (4,), solver="heun:5", seed=1, full_output=True)
    assert result.nfe.tolist() == [10] * 4  # 4 steps of two calls, and the two of the leap to clean data


def test_chains_and_the_predictor_corrector() -> None:
    chain = DDPM.from_sde(VPSDE(), 30)
    same(sample(MODEL, (4,), solver="ddpm:30", seed=1), sample(MODEL, (4,), solver=chain.ancestral(), seed=1))
    levels = gaussian(VESDE())
    table = SMLD.from_sde(VESDE(), 12).ancestral()
    same(sample(levels, (4,), solver="smld:12", seed=1), sample(levels, (4,), solver=table, seed=1))
    by_hand = sample(
        MODEL, (4,), solver=solvers.reverse_diffusion(), steps=9, kernels=[Langevin()], seed=1, full_output=True
    )
    named = sample(MODEL, (4,), solver="pc", steps=9, seed=1, full_output=True)
    same(named.x, by_hand.x)
    assert torch.equal(named.nfe, by_hand.nfe)
    same(sample(MODEL, (4,), solver="pc:9", seed=1), by_hand.x)


def test_kernels_of_the_call_come_after_those_of_the_name() -> None:
    extra = Langevin(snr=0.3)
    solver, steps, kernels = read_solver("pc:9", MODEL, None, [extra])
    assert (steps, kernels) == (9, (Langevin(), extra))
    assert solver == solvers.reverse_diffusion()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"solver": "dpmpp_2m:7", "steps": 7}, ConfigError, "names its steps already; leave out steps=7"),
        ({"solver": "pc:7", "steps": 7}, ConfigError, "names its steps already; leave out steps=7"),
        ({"solver": "dpmpp_2m:7@9"}, ConfigError, "the number behind the @ is for comparisons; here shape= says it"),
        ({"solver": "dpmpp_2m:many"}, ConfigError, "after the colon stands a number of steps, e.g. dpmpp_2m:20"),
        ({"solver": "dpmpp_2m:0"}, DomainError, "steps of dpmpp_2m must be at least 1, got 0"),
        ({"solver": "pc", "steps": 0}, DomainError, "steps must be at least 1, got 0"),
        ({"solver": "probability_flow:9"}, ConfigError, "chooses its own steps; write 'probability_flow'"),
        ({"solver": "smld:9"}, ConfigError, "VPSDE does not"),
        ({"solver": "DPMPP_2M"}, ConfigError, "did you mean 'dpmpp_2m'"),
        ({"solver": "dpmpp_2mm:7"}, ConfigError, "did you mean 'dpmpp_2m'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_call(options: dict[str, object], kind: type, words: str) -> None:
    net = Net()
    with pytest.raises(kind, match=words):
        sample(ScoreModel(net, VPSDE()), (3, 2), seed=0, **options)
    assert net.calls == []


def test_a_number_of_samples_takes_the_event_of_the_models_moments() -> None:
    model = ScoreModel(Net(), VPSDE(), moments=Moments.of(torch.arange(12.0).reshape(4, 3)))
    assert sample(model, 5, steps=3, seed=0).shape == (5, 3)
    same(sample(model, 5, steps=3, seed=0), sample(model, (5, 3), steps=3, seed=0))
    assert sample(MODEL, 5, steps=3, seed=0).shape == (5,)
    assert sample(model, 0, steps=3).shape == (0, 3)
    with pytest.raises(ShapeError, match=r"shape must be \(5, \*\): the model knows no moments"):
        sample(ScoreModel(Net(), VPSDE()), 5, seed=0)
    with pytest.raises(DomainError, match="shape must be at least 0, got -5"):
        sample(model, -5, seed=0)


def test_compare_and_samplers_are_public() -> None:
    rows, drawn = compare(
        MODEL, [Sampler("mine", solvers.ddim(), 4)], {"mean": lambda x: float(x.mean())}, samples=6, progress=False
    )
    assert rows[0].sampler == "mine"
    same(drawn[0], sample(MODEL, 6, solver="ddim:4", seed=0))


@pytest.mark.parametrize(
    ("word", "cure"),
    [
        ("num_steps", "steps="),
        ("num_inference_steps", "steps="),
        ("n_steps", "steps="),
        ("Steps", "steps="),
        ("labels", 'cond={"label": labels}'),
        ("sampler", "solver="),
        ("batch_size", "chunk_size="),
        ("trajectoy", "trajectory="),
    ],
)
def test_words_of_other_libraries_name_the_right_one(word: str, cure: str) -> None:
    net = Net()
    model = ScoreModel(net, VPSDE())
    with pytest.raises(DTypeError, match=re.escape(f"sample() takes no {word}=, use {cure}")):
        sample(model, (3, 2), **{word: 5})
    if word in ("num_steps", "labels", "sampler", "batch_size"):
        for code in (encode, decode):
            with pytest.raises(TypeError, match=re.escape(f"{code.__name__}() takes no {word}=, use {cure}")):
                code(model, torch.zeros(3, 2), **{word: 5})
    assert net.calls == []
