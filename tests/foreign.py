"""Networks of other libraries, for the tests of adapters and schedulers."""

from __future__ import annotations

import torch
from torch import nn


def small_unet(**options: object) -> nn.Module:
    """Return an untrained UNet2DModel of diffusers for images (1, 8, 8), always the same."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **options,
        ).eval()
