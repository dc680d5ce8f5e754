"""Tensors that cannot be meant, at every public function that takes one: kind and words, and nothing changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers import Net
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    Affine,
    Compose,
    ConfigError,
    Dequantise,
    DomainError,
    DTypeError,
    EmpiricalModel,
    EnergyModel,
    Gaussian,
    GaussianMixtureModel,
    GaussianModel,
    Logit,
    Moments,
    ProbabilityFlow,
    ScoreModel,
    ScoreSDEError,
    ShapeError,
    denoising_score_matching,
    fit,
    metrics,
    sample,
)
from scoresde.noise import stream
from scoresde.sampling.flow import solve

NAN, INF = math.nan, math.inf
SDE, CHAIN = VPSDE(), DDPM.linear(100)
X = torch.linspace(-1, 1, 6).reshape(3, 2)
NET = Net()
MODEL = ScoreModel(NET, SDE)
EXACT = GaussianModel(sde=SDE, mean=torch.zeros(2), covariance=torch.eye(2))
MIXTURE = GaussianMixtureModel(sde=SDE, weights=torch.ones(2), means=torch.eye(2), std=0.5)
ENERGY = EnergyModel(lambda x, c: x.square().flatten(1).sum(1), SDE)
STEPS = (Affine(0.5, 2.0), Logit(1e-3, -2.0, 2.0), Dequantise(5, -2.0, 2.0))


class Entry(NamedTuple):
    """A public function of one tensor: the parameter's name, the call, and whether it looks for NaN."""

    name: str
    call: Callable[[Tensor], object]
    finite: bool = False


def losses(x: Tensor, **options: object) -> Tensor:
    return denoising_score_matching(MODEL, x, generator=stream(0), **options)


def fitting(x: object) -> Tensor:
    """The other tensor of a pair: x itself, or a sound one where x is none."""
    return x if isinstance(x, Tensor) and x.ndim else X


ENTRIES: dict[str, Entry] = {
    "sample": Entry("x_init", lambda x: sample(MODEL, x_init=x, seed=0, steps=3), True),
    "sample, adaptive": Entry("x_init", lambda x: sample(MODEL, x_init=x, seed=0, solver="probability_flow"), True),
    "ProbabilityFlow.solve": Entry("x", lambda x: solve(ProbabilityFlow(), EXACT, x, SDE.at(1.0), SDE.at(0.1)).x, True),
    "model": Entry("x", lambda x: MODEL(x, 0.5).score),
    "EnergyModel.energy": Entry("x", lambda x: ENERGY.energy(x, 0.5)),
    "marginal": Entry("x0", lambda x: SDE.marginal(x, 0.5)[0]),
    "perturb": Entry("x0", lambda x: SDE.perturb(x, 0.5, fitting(x))),
    "drift": Entry("x", lambda x: SDE.drift(x, 0.5)),
    "transition": Entry("x_s", lambda x: SDE.transition(x, 0.1, 0.5)[0]),
    "posterior": Entry("x0", lambda x: SDE.posterior(x, x, 0.1, 0.5)[0]),
    "reverse": Entry("x", lambda x: SDE.reverse(EXACT).drift(x, 0.5)),
    "chain.perturb": Entry("x0", lambda x: CHAIN.perturb(x, 3, fitting(x))),
    "chain.posterior": Entry("x0", lambda x: CHAIN.posterior(x, x, 3)[0]),
    "prior.log_prob": Entry("x", lambda x: SDE.prior().log_prob(x)),
    "prior.from_noise": Entry("z", lambda x: SDE.prior().from_noise(x)),
    "GaussianModel.log_prob": Entry("x", EXACT.log_prob),
    "GaussianModel.flow": Entry("x", lambda x: EXACT.flow(x, 0.5, 0.1)),
    "GaussianMixtureModel": Entry(
        "means", lambda x: GaussianMixtureModel(sde=SDE, weights=torch.ones(3), means=x, std=1.0), True
    ),
    "GaussianMixtureModel.log_prob": Entry("x", MIXTURE.log_prob),
    "EmpiricalModel": Entry("data", lambda x: EmpiricalModel(sde=SDE, data=x), True),
    "Moments.of": Entry("data", Moments.of, True),
    "fit": Entry("data", lambda x: fit(ScoreModel(Net(), SDE), x, steps=1, progress=False), True),
    "loss": Entry("x0", losses),
    "Affine.standardise": Entry("data", Affine.standardise, True),
    **{f"{type(t).__name__}.forward": Entry("data", lambda x, t=t: t.forward(x, stream(0))) for t in STEPS[:2]},
    **{f"{type(t).__name__}.inverse": Entry("y", t.inverse) for t in STEPS},
    **{f"{type(t).__name__}.log_abs_det": Entry("data", lambda x, t=t: t.log_abs_det(x)) for t in STEPS},
    "Compose.forward": Entry("data", Compose(STEPS[:2]).forward),
    "Compose.inverse": Entry("y", Compose(STEPS[:2]).inverse),
    "sliced_wasserstein": Entry("y", lambda x: metrics.sliced_wasserstein(X, x), True),
    "energy_distance": Entry("x", lambda x: metrics.energy_distance(x, X), True),
    "mmd": Entry("y", lambda x: metrics.mmd(X, x), True),
    "frechet_distance": Entry("features_x", lambda x: metrics.frechet_distance(x, X), True),
    "marginal_distances": Entry("x", lambda x: metrics.marginal_distances(x, X), True),
    "two_sample_test": Entry("x", lambda x: metrics.two_sample_test(x, X), True),
}
# These refuse NaN in words of their own, as a value outside the interval.
PLACED = {"Logit.forward", "Logit.log_abs_det", "Compose.forward"}

