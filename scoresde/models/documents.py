"""What each document of a checkpoint may say: one table of fields for each, by the document's name.

What numbers mean together (an SDE's, a transform's) is checked by making the thing.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch

from scoresde.diffusions.grouped import BlurredVPSDE
from scoresde.diffusions.learned import MOST_UNITS
from scoresde.diffusions.named import DIFFUSIONS, LINEAR, linear_from_dict, sde_from_dict
from scoresde.diffusions.targets import TARGETS
from scoresde.errors.kinds import CheckpointError, ConfigError
from scoresde.errors.values import check_integer
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.models.schema import (
    Check,
    anything,
    as_object,
    at,
    blame,
    boolean,
    choice,
    digest,
    either,
    integer,
    join,
    listing,
    mapping,
    misfit,
    number,
    optional,
    pair,
    record,
    text,
)
from scoresde.transforms.compose import transform_from_dict

__all__ = ["DOCUMENTS", "TENSORS", "check_document", "check_fields", "check_kind"]

PREFIX = re.compile("^([a-z]_)*")  # of the documents of a model that is made of others
COUNT = re.compile("[1-9][0-9]{0,6}")
MOST_PARTS = 26
TENSORS = ("weights", "ema", "moments", "groups", "autoencoder", "training_state")
FAR = 1e9  # a log_snr, a time, a value that a condition has
HUGE = 1e30  # whatever is multiplied in float32


def check_document(name: str, document: dict[str, Any], file: Path) -> None:
    """Raise CheckpointError, with the file and the field, unless a document is what its name says.

    Args:
        name: of the document, with the prefixes of a part of another model; one without a table may say anything.
        document: a JSON object.
        file: where it was read.
    """
    with blame(file):
        check_fields(name, document)


def check_kind(name: str, file: Path) -> None:
    """Raise CheckpointError for a document where tensors of this name are read, and the reverse: neither would be."""
    plain, is_document = PREFIX.sub("", name), file.suffix == ".json"
    if plain in (TENSORS if is_document else DOCUMENTS):
        raise CheckpointError(
            f"{file}: {name} must be {'tensors' if is_document else 'a document'}; take another copy of the checkpoint"
        )


def check_fields(name: str, document: dict[str, Any]) -> None:
    """Raise ConfigError, DTypeError or DomainError, with the field, unless a document is what its name says."""
    check = DOCUMENTS.get(PREFIX.sub("", name))
    if check is not None:
        check(document, "")


def _sde(value: object, path: str) -> None:
    """Take a built-in SDE, whose curves are finite, or the name of one's own."""
    held = as_object(value, path)
    kind = held.get("kind")
    if kind is None:
        record({"kind": anything, "class": text})(held, path)
        return
    if isinstance(kind, str) and kind in LINEAR:
        _linear(held, path)
        return
    knots = listing(number(-FAR, FAR), 2)
    ending = listing(optional(number(-FAR, FAR)), 2)
    known = {one: {f.name: number(-HUGE, HUGE) for f in fields(sde) if f.init} for one, sde in DIFFUSIONS.items()}
    bent = listing(number(-FAR, FAR), 1, MOST_UNITS)
    learned = {name: number(-HUGE, HUGE) for name in ("t_min", "t_max", "start")} | {
        "units": integer(1, MOST_UNITS),
        "learn_ends": boolean,
        "ends": pair(number(-FAR, FAR)),
        "bends": listing(bent, 3, 3),
    }
    tables: dict[str, Mapping[str, Check]] = {
        **known,
        "LearnedSchedule": learned,
        "TabulatedSDE": {"t": knots, "log_snr": ending},
    }
    choice(tables)(kind, join(path, "kind"))
    other = {"log_alpha": optional(ending)} if kind == "TabulatedSDE" else None
    record({"kind": text, **tables[str(kind)]}, other)(held, path)
    with at(path):
        sde = sde_from_dict(held)
        point = sde.at(torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64, device="cpu"))
        finite = (point.alpha + point.sigma < HUGE).all() and torch.isfinite(point.log_snr[:-1]).all()
        if not bool(finite) or not bool((point.log_snr.diff() < 0).all()):
            raise ConfigError(f"the curves of {sde} are not finite, or log_snr does not fall")


