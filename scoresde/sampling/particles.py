r"""Weighted particles: populations that are reweighed and resampled, and Feynman-Kac correctors for products of models.

A product of models has, at every noise level, the score of q_t = prod_k p_{k,t}^{w_k}. Particles that follow it
backwards do not have the law q_t, since these q_t are no diffusion's marginals; they have it with weights (Skreta et
al. 2025, arXiv:2503.02819). In y = x/alpha every scalar diffusion is a Brownian motion of clock nu^2 =
sigma^2/alpha^2. Take a step from nu to nu' in sequential Monte Carlo (Del Moral et al. 2006), with a kernel K forwards
and any kernel B back:

    weight = q'(y') B(y | y') / (q(y) K(y' | y)).

Bayes' rule for each factor, p_k'(y')/p_k(y) = P_k(y' | y)/F(y | y') with the Brownian F of variance a nu^2,
a = 1 - nu'^2/nu^2, turns q'/q into a product of transitions. B is F with its variance divided by a number b, so that
with W = sum_k w_k

    weight = prod_k P_k(y' | y)^{w_k} B F^{-W} / K.

With Gaussian P_k, of mean y - a nu e_k (e_k the noise prediction) and variance

    v_k = a nu'^2 + a^2 c nu^2/(c + nu^2),    the variance of y' given y for Gaussian data of variance c,

K is taken proportional to the numerator, a Gaussian of precision sum_k w_k/v_k + (b - W)/(a nu^2); the weight is its
normaliser, which y alone decides. For Gaussian data all of this is exact at any number of steps. For others log P_k
lacks 1/2 (d^T G_k d - a nu^2 tr G_k) in the move d = y' - y, where G_k is the Hessian of log p_k less that of the
Gaussian. As a -> 0 the moves have the variance a nu^2/b, and its mean -a nu^2/2 (1 - 1/b) tr G_k vanishes with b = 1
alone: what remains is the Feynman-Kac weight

    d log w = 1/2 (|sum_k w_k s_k|^2 - sum_k w_k |s_k|^2) dnu^2,    no Jacobian:

for guidance, of powers w and 1 - w, w(w - 1) |s_c - s_u|^2/2 dnu^2. But where nu^2 is large against c every p_k is a
Gaussian, G_k is of the order c^2/nu^6, and with b = W all weights are equal. So b is W down to nu^2 = 30 c, where what
is left out adds up to (c/nu^2)^2/2 and less, and 1 below.

The particles start from q at t_max, where every p_k is Gaussian, and are resampled systematically whenever the
effective sample size (sum w)^2 / sum w^2 falls below a share of their number.

One population says how far its own log normaliser errs. Let W_k be the weight of all that descends from the k-th of n
particles at the start, with sum_k W_k = 1; these families are independent but for the resampling, and

    Var(log Z) ~ sum_k (W_k - 1/n)^2 = sum_k W_k^2 - 1/n    (Chan and Lai 2013, arXiv:1312.5114).

It is 1/ESS - 1/n where nothing was resampled, and too small where few families are left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from scoresde.diffusions.gaussian import Gaussian
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, show
from scoresde.errors.values import check_dtype, check_flag, check_integer, check_mapping, check_number, check_sizes
from scoresde.models.checks import unwrap_model
from scoresde.models.guidance.combine import CombinedModel, check_combined, sum_weighted
from scoresde.models.prediction import Predictor, in_mode, select
from scoresde.noise import check_seed, normal, stream, uniform
from scoresde.ops import chunks, flat
from scoresde.solvers.grids import MOST_STEPS

__all__ = ["Particles", "Population", "correct", "expand_condition", "levels"]

FAR = 30.0  # times the data's variance: under noise of more, their law is a Gaussian to a thousandth
LOWEST = -16.0  # log-SNR at the start where the SDE goes down to alpha = 0


@dataclass(frozen=True, eq=False)
class Particles:
    """Weighted samples of a law.

    Args:
        x: (n, *), in the user's units.
        log_weights: (n,) in float64 on the CPU; their exponentials add up to 1.
        log_normaliser: the estimate of log of the mass of the target over that of the start, in nats.
        log_normaliser_error: its standard error, from the weights of the families of the particles at the start.
        ess: the effective sample size after each step, before any resampling, (steps,).
        resampled: after which steps it was resampled.
        nfe: calls of each particle's networks.
    """

    x: Tensor
    log_weights: Tensor
    log_normaliser: float
    log_normaliser_error: float
    ess: Tensor
    resampled: tuple[int, ...]
    nfe: int

    def samples(self, n: int | None = None, *, seed: int = 0) -> Tensor:
        """Return n samples (n, *) of equal weight, by systematic resampling; as many as there are by default."""
        count = len(self.x) if n is None else check_integer(n, "n", 1)
        return self.x[_systematic(self.log_weights, count, stream(seed, "particles", "last")).to(self.x.device)]

    def __repr__(self) -> str:
        least = float(self.ess.min()) if len(self.ess) else float(len(self.x))
        return (
            f"<Particles {tuple(self.x.shape)}, effective sample size at least {least:.4g} of {len(self.x)}, "
            f"resampled {len(self.resampled)} times, "
            f"log normaliser {self.log_normaliser:.4g} +- {self.log_normaliser_error:.2g}>"
        )


class Population:
    """Weights under way.

    Args:
        count: how many particles.
        threshold: the share of them below which the effective sample size has them resampled.
        seed: of the resampling.
    """

    def __init__(self, count: int, threshold: float, seed: int) -> None:
        self.log_weights = torch.full((count,), -math.log(count), dtype=torch.float64, device="cpu")
        self.ancestors = torch.arange(count, device="cpu")  # the place at the start of each particle's family
        self.threshold, self.seed, self.log_normaliser, self.log_normaliser_error = threshold, seed, 0.0, 0.0
        self.ess: list[float] = []
        self.resampled: list[int] = []

    def reweigh(self, more: Tensor) -> Tensor | None:
        """Add log weights (n,); return the places to go on from where the particles are to be resampled, else None."""
        count = len(self.log_weights)
        weights = self.log_weights + more.to("cpu", torch.float64)
        total = float(torch.logsumexp(weights, 0))
        if not math.isfinite(total):
            raise DomainError("all weights of the particles vanished or are not finite; take more steps or particles")
        self.log_normaliser += total
        self.log_weights = weights - total
        self.ess.append(float(torch.exp(-torch.logsumexp(2 * self.log_weights, 0))))
        families = torch.zeros(count, dtype=torch.float64, device="cpu").index_add_(
            0, self.ancestors, self.log_weights.exp()
        )
        self.log_normaliser_error = float((families - 1 / count).norm())
        if self.ess[-1] >= self.threshold * count:
            return None
        step = len(self.ess) - 1
        self.resampled.append(step)
        places = _systematic(self.log_weights, count, stream(self.seed, "particles", "places", step))
        self.log_weights = torch.full_like(self.log_weights, -math.log(count))
        self.ancestors = self.ancestors[places]
        return places

    def result(self, x: Tensor, nfe: int) -> Particles:
        """Return what was found."""
        ess = torch.tensor(self.ess, dtype=torch.float64, device="cpu")
        found = self.log_normaliser, self.log_normaliser_error
        return Particles(x, self.log_weights, *found, ess, tuple(self.resampled), nfe)


def correct(
    model: CombinedModel,
    n: int,
    *,
    shape: Sequence[int] | None = None,
    cond: Mapping[str, float | Sequence[float]] | None = None,
    steps: int = 200,
    threshold: float = 0.5,
    chunk_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Particles:
    """Draw from prod_k p_k^{w_k} itself, where following the product's score does not lead.

    ``correct(guided(model, 3.0), 1000, cond={"label": 2})`` draws from p(x)^{-2} p(x|y)^3;
    ``correct(product([model], [2.0]), 1000)`` from p(x)^2, normalised.

    Args:
        model: of ``guided`` with a number as its scale, or of ``product``.
        n: number of particles.
        shape: of one sample; by default that of the data's moments.
        cond: conditions, one value for all particles.
        steps: of equal log-SNR.
        threshold: resample where the effective sample size is below this share of n; 0 for never.
        chunk_size: largest batch given to the networks at once.
        seed: of everything random.
        dtype: of the particles.
        progress: show a bar.

    Raises:
        DTypeError, ConfigError: no product, guidance on an interval, rescaled or of tensors, moments that are missing
            where no shape is given. DomainError: options out of range, or powers whose product of Gaussians at t_max
            is no law. SolverError: states that are not finite.
    """
    combined = check_combined(unwrap_model(model))
    if combined.powers is None and (
        combined.interval is not None or combined.rescale or isinstance(combined.scale, Tensor)
    ):
        raise ConfigError(
            "the law of guidance on an interval, rescaled, or with a scale for each coordinate is not known; pass "
            "guided(model, scale) with a number alone"
        )
    count = check_integer(n, "n", 1)
    steps = check_integer(steps, "steps", 1, MOST_STEPS)
    threshold = check_number(threshold, "threshold", 0.0, 1.0)
    check_seed(seed)
    check_flag(progress, "progress")
    check_dtype(dtype)
    event = _find_event(combined, shape)
    device = combined.device or torch.device("cpu")
    point = levels(combined.sde, steps)
    powers = combined.powers if combined.powers is not None else (float(combined.scale), 1 - float(combined.scale))
    factors = [_Factor.of(combined.parts[term.part], power) for term, power in zip(combined.terms, powers, strict=True)]
    alpha, nu = point.alpha.tolist(), torch.exp(-0.5 * point.log_snr).tolist()
    y = _start_law(factors, nu[0]).from_noise(
        normal((count, *event), stream(seed, "particles", "start", device=device)).to(dtype)
    )
    told = expand_condition(cond, count, device)
    size = count if chunk_size is None else check_integer(chunk_size, "chunk_size", 1)
    population = Population(count, threshold, seed)
    with in_mode(combined, training=False), torch.no_grad():
        prepared = [(rows, combined.prepare(point, y[rows], select(told, rows))) for rows in chunks(count, size)]
        for i in tqdm(range(steps), desc="particles", unit="step", disable=not progress, leave=False):
            found = [ask.noises(i, alpha[i] * y[rows]) for rows, ask in prepared]
            noises = [torch.cat(parts) for parts in zip(*found, strict=True)]
            move, spread, gain = _step(factors, noises, nu[i], nu[i + 1])
            places = population.reweigh(gain)
            y = y + move
            if places is not None:
                y = y[places.to(device)]
            y = y + spread * normal(tuple(y.shape), stream(seed, "particles", "move", i, device=device)).to(y)
    transform = combined.transform
    return population.result(y if transform is None else transform.inverse(y), steps * len(factors))


@dataclass(frozen=True, eq=False)
class _Factor:
    """A factor of a product, and what is known of its data: mean and variance, of the event's shape or ()."""

    power: float
    mean: Tensor
    variance: Tensor | None

    @classmethod
    def of(cls, model: nn.Module, power: float) -> _Factor:
        moments = model.moments if isinstance(model, Predictor) else None
        if moments is None:
            return cls(power, torch.zeros((), dtype=torch.float64, device="cpu"), None)
        variance = moments.variance.cpu().double()
        # Of a full covariance its mean serves.
        return cls(power, moments.mean.cpu().double(), variance if moments.basis is None else variance.mean())

    def spread(self, nu: float, after: float) -> Tensor:
        """Return the variance of y' given y, a step from nu to ``after``."""
        a = 1 - (after / nu) ** 2
        kept = 1.0 if self.variance is None else self.variance / (self.variance + nu**2)
        # Without moments the data count as narrow.
        made: Tensor | float = a * after**2 + (0.0 if self.variance is None else a**2 * nu**2 * kept)
        return made if isinstance(made, Tensor) else torch.tensor(made, dtype=torch.float64, device="cpu")


