"""Parameters out of their domain: each is refused where it is given, with its name, its value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from helpers import Net
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    EMA,
    VESDE,
    VPSDE,
    ConfigError,
    CosineVPSDE,
    DomainError,
    DTypeError,
    EmpiricalModel,
    EnergyModel,
    GaussianMixtureModel,
    GaussianModel,
    GaussianSDE,
    Langevin,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    ScoreSDEError,
    ShapeError,
    SubVPSDE,
    TabulatedSDE,
    build_table,
    sample,
    solvers,
)
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.solvers import SOLVERS, Solver, by_name, grids

NAN, INF = math.nan, math.inf
SDE, ONE, TWO = VPSDE(), torch.ones(()), torch.ones(2)
FIXED = sorted(set(SOLVERS) - {"probability_flow"})


def mixture(**options: object) -> GaussianMixtureModel:
    return GaussianMixtureModel(**{"sde": SDE, "weights": TWO, "means": torch.zeros(2, 2), "std": 0.5, **options})


def gaussian(**options: object) -> GaussianModel:
    return GaussianModel(**{"sde": SDE, "mean": torch.zeros(2), "covariance": torch.eye(2), **options})


# fault: (call, kind, words)
REFUSED: dict[str, tuple[Callable[[], object], type[ScoreSDEError], str]] = {
    # diffusions
    "beta_min above beta_max": (lambda: VPSDE(3.0, 2.0), DomainError, r"beta_max must lie in [3, inf), got 2.0"),
    "beta negative": (lambda: SubVPSDE(-0.1), DomainError, "beta_min must lie in [0, inf), got -0.1"),
    "beta NaN": (lambda: VPSDE(beta_max=NAN), DomainError, "beta_max must lie in [0.1, inf), got nan"),
    "beta infinite": (lambda: VPSDE(beta_max=INF), DomainError, "beta_max must lie in [0.1, inf), got inf"),
    "beta a string": (lambda: VPSDE("0.1"), DTypeError, "beta_min must be a number, got '0.1' of type str"),
    "beta a vector": (lambda: VPSDE(ONE[None]), DTypeError, "beta_min must be a number, got tensor([1.]) of type"),
    "sigma_min 0": (lambda: VESDE(0.0), DomainError, "sigma_min must lie in (0, inf), got 0.0"),
    "sigma_min negative": (lambda: EDMSDE(-1.0), DomainError, "sigma_min must lie in (0, inf), got -1.0"),
    "sigma_min at sigma_max": (lambda: VESDE(2.0, 2.0), DomainError, "sigma_max must lie in (2, inf), got 2.0"),
    "sigma_min above sigma_max": (lambda: EDMSDE(3.0, 2.0), DomainError, "sigma_max must lie in (3, inf), got 2.0"),
    "sigma_max NaN": (lambda: EDMSDE(sigma_max=NAN), DomainError, "sigma_max must lie in (0.002, inf), got nan"),
    "flow beyond 1": (lambda: RectifiedFlow(t_max=1.5), DomainError, "t_max must lie in [0, 1], got 1.5"),
    "cosine beyond 1": (lambda: CosineVPSDE(t_max=1.5), DomainError, "t_max must lie in [0, 1], got 1.5"),
    "table that rises": (
        lambda: TabulatedSDE(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0])),
        DomainError,
        "log_snr must be finite and decrease along the knots",
    ),
    "eta negative": (lambda: SDE.reverse(gaussian(), -1.0), DomainError, "eta must lie in [0, inf), got -1.0"),
    "eta NaN": (lambda: SDE.reverse(gaussian(), NAN), DomainError, "eta must lie in [0, inf), got nan"),
    "reverse of no score": (lambda: SDE.reverse(3), DTypeError, "model must be a ScoreModel or a callable (x, t) ->"),
    "prior at many times": (
        lambda: SDE.prior(TWO / 2),
        ShapeError,
        "t of a prior must be a single time, got sh",
    ),
    "prior at NaN": (lambda: SDE.prior(NAN), DomainError, "t must lie in [1e-05, 1], got nan"),
    # chains
    "beta of 1": (lambda: DDPM.linear(20), DomainError, "at index 19 it is 1: use more steps or rule='exact'"),
    "beta above 1": (lambda: DDPM.from_betas(torch.tensor([0.1, 1.2])), DomainError, "at index 1 it is 1.2"),
    "beta of 0": (lambda: DDPM.from_betas(torch.tensor([0.0, 0.2])), DomainError, "at index 0 it is 0"),
    "beta NaN in a chain": (lambda: DDPM.from_betas(torch.tensor([0.1, NAN])), DomainError, "at index 1 it is nan"),
    "chain of 0": (lambda: DDPM.linear(0), DomainError, "n must be at least 1, got 0"),
    "chain of 1.5": (lambda: DDPM.cosine(1.5), DTypeError, "n must be an integer, got 1.5 of type float"),
    "more steps than a chain has": (
        lambda: DDPM.linear(30).ddim(steps=31),
        DomainError,
        "steps must be in [1, 30], got 31",
    ),
    "a chain's eta": (lambda: DDPM.linear(30).ddim(-0.5), DomainError, "eta must lie in [0, inf), got -0.5"),
    # models
    "no network": (lambda: ScoreModel(3, SDE), DTypeError, "net must be a network, net(x, c_noise) -> "),
    "an SDE's class": (
        lambda: ScoreModel(Net(), VPSDE),
        DTypeError,
        "sde must be a GaussianSDE, e.g. VPSDE(), got",
    ),
    "an SDE's name": (lambda: gaussian(sde="vp"), DTypeError, "sde must be a GaussianSDE, e.g. VPSDE(), got 'vp'"),
    "an SDE's name in sample": (
        lambda: sample(gaussian(), (2, 2), sde="vp"),
        DTypeError,
        "sde must be a GaussianSDE, e.g. VPSDE(), got 'vp'",
    ),
    "an SDE's class in a table": (
        lambda: build_table(VPSDE, solvers.ddim()),
        DTypeError,
        "sde must be a GaussianSDE, e.g. VPSDE(), got <class",
    ),
    "no energy": (lambda: EnergyModel(None, SDE), DTypeError, "net must be a "),
    "moments that are numbers": (
        lambda: ScoreModel(Net(), SDE, moments=TWO),
        DTypeError,
        "moments must be Moments, got Tensor; use Moments.of(data)",
    ),
    "unknown prediction": (
        lambda: ScoreModel(Net(), SDE, predicts="nosie"),
        ConfigError,
        "unknown parameterisation 'nosie'; did you mean 'noise'? choices: data, edm, noise, score, v, velocity",
    ),
    "no prediction": (lambda: ScoreModel(Net(), SDE, predicts=None), ConfigError, "unknown parameterisation None;"),
    "no conditioning": (lambda: ScoreModel(Net(), SDE, condition_on=3), ConfigError, "unknown conditioning 3;"),
    "sigma_data 0": (lambda: ScoreModel(Net(), SDE, sigma_data=0.0), DomainError, "sigma_data must lie in (0, inf)"),
    "noise where alpha is 0": (
        lambda: ScoreModel(Net(), RectifiedFlow()),
        DomainError,
        "predicts='noise' says nothing of the data at t_max = 1, where alpha = 0; train another prediction (data, v,",
    ),
    "score where alpha is 0": (
        lambda: ScoreModel(Net(), RectifiedFlow(), predicts="score"),
        DomainError,
        "predicts='score' says nothing of the data at t_max = 1, where alpha = 0; train another prediction (data, v,",
    ),
    "noise moved where alpha is 0": (
        lambda: ScoreModel(Net(), SDE).with_sde(RectifiedFlow()),
        DomainError,
        "predicts='noise' says nothing of the data at t_max = 1, where alpha = 0",
    ),
    "weights of 0": (lambda: mixture(weights=torch.tensor([1.0, 0.0])), DomainError, "weights must be positive and fi"),
    "std negative": (lambda: mixture(std=-0.1), DomainError, "std must not be negative and must be finite, got -0.1"),
    "std infinite": (lambda: mixture(std=INF), DomainError, "std must not be negative and must be finite, got inf"),
    "variance negative": (
        lambda: gaussian(covariance=torch.tensor([1.0, -1.0])),
        DomainError,
        "covariance must be positive semi-definite, its smallest variance is -1",
    ),
    "covariance indefinite": (
        lambda: gaussian(covariance=torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        DomainError,
        "covariance must be positive semi-definite, its smallest eigenvalue is -1",
    ),
    "a mean that is none": (
        lambda: gaussian(mean=None),
        DTypeError,
        "mean must be a tensor, or numbers in sequences of one length, got None",
    ),
    "std none": (
        lambda: mixture(std=None),
        DTypeError,
        "std must be a tensor, or numbers in sequences of one length, got None",
    ),
    "mean complex": (lambda: gaussian(mean=TWO * 1j), DTypeError, "mean must be real, got torch.complex64"),
    "chunk_size 0": (
        lambda: EmpiricalModel(sde=SDE, data=torch.zeros(3, 2), chunk_size=0),
        DomainError,
        "chunk_size must be at least 1, got 0",
    ),
    "flow beyond the interval": (
        lambda: gaussian().flow(torch.zeros(1, 2), 2.0, 0.5),
        DomainError,
        "t must lie in [1e-05, 1], got 2",
    ),
    # methods
    "snr 0": (lambda: Langevin(0.0), DomainError, "snr must lie in (0, inf), got 0.0"),
    "snr negative": (lambda: Langevin(-0.16), DomainError, "snr must lie in (0, inf), got -0.16"),
    "snr NaN": (lambda: Langevin(NAN), DomainError, "snr must lie in (0, inf), got nan"),
    "Langevin steps 0": (lambda: Langevin(steps=0), DomainError, "steps must be at least 1, got 0"),
    "rtol 0": (lambda: ProbabilityFlow(rtol=0.0), DomainError, "rtol must lie in (0, inf), got 0.0"),
    "atol negative": (lambda: ProbabilityFlow(atol=-1e-3), DomainError, "atol must lie in (0, inf), got -0.001"),
    "rtol NaN": (lambda: ProbabilityFlow(rtol=NAN), DomainError, "rtol must lie in (0, inf), got nan"),
    "rtol below the type": (
        lambda: sample(gaussian(), (2, 2), solver=ProbabilityFlow(rtol=1e-9), seed=0),
        DomainError,
        "rtol and atol must be at least 1.19209e-07 for torch.float32, got 1e-09, 0.0001",
    ),
    "max_steps 0": (lambda: ProbabilityFlow(max_steps=0), DomainError, "max_steps must be at least 1, got 0"),
    "unknown pair": (
        lambda: ProbabilityFlow(method="dopri"),
        ConfigError,
        "unknown method 'dopri'; did you mean",
    ),
    "decay of 1": (lambda: EMA(Net(), 1.0), DomainError, "decay must lie in [0, 1), got 1.0"),
    "decay negative": (lambda: EMA(Net(), -0.1), DomainError, "decay must lie in [0, 1), got -0.1"),
    "decay NaN": (lambda: EMA(Net(), NAN), DomainError, "decay must lie in [0, 1), got nan"),
    # grids
    "rho 0": (lambda: grids.karras(rho=0.0), DomainError, "rho must lie in (0, inf), got 0.0"),
    "grid of no steps": (lambda: grids.uniform()(SDE), ConfigError, "the grid 'uniform' needs a number of steps; pass"),
    "grid of -1 steps": (lambda: grids.uniform()(SDE, -1), DomainError, "steps must be at least 0, got -1"),
    "grid of True steps": (lambda: grids.log_snr()(SDE, True), DTypeError, "steps must be an integer, got True"),
    "a centre of no width": (
        lambda: grids.log_snr(centre=3.0),
        ConfigError,
        "centre=3 has no effect without a width; pass width= too",
    ),
    "a centre of 0 and no width": (lambda: grids.log_snr(centre=0.0), ConfigError, "pass width= too"),
    "times that collapse in float32": (
        lambda: grids.check_times(SDE, torch.tensor([1.0, 1.0 - 1e-9, 0.1])),
        DomainError,
        "times repeats 1; make the grid in float64",
    ),
    "times the wrong way": (
        lambda: grids.check_times(SDE, torch.tensor([0.1, 1.0])),
        DomainError,
        "times must decrease, from noise to data; these increase: use times.flip(0)",
    ),
    # solvers, each under the names of its own arguments
    "predictor of order 7": (
        lambda: solvers.sa_solver(predictor_order=7),
        DomainError,
        "predictor_order must be in [1, 4], got 7",
    ),
    "corrector of order 7": (
        lambda: solvers.sa_solver(corrector_order=7),
        DomainError,
        "corrector_order must be in [0, 5], got 7",
    ),
    "SA-Solver with iPNDM's weights": (
        lambda: solvers.sa_solver(coefficients="constant", corrector_order=0),
        ConfigError,
        "unknown coefficients 'constant'; choices: bh1, bh2, exact",
    ),
    "UniPC of no variant": (
        lambda: solvers.unipc(variant="bhx"),
        ConfigError,
        "unknown variant 'bhx'; did you mean 'bh2'? choices: bh1, bh2, exact",
    ),
    "UniPC with iPNDM's weights": (
        lambda: solvers.unipc(variant="constant", corrected=False),
        ConfigError,
        "unknown variant 'constant'; choices: bh1, bh2, exact",
    ),
    "UniPC with the weights of 3M": (
        lambda: solvers.unipc(variant="dpmpp_3m", corrected=False),
        ConfigError,
        "unknown variant 'dpmpp_3m'; choices: bh1, bh2, exact",
    ),
    "UniPC's order a string": (
        lambda: solvers.unipc(order="3"),
        DTypeError,
        "order must be an integer, got '3' of type str",
    ),
    # what sample calls and draws from
    "a kernel alone": (lambda: sample(gaussian(), (2, 2), kernels=Langevin()), DTypeError, "kernels must be a list of"),
    "a kernel that is none": (lambda: sample(gaussian(), (2, 2), kernels=[3]), DTypeError, "kernels must be a list of"),
    "no observer": (lambda: sample(gaussian(), (2, 2), on_step=3), DTypeError, "on_step must be a function of a Step"),
    "no prior": (lambda: sample(gaussian(), (2, 2), prior="N"), DTypeError, "prior must be a Gaussian, got str"),
    "a prior of other events": (
        lambda: sample(ScoreModel(Net(), SDE), (2, 3, 2), prior=gaussian().law),
        ShapeError,
        "prior must have the event (3, 2) of the samples, got (2,)",
    ),
    "dtype by name": (
        lambda: sample(gaussian(), (2, 2), dtype="float32"),
        DTypeError,
        "e.g. torch.float32, got 'float32'",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(fault: str) -> None:
    call, kind, words = REFUSED[fault]
    with pytest.raises(kind, match=re.escape(words)):
        call()


@pytest.mark.parametrize(
    ("make", "name", "end"),
    [
        (solvers.dpm_solver_2, "r", 1.0),
        (solvers.dpm_solver_3, "r", 2 / 3),
        (solvers.dpmpp_2s, "r", 1.0),
        (solvers.dpmpp_3s, "r", 2 / 3),
        (solvers.exponential_rk2, "node", 1.0),
        (solvers.exponential_rk3, "node", 2 / 3),
        (solvers.res, "node", 1.0),
    ],
)
def test_an_inner_stage_is_checked_under_its_own_name(make: Callable[..., Solver], name: str, end: float) -> None:
    for value in (0.0, end, 1.5, NAN):
        with pytest.raises(DomainError, match=re.escape(f"{name} must lie in (0, {end:g}), got {value}")):
            make(**{name: value})
    with pytest.raises(DTypeError, match=f"^{name} must be a number, got '0.5'"):
        make(**{name: "0.5"})
    assert make(**{name: end - 0.01}).calls == (3 if end < 1 else 2)


@pytest.mark.parametrize("kind", [k for k in DIFFUSIONS.values() if k is not EDMSDE])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"t_min": 0.0}, DomainError, "t_min must lie in (0, inf), got 0.0"),
        ({"t_min": -0.1}, DomainError, "t_min must lie in (0, inf), got -0.1"),
        ({"t_min": NAN}, DomainError, "t_min must lie in (0, inf), got nan"),
        ({"t_min": 0.5, "t_max": 0.5}, DomainError, "t_max must lie in (0.5, inf), got 0.5"),
        ({"t_min": 0.6, "t_max": 0.5}, DomainError, "t_max must lie in (0.6, inf), got 0.5"),
        ({"t_max": "1"}, DTypeError, "t_max must be a number, got '1' of type str"),
        ({"t_min": True}, DTypeError, "t_min must be a number, got True of type bool"),
    ],
)
def test_every_diffusion_checks_its_interval(
    kind: type[GaussianSDE], options: dict[str, object], error: type[ScoreSDEError], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        kind(**options)


# ---------------------------------------------------------------------------------------------------------------------
# One step, and solvers that an SDE cannot carry


EVERY_SDE: dict[str, GaussianSDE] = {name: kind() for name, kind in DIFFUSIONS.items()}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("sde", EVERY_SDE)
def test_one_step_works_or_has_a_reason_and_names_those_that_do(sde: str, name: str) -> None:
    """A table has finite weights or cannot be made; what is named in its place can be made."""
    for final in ("denoise", "sample"):
        reason, table = "", None
        try:
            table = build_table(EVERY_SDE[sde], by_name(name), steps=1, final=final)
        except DomainError as error:
            reason = str(error)
        if table is not None:
            mean, variance = table.law(0.3, 0.25)
            assert math.isfinite(mean)
            assert variance >= 0
            continue
        assert "alpha" in reason or "not all finite" in reason
        able = reason.partition(f"; on these times {EVERY_SDE[sde]} carries ")[2].split(", ")
        assert name not in able
        assert len(able) > 3
        for other in able:
            assert build_table(EVERY_SDE[sde], by_name(other), steps=1, final=final).nfe >= 1


def test_a_solver_of_your_own_is_refused_with_those_that_can() -> None:
    def build(sde: GaussianSDE, times: Tensor) -> object:
        raise DomainError("mine has no step here")

    mine = Solver("mine", build)
    with pytest.raises(DomainError, match=r"^mine has no step here; on these times VPSDE\(.*\) carries ance"):
        build_table(SDE, mine, steps=4)
    # Where the times themselves are at fault no solver is named.
    with pytest.raises(DomainError, match=r"^times must lie in \[1e-05, 1\], got 2$"):
        build_table(SDE, mine, times=torch.tensor([2.0, 0.5]))
