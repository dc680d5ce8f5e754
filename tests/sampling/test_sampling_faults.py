"""Bad input and failing networks: the error's kind, its words, and that nothing was called or changed before it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import Net, gaussian
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    Langevin,
    ProbabilityFlow,
    SampleResult,
    ScoreModel,
    ScoreSDEError,
    ShapeError,
    SolverError,
    build_table,
    sample,
    solvers,
)
from scoresde.solvers import SOLVERS, grids
from scoresde.solvers.rows import Knot, Row
from scoresde.solvers.tableau import Tableau

FIXED = sorted(set(SOLVERS) - {"probability_flow"})
NAN, INF = math.nan, math.inf
X = torch.linspace(-1, 1, 6).reshape(3, 2)
BAD = X.clone()
BAD[1, 0], BAD[2, 1] = NAN, INF


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# name: (options beside a default of shape (3, 2) and seed 0, kind, words)
REFUSED: dict[str, tuple[dict[str, object], type[ScoreSDEError], str]] = {
    # tensors
    "x_init a list": ({"x_init": [[0.0]]}, DTypeError, r"x_init must be a torch\.Tensor, got list"),
    "x_init 0-d": ({"x_init": torch.tensor(1.0)}, ShapeError, r"x_init must have shape \(B, \*\)"),
    "x_init integer": (
        {"x_init": torch.ones(3, 2, dtype=torch.long)},
        DTypeError,
        r"got torch\.int64; .*x_init\.float",
    ),
    "x_init complex": ({"x_init": torch.ones(3, dtype=torch.complex64)}, DTypeError, "real and imaginary parts"),
    "x_init not finite": ({"x_init": BAD}, DomainError, r"2 non-finite values of 6, the first at index \(1, 0\)"),
    "x_init of another shape": ({"shape": (3, 3), "x_init": X}, ShapeError, r"\(3, 3\) and x_init of shape \(3, 2\)"),
    "no shape": ({"shape": None}, ShapeError, "or pass x_init"),
    "shape ()": ({"shape": ()}, ShapeError, r"shape must be \(B, \*\)"),
    "shape a number": ({"shape": 3}, ShapeError, r"shape must be \(3, \*\): the model knows no moments"),
    "shape of floats": ({"shape": (3, 2.0)}, DTypeError, r"shape\[1\] must be an integer"),
    "negative shape": ({"shape": (3, -2)}, DomainError, r"shape\[1\] must be at least 0, got -2"),
    "integer dtype": ({"dtype": torch.long}, DTypeError, "dtype must be a real floating type"),
    "complex dtype": ({"dtype": torch.complex64}, DTypeError, "dtype must be a real floating type"),
    "condition of another batch": (
        {"cond": {"y": torch.zeros(2)}},
        ShapeError,
        r"cond\['y'\] .* of 3 \(or 1, for all\), got shape \(2,\)",
    ),
    "condition no dict": ({"cond": torch.zeros(3)}, ConfigError, "cond must be a dict of tensors"),
    "condition of words": ({"cond": {"y": "cat"}}, ConfigError, "cond must be a dict of tensors"),
    # parameters
    "steps 0": ({"steps": 0}, DomainError, "steps must be at least 1, got 0"),
    "steps negative": ({"steps": -3}, DomainError, "steps must be at least 1, got -3"),
    "steps a bool": ({"steps": True}, DTypeError, "steps must be an integer, got True of type bool"),
    "steps a float": ({"steps": 10.0}, DTypeError, "steps must be an integer, got 10.0 of type float"),
    "unknown solver": (
        {"solver": "dimm"},
        ConfigError,
        "unknown solver 'dimm'; did you mean 'ddim'. choices: ancestral",
    ),
    "solver not called": ({"solver": solvers.heun}, ScoreSDEError, "solver"),
    "unknown final": ({"final": "denoised"}, ConfigError, "did you mean 'denoise'"),
    "unknown final, adaptive": (
        {"final": "denoised", "solver": "probability_flow"},
        ConfigError,
        "did you mean 'denoise'",
    ),
    "unknown on_nonfinite": ({"on_nonfinite": "raises"}, ConfigError, "did you mean 'raise'"),
    "chunk_size 0": ({"chunk_size": 0}, DomainError, "chunk_size must be at least 1"),
    "chunk_size a float": ({"chunk_size": 2.0}, DTypeError, "chunk_size must be an integer"),
    "first_sample negative": ({"first_sample": -1}, DomainError, "first_sample must be in"),
    "steps and times": ({"steps": 3, "times": times(1, 0.5)}, ConfigError, "not both"),
    "steps and a table": (
        {"steps": 3, "solver": build_table(VPSDE(), solvers.ddim(), steps=2)},
        ConfigError,
        "its own times",
    ),
    "more steps than the chain": (
        {"steps": 12, "times": grids.knots(DDPM.linear(30).times[::3]), "final": "sample"},
        DomainError,
        "at most 9, the number of intervals of the chain, got 12",
    ),
    # times
    "times rise": ({"times": times(0.1, 0.5, 1.0)}, DomainError, r"these increase: use times\.flip\(0\)"),
    "times rise once": ({"times": times(1.0, 0.5, 0.6)}, DomainError, "it rises at index 2"),
    "times repeat": ({"times": times(1.0, 0.5, 0.5, 0.1)}, DomainError, "times repeats 0.5; make the grid in float64"),
    "times with NaN": ({"times": times(1.0, NAN, 0.1)}, DomainError, "NaN at index 1"),
    "times above t_max": ({"times": times(1.5, 0.5)}, DomainError, r"times must lie in \[1e-05, 1\], got 1.5"),
    "times below t_min": ({"times": times(1.0, 1e-7)}, DomainError, r"times must lie in \[1e-05, 1\], got 1e-07"),
    "times below 0": ({"times": times(1.0, 0.0, -0.1)}, DomainError, "times must lie in"),
    "times of integers": ({"times": torch.tensor([1, 0])}, DTypeError, "floating tensor or a Grid, got torch.int64"),
    "times a list": ({"times": [1.0, 0.5]}, DTypeError, "floating tensor or a Grid, got list"),
    "times a matrix": (
        {"times": times(1.0, 0.5)[None]},
        ShapeError,
        r"vector of at least one time, got shape \(1, 2\)",
    ),
    "times empty": ({"times": times()}, ShapeError, "at least one time"),
    # randomness
    "seed negative": ({"seed": -1}, DomainError, r"seed must lie in \[0, 2\*\*64\), got -1"),
    "seed 2**64": ({"seed": 2**64}, DomainError, r"seed must lie in \[0, 2\*\*64\)"),
    "seed a float": ({"seed": 1.0}, DTypeError, "seed must be an integer or None, got 1.0"),
    "seed a bool": ({"seed": True}, DTypeError, "seed must be an integer"),
    "seed and generator": (
        {"generator": torch.Generator()},
        ConfigError,
        "one source of randomness, got seed and generator",
    ),
    "seeds too few": ({"seed": None, "seeds": [1, 2]}, ShapeError, "one seed for each of the 3 samples, got 2"),
    "seeds negative": ({"seed": None, "seeds": [1, 2, -3]}, DomainError, r"seeds\[2\] must lie in"),
    "tape too short": (
        {"seed": None, "noise": [X], "solver": "ancestral"},
        ShapeError,
        "noise holds 1 tensors, 20 are needed",
    ),
    "tape of another shape": (
        {"seed": None, "noise": [X, X[:, :1]] + [X] * 30, "solver": "ancestral"},
        ShapeError,
        r"noise\[1\] has shape \(3, 1\), needed is \(3, 2\)",
    ),
    "tape empty": ({"seed": None, "noise": []}, ShapeError, "noise holds 0 tensors"),
    # combinations
    "kernels on the flow": ({"solver": "probability_flow", "kernels": [Langevin()]}, ConfigError, "adaptive"),
    "steps of the flow": ({"solver": ProbabilityFlow(), "steps": 5}, ConfigError, "adaptive"),
    "grid of the flow": ({"solver": "probability_flow", "times": grids.karras(5)}, ConfigError, "adaptive"),
    "tolerance too small": (
        {"solver": ProbabilityFlow(rtol=1e-9)},
        DomainError,
        "at least 1.19209e-07 for torch.float32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_any_call(name: str) -> None:
    options, kind, words = REFUSED[name]
    net = Net()
    model = ScoreModel(net, VPSDE())
    model.train()
    call = {"shape": (3, 2), "seed": 0} | options
    if "x_init" in options and "shape" not in options:
        del call["shape"]
    with pytest.raises(kind, match=words):
        sample(model, **call)
    assert net.calls == []
    assert model.training


def test_the_model_is_checked() -> None:
    with pytest.raises(DTypeError, match=r"ScoreModel or a callable .*, got 3"):
        sample(3, (2, 2))
    with pytest.raises(ConfigError, match="a bare score function needs sde="):
        sample(lambda x, t: x, (2, 2))


def test_events_that_do_not_fit_the_models_moments_are_refused() -> None:
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        sample(model, (8, 3), seed=0)


def test_a_generator_of_another_device_is_refused() -> None:
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(ConfigError, match="generator is on cuda, the samples on cpu; make it on that device"):
        sample(gaussian(), (3,), generator=Elsewhere())


# --- networks that fail


ANSWERS: dict[str, tuple[Callable[[Tensor], object], type[ScoreSDEError], str]] = {
    "another shape": (lambda x: x[:, :1], ShapeError, r"x's shape \(3, 2\), got \(3, 1\)"),
    "twice the channels": (lambda x: torch.cat([x, x], 1), ShapeError, 'pass variance="learned"'),
    "a tuple": (lambda x: (x, x), DTypeError, "got tuple"),
    "None": (lambda x: None, DTypeError, "got NoneType"),
    "complex": (lambda x: x * 1j, DTypeError, "complex64"),
    "another device": (lambda x: x.to("meta"), ScoreSDEError, "meta"),
    "its input, changed": (lambda x: x.add_(1), SolverError, "changed its input"),
}


@pytest.mark.parametrize("solver", ["ddim", "probability_flow"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_cannot_be_used_is_named(name: str, solver: str) -> None:
    answer, kind, words = ANSWERS[name]
    with pytest.raises(kind, match=words):
        sample(ScoreModel(lambda x, c: answer(x), VPSDE()), (3, 2), solver=solver, seed=0)


def test_an_error_of_the_network_is_its_own() -> None:
    class Own(Exception):
        pass

    def act(x: Tensor, k: int) -> Tensor:
        raise Own

    net = Net(act)
    model = ScoreModel(net, VPSDE())
    model.train()
    with pytest.raises(Own):
        sample(model, (3, 2), seed=0)
    assert model.training
    assert net.training
    assert torch.is_grad_enabled()


def test_out_of_memory_suggests_smaller_chunks() -> None:
    def act(x: Tensor, k: int) -> Tensor:
        raise torch.OutOfMemoryError("the device is full")

    with pytest.raises(SolverError, match="out of memory with 3 samples; pass a smaller chunk_size="):
        sample(ScoreModel(Net(act), VPSDE()), (3, 2), seed=0)


# --- values that are not finite


def spoil(*wrong: int, after: int) -> tuple[Net, ScoreModel]:
    """Answer NaN for some samples from call number ``after`` on, whatever else ran before; VP, so c_in is 1."""

    def act(x: Tensor, k: int) -> Tensor:
        out = 0.3 * torch.tanh(x)
        if net.calls[-1][1] >= threshold[0]:
            out[list(wrong)] = NAN
        return out

    net = Net(act)
    threshold = [build_table(VPSDE(), solvers.ancestral(), steps=8).rows[after].at.log_snr - 1e-6]
    return net, ScoreModel(net, VPSDE())


SOURCES: dict[str, Callable[[], dict[str, object]]] = {
    "seed": lambda: {"seed": 1},
    "seeds": lambda: {"seeds": [1, 2, 3, 4]},
    "noise": lambda: {"noise": [torch.cos(k + torch.arange(8.0)).reshape(4, 2) for k in range(12)]},
    "generator": lambda: {"generator": torch.Generator().manual_seed(1)},
    "seed, x_init": lambda: {"seed": 1, "x_init": torch.cos(torch.arange(8.0)).reshape(4, 2)},
}


@pytest.mark.parametrize("source", SOURCES)
def test_nan_in_the_middle_names_step_time_and_share(source: str) -> None:
    _, model = spoil(1, after=5)
    options = {"shape": (4, 2), "solver": "ancestral", "steps": 8}
    good = []
    clean = ScoreModel(lambda x, c: 0.3 * torch.tanh(x), VPSDE())
    sample(clean, **options, **SOURCES[source](), on_step=lambda s: good.append(s.x.clone()))
    t = build_table(VPSDE(), solvers.ancestral(), steps=8).rows[5].at.t
    with pytest.raises(
        SolverError, match=rf"step 5 of .* at t = {t:g} gave non-finite values in 25\.0% of the"
    ) as error:
        sample(model, **options, **SOURCES[source]())
    # The state before the bad step is kept on the error, and is the one that the clean run passed.
    assert torch.equal(error.value.partial, good[4])


def test_nan_in_one_chunk_is_found_there() -> None:
    _, model = spoil(0, after=2)
    with pytest.raises(SolverError, match=r"step 2 of .* 50\.0% of the samples"):
        sample(model, (4, 2), solver="ancestral", steps=8, seed=1, chunk_size=2)


@pytest.mark.parametrize("name", FIXED)
def test_freezing_keeps_the_last_finite_state_and_leaves_the_others_alone(name: str) -> None:
    _, model = spoil(0, 2, after=4)
    clean = ScoreModel(lambda x, c: 0.3 * torch.tanh(x), VPSDE())
    options = {"solver": name, "steps": 8, "seed": 1, "full_output": True, "trajectory": True}
    whole = sample(clean, (4, 2), **options)
    frozen = sample(model, (4, 2), on_nonfinite="freeze", **options)
    assert isinstance(frozen, SampleResult)
    assert frozen.status.tolist() == [1, 0, 1, 0]
    assert whole.status.tolist() == [0] * 4
    assert torch.equal(frozen.x[1::2], whole.x[1::2])
    assert bool(torch.isfinite(frozen.x).all())
    # Frozen where it was before the first bad answer: at a state that the clean run passed.
    for k in (0, 2):
        assert any(torch.equal(frozen.x[k], state) for state in whole.trajectory[:, k])
        assert torch.equal(frozen.trajectory[-2, k], frozen.x[k])


def test_freezing_with_a_corrector_keeps_the_state_before_it() -> None:
    """The corrector reads the bad answer first; the frozen sample must not take its NaN."""
    _, model = spoil(0, after=4)
    clean = ScoreModel(lambda x, c: 0.3 * torch.tanh(x), VPSDE())
    options = {"solver": "ancestral", "steps": 8, "seed": 1, "kernels": [Langevin(0.1)], "full_output": True}
    whole = sample(clean, (4, 2), **options)
    frozen = sample(model, (4, 2), on_nonfinite="freeze", **options)
    assert frozen.status.tolist() == [1, 0, 0, 0]
    assert torch.equal(frozen.x[1:], whole.x[1:])
    assert bool(torch.isfinite(frozen.x).all())


def test_freezing_a_table_that_corrects_its_anchor() -> None:
    """The anchor of a frozen sample is kept as well as its state."""
    points = Knot.of(VPSDE().at(build_table(VPSDE(), solvers.ancestral(), steps=8).points.t))
    rows = [Row(p, (0.9, 0.1), anchor=(0.8, 0.2)) for p in points]
    table = Tableau("corrected", "data", tuple(rows), points[0], points[-1], 1.0)
    _, model = spoil(0, after=4)
    frozen = sample(model, (4, 2), solver=table, final="sample", seed=1, on_nonfinite="freeze", full_output=True)
    assert frozen.status.tolist() == [1, 0, 0, 0]
    assert bool(torch.isfinite(frozen.x).all())


def test_a_failed_flow_is_an_error_and_no_sample() -> None:
    _, model = spoil(2, after=3)
    with pytest.raises(SolverError, match="the prediction is not finite") as error:
        sample(model, (4, 2), solver="probability_flow", seed=1)
    assert error.value.partial.shape == (4, 2)
    with pytest.raises(SolverError, match="max_steps = 2 is used up"):
        sample(gaussian(), (4,), solver=ProbabilityFlow(max_steps=2), seed=1)
