r"""Twisted sequential Monte Carlo for linear measurements: weighted samples that tend to the posterior, and log p(y).

In y = x/alpha, of level nu = sigma/alpha, with the data prediction D and a covariance C of x_0 given y, the twist is

    g(y) = N(y_obs; A D(y), S),    S = s^2 + A C A^T

(Wu et al. 2023, arXiv:2306.17775). A particle goes from nu to nu' by a kernel K and is weighed by

    P(y' | y) g'(y') / (g(y) K(y' | y)),    P = N((1 - a) y + a D, a nu'^2 + a^2 C),    a = 1 - nu'^2/nu^2,

P the prior's step. K is P given y_obs, were x_0 Gaussian: x_0 ~ N(D, C) is drawn given the measurement (by Matheron's
rule), and y' between y and it; K is Gaussian,

    mean (1 - a) y + a (D + C A^T S^{-1} (y_obs - A D)),    covariance V - B S^{-1} B^T,

with V = a nu'^2 + a^2 C and B = a C A^T.

C is (Sigma^{-1} + 1/nu^2)^{-1} with the covariance Sigma of the data from the model's moments. For Gaussian data all
weights are then equal and the evidence is exact at any number of steps; for others the law is that of the particles as
their number and the steps grow. At the last level g is the likelihood itself where s > 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.diffusions.gaussian import Moments
from scoresde.errors.kinds import ConfigError
from scoresde.errors.values import keep_number
from scoresde.models.guidance.measured import Measured
from scoresde.models.guidance.methods import METHODS
from scoresde.models.prediction import in_mode
from scoresde.noise import normal, stream
from scoresde.ops import flat
from scoresde.sampling.particles import Population, levels
from scoresde.sampling.problem import PosteriorSampler, PosteriorSamples, Problem

__all__ = ["TwistedSMC"]


@dataclass(frozen=True)
class TwistedSMC(PosteriorSampler):
    """Twisted sequential Monte Carlo.

    Args:
        threshold: resample where the effective sample size is below this share of the particles.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        keep_number(self, "threshold", 0.0, 1.0)

    def __call__(self, problem: Problem) -> PosteriorSamples:
        """Return samples of equal weight, by resampling at the end, with log p(y) and its error.

        Raises:
            ConfigError: an operator that is not linear (with the methods that take it).
        """
        model, measured, y, seed = problem.model, problem.measured, problem.y, problem.seed
        if not measured.operator.linear:
            able = [name for name, method in METHODS.items() if method.nonlinear]
            raise ConfigError(f"TwistedSMC needs a linear operator; use one of {', '.join(able)}, gibbs, daps")
        device = model.device or torch.device("cpu")
        point = levels(model.sde, problem.steps)
        nu = torch.exp(-0.5 * point.log_snr).tolist()
        alpha = point.alpha.tolist()
        start = torch.zeros((problem.n, *measured.event), dtype=torch.float32, device=device)
        law = _Law(model.moments, measured, start)
        noise = normal(tuple(start.shape), stream(seed, "twisted", "start", device=device))
        state = start + nu[0] * noise if model.moments is None else model.moments.at(1.0, nu[0]).from_noise(noise)
        population = Population(problem.n, self.threshold, seed)
        before: Tensor | None = None
        with in_mode(model, training=False), torch.no_grad():
            prepared = model.prepare(point, state, problem.cond)
            numbers = prepared.weights("data")
            for i in tqdm(range(problem.steps + 1), desc="smc", unit="step", disable=not problem.progress, leave=False):
                x = alpha[i] * state
                data = numbers[0][i] * x + numbers[1][i] * prepared.raw(i, x).to(x)
                level = law.at(nu[i])
                if i == problem.steps and measured.std > 0:
                    twist = law.log_likelihood(y - law.measure(state))
                else:
                    twist = level.log_prob(y - law.measure(data))
                places = population.reweigh(twist if before is None else twist + before)
                if places is not None:
                    there = places.to(device)
                    state, data, twist = state[there], data[there], twist[places]
                if i < problem.steps:
                    key = (seed, "twisted", i)
                    state, ratio = level.move(state, data, y - law.measure(data), nu[i + 1], key)
                    before = ratio - twist
        particles = population.result(problem.to_data(state), problem.steps + 1)
        evidence = particles.log_normaliser, particles.log_normaliser_error
        return PosteriorSamples(particles.samples(seed=seed), particles.nfe, *evidence, particles.ess)


