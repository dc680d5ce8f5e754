"""What a table makes of an error in the predictions, and the last interval that keeps it small."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    ConfigError,
    DomainError,
    GaussianModel,
    ScoreModel,
    SubVPSDE,
    Tableau,
    build_table,
    sample,
    solvers,
)
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.diffusions.sde import GaussianSDE
from scoresde.solvers import SOLVERS, Solver, by_name, grids
from scoresde.solvers.named import ALIASES

NAMES = sorted(name for name in SOLVERS if name not in ALIASES and isinstance(by_name(name), Solver))
MOST = 20.0


def build(sde: GaussianSDE, solver: str | Solver, steps: int, final: str = "denoise") -> Tableau:
    return build_table(sde, solver, steps=steps, final=final)  # type: ignore[arg-type]


def run_with_errors(table: Tableau, sde: GaussianSDE, variance: float, kind: str, errors: Tensor, x: Tensor) -> Tensor:
    """Run a table on exact predictions of N(0.3, variance) of which call i is off by errors[i]."""
    exact = GaussianModel(sde=sde, mean=torch.full((1,), 0.3), covariance=torch.tensor(variance))
    calls = iter(errors)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        prediction: Tensor = getattr(exact(x, t), kind)
        return prediction + next(calls)

    model = ScoreModel.from_callable(predict, sde, predicts=kind, moments=exact.moments)  # type: ignore[arg-type]
    draws = [torch.zeros_like(x)] * (1 + sum(row.draws for row in table.rows))
    got = sample(model, x_init=x, solver=table, final="sample", noise=draws)
    assert isinstance(got, Tensor)
    return got


@pytest.mark.parametrize("kind", ["data", "noise", "v"])
@pytest.mark.parametrize("name", ["flow_abm", "heun", "unipc", "dpm_solver_3", "seeds_2", "sa_solver"])
def test_an_errors_weights_are_what_the_sampler_makes_of_it(name: str, kind: str) -> None:
    """Errors of any size, in every call: the model is linear, so the difference is the weighted sum, to rounding."""
    sde = VPSDE(t_max=0.9)
    table = build(sde, name, 5)
    errors = torch.linspace(-1, 2, table.nfe, dtype=torch.float64) ** 3
    x = torch.tensor([[0.7], [-1.1]], dtype=torch.float64)
    off = run_with_errors(table, sde, 0.2, kind, errors, x) - run_with_errors(table, sde, 0.2, kind, 0 * errors, x)
    expected = float((torch.from_numpy(table.error_weights(kind, 0.2)) * errors).sum())
    np.testing.assert_allclose(off.numpy(), expected, rtol=1e-8, atol=1e-8 * float(errors.abs().max()))


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE()], ids=["vp", "sub_vp"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_many_steps_amplify_as_the_exact_process(sde: GaussianSDE, eta: float) -> None:
    """dm/dlog nu = (1 + eta^2) (m nu^2/(c + nu^2) - 1) for the mean m of an error of 1, from m = 0 at large nu."""
    solver = solvers.multistep(order=2, eta=eta, grid=grids.log_snr())
    nu, deviation = math.exp(-0.5 * float(sde.log_snr(sde.t_min))), math.sqrt(0.2)
    exact = math.asinh(deviation / nu) if eta == 0 else math.log1p((deviation / nu) ** 2)
    found = [build(sde, solver, steps, "sample").amplification("data", 0.2) for steps in (100, 400)]
    # What is left are the start, at a finite nu, and the steps' own error, of second order.
    assert abs(found[1] - exact) < 0.02
    assert abs(found[1] - exact) < abs(found[0] - exact)


@pytest.mark.parametrize("name", NAMES)
def test_no_named_solver_multiplies_an_error(name: str) -> None:
    """On its own grid, under every diffusion: no single error more than 20 times, nor a constant one of the data."""
    tried = 0
    for sde in (kind() for kind in DIFFUSIONS.values()):
        for steps in (10, 13, 20, 50):
            try:
                table = build(sde, name, steps)
            except DomainError:
                continue  # it has no step out of alpha = 0
            for variance in (0.05, 0.2, 1.0):
                for kind in ("data", "noise", "v", "flow"):
                    try:
                        weights = table.error_weights(kind, variance)
                    except DomainError:
                        assert kind == "noise"  # says nothing of the data where alpha = 0
                        continue
                    assert np.abs(weights).max() <= MOST, (sde, steps, kind, variance)
                    tried += 1
                if name != "annealed_langevin":  # follows the wrong score at every level, and is no step of a process
                    assert table.amplification("data", variance) <= MOST, (sde, steps, variance)
    assert tried >= 100


def test_an_error_in_the_data_prediction_moves_the_samples_by_as_much() -> None:
    """Exact predictions of N(0.3, 0.2) plus 0.01 under sub-VP: a stage at the smallest noise gave 261."""
    sde = SubVPSDE()
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for name in ("heun", "rk3", "rk4", "ralston", "midpoint", "dpm_solver_2", "dpm_solver_3"):
        table = build(sde, name, 20)
        got = run_with_errors(table, sde, 0.2, "data", torch.full((table.nfe,), 0.01, dtype=torch.float64), x)
        exact = 0.3 + math.sqrt(0.2) * x
        assert float((got - exact).abs().max()) < 0.01 * MOST, name


@pytest.mark.parametrize("sde", [VPSDE(t_min=1e-9), SubVPSDE()], ids=["vp", "sub_vp"])
@pytest.mark.parametrize(
    ("name", "order"), [("heun", 2), ("rk3", 3), ("rk4", 4), ("dpm_solver_2", 2), ("dpm_solver_3", 3), ("dpmpp_3s", 3)]
)
def test_the_leap_keeps_the_order(name: str, order: int, sde: GaussianSDE) -> None:
    """The output's standard deviation tends to the data's with the method's order, the last interval included."""
    variance, steps = 0.3, (320, 640)
    errors = [abs(build(sde, name, n).law(0.0, variance)[1] ** 0.5 - variance**0.5) for n in steps]
    assert math.log2(errors[0] / errors[1]) > order - 0.5, errors


