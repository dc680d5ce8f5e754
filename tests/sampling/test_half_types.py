"""Types: half types cost one rounding, wide states stay wide, autocast is the network's alone, gradients are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import Net
from torch import Tensor, nn

from scoresde import (
    VESDE,
    VPSDE,
    ConfigError,
    Gaussian,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    Langevin,
    Moments,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    build_table,
    denoising_score_matching,
    sample,
)
from scoresde.noise import normal, stream
from scoresde.sampling.part import Step
from scoresde.solvers import by_name

HALF = [torch.float16, torch.bfloat16]
F32, F64 = torch.float32, torch.float64
SDES: dict[str, GaussianSDE] = {"vp": VPSDE(), "sub_vp": SubVPSDE(), "ve": VESDE(), "flow": RectifiedFlow(t_max=0.99)}
# One table of each kind: one stage, levels, stages, history, noise among them, a corrector of the anchor, churn.
KINDS = [
    "ancestral",
    "annealed_langevin",
    "ddim",
    "heun",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_3m_sde",
    "seeds_2",
    "unipc",
]
KINDS += ["edm", "sra1"]
T = torch.tensor([1e-3, 0.1, 0.5, 0.9], dtype=F64)
Y, Z = (normal((4, 3, 2), stream(7, key)).bfloat16().half().bfloat16() for key in (0, 1))  # exact in every type


# ---------------------------------------------------------------------------------------------------------------------
# Half types


def formulas(sde: GaussianSDE) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Everything pointwise, as functions of two states."""
    model = ScoreModel(lambda x, c: 0.5 * x, sde, predicts="v")
    moments = Moments.exact(torch.zeros(3, 2), torch.eye(6) + 0.5)
    return {
        **{f"model.{k}": lambda x, z, k=k: model(x, T).view(k) for k in ("data", "noise", "score", "v", "velocity")},
        "marginal": lambda x, z: sde.marginal(x, T)[0],
        "perturb": lambda x, z: sde.perturb(x, T, z),
        "transition": lambda x, z: sde.transition(x, 0.5 * T, T)[0],
        "posterior": lambda x, z: sde.posterior(x, z, 0.5 * T, T)[0],
        "drift": lambda x, z: sde.drift(x, T),
        "reverse": lambda x, z: sde.reverse(model).drift(x, T),
        "prior": lambda x, z: sde.prior().from_noise(x),
        "prior of full covariance": lambda x, z: sde.prior(0.5, moments).from_noise(x),
    }


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", formulas(VPSDE()))
@pytest.mark.parametrize("sde", SDES)
def test_a_half_type_is_the_float32_result_rounded_once(sde: str, name: str, dtype: torch.dtype) -> None:
    """So the error is half a unit of the half type beside float32's own, which is held against float64."""
    formula = formulas(SDES[sde])[name]
    low, single, double = (formula(Y.to(d), Z.to(d)) for d in (dtype, F32, F64))
    assert (low.dtype, single.dtype, double.dtype) == (dtype, F32, F64)
    assert torch.equal(low, single.to(dtype))
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-6 * float(double.abs().max()))


@pytest.mark.parametrize("dtype", HALF)
def test_losses_and_log_densities_of_half_types_are_float32s(dtype: torch.dtype) -> None:
    law = Gaussian(torch.zeros(3, 2), torch.full((3, 2), 0.3))
    model = ScoreModel(lambda x, c: 0.5 * x, VPSDE())
    for call in (law.log_prob, lambda x: denoising_score_matching(model, x, generator=stream(0))):
        low, single, double = (call(Y.to(d)) for d in (dtype, F32, F64))
        assert low.dtype == F32
        assert torch.equal(low, single)
        torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", [*KINDS, "probability_flow"])
