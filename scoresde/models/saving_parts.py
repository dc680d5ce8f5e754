"""What a model made of models is, as the documents and tensors of its parts, under a letter for each.

A part may be such a model itself: ``map_prediction(guided(model, 3.0), Clamp(-1, 1))`` holds "change", "a_combination",
"a_a_model", "a_a_weights", ...
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoresde.diffusions.named import sde_from_dict, sde_to_dict
from scoresde.errors.kinds import CheckpointError, ConfigError
from scoresde.errors.names import unknown
from scoresde.models.checkpoint import Contents, Documents, Tensors, find, read
from scoresde.models.guidance.clamp import Clamp, DynamicThreshold
from scoresde.models.guidance.combine import CombinedModel, Term
from scoresde.models.mapped import MappedModel
from scoresde.models.prediction import Predictor
from scoresde.models.saving import build, describe_tables, load_moments, load_tables, moments_to_tensors
from scoresde.models.schema import blame
from scoresde.models.score_model import ScoreModel

__all__ = ["load_whole", "take_apart_whole"]

M = TypeVar("M", bound=Predictor)
CHANGES: dict[str, type[Clamp] | type[DynamicThreshold]] = {"Clamp": Clamp, "DynamicThreshold": DynamicThreshold}


def take_apart_whole(model: Predictor) -> tuple[Documents, Tensors]:
    """Return what a checkpoint of a model holds, which may be made of others, and these of others.

    Raises:
        ConfigError: a part that JSON cannot hold: a function, a tensor, a model without weights of its own.
    """
    if isinstance(model, ScoreModel):
        return model.contents()
    if isinstance(model, CombinedModel):
        return _join("combination", _describe_combination(model), model, list(model.parts))
    if isinstance(model, MappedModel):
        return _join("change", _describe_change(model), model, [model.model])
    raise ConfigError(f"a part is a {type(model).__name__}, which a file cannot hold; save the models inside")


def load_whole(folder: str | PathLike[str], kind: type[M]) -> M:
    """Read a model of one kind that ``take_apart_whole`` took apart.

    Raises:
        CheckpointError: a damaged checkpoint, or one of another kind of model.
    """
    whole = _build_whole(read(find(folder))).eval()
    if not isinstance(whole, kind):
        raise CheckpointError(
            f"{folder} holds a {type(whole).__name__}; read it with {type(whole).__name__}.load(folder)"
        )
    return whole


def _join(
    name: str, document: Mapping[str, object], whole: Predictor, parts: Sequence[object]
) -> tuple[Documents, Tensors]:
    """Put parts under their letters, beside what the whole has of its own.

    Its transform, moments and groups are those of the first part, unless they were set anew (by
    ``in_its_own_coordinates``, say): then that part is saved with the whole's, from which a whole is made again.
    """
    documents: dict[str, Mapping[str, object]] = {name: document, **describe_tables(whole)}
    tensors: dict[str, Mapping[str, Tensor]] = {}
    # As CombinedModel has it: of powers that do not add up the law of the data is another one.
    inherits = not isinstance(whole, CombinedModel) or whole.powers is None or abs(sum(whole.powers) - 1) < 1e-9
    for letter, given in zip(string.ascii_lowercase, parts, strict=False):
        assert isinstance(given, Predictor)
        part = given._share()
        part.transform = whole.transform
        if given is parts[0]:
            part.groups, part.moments = whole.groups, whole.moments if inherits else given.moments
        held, weights = take_apart_whole(part)
        _check_rebuilt(held.get("model", {}))
        documents |= {f"{letter}_{key}": value for key, value in held.items()}
        tensors |= {f"{letter}_{key}": value for key, value in weights.items()}
    if whole.moments is not None and not inherits:
        tensors["moments"] = moments_to_tensors(whole.moments)
    return documents, tensors


def _check_rebuilt(model: Mapping[str, Any]) -> None:
    """Raise ConfigError where a part is of the user's own making, which is passed in to load a model by itself."""
    if not model:
        return
    coder = (model["transform"] or {}).get("autoencoder", {})
    for what, held in (("network", model["network"]), ("autoencoder", coder)):
        if held and held["config"] is None:
            raise _own(f"{what} {held['kind']}")
    for held in (model["trained_sde"], model["sde"]):
        if held is not None and held["kind"] is None:
            raise _own(f"SDE {held['class']}")