def _linear(held: dict[str, Any], path: str) -> None:
    """Take a linear SDE, whose maps are finite."""
    size = number(-HUGE, HUGE)
    blurred = {f.name: number(-HUGE, HUGE) for f in fields(BlurredVPSDE) if f.init}
    numbers = dict.fromkeys(("beta_min", "beta_max", "t_min", "t_max"), size)
    matrix = listing(listing(size, 1), 1)

    def group(value: object, path: str) -> None:
        one = as_object(value, path)
        record({"kind": text, **blurred})(one, path) if one.get("kind") == "BlurredVPSDE" else _sde(one, path)

    tables: dict[str, Mapping[str, Check]] = {
        "GroupedSDE": {"sdes": listing(group, 1), "index": _index},
        "MatrixSDE": {"matrix": matrix, "noise": matrix, "start": listing(size, 1), **numbers},
    }
    record({"kind": text, **tables[held["kind"]]})(held, path)
    with at(path):
        sde = linear_from_dict(held)
        ends = torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64, device="cpu")
        if not all(bool(torch.isfinite(maps).all()) for maps in sde.maps(ends)):
            raise ConfigError(f"the maps of {sde} are not finite")


def _index(value: object, path: str) -> None:
    """Take the numbers of groups in lists in lists."""
    either(list=listing(_index, 1), int=integer(0, 10**6))(value, path)


def _transform(value: object, path: str) -> None:
    """Take a transform of the package."""
    any_size = number(largest=sys.float_info.max)
    numbers = either(int=any_size, float=any_size, list=listing(any_size, 1))
    tables: dict[str, Mapping[str, Check]] = {
        "Affine": {"shift": numbers, "scale": numbers},
        "Dequantise": {"levels": integer(2), "low": number(), "high": number()},
        "Logit": {"epsilon": number(), "low": number(), "high": number()},
        "Cosine": {},
        "Haar": {"levels": integer(1)},
        "ZeroVelocity": {},
        "RelativePlaces": {"coordinates": integer(1), "features": integer(0)},
        "Compose": {"parts": listing(_transform)},
    }
    held = as_object(value, path)
    if held.get("kind") == "Latent":
        # Its weights are beside it; what they are of is compared when it is made.
        coder = record({"kind": text, "config": optional(mapping(_option))})
        record({"kind": text, "autoencoder": coder, "weights": digest, "then": optional(_transform)})(held, path)
        return
    choice(tables)(held.get("kind"), join(path, "kind"))
    record({"kind": text, **tables[str(held["kind"])]})(held, path)
    with at(path):
        transform_from_dict(held)


def _option(value: object, path: str) -> None:
    """Take what a network's constructor may be given: numbers, words, and lists and objects of them."""
    either(
        NoneType=anything,
        bool=anything,
        int=integer(0, 2**64 - 1),
        float=number(),
        str=text,
        list=listing(_option),
        dict=mapping(_option),
    )(value, path)


def _tables(value: object, path: str) -> None:
    """Take tables by their numbers of evaluations, which their rows are."""
    for key, table in as_object(value, path).items():
        if not COUNT.fullmatch(key):
            raise misfit(join(path, key), "named by a number of evaluations", key)
        TABLE(table, join(path, key))
        assert isinstance(table, dict)
        if len(table["rows"]) != int(key):
            raise misfit(f"{join(path, key)}.rows", f"{key}, one for each evaluation", table["rows"])


def _calibration(value: object, path: str) -> None:
    """Take rungs by rising numbers of evaluations, and a curve of falling levels with a rising share for each."""
    CALIBRATION(value, path)
    assert isinstance(value, dict)
    for name, numbers, way in (
        ("rungs", [-rung["steps"] for rung in value["rungs"]], "by rising steps"),
        ("levels", value["levels"], "falling"),
        ("shares", [-share for share in value["shares"]], "rising"),
    ):
        if any(a <= b for a, b in itertools.pairwise(numbers)):
            raise misfit(join(path, name), way, value[name])
    if len(value["levels"]) == 1:
        raise misfit(join(path, "levels"), "none, or at least two", value["levels"])
    if len(value["shares"]) != len(value["levels"]):
        raise misfit(join(path, "shares"), f"{len(value['levels'])} numbers, one for each of levels", value["shares"])


def _combination(value: object, path: str) -> None:
    """Take a product of models: terms of parts that there are, and powers or a scale for them."""
    COMBINATION(value, path)
    assert isinstance(value, dict)
    for k, term in enumerate(value["terms"]):
        check_integer(term["part"], f"terms[{k}].part", 0, value["parts"] - 1)
    asked = {term["part"] for term in value["terms"]}
    if len(asked) != value["parts"]:
        raise misfit("terms", f"of every part in {value['parts']}", value["terms"])
    count, powers, interval = len(value["terms"]), value["powers"], value["interval"]
    if powers is None and count != 2:
        raise misfit("terms", "two where a scale stands in the place of powers", value["terms"])
    if powers is not None and len(powers) != count:
        raise misfit("powers", f"{count} numbers, one for each term", powers)
    if interval is not None and interval[0] > interval[1]:
        raise misfit("interval", "a lower and an upper end", interval)


def _told(value: object, path: str) -> None:
    """Take what a term is told: the words for the conditions of the call and for none, or values."""
    # Of a vector null is an entry that is missing.
    one = either(int=number(-FAR, FAR), float=number(-FAR, FAR), list=listing(optional(number(-FAR, FAR)), 1))
    either(str=choice(("asked", "null")), dict=mapping(one))(value, path)


