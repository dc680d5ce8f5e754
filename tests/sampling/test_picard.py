"""Tables in parallel in time: against the same tables row by row, their exact laws, and in how many calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, Net, draws, gaussian
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    SDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    GaussianModel,
    Langevin,
    Moments,
    Picard,
    SampleResult,
    ScoreModel,
    SolverError,
    Tableau,
    build_table,
    grids,
    guided,
    posterior,
    sample,
    solvers,
)
from scoresde.solvers import SOLVERS

FIXED = sorted(set(SOLVERS) - {"probability_flow"})
F64 = torch.float64
MEANS = torch.tensor([[-1.2, 0.3], [1.0, -0.5], [0.2, 1.1]], dtype=F64)
STEPS = 24


def mixture(sde: object = None) -> GaussianMixtureModel:
    return GaussianMixtureModel(sde=sde or VPSDE(), weights=torch.tensor([1.0, 2.0, 3.0]), means=MEANS, std=0.2)


def draw(model: object, solver: object, **options: object) -> SampleResult:
    options = {"seed": None if "seeds" in options else 3, "dtype": F64, **options}
    shape = options.pop("shape", None if "x_init" in options else (6, 2))
    result = sample(model, shape, solver=solver, full_output=True, trajectory=True, **options)
    assert isinstance(result, SampleResult)
    return result


@pytest.mark.parametrize("name", FIXED)
def test_the_samples_are_the_solvers_own(name: str) -> None:
    """Every state, not the last alone, is within some tolerances; with a window too, which costs fewer predictions."""
    model = mixture()
    alone = draw(model, name, steps=STEPS)
    rows, cost = int(alone.nfe[0]), list[int]()
    for window in (None, 6):
        made = draw(model, Picard(name, window=window, tolerance=1e-4), steps=STEPS)
        # A sample between two modes is carried apart by a factor of ten.
        torch.testing.assert_close(made.trajectory, alone.trajectory, rtol=0, atol=3e-3)
        assert float((made.x - alone.x).abs().median()) < 1e-4
        assert made.times == alone.times
        assert made.accepted.unique().numel() == 1
        assert made.nfe.tolist() == [rows + int(made.rejected[0])] * 6
        assert int(made.accepted[0]) <= (rows // 2 if window is None else rows)
        cost.append(int(made.nfe[0]))
    assert cost[1] < cost[0]


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m_sde", "sa_solver"])
def test_without_a_tolerance_it_ends_at_the_same_states_in_at_most_as_many_calls_as_rows(name: str, sde: str) -> None:
    model = mixture(SDES[sde])
    alone = draw(model, name, steps=12)
    made = draw(model, Picard(name, tolerance=0), steps=12)
    torch.testing.assert_close(made.trajectory, alone.trajectory, rtol=1e-10, atol=1e-10)
    assert made.accepted[0] <= alone.nfe[0]
    one = draw(model, Picard(name, window=1, tolerance=0), steps=12)
    assert (one.accepted[0], one.nfe[0], one.rejected[0]) == (alone.nfe[0], alone.nfe[0], 0)
    torch.testing.assert_close(one.trajectory, alone.trajectory, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_3m", "exponential_rk3", "euler_maruyama", "edm"])
def test_a_gaussian_with_one_variance_takes_one_call(name: str) -> None:
    """What is held of its prediction is the same number everywhere."""
    made = draw(gaussian(), Picard(name), steps=STEPS, shape=(5,))
    assert (made.accepted[0], made.rejected[0]) == (1, 0)
    torch.testing.assert_close(made.x, draw(gaussian(), name, steps=STEPS, shape=(5,)).x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "heun", "ancestral", "seeds_2", "edm", "unipc"])
def test_the_weights_are_those_of_the_tables_exact_law(name: str) -> None:
    """States and draws of 0 and 1 through the iteration, with a slope that is not the data's own."""
    # Churn lifts the start state itself where the grid begins below the SDE's own top.
    sde = EDMSDE(sigma_max=200.0) if name == "edm" else VPSDE()
    times = torch.linspace(80.0, 0.5, 8, dtype=F64) if name == "edm" else None
    solver = solvers.edm(s_max=100.0) if name == "edm" else name
    table = build_table(sde, solver, steps=None if name == "edm" else 9, times=times)
    assert name != "edm" or table.lift != (1.0, 0.0)
    model = gaussian(sde)
    model.moments = Moments.exact(torch.tensor(-3.0), torch.tensor(2.0))
    unit = torch.eye(2 + draws(table), dtype=F64)
    solver = Picard(table, window=5, tolerance=0)
    out = sample(model, x_init=unit[1], noise=list(unit[2:]), solver=solver, final="sample")
    found = torch.cat([out[:1], out[1:] - out[:1]]).numpy()
    np.testing.assert_allclose(found, table.affine_map(MEAN, VARIANCE), rtol=0, atol=1e-10)


