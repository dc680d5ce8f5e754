"""Randomness: sources that cannot be meant, and calls that end early, leave every generator and the model alone."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import Net, gaussian
from torch import Tensor

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    SampleResult,
    ScoreModel,
    ScoreSDEError,
    ShapeError,
    denoising_score_matching,
    fit,
    sample,
)
from scoresde.noise import GeneratorNoise, SampleNoise, TapeNoise, normal, stream

X = torch.linspace(-1, 1, 6).reshape(3, 2)
TAPE = [torch.cos(k + X) for k in range(5)]

REFUSED: dict[str, tuple[dict[str, object], type[ScoreSDEError], str]] = {
    "seeds a number": ({"seeds": 5}, DTypeError, "seeds must be a list of integers, one for each sample, got 5"),
    "seeds a tensor": ({"seeds": torch.arange(3)}, DTypeError, "seeds must be a list of integers, one for each sample"),
    "seeds of floats": (
        {"seeds": [1, 2.0, 3]},
        DTypeError,
        "seeds[1] must be an integer or None, got 2.0 of type float",
    ),
    "seeds of None": ({"seeds": [1, None, 3]}, DTypeError, "seeds[1] must be an integer or None, got None"),
    "seeds of 2**64": ({"seeds": [1, 2, 2**64]}, DomainError, "seeds[2] must lie in [0, 2**64)"),
    "too many seeds": ({"seeds": [1, 2, 3, 4]}, ShapeError, "one seed for each of the 3 samples, got 4"),
    "seed a vector": ({"seed": torch.tensor([3])}, DTypeError, "seed must be an integer or None, got tensor([3])"),
    "seed a truth": ({"seed": torch.tensor(True)}, DTypeError, "seed must be an integer or None, got tensor(True)"),
    "seed a string": ({"seed": "3"}, DTypeError, "seed must be an integer or None, got '3' of type str"),
    "generator a seed": ({"generator": 3}, DTypeError, "generator must be a torch.Generator, got 3; a number"),
    "generator NumPy's": (
        {"generator": np.random.default_rng(0)},
        DTypeError,
        "generator must be a torch.Generator, got",
    ),
    "noise a number": ({"noise": 3}, DTypeError, "noise must be a list of tensors, one for each draw, got int"),
    "noise of lists": ({"noise": [[0.0]] * 5}, DTypeError, "noise[0] must be a torch.Tensor, got list"),
    "noise of integers": (
        {"noise": [X.long()] * 5},
        DTypeError,
        "noise[0] must have a real floating dtype, got torch.in",
    ),
    "noise complex": (
        {"noise": [TAPE[0], X * 1j] * 3},
        DTypeError,
        "noise[1] must have a real floating dtype, got torch",
    ),
    "noise with NaN": (
        {"noise": [TAPE[0], X / X.sign().add(1)] * 3},
        DomainError,
        "noise[1] has 3 non-finite values of 6, the first at index (0, 0)",
    ),
    "first_sample a float": ({"seed": 0, "first_sample": 1.0}, DTypeError, "first_sample must be an integer, got 1.0"),
    "first_sample huge": (
        {"seed": 0, "first_sample": 2**63},
        DomainError,
        "first_sample must be in [0, 9223372036854775807], got 9223372036854775808",
    ),
    "two sources": ({"seed": 0, "noise": TAPE}, ConfigError, "give one source of randomness, got seed and noise"),
    "two more": ({"seeds": [1, 2, 3], "generator": torch.Generator()}, ConfigError, "got seeds and generator"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_source_that_cannot_be_meant_is_refused_before_any_call(fault: str) -> None:
    options, kind, words = REFUSED[fault]
    net = Net()
    with pytest.raises(kind, match=re.escape(words)):
        sample(ScoreModel(net, VPSDE()), (3, 2), solver="ancestral", steps=5, **options)
    assert net.calls == []


@pytest.mark.parametrize("bad", [{"steps": 0}, {"final": "x"}, {"times": X}, {"cond": {"c": torch.ones(2)}}])
def test_a_refused_call_draws_nothing(bad: dict[str, object]) -> None:
    generator = stream(1)
    before = generator.get_state()
    with pytest.raises(ScoreSDEError):
        sample(gaussian(), (3,), generator=generator, **bad)
    assert torch.equal(generator.get_state(), before)


def test_the_last_sample_number_that_is_allowed_can_be_drawn() -> None:
    last = 2**63 - 1
    parts = [sample(gaussian(), (1,), seed=3, steps=2, first_sample=last - 1 + k) for k in (0, 1)]
    assert torch.equal(torch.cat(parts), sample(gaussian(), (2,), seed=3, steps=2, first_sample=last - 1))


def test_a_stacked_tape_is_its_list() -> None:
    options = {"solver": "ancestral", "steps": 5}
    model = ScoreModel(Net(), VPSDE())
    assert torch.equal(
        sample(model, (3, 2), noise=TAPE, **options), sample(model, (3, 2), noise=torch.stack(TAPE), **options)
    )


CALLS: dict[str, Callable[[], Tensor]] = {
    "seed": lambda: sample(gaussian(), (4,), solver="ancestral", steps=3, seed=1),
    "generator": lambda: sample(gaussian(), (4,), solver="ancestral", steps=3, generator=stream(1)),
    "loss": lambda: denoising_score_matching(ScoreModel(Net(), VPSDE()), X, generator=stream(1)).detach(),
    "training": lambda: fit(ScoreModel(Net(), VPSDE()), X, steps=3, seed=1, progress=False).losses,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_global_generators_decide_nothing_and_do_not_move(name: str) -> None:
    """Another global seed, the same bits; conftest.py sees that the global states stay."""
    first = CALLS[name]()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        random.seed(12345)
        np.random.seed(12345)  # noqa: NPY002
        marks = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
        second = CALLS[name]()
        assert torch.equal(torch.get_rng_state(), marks[0])
        assert random.getstate() == marks[1]
        assert np.random.get_state()[1].tobytes() == marks[2]  # noqa: NPY002
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    assert torch.equal(first, second)


def test_no_seed_draws_one_and_reports_it() -> None:
    results = [sample(gaussian(), (4,), steps=2, full_output=True) for _ in range(2)]
    assert all(isinstance(r, SampleResult) for r in results)
    assert results[0].seed != results[1].seed
    again = sample(gaussian(), (4,), steps=2, seed=results[0].seed)
    assert torch.equal(again, results[0].x)
    assert sample(gaussian(), (4,), steps=2, generator=stream(0), full_output=True).seed is None


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ancestral", "probability_flow"])
def test_ctrl_c_in_the_middle_leaves_the_model_and_the_start_as_they_were(solver: str) -> None:
    def act(x: Tensor, k: int) -> Tensor:
        if k == 2:
            raise KeyboardInterrupt
        return 0.5 * x

    net = Net(act)
    model = ScoreModel(net, VPSDE())
    model.train()
    start = X.clone().requires_grad_()
    with pytest.raises(KeyboardInterrupt):
        sample(model, x_init=start, seed=0, solver=solver)
    assert (net.training, model.training, start.requires_grad, torch.is_grad_enabled()) == (True,) * 4
    assert torch.equal(start.detach(), X)
    assert net.modes == [False] * 3


@pytest.mark.parametrize(
    "source", [SampleNoise(3), SampleNoise(seeds=[4, 5, 6]), GeneratorNoise(stream(3)), TapeNoise(TAPE)]
)
def test_a_mark_brings_any_source_back(source: SampleNoise | GeneratorNoise | TapeNoise) -> None:
    out, again = torch.empty(3, 2), torch.empty(3, 2)
    source.fill(out)
    mark = source.mark()
    source.fill(out)
    source.restore(mark)
    source.fill(again)
    assert torch.equal(out, again)


HALF = """
import torch
from scoresde.noise import SampleNoise
out = torch.empty(5, 3)
source = SampleNoise(7, first_sample=5)
source.fill(out); source.fill(out)
print(out.numpy().tobytes().hex())
"""


def test_another_process_draws_the_same_noise() -> None:
    """The second half of ten samples, drawn elsewhere: the bits of one process that draws all."""
    done = subprocess.run([sys.executable, "-c", HALF], check=True, capture_output=True, text=True)
    whole, source = torch.empty(10, 3), SampleNoise(7)
    source.fill(whole)
    source.fill(whole)
    assert done.stdout.strip() == whole[5:].numpy().tobytes().hex()
    assert not torch.equal(whole[5:], normal((5, 3), stream(7)))
