"""Power-function averages: their profile, their width, and any other width afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from small_models import DATA, same, tiny, weights
from torch import Tensor, nn

from scoresde import CheckpointError, DomainError, ScoreModel, TrainingWarning, fit
from scoresde.models import checkpoint
from scoresde.noise import normal, stream
from scoresde.training import EMA, rebuild_average
from scoresde.training.averages import mix_profiles
from scoresde.training.ema import power_of

OPTIONS: dict[str, Any] = {"batch_size": 16, "progress": False, "learning_rate": 1e-2}


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.15, 0.25, 12**-0.5])
def test_the_width_of_the_profile_is_what_was_asked(sigma_rel: float) -> None:
    """The standard deviation of the density (g + 1) s^g on [0, 1]."""
    power = power_of(sigma_rel)

    def moment(k: int) -> float:
        return quad(lambda s: (power + 1) * s ** (power + k), 0, 1)[0]

    assert np.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(sigma_rel, rel=1e-8)


class Walk(nn.Module):
    """A parameter that is where it is put."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(5, dtype=torch.float64))


def follow(sigma_rel: float, path: Tensor, every: int = 1) -> Tensor:
    module = Walk()
    average = EMA(module, sigma_rel=sigma_rel, every=every)
    for place in path:
        with torch.no_grad():
            module.place.copy_(place)
        average.update()
    return average.values()["place"]


