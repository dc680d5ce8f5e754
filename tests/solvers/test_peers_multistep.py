"""Our linear multistep methods against diffusers' schedulers, on an exact mixture and on the schedulers' own knots.

Their tables are float32. Where a scheduler works in the type of its knots, the knots are widened to float64 (the same
numbers), and what is left of a difference is rounding: 1e-8. DPMSolverMultistep casts its state to float32: 1e-5.

Where they differ, and why:

- SDE-DPM-Solver++ of order 3: the last term of diffusers' step is alpha [(1 - e^{-2h} - 2h)/(2h)^2 - 1/2] D_2. Half of
  the exact integral, as in its deterministic form and in k-diffusion, has + 1/2, so that each step is off by alpha D_2.
- UniPC with B = h into sigma = 0 is not a number there, since h is infinite. Ours is the data prediction.
- LMS and iPNDM step into sigma = 0 at full order, ours at first order; the runs end one step before.
- SA-Solver rounds every step of two data predictions, as UniPC with B = h does, and no noise predictions.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from peers import MODEL, START, alpha_of, by_peer, by_us, times_of
from torch import Tensor

from scoresde import solvers

pytestmark = [
    # NumPy's remarks on torch tensors, inside the schedulers.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver and sde-dpmsolver` is deprecated:FutureWarning"),
]
STEPS = 10


def ready(scheduler: object, steps: int = STEPS, *, widened: bool = True) -> object:
    """Set the scheduler's knots, in float64 where it then works in float64."""
    scheduler.set_timesteps(steps)
    if widened:
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


def drawn(seed: int = 0) -> list[Tensor]:
    """What a scheduler draws from a generator of this seed, step by step."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(START.shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


# --- DPM-Solver and DPM-Solver++

ROUNDED = {1: "exact", 2: "midpoint", 3: "dpmpp_3m"}
INTEGRATED = {1: "exact", 2: "exact", 3: "dpmpp_3m_sde"}


@pytest.mark.parametrize("ends_lower", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("kind", "coefficients"), [("midpoint", ROUNDED), ("heun", INTEGRATED)])
@pytest.mark.parametrize(
    ("algorithm", "prediction", "last"), [("dpmsolver++", "data", "zero"), ("dpmsolver", "noise", "sigma_min")]
)
def test_dpm_solver_multistep(
    algorithm: str, prediction: str, last: str, kind: str, coefficients: dict[int, str], order: int, ends_lower: bool
) -> None:
    scheduler = DPMSolverMultistepScheduler(
        solver_order=order,
        algorithm_type=algorithm,
        solver_type=kind,
        final_sigmas_type=last,
        lower_order_final=ends_lower,
    )
    ready(scheduler, widened=False)
    ours = solvers.multistep(
        prediction=prediction, order=order, coefficients=coefficients[order], lower_order_final=ends_lower
    )
    assert apart(by_us(ours, scheduler.sigmas, START), by_peer(scheduler, START)) < 1e-5


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_plus_plus(order: int, kind: str) -> None:
    scheduler = ready(
        DPMSolverMultistepScheduler(solver_order=order, algorithm_type="sde-dpmsolver++", solver_type=kind)
    )
    coefficients = {"midpoint": ROUNDED, "heun": INTEGRATED}[kind][order]
    ours = solvers.multistep(order=order, coefficients=coefficients, eta=1.0, lower_order_final=True)
    theirs = by_peer(scheduler, START, variance_noise=drawn())
    assert apart(by_us(ours, scheduler.sigmas, START, drawn()), theirs) < 1e-5


@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver(order: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"
    )
    ready(scheduler)
    ours = solvers.multistep(
        prediction="noise", order=order, coefficients=ROUNDED[order], eta=1.0, lower_order_final=True
    )
    theirs = by_peer(scheduler, START, variance_noise=drawn())
    assert apart(by_us(ours, scheduler.sigmas, START, drawn()), theirs) < 1e-5


def test_diffusers_has_no_third_order_sde_dpm_solver() -> None:
    """It accepts order 3 and then leaves the step's result unset; EDMDPMSolverMultistep of "sde-dpmsolver++" too."""
    scheduler = DPMSolverMultistepScheduler(
        solver_order=3, algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"
    )
    with pytest.raises(UnboundLocalError, match="x_t"):
        by_peer(ready(scheduler), START, variance_noise=drawn())