NO_BATCH: dict[str, tuple[object, type[ScoreSDEError], str]] = {
    "a list": ([[0.0, 1.0]], DTypeError, r"{} must be a torch\.Tensor, got list; use torch\.as_tensor\({}\)"),
    "a number": (1.0, DTypeError, r"{} must be a torch\.Tensor, got float"),
    "0-d": (torch.tensor(1.0), ShapeError, r"{} must have shape \(B, \*\), got a 0-d tensor; add .* with {}\[None\]"),
    "integers": (torch.ones(3, 2, dtype=torch.long), DTypeError, r"{} must .* got torch\.int64; .* {}\.float\(\)"),
    "booleans": (torch.ones(3, 2, dtype=torch.bool), DTypeError, r"{} must .* got torch\.bool; .* {}\.float\(\)"),
    "complex": (torch.ones(3, 2, dtype=torch.cfloat), DTypeError, r"{} must .* torch\.complex64; .*imaginary parts as"),
}


@pytest.mark.parametrize(
    ("entry", "fault"),
    # The mixture takes its means as lists too.
    [(e, f) for e in ENTRIES for f in NO_BATCH if e != "GaussianMixtureModel" or f not in ("a list", "a number")],
)
def test_what_is_no_batch_of_real_numbers_is_refused_in_the_parameters_name(entry: str, fault: str) -> None:
    name, call, _ = ENTRIES[entry]
    value, kind, words = NO_BATCH[fault]
    NET.calls.clear()
    with pytest.raises(kind, match=words.replace("{}", name)):
        call(value)
    assert NET.calls == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_values_that_are_not_finite_are_counted_and_placed_or_stay_in_their_sample(entry: str) -> None:
    """Whole computations refuse them; formulas, which must not wait for the device, carry them sample by sample."""
    name, call, finite = ENTRIES[entry]
    bad = X.clone()
    bad[1, 0], bad[1, 1] = NAN, -INF
    if finite:
        NET.calls.clear()
        with pytest.raises(DomainError, match=rf"{name} has 2 non-finite values of 6, the first at index \(1, 0\)"):
            call(bad)
        assert NET.calls == []
    elif entry in PLACED:
        with pytest.raises(DomainError, match=r"2 of 6 values do not, the first is nan at index \(1, 0\)"):
            call(bad)
    else:
        got, sound = call(bad), call(X)
        assert isinstance(got, Tensor)
        assert isinstance(sound, Tensor)
        assert torch.equal(got[::2], sound[::2])


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_samples_give_no_results_or_a_reason_and_call_no_network(entry: str) -> None:
    name, call, finite = ENTRIES[entry]
    NET.calls.clear()
    if finite and entry not in ("sample", "sample, adaptive", "ProbabilityFlow.solve"):
        with pytest.raises(ShapeError, match=rf"{name} (is empty: .* one|must hold at)|at least two samples"):
            call(X[:0])
    else:
        got = call(X[:0])
        assert isinstance(got, Tensor)
        assert got.shape in ((0,), (0, 2))
    assert NET.calls == []


