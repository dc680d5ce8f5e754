r"""What a network is told besides x: how noisy x is, and of which class it is.

The noise level c (as a rule the log-SNR, in nats, from -40 to 40) is spread over n frequencies,

    e(c) = (sin w_1 c, ..., sin w_n c, cos w_1 c, ..., cos w_n c),    w_k = 2^(-6 + 8 (k - 1)/(n - 1)),

from a period of 400 nats, over which a sine is almost a straight line, down to one of 1.6. Products w c reach 160,
where bf16 has lost the angle altogether: they are formed in float32 (float64 where c is float64) and cast afterwards.

A class k in 0..classes-1 adds a learned vector v_k. The null class, -1 or no label at all, has a learned vector of its
own: a network trained with some labels replaced by -1 (``drop_labels``) knows the conditional and the unconditional
score, as classifier-free guidance asks (Ho and Salimans 2022, arXiv:2207.12598). The networks themselves draw no random
number once they are made, in training mode neither.

First values come from ``initialise``: uniform of variance 1/(3 n) for a layer with n inputs, from the network's seed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoresde.errors import ConfigError, DomainError, DTypeError, ShapeError, check_integer, check_number
from scoresde.noise import normal, stream, uniform

__all__ = ["Conditioning", "LabelledNetwork", "drop_labels", "fourier_features", "initialise"]

FREQUENCIES = 32
LOWEST, HIGHEST = -6.0, 2.0  # exponents of 2


def fourier_features(c_noise: Tensor, frequencies: int = FREQUENCIES) -> Tensor:
    """Return sines and cosines (B, 2 n) of ``c_noise`` (B,) at n frequencies, in float32 or c_noise's wider type."""
    c = c_noise.to(torch.promote_types(torch.float32, c_noise.dtype))
    # Made anew at each call: a buffer would lose its digits when the network is cast to bf16.
    omega = torch.logspace(LOWEST, HIGHEST, frequencies, base=2.0, dtype=c.dtype, device=c.device)
    angle = torch.outer(c, omega)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class LabelledNetwork(nn.Module):
    """What the built-in networks share: a description by the constructor's arguments, and class labels or none."""

    ARGS: ClassVar[tuple[str, ...]]  # the constructor's arguments, each an attribute
    classes: int | None

    @property
    def config(self) -> dict[str, object]:
        """The constructor's arguments, JSON-able: ``MLP(**net.config)`` is an MLP again, with its first weights."""
        values = {name: getattr(self, name) for name in self.ARGS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def condition_names(self) -> frozenset[str]:
        """The conditions that ``forward`` takes: label, where there are classes."""
        return frozenset() if self.classes is None else frozenset({"label"})


class Conditioning(nn.Module):
    """c_noise (B,) and label (B,) -> one vector (B, width), a two-layer network of the features plus v_label.

    Args:
        width: length of the vector.
        classes: number of classes; None where there are none.
    """

    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        self.classes = classes
        self.features = nn.Linear(2 * FREQUENCIES, width)
        self.mix = nn.Linear(width, width)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)  # row 0 is the null class

    def forward(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """Return the vector (B, width) in the type of the weights.

        Raises:
            ConfigError: a label for a network without classes.
            DTypeError, DomainError: labels that are not integers in -1..classes-1 (the range is seen on the CPU only:
                elsewhere a look would stop the device, whose own indexing check reports it).
        """
        features = fourier_features(c_noise).to(self.mix.weight.dtype)
        h: Tensor = self.mix(functional.silu(self.features(features)))
        if self.label is None:
            if label is not None:
                raise ConfigError("label was given, but the network has classes=None; build it with classes=n")
        elif label is None:
            h = h + self.label.weight[0]
        else:
            h = h + self._row(self.label, label)
        return functional.silu(h)

    def _row(self, table: nn.Embedding, label: Tensor) -> Tensor:
        if label.dtype not in (torch.int64, torch.int32):
            raise DTypeError(f"label must be an int64 or int32 tensor, got {label.dtype}; convert it with label.long()")
        try:
            row: Tensor = table(label + 1)
        except IndexError as error:
            low, high = int(label.min()), int(label.max())
            allowed = f"0..{table.num_embeddings - 2}, or be -1 for no class"
            raise DomainError(f"label must lie in {allowed}, got values from {low} to {high}") from error
        return row


def drop_labels(label: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return ``label`` with each entry replaced by -1, the null class, with the given probability.

    Args:
        label: integers (B,).
        probability: in [0, 1]; 0.1 is usual for classifier-free guidance.
        generator: source of the draw; it may live on another device than the labels.

    Raises:
        DTypeError, DomainError: label is not of an integer type, probability outside [0, 1].
    """
    if label.dtype.is_floating_point or label.dtype.is_complex or label.dtype == torch.bool:
        raise DTypeError(f"label must have an integer dtype, got {label.dtype}; convert it with label.long()")
    share = check_number(probability, "probability", 0.0, 1.0)
    dropped = uniform(tuple(label.shape), generator) < share
    return label.masked_fill(dropped.to(label.device), -1)


def initialise(network: nn.Module, seed: int, zero: tuple[nn.Module, ...] = ()) -> None:
    """Give a network made on the meta device its memory and first values, drawn from ``seed`` alone.

    torch's layers draw first values from the global generator as they are made; on the meta device they draw none.

    Args:
        network: made of linear layers, convolutions, embeddings and normalisations.
        seed: in [0, 2**64).
        zero: the layers that start at 0, so that a residual block starts as the identity.
    """
    generator = stream(seed, "nn")
    network.to_empty(device=torch.get_default_device())
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                bound = layer.weight[0].numel() ** -0.5
                layer.weight.copy_((2 * uniform(layer.weight.shape, generator) - 1) * bound)
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, nn.Embedding):
                layer.weight.copy_(normal(layer.weight.shape, generator))
            elif isinstance(layer, nn.GroupNorm | nn.LayerNorm) and layer.weight is not None:
                layer.weight.fill_(1.0)
                layer.bias.zero_()
        for layer in zero:
            for parameter in layer.parameters():
                parameter.zero_()


def add_linear(out: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """Return ``out`` with weight x added to its first channels, as many as x has."""
    channels = x.shape[1]
    if out.shape[1] == channels:
        return torch.addcmul(out, weight, x)
    return torch.cat([torch.addcmul(out[:, :channels], weight, x), out[:, channels:]], 1)


def check_call(x: Tensor, c_noise: Tensor, label: Tensor | None) -> None:
    """Raise ShapeError unless ``c_noise`` and ``label`` have shape (B,) for x of shape (B, *)."""
    batch = (x.shape[0],)
    if c_noise.shape != batch:
        raise ShapeError(f"c_noise must have shape {batch} for x of shape {tuple(x.shape)}, got {tuple(c_noise.shape)}")
    if label is not None and label.shape != batch:
        raise ShapeError(f"label must have shape {batch} for x of shape {tuple(x.shape)}, got {tuple(label.shape)}")


def check_classes(classes: int | None) -> int | None:
    """Return ``classes`` if it is None or at least 1, else raise DTypeError or DomainError."""
    return None if classes is None else check_integer(classes, "classes", 1)
