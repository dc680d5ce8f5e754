r"""From data of one's own: denoising, editing, and filling in what is missing.

*Denoising.* y = x + N(0, s^2) is alpha^{-1} x_t at the level sigma/alpha = s: from there the reverse SDE draws from
p(x | y), whatever the model was trained for, and the data prediction is its mean.

*SDEdit* (Meng et al. 2022, arXiv:2108.01073) noises data up to a time and comes back down.

*Filling in.* Values that are NaN are drawn given the others, by a method of ``posterior`` with a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.errors.kinds import ConfigError, DomainError
from scoresde.errors.tensors import check_floating, check_samples
from scoresde.errors.values import check_flag, check_integer, check_number
from scoresde.models.checks import check_data_event, check_event, check_model
from scoresde.models.guidance.methods import Method, MethodName
from scoresde.models.guidance.operators import Mask
from scoresde.models.guidance.posteriors import MEASUREMENT, posterior
from scoresde.models.prediction import Condition, Predictor
from scoresde.noise import check_seed, normal, stream
from scoresde.sampling.particles import levels
from scoresde.sampling.sample import sample
from scoresde.solvers.named import DEFAULT, SolverName
from scoresde.solvers.solver import Solver

__all__ = ["denoise", "edit", "impute"]

NOISY: SolverName = "dpmpp_2m_sde"  # p(x | y) needs a solver that draws noise


def denoise(
    model: Predictor,
    y: Tensor,
    *,
    noise_std: float,
    steps: int = 20,
    solver: SolverName | Solver = NOISY,
    cond: Condition = None,
    seed: int = 0,
) -> Tensor:
    """Return one sample of p(x | y) for each y (B, *), y = x + N(0, noise_std^2), in the data's units.

    Args:
        model: the prior.
        y: noisy data; a transform of the model's must stretch all coordinates alike.
        noise_std: in the unit of y.
        steps: from the level of the noise down.
        solver: one that draws noise; with one that draws none the result is one point of the posterior.
        cond: conditions of the batch.
        seed: of the noise.

    Raises:
        DTypeError, ShapeError, DomainError: y is no data of the model's, or the noise is outside the SDE's levels.
        ConfigError: a transform that stretches coordinates differently (``sample_posterior`` serves it).
    """
    known = check_model(model)
    data = check_samples(y, "y").detach()
    check_event(known.moments, data.shape, "y")
    std = check_number(noise_std, "noise_std", 0.0, open_low=True)
    z = data
    if known.transform is not None:
        z = known.transform.forward(data)
        stretched = known.transform.forward(data + std) - z
        if not bool(((stretched - stretched.mean()).abs() < 1e-3 * stretched.abs().mean()).all()):
            raise ConfigError(
                "the model's transform stretches coordinates differently, so the noise is of no one level; use "
                "sample_posterior(model, guidance.Linear(lambda x: x), y, n, noise_std=...)"
            )
        std = float(stretched.abs().mean())
    sde = known.sde
    wanted = torch.tensor(std, dtype=torch.float64, device="cpu").log().mul(-2)
    low, high = (float(sde.log_snr(torch.tensor(t, dtype=torch.float64, device="cpu"))) for t in (sde.t_max, sde.t_min))
    if not low <= float(wanted) <= high:
        raise DomainError(
            f"noise_std must be a level of the SDE, of log-SNR {low:.3g} to {high:.3g}, got {float(wanted):.3g}"
        )
    t = float(sde.time(wanted))
    start = float(sde.alpha(torch.tensor(t, dtype=torch.float64, device="cpu"))) * z
    return _come_down(known, start, t, steps, solver, cond, seed)


def edit(
    model: Predictor,
    x: Tensor,
    *,
    strength: float = 0.5,
    steps: int = 20,
    solver: SolverName | Solver = DEFAULT,
    cond: Condition = None,
    seed: int = 0,
) -> Tensor:
    """Return data like x (B, *): noised up to a share ``strength`` of the way to t_max, and brought back (SDEdit).

    Args:
        model: the prior.
        x: data, e.g. a sketch, in the data's units.
        strength: in (0, 1]; 1 keeps nothing of x.
        steps: on the way down.
        solver: of the way down.
        cond: conditions of the batch.
        seed: of the noise.

    Raises:
        DTypeError, ShapeError, DomainError: x is no data of the model's, or a strength out of range.
    """
    known = check_model(model)
    data = check_samples(x).detach()
    check_data_event(known, data.shape, "x")
    share = check_number(strength, "strength", 0.0, 1.0, open_low=True)
    check_seed(seed)
    z = data if known.transform is None else known.transform.forward(data, stream(seed, "edit", "transform"))
    sde = known.sde
    t = sde.t_min + share * (sde.t_max - sde.t_min)
    noise = normal(tuple(z.shape), stream(seed, "edit", device=z.device), dtype=z.dtype)
    return _come_down(known, sde.perturb(z, t, noise), t, steps, solver, cond, seed)


def impute(
    model: Predictor,
    x: Tensor,
    *,
    draws: int = 1,
    noise_std: float = 0.0,
    method: MethodName | Method = "mmps",
    steps: int = 50,
    solver: SolverName | Solver = DEFAULT,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Return x (B, *) with its NaN filled in, ``draws`` times: (B, draws, *).

    What is known comes back as it was if ``noise_std`` is 0. The draws then take it for known to three hundredths of
    its standard deviation: a network is not exact to more. Rows with the same gaps are drawn in one batch.

    Args:
        model: the prior.
        x: data with NaN for what is missing, in the data's units.
        draws: for each row.
        noise_std: of what is known, in the unit of x.
        method: of ``posterior``.
        steps: of the solver.
        solver: of the samples.
        seed: of the noise.
        progress: show a bar, of the kinds of gaps.

    Raises:
        DTypeError, ShapeError, DomainError, ConfigError: x is no data of the model's but for NaN; as ``posterior``.
    """
    known = check_model(model)
    check_floating(x)
    check_samples(x.nan_to_num(nan=0.0, posinf=float("inf"), neginf=-float("inf")))
    check_event(known.moments, x.shape, "x")
    count = check_integer(draws, "draws", 1)
    check_flag(progress, "progress")
    kept = (~x.isnan()).flatten(1)
    least = 0.03 * float(x[~x.isnan()].std(correction=0)) if bool(kept.any()) else 0.0
    told_std = max(check_number(noise_std, "noise_std", 0.0), least)
    patterns, which = torch.unique(kept, dim=0, return_inverse=True)
    made = x[:, None].repeat(1, count, *(1,) * (x.ndim - 1))
    for k, pattern in enumerate(tqdm(patterns, desc="imputing", unit="pattern", disable=not progress, leave=False)):
        rows, keep = (which == k).nonzero()[:, 0], pattern.reshape(x.shape[1:])
        if bool(keep.all()):
            continue
        shape = (len(rows) * count, *x.shape[1:])
        inside: Predictor = known
        told = None
        if bool(keep.any()):
            inside = posterior(known, Mask(keep), None, noise_std=told_std, method=method, event=tuple(x.shape[1:]))
            told = {MEASUREMENT: x[rows][:, keep].repeat_interleave(count, 0)}
        first = k * len(x) * count
        found = sample(inside, shape, cond=told, solver=solver, steps=steps, seed=seed, first_sample=first)
        filled = found.reshape(len(rows), count, *x.shape[1:]).to(x)
        made[rows] = torch.where(keep & (noise_std == 0), made[rows], filled)
    return made


def _come_down(
    model: Predictor, state: Tensor, t: float, steps: int, solver: SolverName | Solver, cond: Condition, seed: int
) -> Tensor:
    """Return data from a state of the model's SDE at time t."""
    times = levels(model.sde, check_integer(steps, "steps", 2) - 1, start=t).t
    return sample(model, x_init=state, solver=solver, times=times, cond=cond, seed=seed)
