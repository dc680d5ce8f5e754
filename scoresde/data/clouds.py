r"""Clouds of points that obey a law of distances: Lennard-Jones clusters, and small molecules that vibrate.

Both are Boltzmann's law p(x) ~ exp(-U(x)/T) of places with mean 0, with an energy that is a sum over pairs of points,
U = sum_{i<j} u_ij(r_ij), drawn by Metropolis' rule: one point at a time is moved by a normal step, and the move is kept
with probability min(1, exp(-dU/T)) (Metropolis et al. 1953, doi:10.1063/1.1699114). Cold clusters stay in the shape
that they are in: each is the lowest of a ladder of N + 2 temperatures up to 1, whose neighbours change places after
each sweep by the same rule (replica exchange, Swendsen and Wang 1986, doi:10.1103/PhysRevLett.57.2607).

``lennard_jones``: u(r) = 4 (r^-12 - r^-6) + k/(2 N) r^2, in units of the well's depth and of the zero of the first
part. The second is a spring k/2 |x_i - x'|^2 from each point to the mean place, without which a warm cluster
evaporates. For every temperature the virial theorem holds, E sum_{i<j} r u'(r) = 3 (N - 1) T.

``molecules``: u_ij(r) = (r - d_ij)^2/(2 s_ij^2) at T = 1, with d_ij the distances of the molecule at rest, from bond
lengths and angles of textbooks, and s = 0.05, 0.1, 0.15 angstrom for neighbours, for their neighbours, and beyond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_dense, check_floating, check_samples, check_values
from scoresde.errors.values import check_integer, check_number, check_sequence
from scoresde.noise import integers, normal, permutation, stream, uniform

__all__ = ["ELEMENTS", "MOLECULES", "Molecules", "bonded", "lennard_jones", "lennard_jones_energy", "molecules"]

NEAR = 0.09  # squares of distances below it count as it: a start at random stays finite
HOT = 1.0  # the highest temperature of a ladder, in units of the well's depth
LADDERS, APART = 64, 20  # how many stand side by side, and sweeps between two clusters of one
ELEMENTS: Final = "HCNO"
SPREADS = 0.05, 0.1, 0.15  # angstrom
RADII: Final = {"H": 0.31, "C": 0.76, "N": 0.71, "O": 0.66}  # angstrom, covalent (doi:10.1039/b801115j)
REACH = 1.25  # of two radii: up to there two atoms are bonded
Pairs = Callable[[Tensor, int], Tensor]


def lennard_jones_energy(x: Tensor, *, trap: float = 0.0) -> Tensor:
    """Return U of clusters (B, N, 3) in units of the well's depth, (B,); see the module's docstring.

    Args:
        x: places in units of the distance at which two points have energy 0.
        trap: k, the spring to the mean place; 0 for Lennard and Jones alone, whose least energies are known.

    Raises:
        DTypeError, ShapeError, DomainError: no floating tensor (B, N, 3), a negative spring.
    """
    trap = check_number(trap, "trap", 0.0)
    if check_floating(x).ndim != 3 or x.shape[2] != 3:
        raise ShapeError(f"x must have shape (B, N, 3), got {tuple(x.shape)}")
    square = (x[:, :, None] - x[:, None]).square().sum(3)
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return _lennard_jones(square[:, first, second], trap / max(1, x.shape[1])).sum(1)


def _lennard_jones(square: Tensor, spring: float) -> Tensor:
    sixth = square.clamp_min(NEAR) ** -3
    return 4 * (sixth * sixth - sixth) + 0.5 * spring * square


def lennard_jones(
    n: int, points: int, *, temperature: float = 0.2, trap: float = 0.5, sweeps: int = 1000, seed: int = 0
) -> Tensor:
    """Return n Lennard-Jones clusters (n, points, 3), float32, with mean place 0; see the module's docstring.

    Args:
        n: number of clusters.
        points: number N of points, at least 2.
        temperature: k_B T in units of the well's depth, positive.
        trap: k, the spring of each point to the mean place, in units of the well's depth over sigma^2.
        sweeps: moves of each point before the first cluster is taken from a ladder.
        seed: names the clusters.

    Raises:
        DTypeError, DomainError: an argument out of range.
    """
    count, size = check_integer(n, "n", 0), check_integer(points, "points", 2)
    cold = check_number(temperature, "temperature", 0.0, open_low=True)
    spring = check_number(trap, "trap", 0.0) / size
    rounds = check_integer(sweeps, "sweeps", 1)
    generator = stream(seed, "data", "lennard_jones")
    levels, ladders = (size + 2 if cold < HOT else 1), max(1, min(LADDERS, count))
    ladder = cold * max(1.0, HOT / cold) ** torch.linspace(0, 1, levels, dtype=torch.float64, device="cpu")
    at = ladder.repeat(ladders)
    first, second = torch.triu_indices(size, size, 1, device="cpu")
    x = 0.6 * size ** (1 / 3) * normal((len(at), size, 3), generator, dtype=torch.float64)
    found: list[Tensor] = []
    for k in range(rounds + APART * math.ceil(count / ladders)):
        _sweep(x, lambda square, _: _lennard_jones(square, spring), at, generator, 0.25 * at.sqrt())
        if levels > 1:
            pairs = (x[:, first] - x[:, second]).square().sum(2)
            energy = _lennard_jones(pairs, spring).sum(1).reshape(ladders, levels)
            x = x[_exchange(energy, ladder, k % 2, generator)]
        if k >= rounds and (k - rounds) % APART == 0:
            found.append(x[::levels].clone())
    clusters = torch.cat(found)[:count] if found else x[:0]
    return (clusters - clusters.mean(1, keepdim=True)).float()


def _exchange(energy: Tensor, ladder: Tensor, parity: int, generator: torch.Generator) -> Tensor:
    """Return which chains (R L,) take the places of R ladders of L temperatures, after neighbours may have changed.

    Those of levels parity, parity + 1; parity + 2, ... change with probability min(1, exp((1/T - 1/T')(U - U'))).
    """
    place = torch.arange(energy.numel(), device="cpu").reshape(energy.shape)
    low = torch.arange(parity, len(ladder) - 1, 2, device="cpu")
    gain = (1 / ladder[low] - 1 / ladder[low + 1]) * (energy[:, low] - energy[:, low + 1])
    change = uniform(gain.shape, generator, dtype=gain.dtype).log() < gain
    lower, upper = place[:, low], place[:, low + 1]
    place[:, low], place[:, low + 1] = torch.where(change, upper, lower), torch.where(change, lower, upper)
    return place.flatten()


def _sweep(
    x: Tensor, pairs: Pairs, temperature: Tensor | float, generator: torch.Generator, step: Tensor | float
) -> None:
    """Move each point of clouds (B, N, 3) once, in place, by Metropolis' rule; T and the steps are () or (B,).

    ``pairs(squares, i)`` are the energies (*, N - 1) of the pairs of point i, for the squares of their distances.
    """
    size = torch.as_tensor(step, dtype=x.dtype, device="cpu").reshape(-1, 1)
    for i in range(x.shape[1]):
        others = torch.cat([x[:, :i], x[:, i + 1 :]], 1)
        new = x[:, i] + size * normal((len(x), 3), generator, dtype=x.dtype)
        old_energy, new_energy = pairs((torch.stack([x[:, i], new])[:, :, None] - others).square().sum(3), i).sum(2)
        kept = uniform((len(x),), generator, dtype=x.dtype).log() < (old_energy - new_energy) / temperature
        x[:, i] = torch.where(kept[:, None], new, x[:, i])


@dataclass(frozen=True, eq=False)
class Molecules:
    """Molecules of different sizes, filled up with rows of 0.

    Args:
        x: (n, N, 3 + 4): places in angstrom, of mean 0, and a code of the element, 1 at its place in ``ELEMENTS``.
        mask: (n, N), float32, 1 where there is an atom.
        labels: (n,), the number of each one's kind in ``names``.
        names: what the kinds are called.
    """

    x: Tensor
    mask: Tensor
    labels: Tensor
    names: tuple[str, ...]


def _cone(length: float, angle: float, *turns: float) -> list[tuple[float, ...]]:
    """Return places at a distance and an angle from the first axis, at some angles around it, in degrees."""
    a, around = math.radians(angle), [math.radians(turn) for turn in turns]
    return [
        (length * math.cos(a), length * math.sin(a) * math.cos(b), length * math.sin(a) * math.sin(b)) for b in around
    ]


def _ends(half: float, first: list[tuple[float, ...]], second: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return two atoms on the first axis, and what hangs on each, pointing away from the other."""
    return [
        *((half, 0.0, 0.0), (-half, 0.0, 0.0)),
        *((half + x, y, z) for x, y, z in first),
        *((-half - x, y, z) for x, y, z in second),
    ]


