"""What the Fokker-Planck equation refuses; the picture of a density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from densities import F64, Linear, exact, mixture, normal
from torch import Tensor

from scoresde import (
    VPSDE,
    ConfigError,
    Densities,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    RectifiedFlow,
    ShapeError,
    SolverError,
    evolve_density,
    plots,
)

# ---------------------------------------------------------------------------------------------------------------------
# Faults


class Singular(Linear):
    """A diffusion that is infinite at t = 0.5."""

    def diffusion(self, t: Tensor | float) -> Tensor:
        return (0.5 - torch.as_tensor(t)).abs().rsqrt()


class Wild(Linear):
    """A drift that is infinite at x = 0."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return 1 / (x * 0)


class Wrong(Linear):
    """A drift of another shape."""

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return x[:, :0]


def call(sde: object = None, start: object = None, box: object = ((-5.0, 5.0, 100),), times=(0.1, 0.5), **options):
    law = normal(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64) * 0.5)
    given = torch.tensor(times, dtype=F64) if isinstance(times, tuple) else times
    return evolve_density(Linear() if sde is None else sde, law if start is None else start, box, given, **options)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"sde": 3}, DTypeError, "sde must be an SDE"),
        ({"box": 3}, DTypeError, "box must be"),
        ({"box": [(0.0, 1.0)]}, DTypeError, "box must be"),
        ({"box": [(0.0, 1.0, 50)] * 3}, ShapeError, "box must have one or two axes, got 3"),
        ({"box": [(1.0, 1.0, 50)]}, DomainError, r"box\[0\]\[1\] must lie in \(1, inf\)"),
        ({"box": [(0.0, 1.0, 4)]}, DomainError, r"box\[0\]\[2\] must be at least 8"),
        ({"box": [(0.0, 1.0, 2**63)]}, DomainError, r"box\[0\]\[2\] must be at most 2147483647, got 9223372"),
        ({"box": [(0.0, 1.0, 10**7 + 1)]}, DomainError, "box must have at most 10000000 cells in all, got 10000001"),
        ({"box": [(0.0, 1.0, 9000)] * 2}, DomainError, "box must have at most 10000000 cells in all, got 9000 x 9000"),
        ({"times": (0.1,)}, ShapeError, "times must be a tensor of at least two times"),
        ({"times": [0.1, 0.2]}, ShapeError, "times must be a tensor of at least two times"),
        ({"times": (0.1, 0.3, 0.2)}, DomainError, "times must increase or decrease strictly"),
        ({"times": (0.1, 3.0)}, DomainError, r"t must lie in \[1e-05, 1\], got 3"),
        ({"times": (0.5, 0.1)}, ConfigError, "times must increase for Linear.*pass sde.reverse"),
        ({"sde": Linear().reverse(lambda x, t: -x)}, ConfigError, "times must decrease for ReverseSDE"),
        ({"tolerance": 0.0}, DomainError, r"tolerance must lie in \(0, inf\)"),
        ({"steps": 0}, DomainError, "steps must be at least 1"),
        ({"start": 3}, DTypeError, "start must be a tensor or a function"),
        ({"start": lambda x: x}, ShapeError, r"start must return one density for each point, \(100,\)"),
        ({"start": torch.ones(99)}, ShapeError, r"start must have the shape \(100,\)"),
        ({"start": torch.ones(100)}, DomainError, "its integral 10; use a larger box"),
        ({"start": torch.linspace(-0.1, 0.3, 100)}, DomainError, "its least value is -0.1"),
        ({"start": torch.full((100,), math.nan)}, DomainError, "start has 100 non-finite values"),
        ({"box": [(-2.0, 2.0, 100)], "walls": False}, DomainError, "integral 0.995|too small at t = 0.1"),
        ({"box": [(-50.0, 50.0, 100)]}, DomainError, r"box\[0\] is too coarse at t = 0.1: the density fills 2.5 cells"),
        ({"sde": Singular(), "steps": 2}, DomainError, "the diffusion is inf at t = 0.5; keep the times away"),
        ({"sde": Wild(), "steps": 2}, DomainError, "the drift is not finite in the box"),
        ({"sde": Wrong()}, ShapeError, r"drift must have x's shape \(99, 1\), got"),
        ({"sde": Linear(g=30.0)}, DomainError, r"box\[0\] is too small at t = 0.5"),
    ],
)
def test_faults(options: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call(**options)


def test_a_reverse_density_narrower_than_the_cells_is_refused() -> None:
    model = GaussianMixtureModel(sde=VPSDE(), weights=torch.ones(1), means=torch.zeros(1, 1, dtype=F64), std=0.02)
    with pytest.raises(DomainError, match=r"too coarse at t = 0.0001: .* or stop at a later time"):
        evolve_density(
            VPSDE().reverse(model), exact(model, 1.0), [(-5.0, 5.0, 100)], torch.tensor([1.0, 1e-4], dtype=F64)
        )
    with pytest.raises(DomainError, match="the diffusion is inf at t = "):
        evolve_density(RectifiedFlow(), exact(model, 0.2), [(-5.0, 5.0, 200)], torch.tensor([0.5, 1.0], dtype=F64))


def test_a_hopeless_tolerance_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.likelihood.fokker_planck.evolve.MOST_STEPS", 20)
    with pytest.raises(SolverError, match=r"20 time steps reached only t = .*raise tolerance"):
        call(Linear(g=1.2), tolerance=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The picture


def test_the_picture_has_the_density_and_the_paths_where_they_belong() -> None:
    sde = VPSDE()
    model = mixture(sde)
    times = torch.tensor([1.0, 0.5, 0.1], dtype=F64)
    got = evolve_density(sde.reverse(model), exact(model, 1.0), [(-5.0, 5.0, 100)], times)
    ends, states = torch.tensor([1.0, 0.3, 0.1]), torch.tensor([[0.1, -1.0], [0.4, -2.0], [0.8, -1.1]])
    figure = plots.density_over_time(got, {"one": (ends, states), "other": (ends[:2], states[:2, :1])})
    first, second, bar = figure.axes
    for panel, name, lines in ((first, "one", 2), (second, "other", 1)):
        assert panel.get_title() == name
        assert panel.get_xlim() == pytest.approx((1.0, 0.1))  # in the order of the computation
        assert len(panel.lines) == lines
        low, high = panel.get_ylim()
        assert -4.5 < low < -3
        assert 3 < high < 4.5
    np.testing.assert_allclose(first.lines[1].get_xdata(), [1.0, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(first.lines[1].get_ydata(), [-1.0, -2.0, -1.1], rtol=1e-6)
    mesh = first.collections[0]
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(100, 3), got.values.numpy().T)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], times)
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], got.axes[0])
    assert "density" in bar.get_ylabel()
    alone = plots.density_over_time(got, title="alone")
    assert [axes.get_title() for axes in alone.axes] == ["alone", ""]
    with pytest.raises(DTypeError, match="densities must be what evolve_density returns, got Tensor"):
        plots.density_over_time(got.values)
    with pytest.raises(ShapeError, match=r"must be times .* and states .*, got \(3,\) and \(2, 2\)"):
        plots.density_over_time(got, {"one": (ends, states[:2])})
    plane = Densities((got.axes[0],) * 2, times, torch.ones(3, 100, 100), 1)
    with pytest.raises(ShapeError, match="densities must have one dimension"):
        plots.density_over_time(plane)
