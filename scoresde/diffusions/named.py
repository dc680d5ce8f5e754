"""The built-in diffusions by name, and their JSON form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from scoresde.diffusions.cosine import CosineVPSDE
from scoresde.diffusions.grouped import BlurredVPSDE, GroupedSDE
from scoresde.diffusions.learned import LearnedSchedule
from scoresde.diffusions.levels import EDMSDE, VESDE, RectifiedFlow
from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.matrix import MatrixSDE
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.diffusions.tabulated import TabulatedSDE
from scoresde.diffusions.vp import VPSDE, SubVPSDE
from scoresde.errors.kinds import ConfigError, DTypeError, show
from scoresde.errors.names import unknown
from scoresde.errors.values import check_number

__all__ = ["DIFFUSIONS", "LINEAR", "check_sde", "linear_from_dict", "sde_from_dict", "sde_to_dict"]


DIFFUSIONS: dict[str, type[GaussianSDE]] = {
    "CosineVPSDE": CosineVPSDE,
    "EDMSDE": EDMSDE,
    "RectifiedFlow": RectifiedFlow,
    "SubVPSDE": SubVPSDE,
    "VESDE": VESDE,
    "VPSDE": VPSDE,
}
LEARNED = {"units", "learn_ends", "t_min", "t_max", "start", "ends", "bends"}  # what describes a LearnedSchedule


LINEAR: dict[str, type[LinearSDE]] = {"GroupedSDE": GroupedSDE, "MatrixSDE": MatrixSDE}


def check_sde(sde: object) -> GaussianSDE:
    """Return ``sde`` if it is a Gaussian diffusion; DTypeError, with what was probably meant, where it is none."""
    if isinstance(sde, GaussianSDE):
        return sde
    if isinstance(sde, LinearSDE):
        raise DTypeError(f"sde must be a GaussianSDE, got {sde!r}, which has maps for alpha and sigma; see LinearModel")
    if isinstance(sde, SDE):
        raise DTypeError(
            f"sde must be a GaussianSDE, and {type(sde).__name__} has no alpha and sigma; the model of a score under "
            "such an SDE is SDEModel(net, sde)"
        )
    word = sde.__name__ if isinstance(sde, type) else show(sde)
    short = {kind.lower().removesuffix("sde"): kind for kind in DIFFUSIONS}
    meant = short.get("".join(c for c in word.lower() if c.isalnum()).removesuffix("sde"), "VPSDE")
    raise DTypeError(f"sde must be a GaussianSDE, e.g. {meant}(), got {show(sde)}")


def sde_to_dict(sde: GaussianSDE | LinearSDE) -> dict[str, object]:
    """Return a JSON-able description of a built-in SDE; ConfigError for a class that JSON cannot rebuild."""
    if isinstance(sde, GroupedSDE | MatrixSDE):
        return sde.to_dict()
    if isinstance(sde, TabulatedSDE):
        curves = {"t": sde.knots, "log_snr": sde.knot_log_snr, "log_alpha": sde.knot_log_alpha}
        return {"kind": "TabulatedSDE", **{name: _write(values) for name, values in curves.items()}}
    if isinstance(sde, LearnedSchedule):
        return sde.to_dict()
    kind = type(sde).__name__
    if DIFFUSIONS.get(kind) is not type(sde):
        raise ConfigError(f"{kind} is your own SDE: JSON cannot rebuild it; pass sde= when the model is loaded")
    return {"kind": kind, **{f.name: getattr(sde, f.name) for f in dataclasses.fields(sde) if f.init}}


def linear_from_dict(config: dict[str, object]) -> LinearSDE:
    """Rebuild a linear SDE from ``sde_to_dict``'s description; ConfigError for an unknown kind or key."""
    options: dict[str, Any] = dict(config)
    kind = options.pop("kind", None)
    if kind not in LINEAR:
        raise unknown("linear SDE", kind, LINEAR)
    _check_keys(kind, options, {f.name for f in dataclasses.fields(LINEAR[kind]) if f.init})
    if kind == "MatrixSDE":
        return MatrixSDE(**options)
    parts = tuple(_read_group(part) for part in options["sdes"])
    return GroupedSDE(parts, torch.tensor(options["index"], dtype=torch.long, device="cpu"))


def _read_group(config: dict[str, Any]) -> GaussianSDE:
    """Rebuild the diffusion of one group."""
    if config.get("kind") != "BlurredVPSDE":
        return sde_from_dict(config)
    return BlurredVPSDE(**{key: check_number(value, key) for key, value in config.items() if key != "kind"})


def sde_from_dict(config: dict[str, object]) -> GaussianSDE:
    """Rebuild a built-in SDE from ``sde_to_dict``'s description; ConfigError for an unknown kind or key."""
    options = dict(config)
    kind = options.pop("kind", None)
    if kind == "TabulatedSDE":
        _check_keys("TabulatedSDE", options, {"t", "log_snr", "log_alpha"})
        for key in ("t", "log_snr"):
            if key not in options:
                raise ConfigError(f"the description of a TabulatedSDE lacks {key!r}; make one with sde_to_dict")
        alpha = options.get("log_alpha")
        return TabulatedSDE(_read(options["t"]), _read(options["log_snr"]), None if alpha is None else _read(alpha))
    if kind == "LearnedSchedule":
        _check_keys(kind, options, LEARNED)
        if missing := LEARNED - options.keys():
            raise ConfigError(f"the description of a {kind} lacks {min(missing)!r}; make one with sde_to_dict")
        return LearnedSchedule.from_dict(options)
    if not isinstance(kind, str) or kind not in DIFFUSIONS:
        raise unknown("SDE", kind, [*DIFFUSIONS, "LearnedSchedule", "TabulatedSDE"])
    _check_keys(kind, options, {f.name for f in dataclasses.fields(DIFFUSIONS[kind]) if f.init})
    return DIFFUSIONS[kind](**{key: check_number(value, key) for key, value in options.items()})


def _write(values: Tensor | None) -> list[float | None] | None:
    """Return numbers for JSON, which has none for minus infinity: null stands there."""
    return None if values is None else [None if value == -math.inf else value for value in values.tolist()]


def _read(values: object) -> Tensor:
    """Return what ``_write`` wrote."""
    assert isinstance(values, list)
    return torch.tensor([-math.inf if value is None else value for value in values], dtype=torch.float64, device="cpu")


def _check_keys(kind: str, options: dict[str, object], names: set[str]) -> None:
    for key in options:
        if key not in names:
            raise unknown(f"option of {kind}", key, names)