def test_the_third_order_sde_step_differs_by_a_sign() -> None:
    """The first step of three predictions: theirs is ours less alpha D_2."""
    scheduler = ready(DPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++", solver_type="heun"))
    nu, noise = scheduler.sigmas, drawn()
    ours = [by_us(solvers.dpmpp_3m_sde(), nu[: k + 1], START, noise) for k in (1, 2, 3)]
    assert apart(ours[1], by_peer(scheduler, START, steps=2, variance_noise=noise)) < 1e-5
    ready(scheduler)
    theirs = by_peer(scheduler, START, steps=3, variance_noise=noise)
    times = times_of(nu)
    data = [MODEL(x, t).data for x, t in zip([START, *ours[:2]], times[:3], strict=True)]
    lam = -nu.log()
    first, second = (data[2] - data[1]) / (lam[2] - lam[1]), (data[1] - data[0]) / (lam[1] - lam[0])
    curvature = (lam[3] - lam[2]) ** 2 * (first - second) / (lam[2] - lam[0])
    assert float(curvature.abs().max()) > 0.01
    assert apart(theirs, ours[2] - alpha_of(nu[3]) * curvature) < 1e-5


# --- the others


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(
    ("prediction", "last", "ends_lower"),
    [("data", "zero", True), ("data", "sigma_min", False), ("noise", "sigma_min", True)],
)
def test_unipc(prediction: str, last: str, ends_lower: bool, variant: str, order: int) -> None:
    scheduler = UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        predict_x0=prediction == "data",
        final_sigmas_type=last,
        lower_order_final=ends_lower,
    )
    ready(scheduler)
    ours = solvers.unipc(order=order, variant=variant, prediction=prediction, lower_order_final=ends_lower)
    mine, theirs = by_us(ours, scheduler.sigmas, START), by_peer(scheduler, START)
    if (variant, last) == ("bh1", "zero"):
        assert bool(torch.isnan(theirs).all())
        # The whole step is the data prediction at the state before it.
        ready(scheduler)
        before = by_peer(scheduler, START, steps=STEPS - 1)
        theirs = MODEL(before, times_of(scheduler.sigmas)[-2]).data
    assert apart(mine, theirs) < 1e-8


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_rho(order: int) -> None:
    """Its variable log(sigma/alpha) is -lambda, and a polynomial in one is a polynomial in the other."""
    scheduler = ready(DEISMultistepScheduler(solver_order=order))
    ours = solvers.deis(order=order, variable="log_snr", lower_order_final=True)
    assert apart(by_us(ours, scheduler.sigmas, START), by_peer(scheduler, START)) < 1e-8


@pytest.mark.parametrize(
    ("predictor", "corrector", "tau", "ends_lower"),
    [
        (1, 1, 0.5, True),
        (1, 2, 1.0, True),
        (2, 1, 1.0, False),
        (2, 3, 0.0, False),
        (3, 3, 1.0, True),
        (3, 4, 0.5, False),
        (3, 4, 1.0, True),
    ],
)
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_sa_solver(prediction: str, predictor: int, corrector: int, tau: float, ends_lower: bool) -> None:
    scheduler = SASolverScheduler(
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: torch.tensor(tau, dtype=torch.float64),
        algorithm_type=f"{prediction}_prediction",
        lower_order_final=ends_lower,
    )
    ready(scheduler)
    ours = solvers.sa_solver(
        predictor_order=predictor,
        corrector_order=corrector,
        tau=tau,
        prediction=prediction,
        coefficients="bh1" if prediction == "data" else "exact",
        lower_order_final=ends_lower,
    )
    theirs = by_peer(scheduler, START, generator=torch.Generator().manual_seed(0))
    assert apart(by_us(ours, scheduler.sigmas, START, drawn()), theirs) < 1e-7


def test_sa_solver_with_a_stochasticity_of_its_own_at_each_time() -> None:
    """Their default: tau is 1 for times 200 to 800 of 1000 and 0 elsewhere; the draws of the other steps go unused."""
    scheduler = ready(SASolverScheduler(predictor_order=3, corrector_order=4))
    noisy = [200 <= int(t) <= 800 for t in scheduler.timesteps]
    assert 0 < sum(noisy) < STEPS
    by_time = dict(zip(times_of(scheduler.sigmas).tolist(), noisy, strict=False))
    ours = solvers.sa_solver(tau=lambda t: float(by_time[t]), coefficients="bh1", lower_order_final=True)
    used = [z for z, is_used in zip(drawn(), noisy, strict=True) if is_used]
    theirs = by_peer(scheduler, START, generator=torch.Generator().manual_seed(0))
    assert apart(by_us(ours, scheduler.sigmas, START, used), theirs) < 1e-8


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order: int) -> None:
    """Its integrals are adaptive quadratures to a relative 1e-4, of polynomials, which it gets exactly."""
    scheduler = ready(LMSDiscreteScheduler())
    nu = scheduler.sigmas[:STEPS]
    theirs = by_peer(scheduler, START / alpha_of(nu[0]), steps=STEPS - 1, order=order)
    assert apart(by_us(solvers.lms(order=order), nu, START), alpha_of(nu[-1]) * theirs) < 1e-6


def test_ipndm() -> None:
    """Its knots are sigma of alpha = cos, sigma = sin; it asks for v and starts below alpha = 0."""
    sigma = torch.linspace(0.999, 0.05, STEPS + 1, dtype=torch.float64)
    scheduler = IPNDMScheduler(trained_betas=sigma.tolist())
    scheduler.set_timesteps(STEPS)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = (1 - scheduler.betas.square()).sqrt()
    nu = scheduler.betas / scheduler.alphas
    theirs = by_peer(scheduler, START, view="v", nu=nu)
    assert apart(by_us(solvers.ipndm(), nu, START), theirs) < 1e-8


def test_a_wrong_weight_would_be_seen() -> None:
    """The tolerances here are far below what another choice of coefficients changes."""
    scheduler = ready(UniPCMultistepScheduler(solver_order=2))
    theirs = by_peer(scheduler, START)
    for other in (
        solvers.unipc(order=2, variant="exact", lower_order_final=True),
        solvers.unipc(order=2, variant="bh1", lower_order_final=True),
        solvers.unipc(order=2, corrected=False, lower_order_final=True),
        solvers.unipc(order=3, lower_order_final=True),
    ):
        assert apart(by_us(other, scheduler.sigmas, START), theirs) > 1e-3
