"""Published linear multistep methods: settings of ``multistep``, each with its publication's own coefficients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag, check_integer, check_number
from scoresde.solvers.clocks import VariableName
from scoresde.solvers.forms import FormName
from scoresde.solvers.grids import Grid, diffused, karras, rectified
from scoresde.solvers.multistep import Eta, multistep
from scoresde.solvers.solver import Solver

# The coefficients that UniPC and SA-Solver have.
Rounding = Literal["exact", "bh1", "bh2"]


def dpmpp_2m(*, eta: float = 0.0, lower_order_final: bool = False, grid: Grid | None = None) -> Solver:
    """Return DPM-Solver++(2M) as published; eta = 1 is its SDE form.

    x_s = a x_t + m_0 [(1 + h/(2 h_1)) P_0 - h/(2 h_1) P_1] + b z, with the first-order weights a, m_0 and b of the data
    prediction, the step h in log(alpha/sigma) and the one before it h_1. Order 2; weak 2 and strong 1 for eta > 0.
    ``multistep(order=2)`` has the exact coefficients.

    Source: Lu et al. 2022, "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models",
    arXiv:2211.01095, alg. 2.
    """
    return multistep(
        order=2, eta=eta, coefficients="midpoint", lower_order_final=lower_order_final, grid=grid, name="dpmpp_2m"
    )


def dpmpp_2m_sde(*, eta: float = 1.0, lower_order_final: bool = False, grid: Grid | None = None) -> Solver:
    """Return SDE-DPM-Solver++(2M): ``dpmpp_2m`` on the reverse SDE. Weak order 2, strong order 1.

    Source: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095.
    """
    return multistep(
        order=2, eta=eta, coefficients="midpoint", lower_order_final=lower_order_final, grid=grid, name="dpmpp_2m_sde"
    )


def dpmpp_3m(*, lower_order_final: bool = False, grid: Grid | None = None) -> Solver:
    """Return DPM-Solver++(3M) as its authors' code has it.

    x_s = a x_t + m_0 P + m_1 P' + m_2 P''/4, with P, P' and P'' at t of the parabola through the last three data
    predictions and m_k the moments of the measure. The exact step has m_2 P''/2, so that the published one is of order
    2. Its second step is DPM-Solver++(2M)'s. ``multistep(order=3)`` has the exact coefficients and order 3.

    Source: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095, and the authors' implementation of it.
    """
    return multistep(order=3, coefficients="dpmpp_3m", lower_order_final=lower_order_final, grid=grid, name="dpmpp_3m")


def dpmpp_3m_sde(*, eta: float = 1.0, lower_order_final: bool = False, grid: Grid | None = None) -> Solver:
    """Return the SDE form of DPM-Solver++(3M), as k-diffusion has it: weak order 2, strong order 1.

    ``dpmpp_3m`` with the moments of the reverse family of index eta, and an exact second step. eta is the reverse
    family's; k-diffusion's own eta is its square.

    Source: Crowson 2023, "k-diffusion".
    """
    return multistep(
        order=3,
        eta=eta,
        coefficients="dpmpp_3m_sde",
        lower_order_final=lower_order_final,
        grid=grid,
        name="dpmpp_3m_sde",
        paper="Crowson 2023",
    )


def deis(
    *, order: int = 3, variable: VariableName = "t", lower_order_final: bool = False, grid: Grid | None = None
) -> Solver:
    """Return DEIS's exponential Adams-Bashforth method on the noise prediction.

    x_s = alpha_s [x_t/alpha_t + int_nu_t^nu_s P dnu], with P the polynomial through the last ``order`` noise
    predictions: in t (the paper's tAB), in nu = sigma/alpha (its rho-AB) or in log_snr (diffusers' form in log rho,
    which is -log_snr/2). The paper counts the polynomial's degree, order - 1. Order ``order``. Its native grid is
    ``grids.diffused()``: on one in log_snr the polynomial in t multiplies an error of the first predictions.

    Source: Zhang and Chen 2023, "Fast sampling of diffusion models with exponential integrator", arXiv:2204.13902.
    """
    return multistep(
        prediction="noise",
        variable=variable,
        order=order,
        lower_order_final=lower_order_final,
        grid=diffused() if grid is None else grid,
        name="deis",
        paper="Zhang and Chen 2023",
    )


def exponential_ab(*, order: int = 3, prediction: FormName = "data", grid: Grid | None = None) -> Solver:
    """Return the exponential Adams-Bashforth method in log_snr on the data (or noise) prediction. Order ``order``.

    x_s = sigma_s/sigma_t x_t + int alpha_s e^{-(lambda_s - l)} P(l) dl, with P the polynomial in lambda through the
    last ``order`` predictions, and the same for the noise prediction with the integral of ``solvers/forms.py``.

    Source: Hochbruck and Ostermann 2010, "Exponential integrators".
    """
    return multistep(
        prediction=prediction, order=order, grid=grid, name="exponential_ab", paper="Hochbruck and Ostermann 2010"
    )


def ipndm(*, order: int = 4, grid: Grid | None = None) -> Solver:
    """Return iPNDM: DDIM's step with a combination of noise predictions whose weights are those of even steps.

    noise = (55 P_0 - 59 P_1 + 37 P_2 - 9 P_3)/24 and, while there are fewer, (23 P_0 - 16 P_1 + 5 P_2)/12,
    (3 P_0 - P_1)/2 and P_0. The weights are right where the steps are even in a variable in which the integral is too
    (nu): elsewhere the method is of order 2, however many predictions it uses. Its native grid is
    ``grids.rectified(power=1.5)``: on one uniform in log_snr its error rises and falls below 20 evaluations.

    Source: Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds", arXiv:2202.09778; Zhang and
    Chen 2023, arXiv:2204.13902, who start with lower orders.
    """
    return multistep(
        prediction="noise",
        order=order,
        coefficients="constant",
        grid=rectified(power=1.5) if grid is None else grid,
        name="ipndm",
        paper="Zhang and Chen 2023",
    )


def lms(*, order: int = 4, grid: Grid | None = None) -> Solver:
    """Return the linear multistep method in nu = sigma/alpha: Adams-Bashforth on the noise prediction. Order ``order``.

    y_s = y_t + int_nu_t^nu_s P dnu for y = x/alpha, with P the polynomial in nu through the last ``order`` noise
    predictions, which are Karras et al.'s derivatives (x - D)/sigma. k-diffusion steps into sigma = 0 at full order,
    this method at first order, as all multistep methods here do.

    Source: Crowson 2022, "k-diffusion"; Karras et al. 2022, arXiv:2206.00364 (the derivative).
    """
    return multistep(
        prediction="noise",
        variable="nu",
        order=order,
        grid=karras() if grid is None else grid,
        name="lms",
        paper="Crowson 2022",
    )


def unipc(
    *,
    order: int = 3,
    variant: Rounding = "bh2",
    prediction: FormName = "data",
    corrected: bool = True,
    lower_order_final: bool = False,
    grid: Grid | None = None,
) -> Solver:
    """Return UniPC: exponential Adams-Bashforth in log_snr with the corrector of one order more.

    With D_k = P_k - P_0 and r_k the distance of its knot from t in units of h, the published step is
    x_s = a x_t + m_0 P_0 + alpha_s B sum_k rho_k D_k/r_k, and rho solves a Vandermonde system that holds B too, so that
    B drops out; except that rho = 1/2 for a single difference. There B = h (``variant="bh1"``) or m_0/alpha_s
    (``"bh2"``) stands for the exact integral, which ``variant="exact"`` has (the paper's UniPC_v). Order ``order`` + 1
    with the corrector, ``order`` without.

    Source: Zhao et al. 2023, "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models",
    arXiv:2302.04867.

    Raises:
        ConfigError: unknown variant or prediction. DomainError: order not in [1, 4].
    """
    check_choice("variant", variant, get_args(Rounding))
    order = check_integer(order, "order", 1, 4)
    return multistep(
        prediction=prediction,
        order=order,
        corrector=order + 1 if check_flag(corrected, "corrected") else 0,
        coefficients=variant,
        lower_order_final=lower_order_final,
        grid=grid,
        name="unipc",
        paper="Zhao et al. 2023",
    )


def sa_solver(
    *,
    predictor_order: int = 3,
    corrector_order: int = 4,
    tau: Eta = 1.0,
    prediction: FormName = "data",
    coefficients: Rounding = "exact",
    lower_order_final: bool = False,
    grid: Grid | None = None,
) -> Solver:
    """Return SA-Solver: stochastic exponential Adams in log_snr, with an Adams-Moulton corrector of the same draw.

    dx = [f - (1 + tau^2)/2 g^2 score] dt + tau g dw is solved with the last ``predictor_order`` data predictions and
    corrected with ``corrector_order`` of them, the one at the predicted state included (0: no corrector). tau is a
    number or a function of t, constant on each interval. Weak order 2, strong order 1; min(predictor_order + 1,
    corrector_order) where tau is 0. The coefficients are the paper's, which are exact; ``coefficients="bh1"`` is the
    authors' code, which rounds steps of two predictions as UniPC does.

    Source: Xue et al. 2023, "SA-Solver: stochastic Adams solver for fast sampling of diffusion models",
    arXiv:2309.05019.

    Raises:
        ConfigError: unknown coefficients or prediction. DomainError: an order or tau out of range.
    """
    check_choice("coefficients", coefficients, get_args(Rounding))
    predictor_order = check_integer(predictor_order, "predictor_order", 1, 4)
    corrector_order = check_integer(corrector_order, "corrector_order", 0, 5)
    return multistep(
        prediction=prediction,
        order=predictor_order,
        corrector=corrector_order,
        eta=_CheckedTau(tau) if callable(tau) else check_number(tau, "tau", 0.0),
        coefficients=coefficients,
        lower_order_final=lower_order_final,
        grid=grid,
        name="sa_solver",
        paper="Xue et al. 2023",
    )


@dataclass(frozen=True)
class _CheckedTau:
    """A function of t that calls itself tau in its errors."""

    tau: Callable[[float], float]

    def __call__(self, t: float) -> float:
        return check_number(self.tau(t), f"tau at t = {t:g}", 0.0)


def flow_ab(*, order: int = 3, grid: Grid | None = None) -> Solver:
    """Return Adams-Bashforth on the velocity of the rectified path, in its clock u = sigma/(alpha + sigma).

    y_s = y_t + int_u_t^u_s P du for y = x/(alpha + sigma), with P the polynomial in u through the last ``order``
    predictions of noise - data. Order ``order``.

    Source: Liu et al. 2023, "Flow straight and fast", arXiv:2209.03003 (the path); Bashforth and Adams 1883 (the
    weights).
    """
    return multistep(
        prediction="flow",
        variable="rectified",
        order=order,
        grid=rectified() if grid is None else grid,
        name="flow_ab",
        paper="Liu et al. 2023",
    )


def flow_abm(*, order: int = 3, corrector: int = 4, grid: Grid | None = None) -> Solver:
    """Return Adams-Bashforth-Moulton on the velocity of the rectified path: the library's default solver.

    ``flow_ab`` with a corrector that costs no evaluation, of order min(order + 1, corrector), on
    ``grids.diffused(power=3.9)``: on the exact mixtures of ``benchmarks/quality.py`` its error falls from each number
    of evaluations to the next, from 8 up; at power 4 it is by chance so small at 11 that it rises at 12.
    The first prediction, made where alpha is near 0, serves the first step alone, so that a network's error there is
    not extrapolated; the last step ends at sigma = 0.

    Source: Liu et al. 2023, "Flow straight and fast", arXiv:2209.03003 (the path); Moulton 1926 (the corrector).
    """
    return multistep(
        prediction="flow",
        variable="rectified",
        order=order,
        corrector=corrector,
        first_alone=True,
        grid=diffused(power=3.9) if grid is None else grid,
        name="flow_abm",
        paper="Liu et al. 2023",
    )