# ---------------------------------------------------------------------------------------------------------------------
# Layouts, gradients


VOLUME = torch.cos(torch.arange(2.0 * 3 * 4 * 5)).reshape(2, 3, 4, 5)
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: VOLUME.transpose(1, 3).contiguous().transpose(1, 3),
    "channels_last": lambda: VOLUME.clone().to(memory_format=torch.channels_last),
    "a slice": lambda: torch.cat([VOLUME, VOLUME], 3)[..., :5],
    "expanded": lambda: VOLUME[:1, :1].expand(2, 3, 4, 5),
    "with gradient": lambda: VOLUME.clone().requires_grad_(),
}
SMOOTH = GaussianModel(sde=SDE, mean=torch.zeros(3, 4, 5), covariance=torch.tensor(0.3))
READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sample": lambda x: sample(SMOOTH, x_init=x, seed=0, steps=3),
    "sample, stochastic": lambda x: sample(SMOOTH, x_init=x, seed=0, steps=3, solver="ancestral"),
    "sample, adaptive": lambda x: sample(SMOOTH, x_init=x, solver="probability_flow"),
    "model": lambda x: SMOOTH(x, 0.5).score,
    "perturb": lambda x: SDE.perturb(x, 0.5, x),
    "posterior": lambda x: SDE.posterior(x, x, 0.1, 0.5)[0],
    "reverse": lambda x: SDE.reverse(SMOOTH).drift(x, 0.5),
    "chain": lambda x: CHAIN.perturb(x, 3, x),
    "loss": lambda x: denoising_score_matching(SMOOTH, x, generator=stream(0)),
    "log_prob": lambda x: SMOOTH.log_prob(x),
    "forward": lambda x: Compose(STEPS[:2]).forward(x),
    "inverse": lambda x: Compose(STEPS[:2]).inverse(x),
    "moments": lambda x: Moments.of(x).mean,
    "metric": lambda x: torch.tensor(metrics.energy_distance(x, VOLUME + 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", READERS)
def test_every_layout_gives_the_bits_of_the_contiguous_one_and_is_not_written_to(reader: str, layout: str) -> None:
    x, read = LAYOUTS[layout](), READERS[reader]
    before, strides, version, flag = x.detach().clone(), x.stride(), x._version, x.requires_grad
    plain = x.detach().clone(memory_format=torch.contiguous_format)
    got = read(x)
    assert torch.equal(got, read(plain))
    assert torch.equal(x, before)
    assert (x.stride(), x._version, x.requires_grad, x.grad) == (strides, version, flag, None)


def test_sampling_keeps_no_graph_unless_asked() -> None:
    start = X.clone().requires_grad_()
    weight = NET.weight
    for options in ({}, {"solver": "ancestral"}, {"solver": "probability_flow"}):
        assert not sample(MODEL, x_init=start, seed=0, **options).requires_grad
    assert sample(MODEL, x_init=start, seed=0, steps=2, differentiable=True).requires_grad
    assert (start.requires_grad, start.grad, weight.requires_grad, weight.grad) == (True, None, True, None)
    with torch.inference_mode():
        assert torch.equal(sample(MODEL, x_init=X.clone(), seed=0, steps=3), sample(MODEL, x_init=X, seed=0, steps=3))


# ---------------------------------------------------------------------------------------------------------------------
# Times


TIMED: dict[str, Callable[[object], object]] = {
    "model": lambda t: MODEL(X, t),
    "energy": lambda t: ENERGY.energy(X, t),
    "marginal": lambda t: SDE.marginal(X, t),
    "perturb": lambda t: SDE.perturb(X, t, X),
    "drift": lambda t: SDE.drift(X, t),
    "transition": lambda t: SDE.transition(X, 1e-5, t),
    "posterior": lambda t: SDE.posterior(X, X, 1e-5, t),
    "reverse": lambda t: SDE.reverse(EXACT).drift(X, t),
    "loss": lambda t: losses(X, t=t),
}
BAD_TIMES: dict[str, tuple[object, type[ScoreSDEError], str]] = {
    "integers": (
        torch.ones(3, dtype=torch.long),
        DTypeError,
        r"t must be floating for a continuous SDE, got torch.int64",
    ),
    "booleans": (torch.tensor(True), DTypeError, "t must be floating for a continuous SDE, got torch.bool"),
    "complex": (torch.tensor(0.5j), DTypeError, "t must be floating for a continuous SDE, got torch.complex64"),
    "a string": ("0.5", DTypeError, "t must be a number or a floating tensor, got '0.5' of type str"),
    "a bool": (True, DTypeError, "t must be a number or a floating tensor, got True of type bool"),
    "a list": ([0.5] * 3, DTypeError, r"t must be a number or a floating tensor, got \[0.5, 0.5, 0.5\] of type list"),
    "(B, 1)": (torch.full((3, 1), 0.5), ShapeError, r"t must have shape \(\) or \(3,\), got \(3, 1\)"),
    "(1,)": (torch.full((1,), 0.5), ShapeError, r"t must have shape \(\) or \(3,\), got \(1,\)"),
    "another batch": (torch.full((2,), 0.5), ShapeError, r"t must have shape \(\) or \(3,\), got \(2,\)"),
    "NaN": (torch.tensor([0.5, NAN, 0.5]), DomainError, r"t must lie in \[1e-05, 1\], got nan"),
    "infinite": (INF, DomainError, r"t must lie in \[1e-05, 1\], got inf"),
    "zero": (0.0, DomainError, r"t must lie in \[1e-05, 1\], got 0"),
    "above t_max": (torch.tensor([0.5, 1.0, 1.1]), DomainError, r"t must lie in \[1e-05, 1\], got 1\.1"),
    "an index": (500, DomainError, r"t must lie in \[1e-05, 1\], got 500"),
}


@pytest.mark.parametrize("fault", BAD_TIMES)
@pytest.mark.parametrize("name", TIMED)
def test_times_that_cannot_be_meant_are_refused_before_any_call(name: str, fault: str) -> None:
    t, kind, words = BAD_TIMES[fault]
    NET.calls.clear()
    with pytest.raises(kind, match=words):
        TIMED[name](t)
    assert NET.calls == []


def test_a_time_may_be_any_real_number_or_carry_a_gradient() -> None:
    expected = SDE.marginal(X, 0.5)
    for t in (torch.tensor(0.5).numpy()[()], torch.tensor(0.5), torch.full((3,), 0.5), torch.tensor(0.5).bfloat16()):
        mean, std = SDE.marginal(X, t)
        assert torch.equal(mean, expected[0])
        assert torch.equal(std.expand(3), expected[1].expand(3))
    assert torch.equal(SDE.marginal(X, 1)[0], SDE.marginal(X, 1.0)[0])


@pytest.mark.parametrize("index", [0.5, torch.tensor([0.5, 1.0, 2.0]), torch.tensor(3.0), True])
def test_a_chain_has_no_real_times(index: object) -> None:
    for call in (lambda: CHAIN.perturb(X, index, X), lambda: CHAIN.posterior(X, X, index)):
        with pytest.raises(DTypeError, match=r"index of a chain must be an integer in \[0, 100\); a real time"):
            call()


def test_a_score_where_there_is_no_noise_is_refused() -> None:
    for kind in ("score", "noise"):
        readout = ScoreModel(NET, SDE, predicts="data").readout(SDE.at(0.0))
        with pytest.raises(DomainError, match=f"the {kind} prediction has no finite value at t = 0, .*sigma = 0"):
            readout.weights(kind)
    with pytest.raises(DomainError, match=r"t must lie in \[1e-05, 1\], got 0"):
        MODEL(X, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Two tensors that do not go together


PAIRS: dict[str, tuple[str, str, Callable[[Tensor, Tensor], object]]] = {
    "perturb": ("noise", "x0", lambda x, y: SDE.perturb(y, 0.5, x)),
    "posterior": ("x0", "x_t", lambda x, y: SDE.posterior(x, y, 0.1, 0.5)),
    "model": ("x", "the model", lambda x, y: MODEL(x, 0.5)),
    "energy": ("x", "the model", lambda x, y: EnergyModel(Net(), SDE).energy(x, 0.5)),
    "sample": ("x_init", "the model", lambda x, y: sample(MODEL, x_init=x, seed=0)),
    "loss": ("x0", "the model", lambda x, y: losses(x)),
    "condition": (r"cond\['c'\]", "x", lambda x, y: MODEL(y, 0.5, cond={"c": x})),
    "metric": ("x", "y", lambda x, y: metrics.energy_distance(x, y)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_devices_that_differ_are_both_named(name: str) -> None:
    first, second, call = PAIRS[name]
    NET.calls.clear()
    with pytest.raises(ConfigError, match=rf"{first} is on meta,? (and )?{second} (is )?on cpu; move one"):
        call(X.to("meta"), X)
    assert NET.calls == []


def test_a_device_for_samples_that_the_model_is_not_on() -> None:
    with pytest.raises(ConfigError, match="device is on meta, the model on cpu; move one of them"):
        sample(MODEL, (3, 2), device="meta", seed=0)
    for device in ("gpu", "cuda:99", 3.5):
        with pytest.raises(ConfigError, match=rf"device must name one that torch can use, got '?{device}'?: "):
            sample(MODEL, (3, 2), device=device, seed=0)


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (2,), (3, 2, 1)])
def test_shapes_are_never_broadcast(shape: tuple[int, ...]) -> None:
    other = torch.ones(shape)
    with pytest.raises(ShapeError, match=r"noise must have the shape \(3, 2\) of x0, got \("):
        SDE.perturb(X, 0.5, other)
    with pytest.raises(ShapeError, match=r"noise must have the shape \(3, 2\) of x0, got \("):
        losses(X, noise=other, t=0.5)
    with pytest.raises(ShapeError, match=r"x0 and x_t must agree, got shapes \(3, 2\) and \("):
        SDE.posterior(X, other, 0.1, 0.5)


@pytest.mark.parametrize(
    ("cond", "kind", "words"),
    [
        ({"c": torch.ones(2)}, ShapeError, r"cond\['c'\] must have a first dimension of 3.*, got shape \(2,\)"),
        ({"c": torch.ones(0)}, ShapeError, r"cond\['c'\] must have a first dimension of 3.*, got shape \(0,\)"),
        ({"c": "three"}, ConfigError, "cond must be a dict of tensors"),
        (torch.ones(3), ConfigError, "cond must be a dict of tensors"),
    ],
)
def test_conditions_of_another_batch(cond: object, kind: type[ScoreSDEError], words: str) -> None:
    NET.calls.clear()
    energy = EnergyModel(lambda x, c, **cond: x.sum(1), SDE)
    for call in (
        lambda: MODEL(X, 0.5, cond),
        lambda: sample(MODEL, (3, 2), cond=cond, seed=0),
        lambda: losses(X, cond=cond),
        lambda: energy.energy(X, 0.5, cond),
    ):
        with pytest.raises(kind, match=words):
            call()
    assert NET.calls == []


# ---------------------------------------------------------------------------------------------------------------------
# What a network answers, beside the cases of test_sampling_faults.py


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex64])
def test_a_network_that_answers_no_real_numbers(dtype: torch.dtype) -> None:
    model = ScoreModel(lambda x, c: x.to(dtype), SDE)
    for call in (
        lambda: model(X, 0.5),
        lambda: sample(model, (3, 2), seed=0),
        lambda: denoising_score_matching(model, X, generator=stream(0)),
    ):
        with pytest.raises(DTypeError, match=rf"must return a real floating tensor on cpu, .*got {dtype} on cpu"):
            call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_that_answers_in_another_floating_type_is_read_in_the_states(dtype: torch.dtype) -> None:
    model = ScoreModel(lambda x, c: (0.5 * x).to(dtype), SDE)
    same = ScoreModel(lambda x, c: (0.5 * x).to(dtype).to(x.dtype), SDE)
    for solver in ("dpmpp_2m", "heun", "ancestral", "probability_flow"):
        got, expected = (sample(m, x_init=X, seed=0, solver=solver) for m in (model, same))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_the_event_of_a_law_is_checked() -> None:
    law = Gaussian(torch.zeros(3), torch.ones(3))
    for call, name in ((law.log_prob, "x"), (law.from_noise, "z"), (EXACT.log_prob, "x")):
        with pytest.raises(ShapeError, match=rf"{name} must have shape \(B, \*\(.,\)\), got \(4, 5\)"):
            call(torch.zeros(4, 5))
    with pytest.raises(ShapeError, match=r"x must have the event \(2,\) of the means, got \(4, 5\)"):
        MIXTURE.log_prob(torch.zeros(4, 5))
