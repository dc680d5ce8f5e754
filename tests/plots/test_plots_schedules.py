"""The picture of diffusions side by side: what it draws against the closed forms, its axes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

from scoresde import (  # noqa: E402
    EDMSDE,
    VESDE,
    VPSDE,
    ConfigError,
    CosineVPSDE,
    DTypeError,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)
from scoresde.plots.schedules import schedules  # noqa: E402

Array = np.ndarray[Any, np.dtype[np.float64]]
ALL = [VPSDE(), SubVPSDE(), CosineVPSDE(), RectifiedFlow(), VESDE(), EDMSDE()]


def closed_forms(name: str, t: Array) -> tuple[Array, Array, Array, Array]:
    """Return alpha, sigma, f and g from the papers, with numpy alone."""
    integral, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
    theta, speed = math.pi / 2 * (t + 0.008) / 1.008, math.pi / 2 / 1.008
    one, zero = np.ones_like(t), np.zeros_like(t)
    if name == "VPSDE":
        return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral)), -beta / 2, np.sqrt(beta)
    if name == "SubVPSDE":
        return np.exp(-integral / 2), -np.expm1(-integral), -beta / 2, np.sqrt(beta * -np.expm1(-2 * integral))
    if name == "CosineVPSDE":
        alpha = np.cos(theta) / math.cos(speed * 0.008)
        return alpha, np.sqrt(1 - alpha**2), -speed * np.tan(theta), np.sqrt(2 * speed * np.tan(theta))
    if name == "RectifiedFlow":
        with np.errstate(divide="ignore"):
            return 1 - t, t, -1 / (1 - t), np.sqrt(2 * t / (1 - t))
    if name == "VESDE":
        sigma = 0.01 * 5000**t
        return one, sigma, zero, sigma * math.sqrt(2 * math.log(5000))
    return one, t, zero, np.sqrt(2 * t)


def curves(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def triangles(axes: Axes) -> list[tuple[float, float, object]]:
    """Return place across, place up the panel's edge, and shape of each triangle."""
    lines = [line for line in axes.lines if line.get_marker() in ("^", "v")]
    return [(line.get_xdata()[0], line.get_ydata()[0], line.get_marker()) for line in lines]


def test_every_curve_is_the_closed_form_at_its_own_times() -> None:
    alpha, sigma, log_snr, drift, diffusion = schedules(ALL).axes[:5]
    for sde in ALL:
        name = type(sde).__name__
        for place, axes in enumerate((alpha, sigma, drift, diffusion)):
            across, values = np.asarray(curves(axes)[name].get_data())
            expected = closed_forms(name, across * sde.t_max)[place]
            # Differences such as 1 - alpha^2 lose digits in numpy's plain forms above, not in the curve.
            np.testing.assert_allclose(values, expected, rtol=1e-8, atol=1e-12, err_msg=f"{name} {place}")
        across, values = np.asarray(curves(log_snr)[name].get_data())
        first, second = closed_forms(name, across * sde.t_max)[:2]
        np.testing.assert_allclose(values, 2 * np.log(first / second), rtol=1e-8, atol=1e-8, err_msg=name)


def test_curves_reach_both_ends_of_their_own_time() -> None:
    for axes in schedules(ALL).axes[:2]:
        for sde in ALL:
            across = curves(axes)[type(sde).__name__].get_xdata()
            assert across[0] == sde.t_min / sde.t_max
            assert across[-1] == 1.0


class Straight(GaussianSDE):
    """alpha = 1 - t/1.3, sigma = t."""

    def alpha(self, t):  # type: ignore[no-untyped-def]
        return 1 - t / 1.3

    def sigma(self, t):  # type: ignore[no-untyped-def]
        return t


def test_an_end_is_reached_to_the_bit() -> None:
    sde = Straight(t_min=0.0252, t_max=1.3)
    assert sde.t_min + (sde.t_max - sde.t_min) < sde.t_max  # a time at which log-SNR is finite, and nothing to see
    assert triangles(schedules([sde]).axes[2]) == [(1.0, 0.0, "v")]


@pytest.mark.parametrize(
    ("sdes", "label", "legend"),
    [
        ([VPSDE(), VESDE()], "time $t$", "VESDE"),
        ([VPSDE(), EDMSDE(0.01, 50.0)], r"time $t\,/\,t_{\mathrm{max}}$", "EDMSDE, t from 0.01 to 50"),
    ],
)
def test_the_axis_of_time_says_whether_it_is_scaled(sdes: list[GaussianSDE], label: str, legend: str) -> None:
    figure = schedules(sdes)
    assert {axes.get_xlabel() for axes in figure.axes[2:5]} == {label}
    texts = [text.get_text() for text in figure.axes[5].get_legend().get_texts()]
    assert texts[:2] == ["VPSDE", legend]


def test_where_alpha_reaches_zero_curves_stop_and_a_triangle_says_where_they_go() -> None:
    alpha, sigma, log_snr, drift, diffusion = schedules([RectifiedFlow(), VPSDE()]).axes[:5]
    for axes in (log_snr, drift, diffusion):
        across, values = np.asarray(curves(axes)["RectifiedFlow"].get_data())
        assert np.isfinite(values).all()
        assert across[-1] < 1.0
    assert triangles(alpha) == triangles(sigma) == []
    assert triangles(log_snr) == triangles(drift) == [(1.0, 0.0, "v")]
    assert triangles(diffusion) == [(1.0, 1.0, "^")]
    # A step before its end the rate is -65000: the axis is not stretched to it, nor cut within VP's -10.
    low, high = drift.get_ylim()
    assert -1000 < low < -10
    assert high >= 0


def test_an_axis_is_wide_only_where_values_go_beyond_one() -> None:
    figure = schedules([VPSDE(), VESDE()])
    assert [axes.get_yscale() for axes in figure.axes[:5]] == ["linear", "asinh", "linear", "asinh", "asinh"]
    assert schedules([VPSDE()]).axes[1].get_yscale() == "linear"
    for axes in figure.axes[:5]:
        low, high = axes.get_ylim()
        for line in curves(axes).values():
            assert low < min(line.get_ydata())
            assert max(line.get_ydata()) < high
        assert all(low <= tick <= high for tick in axes.get_yticks()) or axes.get_yscale() == "linear"


def test_curves_on_each_other_are_told_apart() -> None:
    lines = curves(schedules(ALL).axes[0]).values()
    assert len({line.get_color() for line in lines}) == len(ALL)
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(ALL)


def test_names_come_from_a_mapping_or_the_classes() -> None:
    named = {"slow": VPSDE(0.1, 5.0), "fast": VPSDE(0.1, 30.0)}
    assert list(curves(schedules(named).axes[0])) == ["slow", "fast"]
    with pytest.raises(ConfigError, match=r"sdes holds VPSDE more than once; name them"):
        schedules(list(named.values()))


def test_what_is_no_diffusion_is_refused() -> None:
    with pytest.raises(DTypeError, match=r"sdes must be diffusions in a list or by name, got VPSDE; put it in a list"):
        schedules(VPSDE())  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="must hold diffusions with alpha and sigma, got float for 'float'"):
        schedules([1.0])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="at least one diffusion, got none"):
        schedules([])
