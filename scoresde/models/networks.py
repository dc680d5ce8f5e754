"""Networks as a model meets them: inside the wrappers of other tools, with conditions, or as the slope of an energy.

``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` put a module around a network and a prefix before
the names of its weights. The wrapper is what is called; the network inside is what is named, described and saved.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from scoresde.diffusions.sde import Conditioned
from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.names import unknown
from scoresde.models.prediction import Condition
from scoresde.ops import recording

__all__ = [
    "Around",
    "Conditional",
    "Energetic",
    "Gradient",
    "bare_network",
    "check_conditions",
    "condition_names",
    "describe_network",
    "network_state",
    "plain_names",
    "warn_of_timesteps",
]

Network = TypeVar("Network", bound=Callable[..., object])


@runtime_checkable
class Energetic(Protocol):
    """A network that has an energy, as ``EnergyModel``'s has."""

    def energy(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Return the energies (B,) in nats of scaled states x (B, *)."""


@runtime_checkable
class Conditional(Protocol):
    """A network that looks at its conditions before it is called and says what none are, as ``scoresde.nn``'s do."""

    def check_conditions(self, x_shape: torch.Size, cond: Mapping[str, Tensor | None]) -> None:
        """Raise for conditions that it does not take."""

    def null_conditions(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what stands for no conditions, for each of ``cond``."""


def warn_of_timesteps(net: object) -> None:
    """Warn of a network of diffusers, which knows timesteps 0 ... 999 and is about to be told log-SNR."""
    inner = bare_network(net) if isinstance(net, nn.Module) else net
    if type(inner).__module__.partition(".")[0] == "diffusers":
        name = type(inner).__name__
        warnings.warn(
            f"{name} of diffusers was made for timesteps 0 ... 999, and condition_on='log_snr' tells it numbers from "
            "-10 to 14: for trained weights take adapt(net, time='index', betas=betas), or from_diffusers(folder)",
            UserWarning,
            stacklevel=3,
        )


class Around(nn.Module):
    """A module around another network, which takes the conditions of that one.

    Args:
        net: the other network.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    @property
    def condition_names(self) -> frozenset[str] | None:
        """The conditions that the network inside takes; None for any."""
        return condition_names(self.net)

    def check_conditions(self, x_shape: torch.Size, cond: Mapping[str, Tensor | None]) -> None:
        """Have the network inside look at its conditions, if it does such a thing."""
        inner = bare_network(self.net)
        if isinstance(inner, Conditional):
            inner.check_conditions(x_shape, cond)


class Gradient(Around):
    """-dE/dx of an energy network, with the graph to the parameters wherever gradients are being recorded.

    Args:
        net: ``net(x, c_noise, **cond)`` -> energies (B,) in nats.
    """

    def null_conditions(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the energy network takes for no conditions."""
        inner = bare_network(self.net)
        if isinstance(inner, Conditional):
            return inner.null_conditions(cond)
        raise ConfigError("the energy network does not say what it takes for no condition; pass negative=")

    def energy(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Return E, (B,); ShapeError where the network returns another shape."""
        out = self.net(x, c_noise) if cond is None else self.net(x, c_noise, **cond)
        if out.shape != (len(x),):
            raise ShapeError(f"an energy network must return one number a sample, ({len(x)},), got {tuple(out.shape)}")
        return out

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        """Return -dE/dx, of x's shape."""
        keep = torch.is_grad_enabled()
        with recording():
            point = x if x.requires_grad else x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.energy(point, c_noise, cond or None).sum(), point, create_graph=keep)
        return -gradient


def _wrapping(module: nn.Module) -> str | None:
    """Return the attribute under which a wrapper holds its module; None for anything else."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    return "_orig_mod" if "_orig_mod" in module._modules else None


def bare_network(net: Network) -> Network:
    """Return the network, or model, inside any number of wrappers; ``net`` itself where there are none."""
    inner: object = net
    while isinstance(inner, nn.Module) and (name := _wrapping(inner)) is not None:
        inner = inner.get_submodule(name)
    return inner  # type: ignore[return-value]


def plain_names(net: nn.Module) -> dict[str, str]:
    """Return, for each key of the network's state dict, its name without the prefixes of wrappers at any depth."""
    prefixes = []
    for path, part in net.named_modules():
        if (name := _wrapping(part)) is not None:
            outer = f"{path}." if path else ""
            prefixes.append((f"{outer}{name}.", outer))
    names = {}
    for key in net.state_dict():
        plain = key
        # From the inside out, since a path runs through the wrappers around it.
        for inside, outside in sorted(prefixes, key=lambda pair: len(pair[0]), reverse=True):
            if plain.startswith(inside):
                plain = outside + plain.removeprefix(inside)
        names[key] = plain
    return names


def network_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the network's state dict, its own tensors, under names without the prefixes of wrappers."""
    names = plain_names(net)
    return {names[key]: value for key, value in net.state_dict().items()}


def condition_names(net: Callable[..., object]) -> frozenset[str] | None:
    """Return the conditions that a network takes by its signature; None where it takes any, or does not say."""
    inner = bare_network(net)
    if isinstance(inner, Conditioned):
        return inner.condition_names
    try:
        parameters = inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        return None
    return frozenset(p.name for p in list(parameters)[2:] if p.kind is not p.POSITIONAL_ONLY)


def check_conditions(net: Callable[..., object], cond: Condition, x: Tensor) -> None:
    """Raise for a condition that the network does not take for a batch like x, with what it takes.

    Raises:
        ConfigError: an unknown name. ShapeError, DTypeError: what a network of ``scoresde.nn`` says of its values.
    """
    if not cond or torch.compiler.is_compiling():
        return
    names = condition_names(net)
    for key in cond:
        if names is not None and key not in names:
            if not names:
                raise ConfigError(
                    f"cond has {key!r}, and the network takes no conditions; one of scoresde.nn takes label= if it is "
                    "built with classes=n, context= with context_features=n, concat= with concat_channels=n"
                )
            raise unknown("condition", key, names)
    inner = bare_network(net)
    if isinstance(inner, Conditional):
        inner.check_conditions(x.shape, cond)


def describe_network(net: Callable[..., object]) -> str:
    """Return a network's name, with the number of its parameters if it has some."""
    inner = bare_network(net)
    if not isinstance(inner, nn.Module):
        return str(getattr(inner, "__name__", type(inner).__name__))
    count = sum(p.numel() for p in inner.parameters())
    if isinstance(inner, Gradient):
        return f"the gradient of {describe_network(inner.net)}"
    return f"{type(inner).__name__} of {count:,} parameters" if count else type(inner).__name__
