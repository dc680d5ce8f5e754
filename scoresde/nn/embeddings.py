r"""What networks are made of: the noise level as features, first values, and a part linear in x.

The noise level c (as a rule the log-SNR, in nats, from -40 to 40) is spread over n frequencies,

    e(c) = (sin w_1 c, ..., sin w_n c, cos w_1 c, ..., cos w_n c),    w_k = 2^(-6 + 8 (k - 1)/(n - 1)),

from a period of 400 nats, over which a sine is almost a straight line, down to one of 1.6. Products w c reach 160,
where bf16 has lost the angle altogether: they are formed in float32 (float64 where c is float64) and cast afterwards.

First values come from ``initialise``: uniform of variance 1/(3 n) for a layer with n inputs, from the network's seed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde.noise import normal, stream, uniform

__all__ = ["FREQUENCIES", "add_linear", "fourier_features", "initialise"]

FREQUENCIES = 32
LOWEST, HIGHEST = -6.0, 2.0  # exponents of 2


def fourier_features(c_noise: Tensor, frequencies: int = FREQUENCIES) -> Tensor:
    """Return sines and cosines (B, 2 n) of ``c_noise`` (B,) at n frequencies, in float32 or c_noise's wider type."""
    c = c_noise.to(torch.promote_types(torch.float32, c_noise.dtype))
    # Made anew at each call: a buffer would lose its digits when the network is cast to bf16.
    omega = torch.logspace(LOWEST, HIGHEST, frequencies, base=2.0, dtype=c.dtype, device=c.device)
    angle = torch.outer(c, omega)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def initialise(network: nn.Module, seed: int, zero: tuple[nn.Module, ...] = ()) -> None:
    """Give a network made on the meta device its memory and first values, drawn from ``seed`` alone.

    torch's layers draw first values from the global generator as they are made; on the meta device they draw none.

    Args:
        network: made of linear layers, convolutions, embeddings and normalisations.
        seed: in [0, 2**64).
        zero: the layers that start at 0, so that a residual block starts as the identity.
    """
    generator = stream(seed, "nn")
    device = torch.get_default_device()
    network.to_empty(device=device)
    if device.type == "meta":
        return  # shapes without values: nothing to draw
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
