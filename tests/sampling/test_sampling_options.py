"""The options of ``sample`` and what comes back: steps and times, observers, conditions, other SDEs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, gaussian
from torch import Tensor, nn

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    Affine,
    GaussianSDE,
    SampleResult,
    ScoreModel,
    Solver,
    Step,
    build_table,
    sample,
    solvers,
)
from scoresde.solvers import SOLVERS, grids
from scoresde.solvers.closing import close
from scoresde.solvers.rows import Knot

FIXED = sorted(set(SOLVERS) - {"probability_flow"})
DOUBLE = {"dtype": torch.float64}

# --- steps, times, final


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", FIXED)
def test_steps_count_intervals_of_which_the_last_may_be_the_jump_to_clean_data(name: str, sde: str) -> None:
    solver, diffusion, model = solvers.named.by_name(name), SDES[sde], gaussian(SDES[sde])
    assert isinstance(solver, Solver)
    for steps in (1, 2, 5):
        ends = {f: build_table(diffusion, solver, steps=steps, final=f) for f in ("denoise", "sample", "mean")}
        # Annealed Langevin stays at its levels, the first among them; a solver that closes makes a step of the jump,
        # one that leaps jumps in the place of the last step.
        levels = int(name == "annealed_langevin")
        closes = solver.closes and float(diffusion.sigma(0.0)) == 0
        denoised = steps if closes else steps - 1 + levels
        assert ends["denoise"].nfe == solver.calls * denoised + (0 if closes else solver.leap or 1)
        assert ends["sample"].nfe == ends["mean"].nfe == solver.calls * (steps + levels)
        assert (ends["denoise"].end.sigma, ends["sample"].end.t) == (0.0, diffusion.t_min)
        if solver.leap and not closes:
            assert ends["denoise"] == close(
                solver(diffusion, solver.grid(diffusion, steps)[:-1]), diffusion, solver.leap
            )
        else:
            times = solver.grid(diffusion, steps if closes else steps - 1, jumps=not closes)
            times[-1] = 0.0 if closes else times[-1]
            assert ends["denoise"] == solver(diffusion, times).denoised()
        for final, table in ends.items():
            by_name = sample(model, (3,), solver=name, steps=steps, final=final, seed=1, full_output=True)
            built = sample(model, (3,), solver=table, final="sample", seed=1)
            assert torch.equal(by_name.x, built)
            assert by_name.nfe.tolist() == [table.nfe] * 3
            assert by_name.times[0] == diffusion.t_max
            assert by_name.times[-1] == table.end.t


def test_one_denoising_step_is_the_data_prediction_at_the_start() -> None:
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)
    got = sample(gaussian(), (5,), solver="ddim", steps=1, noise=[z], **DOUBLE)
    start = gaussian().moments.at(float(VPSDE().alpha(1.0)), float(VPSDE().sigma(1.0))).from_noise(z)
    torch.testing.assert_close(got, gaussian()(start, 1.0).data)


def test_times_are_interval_ends_and_grids_choose_them() -> None:
    model, times = gaussian(), grids.karras()(VPSDE(), 6)
    options = {"solver": "dpmpp_2m", "seed": 0, "shape": (3,)}
    expected = sample(model, times=times, **options)
    assert torch.equal(sample(model, times=grids.karras(7), **options), expected)
    assert torch.equal(sample(model, times=grids.karras(), steps=7, **options), expected)
    full = sample(model, times=times, full_output=True, **options)
    assert full.times == (*times.tolist(), 0.0)
    assert full.nfe.tolist() == [7] * 3
    to_zero = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    full = sample(model, times=to_zero, full_output=True, **options)
    assert full.nfe.tolist() == [7] * 3
    torch.testing.assert_close(full.x, expected)
    chain = DDPM.linear(50)
    strided = sample(gaussian(chain.sde()), (3,), solver=chain.ancestral(steps=10), seed=0, full_output=True)
    assert strided.nfe.tolist() == [10] * 3


def test_twenty_steps_of_flow_abm_are_the_default() -> None:
    model = gaussian()
    expected = sample(model, (3,), solver=solvers.flow_abm(), steps=20, seed=0)
    assert torch.equal(sample(model, (3,), seed=0), expected)


def test_options_do_not_leak_between_calls_of_one_solver_name() -> None:
    """Built tables are kept between calls: methods of one name, SDEs and numbers of steps must not be mixed up."""
    runs = [
        {"solver": solver, "steps": steps, "sde": sde, "final": final}
        for solver in (
            solvers.heun(variable="t"),
            solvers.heun(variable="nu"),
            solvers.heun(variable="nu", grid=grids.uniform()),
        )
        for steps in (3, 4)
        for sde in (VPSDE(), VPSDE(beta_max=10.0))
        for final in ("denoise", "sample")
    ]
    first = [sample(gaussian(), (3,), seed=0, **run) for run in runs]
    again = [sample(gaussian(), (3,), seed=0, **run) for run in reversed(runs)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(x.tolist()) for x in first}) == len(runs)


def test_a_schedule_that_learns_is_read_anew() -> None:
    """A frozen dataclass compares by value, but the module it holds may have moved since the table was built."""

    @dataclass(frozen=True)
    class Learned(GaussianSDE):
        slope: nn.Module = None

        def alpha(self, t):
            return torch.ones_like(torch.as_tensor(t, dtype=torch.float64))

        def sigma(self, t):
            return torch.as_tensor(t, dtype=torch.float64) * self.slope.weight.detach().double().reshape(())

        def diffusion(self, t):
            return self.sigma(t) * (2 / torch.as_tensor(t, dtype=torch.float64)).sqrt()

    with torch.random.fork_rng():
        layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    sde = Learned(slope=layer)
    before = sample(gaussian(sde), (3,), solver="ddim", steps=4, seed=0)
    nn.init.constant_(layer.weight, 5.0)
    after = sample(gaussian(sde), (3,), solver="ddim", steps=4, seed=0)
    fresh = sample(gaussian(Learned(slope=layer)), (3,), solver=solvers.ddim(), steps=4, seed=0)
    assert not torch.equal(before, fresh)
    assert torch.equal(after, fresh)


# --- what comes back


@pytest.mark.parametrize("name", FIXED)
def test_observers_see_every_step_and_the_trajectory_is_what_they_saw(name: str) -> None:
    steps: list[Step] = []
    data: list[Tensor] = []
    states: list[Tensor] = []

    def watch(step: Step) -> None:
        steps.append(step)
        states.append(step.x.clone())
        data.append(step.prediction.data.clone())

    model = gaussian()
    table = build_table(VPSDE(), solvers.named.by_name(name), steps=4)
    result = sample(
        model, (3,), solver=table, final="sample", seed=0, on_step=watch, trajectory=True, full_output=True, **DOUBLE
    )
    assert [s.index for s in steps] == list(range(table.nfe))
    assert [s.t for s in steps] == [row.at.t for row in table.rows]
    assert [s.s for s in steps] == [*(row.at.t for row in table.rows[1:]), 0.0]
    assert result.trajectory.shape == (table.nfe + 1, 3)
    assert len(result.times) == table.nfe + 1
    assert torch.equal(result.trajectory[1:], torch.stack(states))
    assert torch.equal(result.trajectory[-1], result.x)
    for state, row, seen in zip(result.trajectory, table.rows, data, strict=False):
        torch.testing.assert_close(seen, model.at(state, row.at.point()).data, rtol=1e-12, atol=1e-12)
    chunked = sample(
        model, (3,), solver=table, final="sample", seed=0, trajectory=True, chunk_size=2, full_output=True, **DOUBLE
    )
    torch.testing.assert_close(chunked.trajectory, result.trajectory, rtol=1e-12, atol=1e-12)


def test_the_result_says_how_it_came_about() -> None:
    table = sample(gaussian(), (3,), solver="heun", steps=4, seed=7, full_output=True)
    assert isinstance(table, SampleResult)
    assert (table.seed, table.trajectory) == (7, None)
    assert table.status.tolist() == [0] * 3
    assert table.rejected.tolist() == [0] * 3
    assert table.accepted.tolist() == [8] * 3
    assert table.times == (1.0, *(r.at.t for r in build_table(VPSDE(), solvers.heun(), steps=4).rows[1:]), 0.0)
    flow = sample(gaussian(), (3,), solver="probability_flow", seed=7, full_output=True)
    assert flow.seed == 7
    assert torch.equal(flow.nfe, 2 + 6 * (flow.accepted + flow.rejected))
    for source in ({"seeds": [1, 2, 3]}, {"generator": torch.Generator()}, {"noise": [torch.zeros(3)]}):
        assert sample(gaussian(), (3,), solver="ddim", steps=2, full_output=True, **source).seed is None


def test_progress_is_a_bar_on_standard_error(capsys) -> None:
    expected = sample(gaussian(), (3,), solver="ddim", steps=4, seed=0)
    assert capsys.readouterr().err == ""
    assert torch.equal(sample(gaussian(), (3,), solver="ddim", steps=4, seed=0, progress=True), expected)
    assert "ddim" in capsys.readouterr().err


# --- conditions, transforms, other SDEs


@pytest.mark.parametrize("name", ["ddim", "ancestral", "probability_flow"])
def test_conditions_are_split_with_the_batch(name: str) -> None:
    labels, scale = torch.arange(5), torch.linspace(0, 1, 10, dtype=torch.float64).reshape(5, 2)

    def conditional(x: Tensor, c: Tensor, label: Tensor, scale: Tensor) -> Tensor:
        assert label.dtype == torch.long
        return torch.tanh(x + 0.1 * label[:, None]) * scale

    model = ScoreModel(conditional, VPSDE())
    options = {"solver": name, "seed": 3} | DOUBLE | ({} if name == "probability_flow" else {"steps": 4})
    whole = sample(model, (5, 2), cond={"label": labels, "scale": scale}, **options)
    chunked = sample(model, (5, 2), cond={"label": labels, "scale": scale}, chunk_size=2, **options)
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
    for k in range(5):
        one = {"label": labels[k : k + 1], "scale": scale[k : k + 1]}
        alone = sample(model, (1, 2), cond=one, first_sample=k, **options)
        torch.testing.assert_close(alone[0], whole[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "probability_flow"])
def test_samples_come_back_in_the_datas_units(name: str) -> None:
    transform = Affine(shift=(10.0, -3.0), scale=(2.0, 0.5))
    options = {"solver": name, "seed": 0, "full_output": True}
    plain = sample(ScoreModel(lambda x, c: torch.tanh(x), VPSDE()), (4, 2), **options)
    moved = sample(ScoreModel(lambda x, c: torch.tanh(x), VPSDE(), transform=transform), (4, 2), **options)
    expected = plain.x * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, -3.0])
    torch.testing.assert_close(moved.x, expected)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "ancestral", "probability_flow"])
def test_another_sde_carries_the_model_over(name: str) -> None:
    """``sde=`` is ``with_sde``, and under the exact model the samples are those of the exact model there."""
    options = {"solver": name, "seed": 2} | DOUBLE
    carried = sample(gaussian(VPSDE()), (4,), sde=VESDE(), **options)
    assert torch.equal(sample(gaussian(VPSDE()).with_sde(VESDE()), (4,), **options), carried)
    torch.testing.assert_close(carried, sample(gaussian(VESDE()), (4,), **options), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["euler_maruyama", "heun", "dpmpp_2m", "probability_flow"])
@pytest.mark.parametrize("sde", ["vp", "ve", "tabulated"])
def test_a_bare_score_function_is_read_literally(name: str, sde: str) -> None:
    diffusion = SDES[sde]

    def score(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        alpha, sigma = diffusion.alpha(t), diffusion.sigma(t)
        return -(x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)

    x = torch.linspace(-1, 1, 4, dtype=torch.float64) * float(diffusion.prior_std(diffusion.t_max))
    got = sample(score, x_init=x, sde=diffusion, solver=name, seed=0)
    torch.testing.assert_close(got, sample(gaussian(diffusion), x_init=x, solver=name, seed=0), rtol=1e-8, atol=1e-8)


def test_knots_of_a_table_need_not_lie_on_the_models_sde() -> None:
    """A chain's table serves a model trained on a continuous SDE: the call is made at equal log-SNR."""
    chain, model = DDPM.linear(40), gaussian(VESDE())
    table = chain.ddim(steps=8)
    first = Knot.of(chain.points)[-1]
    x = first.alpha * torch.linspace(-1, 1, 4, dtype=torch.float64)
    got = sample(model, x_init=x, solver=table, final="sample")
    weights = table.affine_map(MEAN, VARIANCE)
    torch.testing.assert_close(got, weights[0] + weights[1] * x, rtol=1e-12, atol=1e-12)


def test_progress_counts_samples_where_the_solver_chooses_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"solver": "probability_flow", "seed": 0, "chunk_size": 2}
    expected = sample(gaussian(), (6,), **options)
    assert capsys.readouterr().err == ""
    assert torch.equal(sample(gaussian(), (6,), progress=True, **options), expected)
    assert re.search(r"sampling.* 0/6 .*sample", capsys.readouterr().err)
