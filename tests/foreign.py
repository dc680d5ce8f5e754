"""Networks of other libraries, for the tests of adapters, schedulers and the command line.

Every layer has weights of its own, the last ones too, which some of these classes begin at 0.
"""

from __future__ import annotations

import torch
from torch import nn


def small_unet(**options: object) -> nn.Module:
    """Return an untrained UNet2DModel of diffusers for images (1, 8, 8), always the same."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            in_channels=1,
            out_channels=1,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            **{"sample_size": 8, **options},
        ).eval()


def small_unet1d() -> nn.Module:
    """Return an untrained UNet1DModel of diffusers for series (2, 16), always the same."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet1DModel(
            sample_size=16,
            in_channels=2,
            out_channels=2,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            act_fn="silu",
            block_out_channels=(8, 16, 16),
            down_block_types=("DownResnetBlock1D",) * 3,
            mid_block_type="MidResTemporalBlock1D",
            up_block_types=("UpResnetBlock1D",) * 2,
            out_block_type="OutConv1DBlock",
        ).eval()


def small_dit(*, learned: bool = True) -> nn.Module:
    """Return an untrained DiTTransformer2DModel for latents (4, 4, 4) of 1000 classes, always the same."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8 if learned else 4,
            num_layers=1,
            sample_size=4,
        ).eval()
        for parameter in made.parameters():
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.2)
        return made
