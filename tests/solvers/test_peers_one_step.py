"""Our one-step methods against diffusers' schedulers, on an exact mixture and on the schedulers' own knots.

Their tables are float32. Where a scheduler works in the type of its knots, the knots are widened to float64 (the same
numbers); where it casts, 1e-5 is left, and 1e-4 over hundreds of steps.

Where they differ, and why:

- DPMSolverSinglestep of order 3 and type "midpoint" makes its third stage by its own second-order step, whose weight of
  the difference is phi_1/(2 r). The paper has phi_2/r there. Its type "heun" is the paper's stage with the parabola
  through all three at the end, our ``coefficients="exact"``. Its stages are knots of the grid: here the grid is even in
  lambda, so that they stand at 1/2, and at 1/3 and 2/3.
- The same scheduler's "sde-dpmsolver++" draws new noise for the step's end, independent of its stages', so that its
  stages lie on another path. Ours carries the noise of the stages to the end.
- EulerDiscrete and EDMEuler with churn call the model before they lift the state, at the level below; in algorithm 2 of
  Karras et al. and in ours the model sees the lifted state. With a model asked at the lifted state they agree.
- DDPM draws in its last step too, with a standard deviation of 1e-10 (its floor of the variance).
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from peers import MODEL, SDE, START, alpha_of, by_peer, by_us, times_of
from torch import Tensor

from scoresde import DDPM, sample, solvers

pytestmark = [
    # NumPy's remarks on torch tensors, inside the schedulers.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types=dpmsolver` is deprecated:FutureWarning"),
]
STEPS = 12


def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def drawn(count: int = STEPS, seed: int = 0) -> list[Tensor]:
    """What a scheduler draws from a generator of this seed, draw by draw."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(START.shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def ready(scheduler: object, steps: int = STEPS) -> object:
    """Set the scheduler's knots, in float64."""
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


# --- schedulers whose state is x/alpha


def in_sigma(scheduler: object, nu: Tensor | None = None, **options: object) -> Tensor:
    """Run a scheduler that steps in sigma; its result at sigma = 0 is the data's."""
    levels = scheduler.sigmas if nu is None else nu
    return by_peer(scheduler, START / alpha_of(levels[0]), nu=nu, **options)


def test_heun() -> None:
    scheduler = ready(HeunDiscreteScheduler())
    nu = scheduler.sigmas.unique_consecutive()
    assert apart(by_us(solvers.heun(variable="nu"), nu, START), in_sigma(scheduler)) < 1e-8


def test_euler_is_ddim() -> None:
    scheduler = ready(EulerDiscreteScheduler())
    theirs = in_sigma(scheduler)
    for ours in (solvers.euler(variable="nu"), solvers.ddim()):
        assert apart(by_us(ours, scheduler.sigmas, START), theirs) < 1e-5


def test_euler_ancestral() -> None:
    scheduler = ready(EulerAncestralDiscreteScheduler())
    theirs = in_sigma(scheduler, generator=generator())
    assert apart(by_us(solvers.euler_ancestral(), scheduler.sigmas, START, drawn()), theirs) < 1e-5


def test_kdpm2_is_dpm_solver_2() -> None:
    """k-diffusion's DPM2: the stage is at the geometric mean of two levels."""
    scheduler = ready(KDPM2DiscreteScheduler())
    scheduler.sigmas_interpol = scheduler.sigmas_interpol.double()
    calls = [(scheduler.sigmas, scheduler.sigmas_interpol)[i % 2][i] for i in range(len(scheduler.timesteps))]
    nu = scheduler.sigmas.unique_consecutive()
    theirs = in_sigma(scheduler, torch.stack(calls))
    # The middle levels are rounded to float32, and so is nothing else.
    assert apart(by_us(solvers.dpm_solver_2(), nu, START), theirs) < 1e-6


# --- churn: the model asked at the lifted state

CHURN = {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 8.0, "s_noise": 1.01}


def lifted(scheduler: object, x: Tensor, before: bool) -> Tensor:
    """Run Euler with churn; ``before``: ask the model where the published pipeline does, below the lifted level."""
    count, sigmas, noise = len(scheduler.sigmas) - 1, scheduler.sigmas, iter(drawn())
    for i, t in enumerate(scheduler.timesteps):
        gamma = min(3.0 / count, 2**0.5 - 1) if 0.2 <= float(sigmas[i]) <= 8.0 else 0.0
        level, seen = sigmas[i] * (1 + gamma), x
        if gamma > 0:
            seen = x + 1.01 * next(noise) * (level**2 - sigmas[i] ** 2).sqrt()
        if before:
            level, seen = sigmas[i], x
        scheduler.scale_model_input(x, t)
        answer = MODEL(alpha_of(level) * seen, times_of(level))
        if isinstance(scheduler, EDMEulerScheduler):
            # It undoes its own preconditioning at the lifted state.
            answer = (answer.data - precondition(level)[0] * seen) / precondition(level)[1]
        else:
            answer = answer.noise
        draws = torch.Generator().manual_seed(0)
        for _ in range(sum(0.2 <= float(s) <= 8.0 for s in sigmas[:i])):
            torch.randn(START.shape, generator=draws, dtype=torch.float64)
        x = scheduler.step(answer, t, x, generator=draws, **CHURN).prev_sample
    return x