def test_the_leap_is_the_midpoint_method() -> None:
    sde = SubVPSDE()
    table = build(sde, "heun", 4)
    whole, last = build(sde, "heun", 4, "sample"), table.rows[-2]
    assert table.nfe == 8
    assert table.end.sigma == 0
    assert last.at.t == pytest.approx(float(by_name("heun").grid(sde, 4)[-2]))  # type: ignore[union-attr]
    x, variance = torch.tensor([[0.4]], dtype=torch.float64), 0.25
    head = Tableau(whole.name, whole.prediction, table.rows[:-2], table.start, last.at, table.prior_std)
    state = run_with_errors(head, sde, variance, "data", torch.zeros(head.nfe, dtype=torch.float64), x)
    model = GaussianModel(sde=sde, mean=torch.full((1,), 0.3), covariance=torch.tensor(variance))
    middle = sde.time(last.at.log_snr + 2 * math.log(2))
    first = model(state, last.at.t).data
    halfway = 0.5 * float(sde.alpha(middle)) * (state / last.at.alpha + first)
    expected = 2 * model(halfway, float(middle)).data - first
    got = run_with_errors(table, sde, variance, "data", torch.zeros(table.nfe, dtype=torch.float64), x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_noise_form_leaves_a_very_low_snr_by_a_step_that_does_not_explode() -> None:
    """A chain with cosine betas starts at log_snr = -19.8: seeds_2 made 5e11 times the variance in 8 steps."""
    chain, plain = DDPM.cosine(1000).sde(), VPSDE()
    for name, steps in (("seeds_1", 10), ("seeds_2", 15), ("seeds_3", 10)):
        assert build(chain, name, steps).law(0.0, 1.0)[1] < 1.5
    assert build(chain, "seeds_2", 8).law(0.0, 1.0)[1] < 2e4
    # In many steps, and from where VPSDE starts, the step is the published one.
    assert abs(build(chain, "seeds_2", 200).law(0.0, 0.3)[1] - 0.3) < 1e-4
    row = build(plain, "seeds_2", 2).rows[0]
    h = 0.5 * (build(plain, "seeds_2", 2).rows[1].at.log_snr - row.at.log_snr)
    assert row.state[1] == pytest.approx(-2 * build(plain, "seeds_2", 2).rows[1].at.sigma * math.expm1(h))


def test_grids_in_log_snr_end_before_a_jump_where_vpsde_does() -> None:
    sub = SubVPSDE()
    for grid in (grids.log_snr(), grids.log_snr(centre=3.0, width=4.5), grids.karras()):
        whole, cut = grid(sub, 9), grid(sub, 9, jumps=True)
        assert float(whole[-1]) == sub.t_min
        assert float(sub.log_snr(cut[-1])) == pytest.approx(14.0)
        assert float(cut[0]) == sub.t_max
        assert torch.equal(grid(VPSDE(), 9), grid(VPSDE(), 9, jumps=True))
    assert torch.equal(grids.uniform()(sub, 9), grids.uniform()(sub, 9, jumps=True))
    assert sub.t_min == 1e-5


def test_what_cannot_be_said_of_an_error_is_refused() -> None:
    table = build(VPSDE(), "ddim", 5)
    with pytest.raises(ConfigError, match="unknown prediction 'epsilon'; it is called 'noise' here"):
        table.error_weights("epsilon")
    with pytest.raises(DomainError, match="a velocity needs the rates"):
        table.amplification("velocity")
    with pytest.raises(DomainError, match="variance must lie in"):
        table.amplification("data", 0.0)
    out = build(DIFFUSIONS["RectifiedFlow"](), "ddim", 5)
    with pytest.raises(DomainError, match="read from one of the noise, has no finite value at t = 1"):
        out.amplification("noise")