_CENTRE = [(0.0, 0.0, 0.0)]
_AMMONIA = math.degrees(math.asin(2 / math.sqrt(3) * math.sin(math.radians(106.7 / 2))))  # of angles H-N-H of 106.7
_OUT = 1.094, 180 - 111.2  # of a methyl group's hydrogens
MOLECULES: Final[dict[str, tuple[str, Sequence[tuple[float, ...]]]]] = {
    "water": ("OHH", _CENTRE + _cone(0.958, 104.5 / 2, 0, 180)),
    "ammonia": ("NHHH", _CENTRE + _cone(1.012, _AMMONIA, 0, 120, 240)),
    "methane": ("CHHHH", _CENTRE + _cone(1.087, 0, 0) + _cone(1.087, math.degrees(math.acos(-1 / 3)), 0, 120, 240)),
    "ethene": ("CCHHHH", _ends(1.339 / 2, *[_cone(1.086, 180 - 121.3, 0, 180)] * 2)),
    "methanol": ("COHHHH", _ends(-1.427 / 2, _cone(-1.094, 70, 0, 120, 240), _cone(-0.956, 180 - 108.9, 0))),
    "ethane": ("CCHHHHHH", _ends(1.535 / 2, _cone(*_OUT, 0, 120, 240), _cone(*_OUT, 60, 180, 300))),
}
"""Elements and places of molecules at rest, in angstrom: bond lengths and angles of textbooks."""


