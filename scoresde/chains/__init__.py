"""Discrete chains: a diffusion seen at its knots (``DDPM``, ``SMLD``)."""

from scoresde.chains.base import Chain
from scoresde.chains.ddpm import DDPM
from scoresde.chains.smld import SMLD

__all__ = ["DDPM", "SMLD", "Chain"]
