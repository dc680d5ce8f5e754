"""A curve is asked on [0, t_max]: outside it and for NaN there is an error and no number."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DomainError,
    DTypeError,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)
from scoresde.diffusions.curves import CURVES, unchecked

F64 = torch.float64


class Own(GaussianSDE):
    """A diffusion of one's own, with the two curves alone."""

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.cos(0.5 * math.pi * torch.as_tensor(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.sin(0.5 * math.pi * torch.as_tensor(t))


SDES = [VPSDE(), CosineVPSDE(), SubVPSDE(), VESDE(), EDMSDE(), RectifiedFlow(), DDPM.linear(100).sde(), Own()]


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_a_time_outside_is_refused(sde: GaussianSDE, name: str) -> None:
    curve = getattr(sde, name)
    for bad in (-0.5, sde.t_max + 1, 1000.0, 500, math.nan, math.inf, -math.inf):
        with pytest.raises(DomainError, match=r"t must lie in \[0, .*\], got"):
            curve(bad)
        for dtype in (torch.float32, F64):
            with pytest.raises(DomainError, match=r"t must lie in \[0, .*\], got"):
                curve(torch.tensor([0.5 * sde.t_max, bad], dtype=dtype))
    inside = torch.tensor([sde.t_min, 0.5 * sde.t_max, sde.t_max])
    assert curve(inside).shape == (3,)  # float32's own rounding of t_max is no fault


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_the_loops_door_takes_any_time(sde: GaussianSDE) -> None:
    """A model is carried to where its own times end; no loop pays for the look."""
    later = torch.tensor(1.01 * sde.t_max, dtype=F64)
    assert bool((unchecked(lambda: sde.sigma(later)) == sde.at(later).sigma) | sde.at(later).sigma.isnan())
    t = torch.tensor(0.3 * sde.t_max, dtype=F64)
    assert torch.equal(sde.at(t).alpha, sde.alpha(t))


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_weights_between_times_outside_are_refused(sde: GaussianSDE) -> None:
    for s, t in ((0.5 * sde.t_max, 2 * sde.t_max), (-0.1, 0.5 * sde.t_max), (0.5 * sde.t_max, math.nan)):
        for weights in (sde.transition_weights, sde.posterior_weights):
            with pytest.raises(DomainError, match=r"t must lie in \[0, .*\], got"):
                weights(s, t)
    assert float(sde.transition_weights(0.0, sde.t_max)[1]) > 0


def test_integers_are_still_told_apart() -> None:
    with pytest.raises(DTypeError, match="a continuous time must be floating"):
        VPSDE().alpha(torch.tensor([5]))


@pytest.mark.parametrize("map_over", [torch.func.vmap, torch.compile])
def test_curves_pass_through_transforms_of_functions(map_over: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    """Where there are no values to look at, none are looked at."""
    if map_over is torch.compile:
        mapped = torch.compile(VPSDE().sigma, backend="eager", fullgraph=True)
    else:
        mapped = torch.func.vmap(VPSDE().sigma)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    assert torch.equal(mapped(t), VPSDE().sigma(t))


def test_the_check_is_on_again_after_an_error() -> None:
    def fail() -> Tensor:
        raise KeyError

    with pytest.raises(KeyError):
        unchecked(fail)
    with pytest.raises(DomainError):
        VPSDE().alpha(2.0)


def test_a_curve_of_ones_own_may_use_torchs_functions_alone() -> None:
    class Plain(GaussianSDE):  # whose methods get a number as a tensor
        def alpha(self, t: Tensor) -> Tensor:
            return torch.exp(-4.0 * t)

        def sigma(self, t: Tensor) -> Tensor:
            return (-torch.expm1(-8.0 * t)).sqrt()

    sde = Plain()
    assert float(sde.sigma(0.2)) == pytest.approx(math.sqrt(1 - math.exp(-1.6)), rel=1e-14)
    assert sde.alpha(0.2).dtype == F64
