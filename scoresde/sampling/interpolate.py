r"""Between two data, through their latents.

    linear:     z(w) = (1 - w) z_a + w z_b
    spherical:  z(w) = (sin((1 - w) theta) z_a + sin(w theta) z_b)/sin theta,      theta the angle between z_a and z_b

(Shoemake 1985, "Animating rotation with quaternion curves"). Normal latents of many dimensions lie near a sphere, which
the first leaves: halfway between independent ones it has half the variance. Latents are taken relative to the prior's
mean, and encoded and decoded on the same grid.
"""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import torch
from torch import Tensor

from scoresde.errors.kinds import ShapeError
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_samples
from scoresde.errors.values import check_integer
from scoresde.models.checks import check_model
from scoresde.models.prediction import Predictor
from scoresde.ops import flat
from scoresde.sampling.encode import DecodeOptions, decode, encode

__all__ = ["interpolate"]

Path = Literal["spherical", "linear"]


def interpolate(
    model: Predictor, a: Tensor, b: Tensor, n: int = 9, *, path: Path = "spherical", **options: Unpack[DecodeOptions]
) -> Tensor:
    """Return n data on the way from a to b, (n, B, *), in the data's units.

    Args:
        model: the model.
        a: data (B, *); the first of the n is what its latent decodes to, a itself to the solver's tolerance.
        b: data of a's shape, likewise the last.
        n: how many, both ends among them, at least 2.
        path: "spherical" or "linear".
        options: ``decode``'s: sde, solver, steps, times, cond (of a and b alike), chunk_size.

    Raises:
        ShapeError, DTypeError, DomainError, ConfigError, SolverError: as ``encode`` (a transform that draws noise is
            refused); an unknown path, a and b of different shapes.
    """
    check_choice("path", path, get_args(Path))
    n = check_integer(n, "n", 2)
    if check_samples(a, "a").shape != check_samples(b, "b").shape:
        raise ShapeError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    start, end = (encode(model, x, full_output=True, **options) for x in (a, b))
    known = check_model(model)
    alpha = float((options.get("sde") or known.sde).alpha(start.times[-1]))
    centre = 0.0 if known.moments is None else known.moments.mean * alpha
    centre = (centre if isinstance(centre, Tensor) else torch.tensor(centre, dtype=torch.float64, device="cpu")).to(
        start.x
    )
    one, other = flat(start.x - centre), flat(end.x - centre)
    shape = (n, *(1,) * one.ndim)
    w = torch.linspace(0.0, 1.0, n, dtype=torch.float64, device="cpu").reshape(shape)
    mixed = _mix(one.double(), other.double(), w, path).to(one).reshape(n * len(a), *start.x.shape[1:]) + centre
    decoding: DecodeOptions = {**options}
    if (cond := options.get("cond")) is not None:
        decoding["cond"] = {key: value.repeat(n, *(1,) * (value.ndim - 1)) for key, value in cond.items()}
    found = decode(model, mixed, **decoding)
    return found.reshape(n, len(a), *found.shape[1:])


def _mix(a: Tensor, b: Tensor, w: Tensor, path: str) -> Tensor:
    """Return what lies at w (n, 1, 1) between latents a and b (B, D), (n, B, D)."""
    if path == "linear":
        return (1 - w) * a + w * b
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None]
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    sine = angle.sin()
    # Along one line there is no sphere to follow.
    flat_way = sine < 1e-6
    safe = torch.where(flat_way, 1.0, sine)
    on_a = torch.where(flat_way, 1 - w, ((1 - w) * angle).sin() / safe)
    on_b = torch.where(flat_way, w, (w * angle).sin() / safe)
    return on_a * a + on_b * b
