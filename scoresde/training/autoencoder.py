r"""Training of an autoencoder: Adam on the mean of its own losses.

An autoencoder is not asked for a score, so this is no ``fit``; the order of the data, the learning rate and the clipped
step are the same. Whatever is random in step k comes from (seed, k) alone.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from scoresde.errors.kinds import ConfigError, DTypeError, SolverError
from scoresde.errors.names import explain_keywords
from scoresde.errors.values import check_flag, check_integer
from scoresde.models.prediction import in_mode
from scoresde.noise import check_seed, stream
from scoresde.ops import Array, Rows, recording
from scoresde.training.batches import Batches
from scoresde.training.opening import open_source
from scoresde.training.rates import LearningRate

__all__ = ["fit_autoencoder"]

CLIP = 1.0  # of the gradient of the mean loss for each coordinate
LOOK = 50  # steps between looks at the loss, each of which waits for the device


@runtime_checkable
class Lossy(Protocol):
    """What is trained here, as ``nn.Autoencoder``."""

    def losses(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the losses (B,) of data x (B, *), in nats; the generator is on their device."""
        ...


@explain_keywords(lr="learning_rate", bs="batch_size", epochs="steps= with steps = epochs * len(data) / batch_size")
def fit_autoencoder(
    autoencoder: nn.Module,
    data: Array | Rows,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """Train an autoencoder on data, in place, and return the mean loss of each step in nats, (steps,), on the CPU.

    The rate rises over a twentieth of the steps and falls to zero along a cosine; the gradient of the loss for each
    coordinate is cut to a norm of 1.

    Args:
        autoencoder: an ``nn.Autoencoder``, or any module with a method ``losses(x, generator)`` -> (B,). It is trained
            where it is.
        data: (N, *), finite, in the unit in which it is to be encoded; values of about 1 suit.
        steps: number of steps.
        batch_size: samples of a step; more than N of them repeat.
        learning_rate: of Adam, at its peak.
        seed: of the order of the data and of all draws.
        progress: show a bar with the loss and the time left.

    Raises:
        DTypeError, ShapeError, DomainError: no such module, bad data or options, before anything is changed.
        ConfigError: nothing to train. SolverError: a loss that is not finite; the weights are those at that step.
    """
    module: object = autoencoder
    if not (isinstance(module, nn.Module) and isinstance(module, Lossy)):
        raise DTypeError(
            f"autoencoder must be a module with a method losses(x, generator), got {type(autoencoder).__name__}; "
            "nn.Autoencoder is one"
        )
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("the autoencoder has no trainable parameters")
    steps, silent = check_integer(steps, "steps", 1), not check_flag(progress, "progress")
    rate = LearningRate(learning_rate, None, steps, "cosine")
    device, dtype = parameters[0].device, torch.promote_types(torch.float32, parameters[0].dtype)
    seed = check_seed(seed)
    size = check_integer(batch_size, "batch_size", 1)
    source = open_source(data, None, module, batch_size=size, seed=seed, unpack=None, workers=0)
    batches = Batches(source, dropout={}, seed=seed, device=device, dtype=dtype)
    # Also a check of all of the data.
    coordinates, losses = batches.measure().mean.numel(), torch.empty(steps, dtype=torch.float32, device=device)
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    bar = tqdm(range(steps), desc="autoencoder", unit="step", disable=silent, leave=False)
    with in_mode(module, training=True):
        for k in bar:
            x, _ = batches(k)
            optimizer.zero_grad()
            with recording():
                loss = module.losses(x, stream(seed, "autoencoder", k, device=device)).mean() / coordinates
                loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, CLIP)
            for group in optimizer.param_groups:
                group["lr"] = rate(k)
            optimizer.step()
            losses[k] = loss.detach() * coordinates
            if k % LOOK == 0 or k + 1 == steps:
                shown = float(losses[k])
                if not torch.isfinite(losses[k]):
                    raise SolverError(f"the loss is {shown} at step {k}; lower learning_rate, or scale the data")
                bar.set_postfix_str(f"loss {shown:.4g} nats")
    return losses.cpu()
