"""What ``sample`` promises of its randomness, its start and the shapes it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, Net, gaussian
from torch import Tensor

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    Gaussian,
    GaussianModel,
    Langevin,
    Moments,
    ProbabilityFlow,
    ScoreModel,
    build_table,
    sample,
    solvers,
)
from scoresde.noise import normal
from scoresde.solvers import SOLVERS

FIXED = sorted(set(SOLVERS) - {"probability_flow"})
RUNS: dict[str, dict[str, object]] = {
    **{name: {"solver": name, "steps": 5} for name in FIXED},
    "probability_flow": {"solver": "probability_flow"},
    "bosh3": {"solver": ProbabilityFlow(rtol=1e-3, atol=1e-3, method="bosh3"), "final": "sample"},
    "predictor-corrector": {"solver": "euler_maruyama", "steps": 4, "kernels": [Langevin(0.1, steps=2)]},
    "per-sample norms": {
        "solver": "reverse_diffusion",
        "steps": 4,
        "kernels": [Langevin(0.1, norms="sample")],
        "final": "mean",
    },
    "a chain's table": {"solver": DDPM.linear(30).ancestral(steps=6), "final": "sample"},
}
DOUBLE = {"dtype": torch.float64}


def net(x: Tensor, log_snr: Tensor) -> Tensor:
    """A network that mixes the coordinates of a sample and nothing else."""
    flat = x.reshape(len(x), -1)
    return (torch.tanh(flat) + 0.1 * flat.roll(1, 1) + 0.01 * log_snr[:, None].to(x)).reshape(x.shape)


MODEL = ScoreModel(net, VPSDE())


# --- seeds


@pytest.mark.parametrize(
    ("name", "event"),  # noise comes in blocks of 4096 numbers: many samples to a block, and one
    [*((name, (2,)) for name in RUNS), *((name, (3, 40, 40)) for name in ("ancestral", "predictor-corrector"))],
)
def test_a_sample_is_the_same_alone_in_a_batch_and_in_chunks(name: str, event: tuple[int, ...]) -> None:
    count = 7 if event == (2,) else 3
    options = RUNS[name] | DOUBLE | {"seed": 5}
    whole = sample(MODEL, (count, *event), **options)

    def same(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    for size in (1, 2, count - 1, count + 3):
        same(sample(MODEL, (count, *event), chunk_size=size, **options), whole)
    for k in range(count):
        same(sample(MODEL, (1, *event), first_sample=k, **options), whole[k : k + 1])
    same(sample(MODEL, (2, *event), first_sample=1, **options), whole[1:3])
    # A wider batch only adds samples.
    same(sample(MODEL, (count + 2, *event), **options)[:count], whole)
    assert len({float(x.sum()) for x in whole}) == count
    assert float((sample(MODEL, (count, *event), **(options | {"seed": 6})) - whole).abs().min()) > 0


@pytest.mark.parametrize("name", ["ancestral", "predictor-corrector", "probability_flow"])
def test_a_seed_for_each_sample(name: str) -> None:
    seeds = [11, 2**64 - 1, 0, 11]
    together = sample(MODEL, (4, 2), seeds=seeds, **RUNS[name], **DOUBLE)
    torch.testing.assert_close(together[0], together[3], rtol=0, atol=0)
    for k, seed in enumerate(seeds):
        alone = sample(MODEL, (1, 2), seed=seed, **RUNS[name], **DOUBLE)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-12, atol=1e-12)
    chunked = sample(MODEL, (4, 2), seeds=seeds, chunk_size=3, **RUNS[name], **DOUBLE)
    torch.testing.assert_close(chunked, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", RUNS)
def test_the_same_seed_gives_the_same_bits_and_the_reported_seed_redraws(name: str) -> None:
    one, two = (sample(MODEL, (4, 2), seed=2**63, **RUNS[name]) for _ in range(2))
    assert torch.equal(one, two)
    drawn = sample(MODEL, (4, 2), full_output=True, **RUNS[name])
    other = sample(MODEL, (4, 2), full_output=True, **RUNS[name])
    assert drawn.seed != other.seed
    assert not torch.equal(drawn.x, other.x)
    assert torch.equal(sample(MODEL, (4, 2), seed=drawn.seed, **RUNS[name]), drawn.x)


def test_float64_sees_the_same_noise_as_float32() -> None:
    one, two = (
        sample(MODEL, (4, 2), seed=1, solver="ancestral", steps=5, dtype=d) for d in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FIXED)
def test_a_generator_is_an_ordinary_stream(name: str) -> None:
    """The start state first, then each draw: the same as a tape of the generator's numbers."""
    table = build_table(VPSDE(), solvers.named.by_name(name), steps=5)
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    one = sample(MODEL, (4, 2), solver=name, steps=5, generator=generators[0])
    tape = [normal((4, 2), generators[1]) for _ in range(1 + sum(row.draws for row in table.rows))]
    two = sample(MODEL, (4, 2), solver=name, steps=5, noise=tape, full_output=True)
    assert torch.equal(one, two.x)
    assert two.seed is None
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    # With x_init no number is spent on the start.
    three = sample(MODEL, x_init=tape[0], solver=name, steps=5, generator=generators[2])
    normal((4, 2), generators[2])
    assert not table.stochastic or torch.equal(generators[2].get_state(), generators[0].get_state())
    four = sample(MODEL, x_init=tape[0], solver=name, steps=5, noise=tape[1:])
    assert table.stochastic or torch.equal(three, four)


