"""Discrete chains: a diffusion seen at its knots (``DDPM``, ``SMLD``)."""