def precondition(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """EDM's c_skip and c_out for sigma_data 0.5."""
    return 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, EDMEulerScheduler])
def test_churn_around_euler(kind: type) -> None:
    ours = solvers.churned(solvers.euler(variable="nu"), churn=3.0, s_min=0.2, s_max=8.0, s_noise=1.01)
    scheduler = ready(kind())
    mine = by_us(ours, scheduler.sigmas, START, drawn())
    start = START / alpha_of(scheduler.sigmas[0])
    assert apart(mine, lifted(scheduler, start, before=False)) < 1e-5
    assert apart(mine, lifted(ready(kind()), start, before=True)) > 1e-3


def preconditioned(scheduler: object, **options: object) -> Tensor:
    """Run a scheduler that undoes EDM's preconditioning of what it is given."""
    x = START / alpha_of(scheduler.sigmas[0])
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        sigma = scheduler.sigmas[i]
        c_skip, c_out = precondition(sigma)
        data = MODEL(alpha_of(sigma) * x, times_of(sigma)).data
        x = scheduler.step((data - c_skip * x) / c_out, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_edm_euler(schedule: str) -> None:
    scheduler = ready(EDMEulerScheduler(sigma_schedule=schedule))
    theirs = preconditioned(scheduler)
    assert apart(by_us(solvers.euler(variable="nu"), scheduler.sigmas, START), theirs) < 1e-5


ROUNDED = {1: "exact", 2: "midpoint", 3: "dpmpp_3m"}
INTEGRATED = {1: "exact", 2: "exact", 3: "dpmpp_3m_sde"}


def edm_multistep(
    order: int, algorithm: str, kind: str, *, schedule: str = "karras", ends_lower: bool = True
) -> object:
    return ready(
        EDMDPMSolverMultistepScheduler(
            solver_order=order,
            algorithm_type=algorithm,
            solver_type=kind,
            sigma_schedule=schedule,
            lower_order_final=ends_lower,
        )
    )


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("ends_lower", [True, False])
@pytest.mark.parametrize(("kind", "coefficients"), [("midpoint", ROUNDED), ("heun", INTEGRATED)])
@pytest.mark.parametrize(
    ("algorithm", "order"),
    [("dpmsolver++", 1), ("dpmsolver++", 2), ("dpmsolver++", 3), ("sde-dpmsolver++", 1), ("sde-dpmsolver++", 2)],
)
def test_edm_dpm_solver_multistep(
    algorithm: str, order: int, kind: str, coefficients: dict[int, str], ends_lower: bool, schedule: str
) -> None:
    """Everything is float64 here, and what is left is rounding."""
    scheduler = edm_multistep(order, algorithm, kind, schedule=schedule, ends_lower=ends_lower)
    random = algorithm.startswith("sde")
    theirs = preconditioned(scheduler, **({"generator": generator()} if random else {}))
    ours = solvers.multistep(
        order=order, coefficients=coefficients[order], eta=float(random), lower_order_final=ends_lower
    )
    assert apart(by_us(ours, scheduler.sigmas, START, drawn() if random else ()), theirs) < 1e-12


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_the_edm_scheduler_has_no_third_order_sde_step(kind: str) -> None:
    """It accepts the setting and then leaves the step's result unset; so does DPMSolverMultistep of "sde-dpmsolver"."""
    with pytest.raises(UnboundLocalError, match="x_t"):
        preconditioned(edm_multistep(3, "sde-dpmsolver++", kind), generator=generator())


# --- DPM-Solver, single step


def blocks(scheduler: object, order: int) -> Tensor:
    """The levels at which a scheduler's steps of this order start, with its last ones of order 1."""
    last = len(scheduler.sigmas) - 2
    return torch.cat([scheduler.sigmas[: last + 1 : order], scheduler.sigmas[-1:]])


SINGLE = {
    ("dpmsolver++", 1, "midpoint"): solvers.ddim(),
    ("dpmsolver++", 2, "midpoint"): solvers.dpmpp_2s(),
    ("dpmsolver++", 2, "heun"): solvers.res(),
    ("dpmsolver++", 3, "heun"): solvers.dpmpp_3s(coefficients="exact"),
    ("dpmsolver", 1, "midpoint"): solvers.exponential_euler(prediction="noise", eta=0.0),
    ("dpmsolver", 2, "midpoint"): solvers.dpm_solver_2(),
    ("dpmsolver", 2, "heun"): solvers.dpm_solver_2(coefficients="exact"),
    ("dpmsolver", 3, "heun"): solvers.dpm_solver_3(coefficients="exact"),
}


def single(algorithm: str, order: int, kind: str) -> object:
    last = "zero" if algorithm == "dpmsolver++" else "sigma_min"
    scheduler = DPMSolverSinglestepScheduler(
        solver_order=order,
        algorithm_type=algorithm,
        solver_type=kind,
        final_sigmas_type=last,
        use_exponential_sigmas=True,
        lower_order_final=True,
    )
    # A multiple of 2 and 3 intervals, and one step of order 1 to the end.
    return ready(scheduler, STEPS + 1)


@pytest.mark.parametrize(("algorithm", "order", "kind"), SINGLE)
def test_dpm_solver_singlestep(algorithm: str, order: int, kind: str) -> None:
    scheduler = single(algorithm, order, kind)
    theirs = by_peer(scheduler, START, steps=STEPS)
    nu = scheduler.sigmas[: STEPS + 1 : order]
    assert apart(by_us(SINGLE[algorithm, order, kind], nu, START), theirs) < 1e-5
    if algorithm == "dpmsolver++":
        whole = by_us(SINGLE[algorithm, order, kind], blocks(scheduler, order), START)
        assert apart(whole, by_peer(single(algorithm, order, kind), START)) < 1e-5


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_the_third_stage_of_the_midpoint_type_is_not_the_papers(algorithm: str) -> None:
    """The third block of order 3: with their second stage in the paper's last step the two agree."""
    nu = single(algorithm, 3, "midpoint").sigmas[6:10]
    start, stage, end = (by_peer(single(algorithm, 3, "midpoint"), START, steps=k) for k in (6, 8, 9))
    ours = {"dpmsolver++": solvers.dpmpp_3s(), "dpmsolver": solvers.dpm_solver_3()}[algorithm]
    assert apart(by_us(ours, nu[::3], start), end) > 1e-3
    times = times_of(nu)
    alpha, sigma, h = SDE.alpha(times), SDE.sigma(times), (nu[0] / nu[3]).log()
    if algorithm == "dpmsolver":
        first, last = MODEL(start, times[0]).noise, MODEL(stage, times[2]).noise
        step = alpha[3] / alpha[0] * start - sigma[3] * h.expm1() * first
        step = step - 1.5 * sigma[3] * (h.expm1() / h - 1) * (last - first)
    else:
        first, last = MODEL(start, times[0]).data, MODEL(stage, times[2]).data
        step = sigma[3] / sigma[0] * start - alpha[3] * (-h).expm1() * first
        step = step + 1.5 * alpha[3] * ((-h).expm1() / h + 1) * (last - first)
    assert apart(step, end) < 1e-5


# --- the chain's own samplers


def levels_of(scheduler: object) -> Tensor:
    """nu at the scheduler's integer times, and 0."""
    bar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    return torch.cat([((1 - bar) / bar).sqrt(), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize(("steps", "tolerance"), [(STEPS, 1e-5), (250, 1e-4)])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance: str, steps: int, tolerance: float) -> None:
    scheduler = DDPMScheduler(clip_sample=False, variance_type=f"fixed_{variance}", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    nu = levels_of(scheduler)
    theirs = by_peer(scheduler, START, nu=nu, generator=generator())
    ours = solvers.ancestral(variance=variance)
    noise = drawn(steps)
    mine = by_us(ours, nu, START, noise)
    if variance == "large":
        # Theirs adds the large variance in the last step too, whose previous time is before the first.
        last = 1 - scheduler.alphas_cumprod[scheduler.timesteps[-1]]
        mine = mine + last.sqrt() * noise[-1]
    assert apart(mine, theirs) < tolerance


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 10), (0.6, 10), (1.0, 10), (0.0, 200)])
def test_ddim(eta: float, steps: int) -> None:
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    nu, noise = levels_of(scheduler), drawn(steps)
    theirs = by_peer(scheduler, START, nu=nu, eta=eta, variance_noise=noise)
    assert apart(by_us(solvers.ddim(eta), nu, START, noise), theirs) < (1e-5 if steps == 10 else 1e-4)


def test_the_chains_tables_are_the_schedulers() -> None:
    """DDPM.linear(1000) with evenly strided indices, against the same scheduler with trailing times."""
    scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_small", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    nu = levels_of(scheduler)
    theirs = by_peer(scheduler, START, nu=nu, generator=generator())
    table = DDPM.linear(1000).ancestral(steps=10)
    mine = sample(MODEL, x_init=START, solver=table, noise=drawn(10), final="sample")
    assert apart(mine, theirs) < 1e-5
