r"""Averages after the fact: any width of a power-function average from a few that were kept on the way.

A training with ``fit(sigma_rel=(0.05, 0.1), folder=...)`` keeps, with every checkpoint that is due, its averages of the
profiles p_i(s) = (gamma_i + 1) s^gamma_i/t_i^{gamma_i + 1}, s <= t_i. The average of another profile p is close to the
combination of those whose profile is nearest to p in the square norm. With <p, q> the integral of p q over s,

    <p_a, p_b> = (a + 1)(b + 1)(t_a/t_b)^e/((a + b + 1) max(t_a, t_b)),    e = b if t_a < t_b else -a,

the coefficients x solve A x + m = c, sum x = 1, with A_ij = <p_i, p_j> and c_i = <p_i, p>. They need not be positive.
An average that was kept itself comes back as it is.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", arXiv:2312.02696,
section 3 and appendix C.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoresde.errors.kinds import CheckpointError, DomainError, TrainingWarning
from scoresde.errors.values import check_integer, check_path
from scoresde.models import checkpoint
from scoresde.models.manifest import MANIFEST
from scoresde.models.networks import network_state
from scoresde.models.score_model import ScoreModel
from scoresde.sampling.processes import World
from scoresde.training.ema import EMA, power_of
from scoresde.training.sharding import write_together
from scoresde.training.sources import ALONE

__all__ = ["AVERAGES", "is_kept", "keep_averages", "mix_profiles", "rebuild_average"]

AVERAGES = "averages"  # the folder of the snapshots in a run's
PART = "average"
MISSED = 0.5  # of a profile, above which it is said


def keep_averages(folder: Path, step: int, averages: list[EMA], world: World = ALONE) -> None:
    """Write the averages of a step beside those of the steps before; of several processes as ``write_together``."""
    widths = [average.sigma_rel for average in averages]
    tensors = {f"{PART}_{'abcdefgh'[i]}": average.values() for i, average in enumerate(averages)}
    write_together(
        folder / AVERAGES / f"{step:010d}",
        {PART: {"step": step, "time": averages[0].time, "sigma_rel": widths}},
        tensors,
        world,
    )


def is_kept(folder: Path, step: int) -> bool:
    """Return whether the averages of a step are there."""
    return (folder / AVERAGES / f"{step:010d}" / MANIFEST).is_file()


def mix_profiles(
    powers: NDArray[np.float64], times: NDArray[np.float64], power: float, time: float
) -> tuple[NDArray[np.float64], float]:
    """Return the coefficients of kept profiles (n,), of sum 1, whose combination is nearest to another profile.

    And how much of that profile they miss, a share of its norm.
    """

    def product(
        a: NDArray[np.float64], s: NDArray[np.float64], b: NDArray[np.float64], t: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        exponent = np.where(s < t, b, -a)
        return np.asarray((a + 1) * (b + 1) * (s / t) ** exponent / ((a + b + 1) * np.maximum(s, t)))

    gram = product(powers[:, None], times[:, None], powers[None, :], times[None, :])
    wanted = product(powers, times, np.full_like(powers, power), np.full_like(times, time))
    # Scaled to unit profiles, whose products are then cosines, and with a multiplier for the sum.
    size, n = np.sqrt(np.diag(gram)), len(powers)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[:n, n], system[n, :n] = gram / np.outer(size, size), 1 / size, 1 / size
    found = np.linalg.lstsq(system, np.append(wanted / size, 1.0), rcond=1e-12)[0][:n] / size
    own = float(product(np.array([power]), np.array([time]), np.array([power]), np.array([time]))[0])
    missed = float(found @ gram @ found - 2 * found @ wanted + own)
    return np.asarray(found), math.sqrt(max(0.0, missed / own))


def rebuild_average(
    folder: str | os.PathLike[str],
    sigma_rel: float,
    *,
    step: int | None = None,
    net: Callable[..., Tensor] | None = None,
) -> ScoreModel:
    """Return the model of a run with the power-function average of another width, or of an earlier step.

    Args:
        folder: of ``fit(folder=..., sigma_rel=...)``.
        sigma_rel: the width, a share of the steps made until then, in (0, 12^-1/2].
        step: the step whose average is meant, one of those kept or between two of them; None for the last.
        net: your own network, as for ``ScoreModel.load``.

    Raises:
        CheckpointError: no averages were kept there, or a file is damaged. DomainError: a width or a step out of range.
    """
    power, where = power_of(sigma_rel), check_path(folder, "folder")
    places = sorted((where / AVERAGES).glob("[0-9]*")) if (where / AVERAGES).is_dir() else []
    if not places:
        raise CheckpointError(f"{where} holds no averages of several widths; train with fit(folder=, sigma_rel=(...))")
    steps = [int(place.name) for place in places]
    last = steps[-1] if step is None else check_integer(step, "step", 1)
    if not steps[0] <= last <= steps[-1]:
        raise DomainError(f"step must be in [{steps[0]}, {steps[-1]}], the steps whose averages were kept, got {last}")
    # Those just after the step tell of it, too.
    enough = next(k for k, at in enumerate(steps) if at >= last) + 1
    kept = [checkpoint.read(place) for place in places[:enough]]
    entries = [
        (index, part, width)
        for index, contents in enumerate(kept)
        for part, width in zip("abcdefgh", contents.document(PART)["sigma_rel"], strict=False)
    ]
    powers = np.array([power_of(width) for _, _, width in entries])
    times = np.array([float(kept[index].document(PART)["time"]) for index, _, _ in entries])
    # A step that was kept is meant as it was kept: some averages know of every eighth step.
    wanted = times[steps.index(last) * (len(entries) // len(kept))] if last in steps else float(last)
    weights, missed = mix_profiles(powers, times, power, float(wanted))
    if missed > MISSED:
        warnings.warn(
            f"the averages that were kept miss {missed:.0%} of the profile of sigma_rel={sigma_rel:g} at step {last}; "
            "save more often, or keep a width nearer to it",
            TrainingWarning,
            stacklevel=2,
        )
    total: dict[str, Tensor] = {}
    for (index, part, _), weight in zip(entries, weights, strict=True):
        for name, value in kept[index].tensors(f"{PART}_{part}").items():
            share = value.double() * float(weight)
            total[name] = share if name not in total else total[name] + share
    model = ScoreModel.load(where, net=net, weights="raw")
    model.calibration = None
    model.tables.clear()
    _put(model, total)
    return model


def _put(model: ScoreModel, averages: Mapping[str, Tensor]) -> None:
    assert isinstance(model.net, nn.Module)
    state = network_state(model.net)
    missing = [name for name in averages if name not in state]
    if missing:
        raise CheckpointError(f"the averages are of another network: it has no {missing[0]!r}")
    with torch.no_grad():
        for name, value in averages.items():
            state[name].copy_(value)
