r"""What may be predicted on a linear SDE, and the affine readout between such targets.

As in ``diffusions.targets``, with maps in the place of numbers: a network predicts F = p x_0 + q z, and

    [x]   [M  L] [x_0]                                                          [M  L] ^-1
    [F] = [p  q] [ z ]    gives every other P = p' x_0 + q' z as    (a, b) = (p', q') [p  q]      in P = a x + b F.

| kind | p | q |
|---|---|---|
| data | 1 | 0 |
| noise | 0 | 1 |
| score | 0 | -L^{-T} |
| velocity | F M | F L + Q L^{-T}/2, the probability flow dx/dt, F being the drift's map |

With one number for each group the other kinds of ``diffusions.targets`` are there too, one group at a time. Under
critically damped Langevin diffusion the velocity's clean value is known to be 0 and the position's noise is what the
state and the two others leave: *hybrid score matching* (Dockhorn et al. 2022, arXiv:2112.07068) predicts the noise of
the last parts alone, F = (clean velocity, noise of the velocity), of which the first is 0: ``hybrid_target``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.diffusions.blocks import invert, turned
from scoresde.diffusions.grouped import GroupedSDE
from scoresde.diffusions.linear import LinearPoint, Maps
from scoresde.diffusions.targets import TARGETS, target, unknown_kind, view
from scoresde.errors.kinds import DomainError

__all__ = ["hybrid_target", "target_maps", "view_maps"]

MATRIX_KINDS = ("data", "noise", "score", "velocity")


def target_maps(kind: str, point: LinearPoint) -> Maps:
    """Return the maps (p, q) of ``kind`` at points (*t), each (*t, G, K, K); ConfigError for an unknown kind."""
    sde, one = point.owner, torch.eye(point.mean.shape[-1], dtype=torch.float64, device="cpu")
    if isinstance(sde, GroupedSDE) and kind in TARGETS and kind != "velocity":
        p, q = target(kind, sde.points(point.t))
        return p[..., None, None], q[..., None, None]
    if kind not in MATRIX_KINDS:
        raise unknown_kind("prediction under a linear SDE", kind, MATRIX_KINDS)
    whole = one.expand(point.mean.shape)
    if kind == "data":
        return whole, torch.zeros_like(point.mean)
    if kind == "noise":
        return torch.zeros_like(point.mean), whole
    pull = turned(invert(point.root))
    if kind == "score":
        return torch.zeros_like(point.mean), -pull
    drift, noise = sde.coefficients(point.t)
    return drift @ point.mean, drift @ point.root + 0.5 * noise @ pull


def hybrid_target(hidden: int, point: LinearPoint) -> Maps:
    """Return (p, q) of F = (clean values of the last ``hidden`` parts, their noise), K = 2 hidden."""
    one = torch.eye(hidden, dtype=torch.float64, device="cpu")
    p = torch.zeros(2 * hidden, 2 * hidden, dtype=torch.float64, device="cpu")
    q = p.clone()
    p[:hidden, hidden:], q[hidden:, hidden:] = one, one
    return p.expand(point.mean.shape), q.expand(point.mean.shape)


def view_maps(known: Maps, wanted: Maps, point: LinearPoint, name: str = "this view") -> Maps:
    """Return maps (a, b) with P = a x + b F, for F of target ``known`` and P of target ``wanted``, (*t, G, K, K) each.

    Raises DomainError where the view has no finite value, naming the first such time.
    """
    sde = point.owner
    if isinstance(sde, GroupedSDE):
        pairs = [(p[..., 0, 0], q[..., 0, 0]) for p, q in (known, wanted)]
        a, b = view(pairs[0], pairs[1], sde.points(point.t), name)
        return a[..., None, None], b[..., None, None]
    k = point.mean.shape[-1]
    same = bool(torch.equal(known[0], wanted[0])) and bool(torch.equal(known[1], wanted[1]))
    if same:
        one = torch.eye(k, dtype=torch.float64, device="cpu").expand(point.mean.shape)
        return torch.zeros_like(one), one
    rows = [torch.cat(pair, -1) for pair in ((point.mean, point.root), known)]
    whole, asked = torch.cat(rows, -2), torch.cat(wanted, -1)
    solved, failed = torch.linalg.solve_ex(turned(whole), turned(asked))
    found: Tensor = turned(solved)
    bad = (failed > 0) | ~torch.isfinite(found).all(-1).all(-1)
    if bool(bad.any()):
        t = float(point.t[..., None].expand(bad.shape)[bad][0])
        raise DomainError(
            f"{name} has no finite value at t = {t:g}; stay inside (t_min, t_max) or take another prediction"
        )
    return found[..., :k], found[..., k:]