def bonded(places: Tensor, kinds: Tensor) -> Tensor:
    """Return whether two atoms are bonded, (*, N, N): nearer than 1.25 times the sum of their covalent radii.

    Args:
        places: (*, N, 3), in angstrom.
        kinds: (*, N), integers, the number of each atom's element in ``ELEMENTS``.

    Raises:
        DTypeError, ShapeError, DomainError: places that are not finite, or kinds that are not an element for each.
    """
    given: object = kinds
    if not isinstance(given, Tensor) or given.is_floating_point() or given.is_complex():
        raise DTypeError(f"kinds must be a tensor of integers, e.g. codes.argmax(-1), got {show(given)}")
    if check_samples(places, "places").ndim < 2 or places.shape[:-1] != kinds.shape:
        raise ShapeError(
            f"kinds must be one for each of places (*, N, 3), {tuple(places.shape)}, got {tuple(kinds.shape)}"
        )
    check_dense(kinds, "kinds")
    check_values(kinds, "kinds")
    known = kinds.long()
    if kinds.numel() and not bool(((known >= 0) & (known < len(ELEMENTS))).all()):
        raise DomainError(f"kinds must lie in [0, {len(ELEMENTS)}), the numbers of {ELEMENTS}")
    wide = places.to(torch.promote_types(places.dtype, torch.float32))  # half types have no distances everywhere
    radii = torch.tensor([RADII[e] for e in ELEMENTS], dtype=wide.dtype, device=places.device)[known]
    near = torch.cdist(wide, wide) < REACH * (radii[..., :, None] + radii[..., None, :])
    return near & ~torch.eye(kinds.shape[-1], dtype=torch.bool, device=places.device)


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(check_sequence(names, "names", "kinds, e.g. ['water', 'methane']"))
    if not found:
        raise ConfigError("names must be a list of kinds, e.g. ['water', 'methane'], got none")
    for name in found:
        check_choice("molecule", name, MOLECULES)
    return found


def molecules(n: int, *, names: Sequence[str] | None = None, sweeps: int = 100, seed: int = 0) -> Molecules:
    """Return n molecules that vibrate, each turned at random and with its atoms in an order of its own.

    Args:
        n: number of molecules, the kinds being drawn with equal shares.
        names: kinds among ``MOLECULES``, by default all: water, ammonia, methane, ethene, methanol, ethane.
        sweeps: moves of each atom from the state of rest.
        seed: names the molecules.

    Raises:
        DTypeError, DomainError: an argument out of range. ConfigError: an unknown kind, or none.
    """
    count, rounds = check_integer(n, "n", 0), check_integer(sweeps, "sweeps", 1)
    chosen = tuple(MOLECULES) if names is None else _check_names(names)
    generator = stream(seed, "data", "molecules")
    labels = integers(len(chosen), (count,), generator)
    most = max(len(MOLECULES[name][0]) for name in chosen)
    x = torch.zeros(count, most, 3 + len(ELEMENTS), dtype=torch.float32, device="cpu")
    mask = torch.zeros(count, most, dtype=torch.float32, device="cpu")
    for k, name in enumerate(chosen):
        elements, rest = MOLECULES[name]
        rows, size = (labels == k).nonzero()[:, 0], len(elements)
        places = _vibrate(torch.tensor(rest, dtype=torch.float64, device="cpu"), elements, len(rows), rounds, generator)
        kinds = torch.eye(len(ELEMENTS), dtype=torch.float32, device="cpu")[[ELEMENTS.index(e) for e in elements]]
        for row, atoms in zip(rows, places, strict=True):
            order = permutation(size, generator)
            x[row, :size] = torch.cat([atoms.float(), kinds], 1)[order]
            mask[row, :size] = 1
    return Molecules(x, mask, labels, chosen)


def _vibrate(rest: Tensor, elements: str, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Return places (count, N, 3) about a molecule at rest (N, 3), turned, with mean 0."""
    far = torch.cdist(rest, rest)
    bonds = bonded(rest, torch.tensor([ELEMENTS.index(e) for e in elements], dtype=torch.long, device="cpu"))
    second = (bonds.double() @ bonds.double() > 0) & ~bonds
    spread = torch.where(bonds, SPREADS[0], torch.where(second, SPREADS[1], SPREADS[2]))
    away = [torch.arange(len(rest), device="cpu") != i for i in range(len(rest))]

    def pairs(square: Tensor, i: int) -> Tensor:
        return 0.5 * ((square.sqrt() - far[i, away[i]]) / spread[i, away[i]]).square()

    x = rest.expand(count, *rest.shape).clone()
    for _ in range(rounds):
        _sweep(x, pairs, 1.0, generator, 0.04)
    turns, r = torch.linalg.qr(normal((count, 3, 3), generator, dtype=x.dtype))
    # With the signs of the diagonal taken out, the law is the uniform one of turns and mirror images.
    turns = turns * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    turned: Tensor = (x - x.mean(1, keepdim=True)) @ turns.mT
    return turned
