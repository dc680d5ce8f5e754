r"""What a weight and times make of the network's own error, seen before the training begins.

The loss counts the squared error of the network's output F with f = w c_out^2 at times drawn from a law. Where a small
part of that law carries nearly all of E[f], the gradient is that of a few samples and the rest is not learned.
"""

from __future__ import annotations

import warnings

import torch

from scoresde.diffusions.levels import VESDE
from scoresde.errors.kinds import TrainingWarning
from scoresde.errors.names import pick
from scoresde.models.score_model import ScoreModel
from scoresde.noise import stream
from scoresde.training.losses.defaults import choose_loss, describe_loss
from scoresde.training.losses.denoising import read_scalars
from scoresde.training.losses.times import TIMES, TimeLaw, TimeSampler, TimesName, correct_weight
from scoresde.training.losses.weights import WEIGHTS, Weight, WeightName, carries_rate

__all__ = ["measure_heaviest", "warn_of_loss"]

TOP, MOST = 0.05, 0.99
PLACES = 16384


def measure_heaviest(
    model: ScoreModel,
    weight: WeightName | Weight | None = None,
    times: TimesName | TimeSampler | None = None,
) -> float:
    """Return the share of E[f] that the heaviest twentieth of the times carries: 0.05 where f is level, 1 at most.

    f is read at the middles of equal parts of the law, or at times that a function of your own draws.
    """
    weight, times = choose_loss(model, weight, times)
    draw, sde = pick("time sampler", times, TIMES), model.sde
    if isinstance(draw, TimeLaw):
        u = (torch.arange(PLACES, dtype=torch.float64, device="cpu") + 0.5) / PLACES
        t = draw.quantile(sde, u).clamp(sde.t_min, sde.t_max)
    else:
        t = draw(PLACES, sde, stream(0, "caution"))
    weigh = correct_weight(pick("weight", weight, WEIGHTS), draw)
    factors = read_scalars(model, sde.at(t), weigh).multipliers.loss.sort(descending=True).values
    return float(factors[: round(TOP * PLACES)].sum() / factors.sum())


def warn_of_loss(model: ScoreModel, weight: WeightName | Weight | None, times: TimesName | TimeSampler | None) -> None:
    """Warn of a weight, times and a prediction under which little is learned, and say which serve."""
    given = describe_loss(model, weight, times)
    weight, times = choose_loss(model, weight, times)
    weigh, draw = pick("weight", weight, WEIGHTS), pick("time sampler", times, TIMES)
    heaviest = measure_heaviest(model, weight, times)
    found = ""
    if heaviest > MOST:
        usual = describe_loss(model, None, None)
        found = (
            f"the heaviest 5 % of the times carry {heaviest:.1%} of the weight on the network's error, and the rest is "
            f'hardly learned; take weight="{usual["weight"]}" with times="{usual["times"]}", the default'
        )
    elif draw is TIMES["log_snr"] and carries_rate(weigh) and not _is_level(model):
        level = bool(
            torch.isfinite(model.sde.log_snr(torch.tensor(model.sde.t_max, dtype=torch.float64, device="cpu")))
        )
        found = (
            "the weight has the density of log-SNR as a factor already, and times drawn evenly in log-SNR count it a "
            f'second time; take times="{"importance" if level else "low_discrepancy"}"'
        )
    elif model.parameterization.name == "score" or (
        model.parameterization.name == "velocity" and isinstance(model.sde, VESDE)
    ):
        found = (
            f"the {model.parameterization.name} that the network has to give spans decades here, and is learned up to "
            '5 times worse than the best (benchmarks/training_pairs.py); take predicts="noise", from which it is read'
        )
    if found:
        # The caller of fit, behind the function that explains its keywords.
        warnings.warn(f"weight {given['weight']} with times {given['times']}: {found}", TrainingWarning, stacklevel=4)


def _is_level(model: ScoreModel) -> bool:
    """Return whether log-SNR is linear in t, so that its density changes nothing."""
    ends = torch.linspace(model.sde.t_min, model.sde.t_max, 5, dtype=torch.float64, device="cpu")
    steps = model.sde.log_snr(ends).diff()
    return torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-6)