def test_x_init_takes_the_place_of_draw_zero_and_no_other() -> None:
    """With the same seed, the draws of the steps are the same whether the start is given or drawn."""
    starts: list[Tensor] = []
    recording = ScoreModel(lambda x, c: (starts.append(x.clone()), net(x, c))[1], VPSDE())
    whole = sample(recording, (4, 2), solver="ancestral", steps=5, seed=9)
    again = sample(MODEL, x_init=starts[0], solver="ancestral", steps=5, seed=9)
    assert torch.equal(again, whole)
    parts = sample(MODEL, x_init=starts[0], solver="ancestral", steps=5, seed=9, chunk_size=3)
    torch.testing.assert_close(parts, whole)


# --- where it starts


def start_of(model_options: dict[str, object], **options: object) -> Tensor:
    seen: list[Tensor] = []
    sde = model_options.pop("sde", VPSDE())
    model = ScoreModel(lambda x, c: (seen.append(x.clone()), x)[1], sde, predicts="score", **model_options)
    sample(model, solver="ddim", steps=3, **DOUBLE, **options)
    return seen[0] * torch.hypot(sde.alpha(1.0), sde.sigma(1.0))  # undo c_in


def test_the_start_state_is_the_named_prior() -> None:
    z = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    tape = {"shape": (3, 2), "noise": [z]}
    torch.testing.assert_close(start_of({}, **tape), z)
    torch.testing.assert_close(start_of({"sde": VESDE()}, **tape), 50 * z)
    data = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0], [2.0, 4.0]], dtype=torch.float64)
    moments = Moments.of(data)
    covariance = torch.cov(data.T, correction=0)
    alpha, sigma = VPSDE().alpha(1.0), VPSDE().sigma(1.0)
    total = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    values, basis = torch.linalg.eigh(total)
    expected = alpha * data.mean(0) + z @ basis @ values.sqrt().diag() @ basis.T
    torch.testing.assert_close(start_of({"moments": moments}, **tape), expected)
    own = Gaussian(torch.tensor([5.0, -5.0]), torch.tensor(4.0))
    expected = torch.tensor([5.0, -5.0], dtype=torch.float64) + 2 * z
    torch.testing.assert_close(start_of({"moments": moments}, prior=own, **tape), expected)
    given = start_of({"moments": moments}, x_init=z, prior=own, seed=0)
    torch.testing.assert_close(given, z)


def test_a_start_in_the_middle_has_the_law_of_that_time() -> None:
    """``times=`` that begin late: the exact moments of the state there, not those of t_max."""
    model, z = gaussian(), torch.linspace(-2, 2, 5, dtype=torch.float64)
    times = torch.tensor([0.3, 0.1], dtype=torch.float64)
    out = sample(
        model, (5,), solver="ddim", times=times, final="sample", noise=[z], trajectory=True, **DOUBLE, full_output=True
    )
    alpha, sigma = (float(c(0.3)) for c in (VPSDE().alpha, VPSDE().sigma))
    expected = alpha * MEAN + (alpha**2 * VARIANCE + sigma**2) ** 0.5 * z
    torch.testing.assert_close(out.trajectory[0], expected)


# --- shapes


@pytest.mark.parametrize("event", [(), (3,), (2, 4), (2, 3, 3), (2, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("name", [*FIXED, "probability_flow"])
def test_every_event_shape_is_sampled_coordinate_by_coordinate(name: str, event: tuple[int, ...]) -> None:
    """The exact model of independent coordinates applies the scalar map to each, with that coordinate's mean."""
    size = int(np.prod(event))
    mean = torch.linspace(-1, 2, size, dtype=torch.float64).reshape(event)
    model = GaussianModel(sde=VPSDE(), mean=mean, covariance=torch.full(event, VARIANCE, dtype=torch.float64))
    start = torch.cos(torch.arange(3.0 * size, dtype=torch.float64)).reshape(3, *event)
    if name == "probability_flow":
        got = sample(model, x_init=start, solver=ProbabilityFlow(rtol=1e-9, atol=1e-9), final="sample")
        torch.testing.assert_close(got, model.flow(start, 1.0, 1e-5), rtol=1e-6, atol=1e-6)
        return
    table = build_table(VPSDE(), solvers.named.by_name(name), steps=4)
    draws = [torch.sin(k + start) for k in range(sum(row.draws for row in table.rows))]
    got = sample(model, x_init=start, solver=table, noise=draws, final="sample")
    weights = table.affine_map(1.0, VARIANCE)
    expected = weights[0] * mean + sum(w * z for w, z in zip(weights[1:], [start, *draws], strict=True))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert got.shape == (3, *event)


@pytest.mark.parametrize("name", [*FIXED, "probability_flow"])
def test_an_empty_batch_calls_no_network(name: str) -> None:
    recording = Net()
    model = ScoreModel(recording, VPSDE())
    assert sample(model, (0, 2), solver=name).shape == (0, 2)
    result = sample(
        model, x_init=torch.empty(0, 3, dtype=torch.float64), solver=name, full_output=True, trajectory=False
    )
    assert (result.x.shape, result.x.dtype, result.nfe.shape) == ((0, 3), torch.float64, (0,))
    assert recording.calls == []