def test_samples_of_a_half_type_are_carried_in_float32_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(3, 2), covariance=torch.eye(6) + 0.5)
    options, tolerance = {"solver": name, "seed": 3}, 1e-3  # the flow chooses its own steps
    if name != "probability_flow":
        table = options["solver"] = build_table(VPSDE(), by_name(name), steps=4, final="sample")
        tolerance = 1e-6 * max(sum(map(abs, row.state)) for row in table.rows)
    for start in (lambda d: {"shape": (4, 3, 2), "dtype": d}, lambda d: {"x_init": Y.to(d)}):
        low, single, double = (sample(model, **options, **start(d)) for d in (dtype, F32, F64))
        assert (low.dtype, single.dtype, double.dtype) == (dtype, F32, F64)
        assert torch.equal(low, single.to(dtype))
        torch.testing.assert_close(single.double(), double, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", HALF)
def test_noise_is_not_lost_in_a_half_type(dtype: torch.dtype) -> None:
    """Where 1 - alpha_bar is below a half type's resolution of 1, sigma still is not 0."""
    zero, one = torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    for t in (1e-5, 1e-4, 1e-3):
        exact = float(VPSDE().sigma(t))
        assert 1 - exact**2 > 1 - torch.finfo(dtype).eps
        assert float(VPSDE().perturb(zero, t, one)) == pytest.approx(exact, rel=torch.finfo(dtype).eps / 2)


# ---------------------------------------------------------------------------------------------------------------------
# A float64 state with a float32 network; autocast


@pytest.mark.parametrize("name", KINDS[:-1])
def test_a_float64_state_stays_float64_beside_a_float32_network(name: str) -> None:
    """Every row is exact in float64 for the prediction that the float32 network gave."""
    table = build_table(VPSDE(), by_name(name), steps=4, final="sample")
    net, seen = Net(), list[tuple[Tensor, Tensor]]()
    start = Y.double() + 1e-9

    def watch(step: Step) -> None:
        assert step.prediction.output.dtype == F32
        seen.append((step.x.clone(), step.prediction.view(table.prediction)))

    tape = [normal(start.shape, stream(1, k), dtype=F64) for k in range(30)]
    x = sample(ScoreModel(net, VPSDE()), x_init=start, solver=table, final="sample", noise=tape, on_step=watch)
    assert x.dtype == F64
    assert all(call.dtype == F32 for call in net.inputs)
    y, draws, past = start, list[Tensor](), list[Tensor]()
    for row, (got, prediction) in zip(table.rows, seen, strict=True):
        if row.draws:
            draws.insert(0, tape[len(draws)])
        past = [prediction, *([] if row.restart else past)]
        noises = draws if row.draws else [0 * y, *draws]
        state = total(row.state, [y, *past]) + total(row.noise, noises)
        y = state if row.anchor is None else total(row.anchor, [y, *past]) + total(row.anchor_noise, noises)
        torch.testing.assert_close(got, state, rtol=1e-12, atol=1e-12)
        assert not torch.equal(got, got.float().double())


def total(weights: tuple[float, ...], terms: list[Tensor]) -> Tensor:
    return sum((w * v for w, v in zip(weights, terms, strict=False)), torch.zeros(()))


class Linear(nn.Module):
    """A network whose product autocast rounds, perhaps under an autocast of its own."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((6, 6), stream(2)) / 3)
        self.own = own

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.own or torch.is_autocast_enabled("cpu")):
            return (x.flatten(1) @ self.weight).reshape(x.shape)


@pytest.mark.parametrize("name", [*KINDS, "probability_flow"])
def test_autocast_around_a_sampler_is_autocast_of_its_network(name: str) -> None:
    moments = Moments.exact(torch.zeros(3, 2), torch.eye(6) + 0.5)
    outside, inside, without = (ScoreModel(Linear(own), VPSDE(), moments=moments) for own in (False, True, False))
    options = {"shape": (4, 3, 2), "solver": name, "seed": 1, **({} if name == "probability_flow" else {"steps": 4})}
    with torch.autocast("cpu", torch.bfloat16):
        x = sample(outside, **options)
        likelihood = moments.at(1.0, 0.0).log_prob(Y.float())
    assert x.dtype == F32
    assert torch.equal(x, sample(inside, **options))
    assert not torch.equal(x, sample(without, **options))
    assert torch.equal(likelihood, moments.at(1.0, 0.0).log_prob(Y.float()))


def test_autocast_around_a_loss_is_autocast_of_its_network() -> None:
    outside, inside = (ScoreModel(Linear(own), VPSDE()) for own in (False, True))
    with torch.autocast("cpu", torch.bfloat16):
        loss = denoising_score_matching(outside, Y.float(), generator=stream(0))
    assert loss.dtype == F32
    assert torch.equal(loss, denoising_score_matching(inside, Y.float(), generator=stream(0)))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients through a sampler, against finite differences in float64


@pytest.mark.parametrize("kernels", [(), (Langevin(0.1),)], ids=["plain", "corrected"])
@pytest.mark.parametrize("name", KINDS)
def test_gradient_to_the_start_state(name: str, kernels: tuple[Langevin, ...]) -> None:
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.2]], dtype=F64)
    model = GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(2), means=means, std=0.4)
    table = build_table(VPSDE(), by_name(name), steps=3)
    if kernels and any(row.anchor not in (None, (1.0,)) or row.anchor_noise for row in table.rows):
        with pytest.raises(ConfigError, match="kernel"):
            sample(model, (2, 2), solver=table, kernels=kernels)
        return
    start = normal((2, 2), stream(4), dtype=F64).requires_grad_()

    def run(x: Tensor) -> Tensor:
        out = sample(model, x_init=x, solver=table, final="sample", seed=5, kernels=kernels, differentiable=True)
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(run, (start,), eps=1e-6, atol=1e-6, rtol=1e-5)
    assert torch.equal(
        run(start).detach(), sample(model, x_init=start, solver=table, final="sample", seed=5, kernels=kernels)
    )


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "ancestral"])
def test_gradient_to_parameters_conditions_and_through_chunks(name: str) -> None:
    net = Net(dtype=F64)
    model = ScoreModel(net, VPSDE())

    def run(weight: Tensor, shift: Tensor) -> Tensor:
        out = torch.func.functional_call(_Sampled(model, name), {"model.net.weight": weight}, (shift,))
        assert isinstance(out, Tensor)
        return out

    weight = torch.tensor(0.4, dtype=F64, requires_grad=True)
    shift = normal((3,), stream(6), dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(run, (weight, shift), eps=1e-6, atol=1e-6, rtol=1e-5)


class _Sampled(nn.Module):
    """Sampling as a module, so that its parameters can be given from outside."""

    def __init__(self, model: ScoreModel, solver: str) -> None:
        super().__init__()
        self.model, self.solver = model, solver

    def forward(self, shift: Tensor) -> Tensor | object:
        options = {"solver": self.solver, "steps": 3, "seed": 8, "dtype": F64, "chunk_size": 2}
        return sample(self.model, (3, 2), cond={"shift": shift}, differentiable=True, **options)
