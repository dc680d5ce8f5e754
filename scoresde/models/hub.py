"""Models on the hub of Hugging Face: what is fetched, what is uploaded, and the page that says what a model is.

A repository holds a checkpoint (``models/checkpoint.py``): JSON and safetensors under one manifest of their digests,
and beside it a README. Only files of these names are fetched, so that no pickle ever is, and everything is verified
before it is used. What the cache holds whole is read without asking the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import Tensor

from scoresde.errors.kinds import CheckpointError, ConfigError, DTypeError, printable, show
from scoresde.errors.values import check_path
from scoresde.models.checkpoint import find, is_whole
from scoresde.models.manifest import MANIFEST
from scoresde.models.networks import describe_network
from scoresde.models.saving import network_to_dict
from scoresde.models.score_model import ScoreModel

__all__ = ["fetch", "push", "write_card"]

# Files of a checkpoint: "weights-<16 digits>.safetensors".
FILES: Final = (MANIFEST, *(f"*-{'[0-9a-f]' * 16}.{ending}" for ending in ("json", "safetensors")))
CARD = "README.md"


def _load_library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            'models on the hub need huggingface_hub; pip install "scoresde[hub]", or in the repository ".[hub]"'
        ) from error
    return huggingface_hub


def fetch(name: str | PathLike[str], revision: str | None = None, *, update: bool = False) -> Path:
    """Return the folder of a checkpoint: a local one, else that of the cache, else one that is downloaded into it.

    Args:
        name: the folder, or "user/repository" on the hub.
        revision: a branch, a tag or a commit of the repository.
        update: ask the hub for a newer one first.

    Raises:
        CheckpointError: no folder, and no repository that can be reached. ConfigError: huggingface_hub is missing.
    """
    folder = check_path(name, "name")
    if folder.is_dir():
        return find(folder)
    text = str(name)
    _check_text(revision, "revision", optional=True)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"{text} is no folder, and no name of a repository on the hub, which is 'user/name'")
    library = _load_library()
    try:
        if not update:
            cached = _find_cached(library, text, revision)
            if cached is not None:
                return cached
        found = Path(library.snapshot_download(text, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{text} is no folder here, is not whole in the cache and could not be fetched ({said}); check the name "
            "and the network"
        ) from error
    if not (found / MANIFEST).is_file():
        raise CheckpointError(f"{text} on the hub holds no {MANIFEST}: it was not written by push_to_hub of scoresde")
    return found


def _check_text(value: object, name: str, *, optional: bool = False) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise DTypeError(f"{name} must be a text, got {show(value)}", parameter=name, got=value)


def _find_cached(library: ModuleType, name: str, revision: str | None) -> Path | None:
    """Return what the cache holds of a repository; None where that is not whole."""
    try:
        found = Path(
            library.snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=True)
        )
    except FileNotFoundError:
        return None
    return found if is_whole(found) else None


def push(
    model: ScoreModel,
    name: str,
    *,
    ema: Mapping[str, Tensor] | None = None,
    private: bool = False,
    message: str = "A model of scoresde",
) -> str:
    """Upload a model with a page that says what it is, in one commit, and return the page's address.

    Raises:
        ConfigError: a model that cannot be saved, or huggingface_hub is missing. CheckpointError: no access.
    """
    _check_text(name, "name")
    _check_text(message, "message")
    if name.count("/") != 1:
        raise ConfigError(f"name must be that of a repository, 'user/name', got {name!r}", parameter="name", got=name)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "model"
        model.save(folder, ema=ema)
        (folder / CARD).write_text(write_card(model, name), encoding="utf-8")
        library = _load_library()
        try:
            api = library.HfApi()
            address = api.create_repo(name, private=private, exist_ok=True)
            # What an older model left behind goes in the same commit.
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=list(FILES))
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise CheckpointError(
                f"{name} could not be uploaded ({said}); log in with hf auth login, and check the name and the network"
            ) from error
    return str(address)


def write_card(model: ScoreModel, name: str) -> str:
    """Return the README of a model's repository: what it is, and the lines that draw from it."""
    network = network_to_dict(model.net)
    own = network["config"] is None
    given = f", net={network['kind']}(...)" if own else ""
    event = None if model.moments is None else tuple(model.moments.mean.shape)
    classes = {key: ", ".join(map(str, names)) for key, names in (model.class_names or {}).items()}
    rows = {
        "network": describe_network(model.net) + (", whose code is not here: build it and pass net=" if own else ""),
        "diffusion": repr(model.trained_sde)
        + ("" if model.sde is model.trained_sde else f", in use under {model.sde!r}"),
        "predicts": model.parameterization.name + (", with its variance" if model.variance == "learned" else ""),
        "told of the time": str(model.condition_on),
        "one sample": "unknown shape" if event is None else f"shape {event}",
        "transform": "none" if model.transform is None else repr(model.transform),
        **{f"classes of {key!r}": words for key, words in classes.items()},
    }
    shape = "(16, ...)" if event is None else "16"
    cond = "".join(f', cond={{"{key}": 0}}' for key in list(classes)[:1])
    lines = [
        "---",
        "library_name: scoresde",
        "tags:",
        "- diffusion",
        "- score-based-generative-modeling",
        "---",
        "",
        f"# {name}",
        "",
        "A score-based diffusion model, saved by scoresde.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {printable(key)} | {printable(value).replace('|', chr(92) + '|')} |" for key, value in rows.items()),
        "",
        "```python",
        "from scoresde import ScoreModel, sample",
        "",
        f'model = ScoreModel.from_pretrained("{name}"{given})',
        f"x = sample(model, {shape}{cond}, seed=0)",
        "```",
    ]
    return "\n".join(lines) + "\n"
