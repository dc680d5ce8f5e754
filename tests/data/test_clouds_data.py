"""Clouds to learn from: Boltzmann's law by quadrature and by the virial theorem, known least energies, molecules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch

from scoresde import ConfigError, DomainError, DTypeError, ShapeError
from scoresde.data import ELEMENTS, MOLECULES, bonded, lennard_jones, lennard_jones_energy, molecules
from scoresde.noise import normal, stream

# The Cambridge Cluster Database, in units of the well's depth.
LEAST = {4: -6.0, 5: -9.103852, 7: -16.505384, 13: -44.326801}


def quench(x: torch.Tensor) -> float:
    """Return the energy at the bottom of the valley in which a cluster (N, 3) is."""

    def energy(places: np.ndarray) -> tuple[float, np.ndarray]:
        y = torch.from_numpy(places.reshape(1, -1, 3)).requires_grad_(True)
        value = lennard_jones_energy(y).sum()
        return float(value.detach()), torch.autograd.grad(value, y)[0].flatten().numpy()

    start = x.double().flatten().numpy()
    return float(scipy.optimize.minimize(energy, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).fun)


def test_least_energies_are_the_known_ones() -> None:
    for points in (4, 5, 7):
        clusters = lennard_jones(16, points, sweeps=100, temperature=0.2, seed=points)
        assert min(map(quench, clusters)) == pytest.approx(LEAST[points], abs=1e-5)
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    icosahedron = [(0.0, 0.0, 0.0), *corners, *((z, x, y) for x, y, z in corners), *((y, z, x) for x, y, z in corners)]
    assert quench(0.57 * torch.tensor(icosahedron)) == pytest.approx(LEAST[13], abs=1e-5)


def test_two_points_have_the_law_of_quadrature() -> None:
    """p(r) ~ r^2 exp(-u(r)/T), u with the spring that holds the pair together."""
    temperature, trap = 0.5, 1.0
    x = lennard_jones(1280, 2, temperature=temperature, trap=trap, sweeps=100, seed=3)
    r = (x[:, 0] - x[:, 1]).norm(dim=1).double().numpy()

    def density(s: np.ndarray) -> np.ndarray:
        energy = 4 * (s**-12 - s**-6) + trap / 4 * s**2
        return s**2 * np.exp(-(energy + 1) / temperature)

    grid = np.linspace(0.7, 6.0, 20_001)
    cumulative = scipy.integrate.cumulative_simpson(density(grid), x=grid, initial=0.0)
    result = scipy.stats.kstest(r, lambda s: np.interp(s, grid, cumulative / cumulative[-1]))
    assert result.statistic < 2.2 / math.sqrt(len(r))


def test_the_virial_theorem_holds() -> None:
    """E x . grad U = 3 (N - 1) T on the places of mean 0."""
    x = lennard_jones(640, 4, temperature=0.3, sweeps=120, seed=1).double().requires_grad_(True)
    (slope,) = torch.autograd.grad(lennard_jones_energy(x, trap=0.5).sum(), x)
    virial = (x * slope).sum((1, 2)).detach()
    error = float(virial.reshape(10, 64).mean(0).std()) / 8  # 64 ladders are independent
    assert abs(float(virial.mean()) - 3 * 3 * 0.3) < 4.5 * error
    assert float(x.detach().mean(1).abs().max()) < 1e-6


def test_the_spring_is_to_the_mean_place() -> None:
    x = normal((3, 5, 3), stream(0), dtype=torch.float64)
    spring = lennard_jones_energy(x, trap=2.0) - lennard_jones_energy(x)
    around = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
    torch.testing.assert_close(spring, around, rtol=1e-9, atol=1e-9)


def test_molecules_are_those_of_the_table() -> None:
    many = molecules(400, sweeps=40, seed=2)
    assert many.x.shape == (400, 8, 7)
    assert many.names == tuple(MOLECULES)
    assert bool((many.x * (1 - many.mask)[..., None] == 0).all())
    assert float(many.x[..., :3].sum(1).abs().max()) < 1e-5
    assert torch.equal(many.x[..., 3:].sum(2), many.mask)
    assert torch.bincount(many.labels, minlength=6).min() > 40
    for k, name in enumerate(many.names):
        mine = many.x[many.labels == k, : len(MOLECULES[name][0])]
        kinds = mine[..., 3:].argmax(2)
        counts = sorted(MOLECULES[name][0])
        assert all(sorted(ELEMENTS[i] for i in row) == counts for row in kinds.tolist())
        rest = torch.tensor(MOLECULES[name][1])
        at_rest = bonded(rest, torch.tensor([ELEMENTS.index(e) for e in MOLECULES[name][0]]))
        bonds = bonded(mine[..., :3], kinds)
        assert float((bonds.sum((1, 2)) == at_rest.sum()).float().mean()) > 0.97
        lengths = torch.cdist(mine[..., :3], mine[..., :3])[bonds]
        right = torch.cdist(rest, rest)[at_rest]
        assert float(lengths.mean()) == pytest.approx(float(right.mean()), abs=0.02)
        assert float(lengths.var()) == pytest.approx(float(right.var(correction=0)) + 0.05**2, rel=0.3)
    # In every direction alike.
    water = molecules(600, names=["water"], sweeps=20, seed=3)
    oxygen = water.x[..., :3][water.x[..., 6] == 1]
    spread = oxygen.T @ oxygen / oxygen.square().sum()
    torch.testing.assert_close(spread, torch.eye(3) / 3, rtol=0, atol=0.06)
    assert float(oxygen.mean(0).abs().max()) < 0.01


def test_bond_lengths_and_angles_are_the_textbooks() -> None:
    water, methane = (torch.tensor(MOLECULES[name][1], dtype=torch.float64) for name in ("water", "methane"))
    assert [round(float(d), 3) for d in torch.pdist(water)[:2]] == [0.958, 0.958]
    assert math.degrees(math.acos(float(water[1] @ water[2]) / 0.958**2)) == pytest.approx(104.5, abs=1e-6)
    apart = torch.pdist(methane[1:])
    torch.testing.assert_close(apart, torch.full_like(apart, 1.087 * math.sqrt(8 / 3)), rtol=1e-12, atol=0)


def test_a_seed_names_the_clouds_and_bad_arguments_are_refused() -> None:
    for make in (
        lambda seed: lennard_jones(5, 3, sweeps=5, seed=seed),
        lambda seed: molecules(5, seed=seed, sweeps=3).x,
    ):
        assert torch.equal(make(1), make(1))
        assert not torch.equal(make(1), make(2))
    assert lennard_jones(0, 3, sweeps=1).shape == (0, 3, 3)
    assert molecules(0).x.shape == (0, 8, 7)
    with pytest.raises(DomainError, match="points must be at least 2"):
        lennard_jones(3, 1)
    with pytest.raises(DomainError, match=r"temperature must lie in \(0, inf\)"):
        lennard_jones(3, 4, temperature=0.0)
    with pytest.raises(DomainError, match=r"trap must lie in \[0, inf\)"):
        lennard_jones_energy(torch.zeros(1, 2, 3), trap=-1.0)
    with pytest.raises(ShapeError, match=r"x must have shape \(B, N, 3\), got \(2, 3\)"):
        lennard_jones_energy(torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"unknown molecule 'watre'.*'water'"):
        molecules(2, names=["watre"])
    with pytest.raises(DTypeError, match=r"names must be a list of kinds, e\.g\. \['water', 'methane'\], got 'water'"):
        molecules(2, names="water")
    with pytest.raises(DomainError, match=r"kinds must lie in \[0, 4\), the numbers of"):
        bonded(torch.zeros(1, 2, 3), torch.tensor([[0, 9]]))
    with pytest.raises(DTypeError, match="kinds must be a tensor of integers"):
        bonded(torch.zeros(1, 2, 3), [[0, 0]])
    for dtype in (torch.float16, torch.bfloat16):
        assert bool(bonded(torch.tensor([[[0.0, 0, 0], [0, 0, 1.0]]], dtype=dtype), torch.tensor([[0, 1]]))[0, 0, 1])
    hot = lennard_jones(4, 3, temperature=2.0, sweeps=3)  # as hot as its ladder's hottest: it has one rung
    assert hot.shape == (4, 3, 3)
    assert bool(torch.isfinite(hot).all())
    with pytest.raises(ShapeError, match="kinds must be one for each of places"):
        bonded(torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.long))