def test_a_slower_change_is_not_taken_for_rest() -> None:
    """The rows that are final have a change below the tolerance, in the last iteration as in the first."""
    alone = draw(mixture(), "ddim", steps=60)
    errors = [
        float((draw(mixture(), Picard("ddim", tolerance=t), steps=60).x - alone.x).abs().max())
        for t in (1e-2, 1e-4, 1e-6)
    ]
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.1 * errors[1] < 1e-4


def test_no_row_is_final_before_the_rows_that_it_starts_from() -> None:
    """Late states are still while early ones move, where most of x is noise that goes away."""

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.where((c_noise < -1)[:, None], 3 * torch.sin(2 * x), 0 * x)

    moments = Moments.exact(torch.zeros(2), torch.full((2,), 1e-4))
    model, options = ScoreModel(net, VPSDE(), predicts="data", moments=moments), {"times": grids.log_snr(60)}
    made = draw(model, Picard("ddim", tolerance=0.1), **options)
    torch.testing.assert_close(made.trajectory, draw(model, "ddim", **options).trajectory, rtol=0, atol=0.2)
    assert made.accepted[0] > 3


@pytest.mark.parametrize("window", [None, 4])
def test_the_network_is_called_once_in_an_iteration_with_all_its_states(window: int | None) -> None:
    net = Net(dtype=F64)
    made = draw(ScoreModel(net, VPSDE()), Picard("dpmpp_2m", window=window), steps=20)
    sizes = [shape[0] // 6 for shape, _ in net.calls]
    assert len(sizes) == made.accepted[0]
    assert sum(sizes) == made.nfe[0]
    assert max(sizes) == (window or 20)


def labelled() -> ScoreModel:
    return ScoreModel(Net(dtype=F64), VPSDE())


def learned_variance() -> ScoreModel:
    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.cat([torch.tanh(x), torch.sin(x + 0.1 * c_noise[:, None])], 1)

    return ScoreModel(net, VPSDE(), variance="learned")


CASES: dict[str, tuple[Callable[[], object], object, dict[str, object]]] = {
    "conditions": (labelled, "ddim", {"cond": {"label": torch.linspace(-0.5, 0.5, 6, dtype=F64)}}),
    "guidance": (
        lambda: guided(labelled(), 2.0, negative={"label": 0.1}),
        "dpmpp_2m",
        {"cond": {"label": torch.linspace(-0.5, 0.5, 6, dtype=F64)}},
    ),
    "posterior": (
        lambda: posterior(mixture(), torch.tensor([True, False]), torch.tensor([0.4]).double(), noise_std=0.3),
        "ddim",
        {},
    ),
    "learned variance": (learned_variance, DDPM.cosine(20).ancestral(variance="learned"), {"steps": None}),
    "chunks": (mixture, "ancestral", {"chunk_size": 4}),
    "one seed each": (mixture, "ancestral", {"seeds": [4, 1, 9, 0, 2, 7]}),
    "mean": (mixture, "ancestral", {"final": "mean"}),
    "times": (mixture, "heun", {"steps": None, "times": torch.linspace(1.0, 0.02, 15, dtype=F64), "final": "sample"}),
    "another diffusion": (mixture, "ddim", {"sde": EDMSDE()}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_with(case: str) -> None:
    build, solver, options = CASES[case]
    options = {"steps": 20, **options}
    expected = draw(build(), solver, **options)
    made = draw(build(), Picard(solver, window=8, tolerance=1e-11), **options)
    torch.testing.assert_close(made.x, expected.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made.trajectory, expected.trajectory, rtol=1e-9, atol=1e-9)
    assert made.accepted[0] < expected.nfe[0]


def test_a_generator_gives_the_same_noise_and_is_left_where_the_solver_leaves_it() -> None:
    ends = []
    for solver in ("ancestral", Picard("ancestral", tolerance=0)):
        generator = torch.Generator().manual_seed(5)
        made = draw(mixture(), solver, steps=15, seed=None, generator=generator)
        ends.append((made.x, torch.rand(1, generator=generator)))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-10, atol=1e-10)
    assert torch.equal(ends[1][1], ends[0][1])


def test_types_and_the_callers_tensors() -> None:
    x = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)
    kept = x.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        out = sample(mixture(), x_init=x.to(dtype), solver=Picard("ddim"), steps=20)
        assert out.dtype == dtype
        expected = sample(mixture(), x_init=x.to(dtype), solver="ddim", steps=20)
        torch.testing.assert_close(out.float(), expected.float(), rtol=2e-2, atol=5e-3)
    assert torch.equal(x, kept)
    assert sample(mixture(), (0, 2), solver=Picard("ddim")).shape == (0, 2)


def test_a_table_without_rows_is_its_start() -> None:
    table = replace(build_table(VPSDE(), "ddim", steps=2), rows=(), lift=(3.0, 0.0))
    x = torch.ones(3, 2)
    assert torch.equal(sample(mixture(), x_init=x, solver=Picard(table), final="sample"), 3 * x)


def test_what_is_not_finite_is_found_at_the_same_step_as_row_by_row() -> None:
    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        bad = (c_noise > 0)[:, None] & (torch.arange(len(x)) % 4 == 1)[:, None]
        return torch.where(bad, math.nan, torch.tanh(x))

    model = ScoreModel(net, VPSDE())
    messages = []
    for solver in ("ddim", Picard("ddim"), Picard("ddim", window=3)):
        with pytest.raises(SolverError, match=r"step \d+ of .* at t = .* gave non-finite values in 25.0%") as caught:
            sample(model, (4, 2), solver=solver, steps=10, seed=0)
        messages.append(str(caught.value).partition(";")[0])
        assert caught.value.partial.shape == (4, 2)
    assert messages[0] == messages[1] == messages[2]


@pytest.mark.parametrize(
    "options",
    [{"kernels": [Langevin()]}, {"on_step": print}, {"on_nonfinite": "freeze"}, {"differentiable": True}],
    ids=str,
)
def test_what_needs_one_row_after_another_is_refused(options: dict[str, object]) -> None:
    name = "on_nonfinite='freeze'" if "on_nonfinite" in options else next(iter(options))
    with pytest.raises(ConfigError, match=f"takes no {name}; the solver alone does: solver='ddim'"):
        sample(ScoreModel(_never, VPSDE()), (2, 2), solver=Picard("ddim"), **options)


def _never(*_: object) -> Tensor:
    raise AssertionError("the network was called")


class OwnSDE(SDE):
    def drift(self, x: Tensor, t: object) -> Tensor:
        return -x

    def diffusion(self, t: object) -> Tensor:
        return torch.ones(())


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ddim'"):
        Picard("ddmi")
    for window in (0, -1):
        with pytest.raises(DomainError, match="window"):
            Picard("ddim", window=window)
    for tolerance in (-1e-3, math.nan, math.inf):
        with pytest.raises(DomainError, match="tolerance"):
            Picard("ddim", tolerance=tolerance)
    with pytest.raises(DTypeError, match="window"):
        Picard("ddim", window=2.5)
    model = ScoreModel(_never, VPSDE())
    for solver in ("probability_flow", 3, solvers.ddim):
        with pytest.raises(DTypeError, match=r"solver|table"):
            sample(model, (2, 2), solver=Picard(solver))
    with pytest.raises(ConfigError, match="takes its variance from the network"):
        sample(model, (2, 2), solver=Picard(DDPM.cosine(5).ancestral(variance="learned")))
    with pytest.raises(DTypeError, match=r"scoresde\.bridge"):
        sample(lambda x, t: -x, (2, 2), sde=OwnSDE(), solver=Picard("ddim"), final="sample", x_init=torch.ones(2, 2))
    assert isinstance(build_table(VPSDE(), "ddim", steps=3), Tableau)


def test_it_is_a_value() -> None:
    assert Picard("ddim") == Picard("ddim", None, 1e-3)
    assert repr(Picard("ddim", window=5)) == "Picard(solver='ddim', window=5, tolerance=0.001)"


def test_coordinates_of_other_variances_and_a_mean_far_away_cost_calls_and_no_error() -> None:
    model = GaussianModel(
        sde=VPSDE(), mean=torch.tensor([5.0, -8.0], dtype=F64), covariance=torch.tensor([0.01, 9.0], dtype=F64)
    )
    alone = draw(model, "dpmpp_2m", steps=50)
    made = draw(model, Picard("dpmpp_2m", tolerance=1e-5), steps=50)
    torch.testing.assert_close(made.x, alone.x, rtol=0, atol=1e-4)
    assert 1 < made.accepted[0] <= 25