def _own(what: str) -> ConfigError:
    return ConfigError(
        f"a part has your own {what}, which JSON cannot rebuild; save the model inside, model.save(folder), and put "
        "the whole together again when it is loaded"
    )


def _build_whole(contents: Contents) -> Predictor:
    if "change" in contents.documents:
        how = contents.document("change")
        inner = _build_whole(contents.under("a_"))
        with blame(contents.folder / contents.files["change"]):
            change = CHANGES[how["kind"]](**how["options"])
            changed = MappedModel(inner, change, how["predicts"])
            return _complete(changed if how["sde"] is None else changed.with_sde(sde_from_dict(how["sde"])), contents)
    if "combination" not in contents.documents:
        return build(contents)
    how = contents.document("combination")
    parts = [_build_whole(contents.under(f"{letter}_")) for letter in string.ascii_lowercase[: how["parts"]]]
    with blame(contents.folder / contents.files["combination"]):
        for k, one in enumerate(how["terms"]):
            if isinstance(one["told"], dict):
                _check_told(parts[one["part"]], one["told"], f"terms[{k}].told")
        product = CombinedModel(
            parts,
            [Term(one["part"], _read_told(one["told"])) for one in how["terms"]],
            powers=how["powers"],
            scale=how["scale"],
            interval=None if how["interval"] is None else tuple(how["interval"]),
            rescale=how["rescale"],
        )
        return _complete(product, contents)


def _complete(whole: Predictor, contents: Contents) -> Predictor:
    """Give a whole what it has of its own."""
    load_tables(whole, contents)
    if "moments" in contents.parts:
        whole.moments = load_moments(contents)
    return whole


def _check_told(part: Predictor, told: Mapping[str, object], where: str) -> None:
    """Raise where a network of ``scoresde.nn`` does not take values for all samples as conditions."""
    from scoresde.nn.conditions import ConditionalNetwork

    net = part.net if isinstance(part, ScoreModel) else None
    if not isinstance(net, ConditionalNetwork):
        return
    # Sizes of x matter to what stands beside it alone.
    event = (1, 1, 1) if part.moments is None else tuple(part.moments.mean.shape)
    for name, value in told.items():
        if name not in net.kinds:
            raise unknown(where, name, net.kinds)
        option, count = net.kinds[name]
        one = torch.as_tensor(_read_value(value), device="cpu")
        if option == "classes" and not (one.ndim == 0 and one.dtype == torch.int64 and -1 <= one < count):
            raise ConfigError(f"{where}.{name} must be a class from 0 to {count - 1}, or -1 for none, got {value}")
        if option != "concat_channels" or part.moments is not None:
            net.check_conditions(torch.Size((1, *event)), {name: one[None]})


def _write_told(told: str | Mapping[str, object]) -> object:
    """Return what a term is told for JSON, which has no NaN: null stands there."""
    return told if isinstance(told, str) else {name: _write_value(value) for name, value in told.items()}


def _write_value(value: object) -> object:
    given = value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    if isinstance(given, list | tuple):
        return [_write_value(one) for one in given]
    return None if isinstance(given, float) and math.isnan(given) else given


def _read_told(told: Any) -> Any:  # noqa: ANN401
    """Return what ``_write_told`` wrote."""
    return {name: _read_value(value) for name, value in told.items()} if isinstance(told, dict) else told


def _read_value(value: Any) -> Any:  # noqa: ANN401
    return [math.nan if one is None else one for one in value] if isinstance(value, list) else value


def _describe_combination(model: CombinedModel) -> dict[str, object]:
    if isinstance(model.scale, Tensor):
        raise ConfigError("the scale is a tensor: JSON cannot hold it; save the model inside and combine it again")
    return {
        "parts": len(model.parts),
        "terms": [{"part": term.part, "told": _write_told(term.told)} for term in model.terms],
        "powers": None if model.powers is None else list(model.powers),
        "scale": model.scale,
        "interval": None if model.interval is None else list(model.interval),
        "rescale": model.rescale,
    }


def _describe_change(model: MappedModel) -> dict[str, object]:
    change = model.change
    if not isinstance(change, Clamp | DynamicThreshold):
        raise ConfigError(
            "a MappedModel holds a function, which a file cannot; save the model that it wraps, "
            "mapped.model.save(folder), and map it again when it is loaded"
        )
    return {
        "kind": type(change).__name__,
        "options": asdict(change),
        "predicts": model.predicts,
        "sde": None if model.sde is model.model.sde else sde_to_dict(model.sde),
    }