def _step(
    factors: Sequence[_Factor], noises: Sequence[Tensor], nu: float, after: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean move (n, *), the move's deviation, and the log weights (n,) of a step from nu to ``after``."""
    a = 1 - (after / nu) ** 2
    spreads = [factor.spread(nu, after) for factor in factors]
    powers = [factor.power for factor in factors]
    whole, brownian = sum(powers), a * nu**2
    variances = [factor.variance for factor in factors]
    far = all(c is not None and after**2 >= FAR * float(c.max()) for c in variances)
    share = whole if far and whole > 0 else 1.0
    precision = sum_weighted(powers, [1 / v for v in spreads]) + (share - whole) / brownian
    if bool((precision <= 0).any()):
        # Factors of very different variances: one variance for all.
        spreads = [torch.stack([v.mean() for v in spreads]).mean()] * len(factors)
        precision = whole / spreads[0] + (share - whole) / brownian
    moves = [(-a * nu) * noise for noise in noises]
    like = moves[0]
    per = [(power / v).to(like) for power, v in zip(powers, spreads, strict=True)]
    mean = sum_weighted(per, moves) / precision.to(like)
    gain = precision.to(like) * mean.square() - sum_weighted(per, [move.square() for move in moves])
    constant = precision.log() + sum_weighted(powers, [v.log() for v in spreads])
    constant = (constant + math.log(brownian / share) - whole * math.log(brownian)).expand(like.shape[1:])
    total = 0.5 * flat(gain.double()).sum(1) - 0.5 * float(constant.sum())
    return mean, precision.rsqrt().to(like), total.cpu()


def levels(sde: GaussianSDE, steps: int, start: float | None = None) -> Point:
    """Return steps + 1 points of equal log-SNR from the top of an SDE, where alpha > 0, or from ``start`` to t_min."""
    first = sde.t_max if start is None else start
    top, bottom = (float(sde.log_snr(torch.tensor(t, dtype=torch.float64, device="cpu"))) for t in (first, sde.t_min))
    values = torch.linspace(max(top, LOWEST), bottom, steps + 1, dtype=torch.float64, device="cpu")
    times = sde.time(values)
    if top >= LOWEST:
        times[0] = first
    times[-1] = sde.t_min
    return sde.at(times)


def expand_condition(
    cond: Mapping[str, float | Sequence[float]] | None, count: int, device: torch.device
) -> dict[str, Tensor] | None:
    """Return conditions of a batch from one value for all."""
    if cond is None:
        return None
    values = {}
    for name, value in check_mapping(cond, "cond", "values").items():
        try:
            values[name] = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DTypeError(f"cond[{name!r}] must be a number or numbers, got {show(value)}") from error
    return {name: value.expand(count, *value.shape) for name, value in values.items()}


def _find_event(model: Predictor, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is not None:
        return check_sizes(shape, "shape", 1)
    part = next((part for part in model.modules() if isinstance(part, Predictor) and part.moments is not None), None)
    if part is None or part.moments is None:
        raise ConfigError("the model knows no moments, so no event; pass shape=, of one sample")
    return tuple(part.moments.mean.shape)


def _start_law(factors: Sequence[_Factor], nu: float) -> Gaussian:
    """Return the product of the Gaussians that the factors are at the first level, coordinate by coordinate."""
    precision, pull = (
        torch.zeros((), dtype=torch.float64, device="cpu"),
        torch.zeros((), dtype=torch.float64, device="cpu"),
    )
    for factor in factors:
        variance = nu**2 + (0.0 if factor.variance is None else factor.variance)
        precision, pull = precision + factor.power / variance, pull + factor.power * factor.mean / variance
    if float(precision.min()) <= 0:
        powers = ", ".join(f"{factor.power:g}" for factor in factors)
        raise DomainError(f"the product of powers {powers} is no law at t_max; let them add up to more than 0")
    return Gaussian(pull / precision, 1 / precision)


def _systematic(log_weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` places drawn by their weights, with one random offset for all (Kitagawa 1996)."""
    edges = torch.cumsum(torch.exp(log_weights - torch.logsumexp(log_weights, 0)), 0)
    offset = float(uniform((1,), generator))
    at = (torch.arange(count, dtype=torch.float64, device="cpu") + offset) / count
    return torch.searchsorted(edges, at).clamp_max(len(log_weights) - 1)