def _change(value: object, path: str) -> None:
    """Take a change of a prediction: its kind and numbers."""
    options = {
        "Clamp": {"low": number(-HUGE, HUGE), "high": number(-HUGE, HUGE)},
        "DynamicThreshold": {"quantile": number(0.0, 1.0, open_low=True), "limit": number(0.0, HUGE, open_low=True)},
    }
    CHANGE(value, path)
    assert isinstance(value, dict)
    choice(options)(value["kind"], "kind")
    record(options[value["kind"]])(value["options"], "options")
    if value["kind"] == "Clamp" and value["options"]["low"] >= value["options"]["high"]:
        raise misfit("options.low", f"below options.high = {value['options']['high']}", value["options"]["low"])


KNOT = record({"t": number(0.0), "alpha": number(0.0), "sigma": number(0.0)})
WEIGHTS = listing(number())
INCREMENT = record({"start": number(), "end": number()}, {"power": optional(number()), "shape": WEIGHTS})
ROW = record(
    {"at": KNOT, "state": listing(number(), 1), "increment": optional(INCREMENT)},
    {
        "anchor": optional(WEIGHTS),
        "noise": WEIGHTS,
        "anchor_noise": WEIGHTS,
        "restart": boolean,
        "spread": optional(pair(number(0.0, open_low=True))),
    },
)
ORDER = record({}, dict.fromkeys(("deterministic", "strong", "weak"), optional(number(0.0))))
TABLE = record(
    {
        "format": integer(1, 1),
        "name": text,
        "prediction": choice(kind for kind in TARGETS if kind != "velocity"),
        "rows": listing(ROW),
        "start": KNOT,
        "end": KNOT,
        "prior_std": number(0.0),
        "lift": pair(number()),
        "order": ORDER,
    }
)
SHARES = listing(number(0.0, 1.0 + 1e-9))  # sums that end in 1, to rounding
RUNG = record(
    {
        "steps": integer(1),
        "solver": text,
        "grid": optional(text),
        "end": optional(number()),
        "rms": number(0.0),
        "median": number(0.0),
    }
)
CALIBRATION = record({"rungs": listing(RUNG), "levels": SHARES, "shares": SHARES, "evaluations": integer()})
COMBINATION = record(
    {
        "parts": integer(1, MOST_PARTS),
        "terms": listing(record({"part": integer(), "told": _told}), 1),
        "powers": optional(listing(number(-FAR, FAR))),
        "scale": number(-FAR, FAR),
        "interval": optional(pair(number(0.0))),
        "rescale": number(0.0, 1.0),
    }
)
CHANGE = record({"kind": text, "options": mapping(number()), "predicts": choice(TARGETS), "sde": optional(_sde)})
NETWORK = record({"kind": text, "config": optional(mapping(_option))}, {"energy": boolean})
SEED = integer(0, 2**64 - 1)
BEST = record({"loss": optional(number()), "step": integer(), "looks": integer()})
DOCUMENTS: Final[Mapping[str, Check]] = {
    "model": record(
        {
            "network": NETWORK,
            "trained_sde": _sde,
            "sde": optional(_sde),
            "predicts": choice(PARAMETERIZATIONS),
            "sigma_data": optional(number(0.0, open_low=True)),
            "condition_on": choice(("log_snr", "time")),
            "transform": optional(_transform),
        },
        # Checkpoints of the first versions do not have these.
        {
            "variance": choice(("fixed", "learned")),
            "dropout": optional(mapping(number(0.0, 1.0))),
            "class_names": optional(mapping(listing(text))),
            "linear": record({"drop": boolean, "basis": optional(_transform)}),
        },
    ),
    "sde_model": record(
        {
            "network": NETWORK,
            "sde": text,
            "times": pair(number(0.0)),
            "baseline": choice(("equilibrium", "none")),
            "prior": optional(choice(("simulate", "gaussian"))),
            "transform": optional(_transform),
            "dropout": optional(mapping(number(0.0, 1.0))),
            "class_names": optional(mapping(listing(text))),
        }
    ),
    "tables": _tables,
    "calibration": _calibration,
    "combination": _combination,
    "change": _change,
    # What training keeps beside these is its own to read.
    "training": record({"step": integer(), "updates": integer(), "seed": SEED}, {"best": BEST}, more=True),
    "average": record(
        {"step": integer(), "time": number(0.0), "sigma_rel": listing(number(0.0, open_low=True), 1, MOST_PARTS)}
    ),
    "run": record(
        {
            "identity": record({"data": text}, more=True),
            "changes": listing(record({"step": integer(), "was": mapping(anything)}, more=True)),
        },
        more=True,
    ),
}
