"""``time``, the inverse of ``log_snr``: one answer of all diffusions outside of what they reach, and at their ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DomainError,
    DTypeError,
    GaussianModel,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
    TabulatedSDE,
)

F64 = torch.float64
KNOTS = torch.linspace(0.01, 0.95, 30, dtype=F64)


class OwnVE(GaussianSDE):
    """A user's own, inverted by bisection, whose noise does not vanish at t = 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return 0.1 + 9 * t


SDES = [
    VPSDE(),
    VPSDE(beta_min=0.0),
    SubVPSDE(),
    VESDE(),
    EDMSDE(),
    CosineVPSDE(),
    CosineVPSDE(offset=0.0),
    RectifiedFlow(),
    RectifiedFlow(t_max=0.9),
    TabulatedSDE(KNOTS, VPSDE().log_snr(KNOTS)),
    OwnVE(),
]


def ends(sde: GaussianSDE) -> tuple[float, float, float]:
    """The first time that has a log_snr, and the smallest and largest log_snr."""
    first = sde.t_min if isinstance(sde, TabulatedSDE) else 0.0
    return first, float(sde.log_snr(sde.t_max)), float(sde.log_snr(first))


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_ends_have_their_times_and_what_lies_beyond_has_none(sde: GaussianSDE) -> None:
    first, low, high = ends(sde)
    assert float(sde.time(low)) == pytest.approx(sde.t_max, rel=1e-12)
    assert float(sde.time(high)) == pytest.approx(first, rel=1e-12, abs=1e-15)
    if math.isfinite(low):
        for bad in (low - 1e-3, -1e3, -math.inf):
            with pytest.raises(DomainError, match=rf"log_snr must be at least .*, reached at t_max = .*; got {bad:g}"):
                sde.time(torch.tensor([0.5 * (low + min(high, 9.0)), bad], dtype=F64))
    if math.isfinite(high):
        for bad in (high + 1e-3, 1e3, math.inf):
            with pytest.raises(DomainError, match=rf"log_snr must be at most .*; got {bad:g}"):
                sde.time(bad)
    with pytest.raises(DomainError, match="got nan"):
        sde.time(math.nan)
    with pytest.raises(DTypeError):
        sde.time(torch.tensor([1]))


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_a_type_is_no_reason_to_refuse(sde: GaussianSDE, dtype: torch.dtype) -> None:
    """One unit in the last place beyond an end is that end."""
    first, low, high = ends(sde)
    for end, way, t in ((low, -math.inf, sde.t_max), (high, math.inf, first)):
        if math.isfinite(end):
            beyond = torch.tensor(end, dtype=dtype)
            beyond = beyond.nextafter(torch.tensor(way, dtype=dtype))
            got = sde.time(beyond)
            assert got.dtype == dtype
            assert float(got) == pytest.approx(float(torch.tensor(t, dtype=dtype)), rel=1e-15, abs=1e-15)


def test_a_model_carried_beyond_its_own_times_goes_on_where_the_curves_do() -> None:
    """VE stops at sigma = 50, and VP's end has more noise: the closed form goes on to the same log-SNR."""
    point = VPSDE().at(1.0)
    home = VESDE().match(point)
    assert float(home.t) > 1.0
    assert float(home.log_snr) == pytest.approx(float(point.log_snr), rel=1e-12)
    mean, covariance = torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)
    carried = GaussianModel(sde=VESDE(), mean=mean, covariance=covariance).with_sde(VPSDE())
    x = torch.tensor([[0.3, -0.4]], dtype=F64)
    torch.testing.assert_close(carried(x, 1.0).score, -x, rtol=1e-12, atol=0)
    with pytest.raises(DomainError, match="log_snr must be at least"):
        OwnVE().match(point)


def test_a_time_of_ones_own_is_asked_wherever_a_model_is_carried() -> None:
    class Own(VESDE):
        def time(self, log_snr: Tensor | float) -> Tensor:
            return torch.as_tensor(log_snr) * 0 + 0.25

    assert float(Own().match(VPSDE().at(0.5)).t) == 0.25