def test_the_average_has_the_weights_of_its_products() -> None:
    """Step s weighs (1 - (1 - 1/s)^(g+1)) prod (1 - 1/r)^(g+1) over r > s, which is (s/t)^(g+1) - ((s-1)/t)^(g+1)."""
    path = normal((60, 5), stream(0), dtype=torch.float64)
    power, s = power_of(0.08), torch.arange(1, 61, dtype=torch.float64)
    share = (s / 60) ** (power + 1) - ((s - 1) / 60) ** (power + 1)
    torch.testing.assert_close(follow(0.08, path), (share[:, None] * path).sum(0), rtol=1e-12, atol=1e-14)
    # Every fourth step stands for four: the same where the path rests for four steps.
    resting = path[:15].repeat_interleave(4, 0)
    torch.testing.assert_close(follow(0.08, resting, every=4), follow(0.08, resting), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(follow(12**-0.5, path), path.mean(0), rtol=1e-12, atol=1e-14)


def test_an_average_that_begins_anew_is_at_the_weights() -> None:
    module = Walk()
    average = EMA(module, 0.9)
    for place in normal((20, 5), stream(1), dtype=torch.float64):
        with torch.no_grad():
            module.place.copy_(place)
        average.update()
    average.begin_anew()
    assert torch.equal(average.values()["place"], module.place.detach())


def test_the_nearest_combination_of_profiles_is_that_of_their_integrals() -> None:
    """Two kept profiles x and 1 - x of them: x = <q - p_2, p_1 - p_2>/|p_1 - p_2|^2, by quadrature."""

    def profile(u: float, g: float, end: float) -> float:
        return (g + 1) * u**g / end ** (g + 1) if u <= end else 0.0

    for first, second, wanted in (
        ((3.0, 0.7), (9.0, 1.0), (5.0, 1.0)),
        ((9.0, 1.0), (3.0, 0.7), (4.0, 0.9)),
        ((5.0, 1.0), (2.0, 1.0), (5.0, 1.0)),
    ):

        def over(left: tuple, right: tuple, also: tuple, last: tuple) -> float:
            ends = sorted({left[1], right[1], also[1], last[1]})
            parts = zip([0.0, *ends], ends, strict=False)
            return sum(
                quad(
                    lambda u: (profile(u, *left) - profile(u, *right)) * (profile(u, *also) - profile(u, *last)), *part
                )[0]
                for part in parts
            )

        share = over(wanted, second, first, second) / over(first, second, first, second)
        powers, times = np.array([first[0], second[0]]), np.array([first[1], second[1]])
        found, missed = mix_profiles(powers, times, *wanted)
        assert found == pytest.approx([share, 1 - share], rel=1e-6, abs=1e-8)
        if wanted == first:
            assert missed < 1e-6


def test_a_profile_that_none_is_near_is_said(tmp_path: Path) -> None:
    fit(tiny(), DATA, folder=tmp_path, sigma_rel=0.1, steps=100, save_every=50, **OPTIONS)
    with pytest.warns(TrainingWarning, match=r"miss [0-9]+% of the profile of sigma_rel=0.02 at step 75; save more"):
        rebuild_average(tmp_path, 0.02, step=75)
    with pytest.raises(DomainError, match=r"step must be in \[50, 100\], the steps whose averages were kept, got 20"):
        rebuild_average(tmp_path, 0.1, step=20)


def test_rebuilt_averages_are_those_that_were_kept(tmp_path: Path) -> None:
    """One that was kept comes back to 1e-6; one that was not is close to that of a second run which keeps it."""
    options = {**OPTIONS, "steps": 400, "save_every": 25}
    fit(tiny(), DATA, folder=tmp_path / "run", sigma_rel=(0.05, 0.10), **options)
    result = fit(tiny(), DATA, folder=tmp_path / "other", sigma_rel=(0.075, 0.05, 0.1), **options)
    raw = ScoreModel.load(tmp_path / "run", weights="raw")
    for part, width in (("a", 0.05), ("b", 0.10)):
        kept = checkpoint.read(tmp_path / "run" / "averages" / "0000000400").tensors(f"average_{part}")
        rebuilt = rebuild_average(tmp_path / "run", width).net.state_dict()
        for name, value in kept.items():
            torch.testing.assert_close(rebuilt[name], value, rtol=1e-6, atol=1e-6)

    def distance(one: list[Tensor], other: list[Tensor]) -> float:
        return float(sum((a - b).square().sum() for a, b in zip(one, other, strict=True)).sqrt())

    wanted = weights(result.model)
    found = weights(rebuild_average(tmp_path / "run", 0.075))
    nearest = min(distance(wanted, weights(rebuild_average(tmp_path / "run", w))) for w in (0.05, 0.1))
    assert distance(wanted, found) < 0.05 * distance(wanted, weights(raw))
    assert distance(wanted, found) < 0.1 * nearest
    early = rebuild_average(tmp_path / "run", 0.05, step=200).net.state_dict()
    for name, value in checkpoint.read(tmp_path / "run" / "averages" / "0000000200").tensors("average_a").items():
        torch.testing.assert_close(early[name], value, rtol=1e-6, atol=1e-6)


def test_a_run_with_several_averages_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record["step"] == 9:
            raise Stop

    given = {**OPTIONS, "steps": 12, "save_every": 4, "sigma_rel": (0.05, 0.1)}
    whole = fit(tiny(), DATA, folder=tmp_path / "whole", **given)
    with pytest.raises(Stop):
        fit(tiny(), DATA, folder=tmp_path / "cut", log_every=1, on_log=stop, **given)
    cut = fit(tiny(), DATA, folder=tmp_path / "cut", resume=True, **given)
    assert same(weights(whole.model), weights(cut.model))
    for step in ("0000000004", "0000000012"):
        one, other = (checkpoint.read(tmp_path / name / "averages" / step) for name in ("whole", "cut"))
        assert one.files == other.files


def test_what_cannot_be_rebuilt_says_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no averages of several widths; train with fit"):
        rebuild_average(tmp_path, 0.1)
    fit(tiny(), DATA, folder=tmp_path / "run", sigma_rel=0.1, steps=4, **OPTIONS)
    with pytest.raises(DomainError, match=r"sigma_rel must lie in \(0, 0.28"):
        rebuild_average(tmp_path / "run", 0.3)
    with pytest.raises(DomainError, match=r"step must be in \[1, 4\], the steps whose averages were kept, got 5"):
        rebuild_average(tmp_path / "run", 0.1, step=5)
