"""Sizes by name, and what a network costs.

``UNet(3, **SIZES["UNet"]["base"])`` is a U-Net of 35 million parameters; any option may be given beside these. "large"
has the size of the DDPM++ of Song et al. 2021 (arXiv:2011.13456), "base" half of its blocks. The sizes of ``DiT`` are
those of Peebles and Xie 2023 (arXiv:2212.09748), who write the size of a patch behind the letter: "DiT-B/4" is
``DiT(4, patch=4, **SIZES["DiT"]["B"])``.

A multiplication with the addition behind it counts as two floating point operations, as ``torch.utils.flop_counter``
has it; papers on transformers often count it as one. Products of matrices, convolutions and attention are counted, what
works element by element is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn

from scoresde.errors.kinds import DTypeError
from scoresde.errors.values import check_integer

__all__ = ["SIZES", "count"]

_WIDE: dict[str, Any] = {"width": 128, "multipliers": (1, 2, 2, 2), "attention": (1,)}
_PLUS: dict[str, Any] = {**_WIDE, "resample": "residual", "rescale_skips": True}
_TINY: dict[str, Any] = {"width": 16, "multipliers": (1, 2, 4)}
_SMALL: dict[str, Any] = {"width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention": (1,)}
SIZES: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "MLP": {
        "tiny": {"width": 64, "depth": 2},
        "small": {"width": 128, "depth": 3},
        "base": {"width": 512, "depth": 6},
        "large": {"width": 1024, "depth": 12},
    },
    "UNet": {
        "tiny": _TINY,
        "small": _SMALL,
        "base": {**_PLUS, "blocks": 2},
        "large": {**_PLUS, "blocks": 4},
    },
    "MagnitudeUNet": {
        "tiny": _TINY,
        "small": _SMALL,
        "base": {**_WIDE, "blocks": 3},
        "large": {**_WIDE, "blocks": 5},
    },
    "DiT": {
        "S": {"width": 384, "depth": 12, "heads": 6},
        "B": {"width": 768, "depth": 12, "heads": 12},
        "L": {"width": 1024, "depth": 24, "heads": 16},
        "XL": {"width": 1152, "depth": 28, "heads": 16},
    },
    "EGNN": {
        "tiny": {"width": 32, "depth": 2},
        "small": {"width": 64, "depth": 4},
        "base": {"width": 128, "depth": 6},
        "large": {"width": 256, "depth": 9},
    },
}


def count(net: nn.Module, event_shape: int | Sequence[int]) -> tuple[int, int]:
    """Return a network's number of parameters, and of floating point operations of one call for one sample.

    Nothing is computed and no memory taken, but for shapes. Conditions are null, which costs what others cost.

    Args:
        net: net(x, c_noise) -> a tensor; any module, also one made on the meta device.
        event_shape: shape of one sample, or D for (D,).

    Raises:
        DTypeError: no module. DTypeError, DomainError: a size that is no positive integer. What the network raises for
            a sample of another shape than it takes.
    """
    # Where there is a GPU the counter loads a compiler.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    if not isinstance(net, nn.Module):
        raise DTypeError(
            f"net must be a torch.nn.Module, got {type(net).__name__}; a model has its network as model.net"
        )
    sizes = event_shape if isinstance(event_shape, Sequence) else (event_shape,)
    shape = (1, *(check_integer(n, "event_shape", 1) for n in sizes))
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    shapes = {name: value.detach().to("meta") for name, value in tensors.items()}
    dtype = next((value.dtype for value in shapes.values() if value.is_floating_point()), torch.float32)
    x, c_noise = torch.empty(shape, dtype=dtype, device="meta"), torch.empty(1, device="meta")
    # Written out, attention is two products on every device; a fused one is known to the counter on some.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        torch.func.functional_call(net, shapes, (x, c_noise))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()