class _Law:
    """H as a matrix in the eigenbasis of the data's covariance, in float64.

    Args:
        moments: of the data; None takes unit variances.
        measured: a linear H.
        like: a state.
    """

    def __init__(self, moments: Moments | None, measured: Measured, like: Tensor) -> None:
        self.shape, self.std = like.shape[1:], measured.std
        size = math.prod(self.shape)
        eye = torch.eye(size, dtype=torch.float64, device=like.device)
        self.basis = None if moments is None or moments.basis is None else moments.basis.to(eye)
        unit = (
            torch.ones(size, dtype=torch.float32, device="cpu").to(eye)
            if moments is None
            else moments.variance.to(eye).expand((size,) if moments.basis is not None else self.shape)
        )
        self.variance = unit.reshape(size)
        axes = eye if self.basis is None else self.basis.T
        self.offset = measured(torch.zeros((1, *self.shape), dtype=torch.float64, device=like.device))
        self.matrix = (measured(axes.reshape(size, *self.shape)) - self.offset).T  # (m, D)

    def turn(self, x: Tensor) -> Tensor:
        """Return states (n, *) in the eigenbasis, (n, D), in float64."""
        wide = flat(x).to(self.variance)
        return wide if self.basis is None else wide @ self.basis

    def back(self, x: Tensor, like: Tensor) -> Tensor:
        """Return what ``turn`` turned."""
        return (x if self.basis is None else x @ self.basis.T).reshape(-1, *self.shape).to(like)

    def measure(self, x: Tensor) -> Tensor:
        """Return H x, (n, m)."""
        return self.turn(x) @ self.matrix.T + self.offset

    def log_likelihood(self, rest: Tensor) -> Tensor:
        """Return log N(rest; 0, s^2), (n,), on the CPU."""
        count = rest.shape[1]
        return (-0.5 * rest.square().sum(1) / self.std**2 - count * math.log(self.std * math.sqrt(2 * math.pi))).cpu()

    def at(self, nu: float) -> _Level:
        """Return the law at a level."""
        return _Level(self, nu)


class _Level:
    """C, S and the step from one level."""

    def __init__(self, law: _Law, nu: float) -> None:
        self.law, self.nu = law, nu
        self.kept = law.variance * nu**2 / (law.variance + nu**2)  # C
        self.spread = (law.matrix * self.kept) @ law.matrix.T
        size = len(self.spread)
        eye = torch.eye(size, dtype=torch.float32, device="cpu").to(self.spread)
        # An exact measurement through a matrix of lower rank leaves S without an inverse: a share of its size is added.
        floor = law.std**2 if law.std > 0 else 1e-10 * float(self.spread.diagonal().max())
        self.cholesky = torch.linalg.cholesky(self.spread + floor * eye)

    def log_prob(self, rest: Tensor) -> Tensor:
        """Return log N(rest; 0, S), (n,), on the CPU."""
        return _log_normal(rest, self.cholesky).cpu()

    def move(
        self, state: Tensor, data: Tensor, rest: Tensor, after: float, key: tuple[int, str, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the next states (n, *), and log P - log K of the moves (n,), on the CPU."""
        law, a = self.law, 1 - (after / self.nu) ** 2
        y, d = law.turn(state), law.turn(data)
        gain = torch.cholesky_solve(law.matrix * self.kept, self.cholesky)  # S^{-1} A C
        mean = (1 - a) * y + a * (d + rest @ gain)
        prior = a * after**2 + a**2 * self.kept  # V
        # x_0 given the measurement by Matheron's rule, and the noise of the step between.
        draw = stream(*key, device=state.device)
        e, f, g = (
            normal((len(y), count), draw, dtype=torch.float64).to(y)
            for count in (len(prior), rest.shape[1], len(prior))
        )
        x0 = self.kept.sqrt() * e
        x0 = x0 - (x0 @ law.matrix.T + law.std * f) @ gain
        moved = a * x0 + math.sqrt(a) * after * g
        nearby = mean + moved
        log_prior = -0.5 * (((nearby - (1 - a) * y - a * d).square() / prior).sum(1) + prior.log().sum())
        # K's covariance V - B S^{-1} B^T, by Woodbury's identity with T = S - B^T V^{-1} B.
        b = a * law.matrix * self.kept  # B^T
        whole = self.cholesky @ self.cholesky.T
        inner = torch.linalg.cholesky(whole - (b / prior) @ b.T)
        weighted = moved / prior
        side = torch.linalg.solve_triangular(inner, b @ weighted.T, upper=False)
        log_det = prior.log().sum() + 2 * inner.diagonal().log().sum() - 2 * self.cholesky.diagonal().log().sum()
        log_kernel = -0.5 * ((moved * weighted).sum(1) + side.square().sum(0) + log_det)
        return law.back(nearby, state), (log_prior - log_kernel).cpu()


def _log_normal(rest: Tensor, cholesky: Tensor) -> Tensor:
    """Return log N(rest; 0, L L^T), (n,)."""
    scaled = torch.linalg.solve_triangular(cholesky, rest.T, upper=False)
    size = 0.5 * rest.shape[1] * math.log(2 * math.pi)
    density: Tensor = -0.5 * scaled.square().sum(0) - cholesky.diagonal().log().sum() - size
    return density
