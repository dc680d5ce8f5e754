"""Sampling: from a model, a solver and a source of noise to samples, to latents and back, and to comparisons."""
