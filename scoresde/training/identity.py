"""What a run is: everything that decides its weights, written into its checkpoint and compared when it goes on.

A seed alone names no run. So do the data to the last bit, their transform and conditions, the model that is trained,
and each option of ``fit`` that changes a step. How often it logs and saves, what it holds out, and the device do not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from scoresde.diffusions.learned import LearnedSchedule
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, TrainingWarning
from scoresde.models.checkpoint import Contents
from scoresde.models.saving import network_to_dict, sde_to_document
from scoresde.models.score_model import ScoreModel
from scoresde.models.sde_model import SDEModel
from scoresde.training.batches import Batches
from scoresde.training.names import name_function
from scoresde.training.trainer import Trainer
from scoresde.training.updates import describe_optimizer

__all__ = ["CHANGE", "RUN", "Run"]

RUN = "run"  # the name of the document in a checkpoint
CHANGE = "change"  # resume="change"
# What ``resume="change"`` cannot change: another model is another run, which may start from these weights.
FIXED = ("network", "sde", "predicts", "sigma_data", "condition_on", "variance")
SAME_RUN = "pass what it had, choose a new folder, or resume='change' to go on with what is new"
NEW_RUN = "start a new run, from its weights if they fit: ScoreModel.load(folder, weights='raw').net"
SHOWN = 60  # letters of a value in a message


@dataclass(frozen=True, eq=False)
class Run:
    """What a run is now, and what was changed on the way.

    Args:
        identity: by the names of ``fit``'s arguments, as JSON has them.
        changes: of what was changed on purpose, the step and by name what it was.
    """

    identity: dict[str, object]
    changes: list[dict[str, object]]

    @classmethod
    def of(cls, trainer: Trainer, batches: Batches, options: Mapping[str, object]) -> Run:
        """Describe a run; ``options`` are those that neither its trainer nor its batches know."""
        model: object = trainer.model
        network = network_to_dict(trainer.net)
        config = network["config"]
        if isinstance(config, dict):
            # It names the first weights, of which none is left.
            network["config"] = {name: value for name, value in config.items() if name != "seed"}
        identity = {
            "network": network,
            **(_describe_paths(model) if isinstance(model, SDEModel) else _describe_readout(trainer.model)),
            **batches.source.describe(),
            "transform": None if batches.transform is None else batches.transform.to_dict(),
            "cond_dropout": dict(sorted(batches.dropout.items())),
            "seed": trainer.seed,
            **(trainer.loss_names or {"objective": name_function(trainer.objective)}),
            "clip_norm": trainer.clip_norm,
            "weight_decay": trainer.weight_decay,
            "ema_decay": trainer.ema.decay,
            "autocast": None if trainer.autocast is None else str(trainer.autocast),
            **_describe_extras(trainer, batches),
            **options,
        }
        # As a file gives it back.
        return cls(json.loads(json.dumps(identity)), [])

    def follow(self, contents: Contents, step: int, folder: Path, *, change: bool) -> None:
        """Go on with the run of a checkpoint; raise unless it is the same, or the caller means to change it.

        Raises:
            ConfigError: something differs, by its names and values, and ``change`` is not set; another model, in any
                case.
        """
        if RUN not in contents.documents:
            warnings.warn(
                f"{folder} was written by an earlier scoresde, which did not keep what its run was: not compared",
                TrainingWarning,
                stacklevel=5,
            )
            return
        document = contents.document(RUN)
        known = document["identity"]
        names = {**self.identity, **known}
        differ = [name for name in names if known.get(name) != self.identity.get(name)]
        forbidden = [name for name in differ if name in FIXED]
        named = forbidden or differ
        if named and (forbidden or not change):
            said = "; ".join(f"{name} {_show(known.get(name))}, now {_show(self.identity.get(name))}" for name in named)
            raise ConfigError(
                f"{folder} is {'the run of another model' if forbidden else 'another run'}: {said}",
                parameter="resume",
                got=CHANGE if change else True,
                allowed=tuple(named),
                cure=NEW_RUN if forbidden else SAME_RUN,
            )
        self.changes.extend(document["changes"])
        if differ:
            self.changes.append({"step": step, "was": {name: known.get(name) for name in differ}})

    @property
    def document(self) -> dict[str, object]:
        """What the checkpoint keeps of it."""
        return {"identity": self.identity, "changes": self.changes}


def _describe_extras(trainer: Trainer, batches: Batches) -> dict[str, object]:
    """Return the options that are named only where they are used, as checkpoints of earlier versions have none."""
    extras = {
        "optimizer": describe_optimizer(trainer.update),
        "accumulate": trainer.accumulate if trainer.accumulate > 1 else None,
        "sigma_rel": None if trainer.ema.sigma_rel is None else [average.sigma_rel for average in trainer.averages],
        "uncertainty": trainer.uncertainty is not None or None,
        "augment": None if batches.augment is None else name_function(batches.augment),
    }
    return {name: value for name, value in extras.items() if value is not None}


def _describe_readout(model: ScoreModel) -> dict[str, object]:
    """Return what a network is read as, and under which diffusion."""
    how = model.parameterization
    return {
        "sde": _describe_sde(model.sde),
        "predicts": how.name,
        "sigma_data": how.sigma_data,
        "condition_on": model.condition_on if isinstance(model.condition_on, str) else "your own",
        "variance": model.variance,
    }


def _describe_paths(model: SDEModel) -> dict[str, object]:
    """Return the same of an SDE of one's own; what it does shows in the scale of its paths."""
    document = {"kind": None, "class": type(model.sde).__name__, "times": [model.sde.t_min, model.sde.t_max]}
    scale = [float(f"{value:.6g}") for value in model.scale.reshape(-1)[:8].tolist()]
    return {"sde": {**document, "scale": scale}, "predicts": model.baseline, "prior": model.prior_name}


def _describe_sde(sde: GaussianSDE) -> dict[str, object]:
    """Return an SDE's document; of one's own, its curves at five times too, of one that is learned what is not."""
    if isinstance(sde, LearnedSchedule):
        return {**sde.config, **({} if sde.learn_ends else {"ends": sde.ends.tolist()})}
    document = dict(sde_to_document(sde))
    if document["kind"] is None:
        t = torch.linspace(sde.t_min, sde.t_max, 5, dtype=torch.float64, device="cpu")
        for name, values in (("alpha", sde.at(t).alpha), ("sigma", sde.at(t).sigma)):
            document[name] = [float(f"{value:.6g}") for value in values.tolist()]
    return document


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
