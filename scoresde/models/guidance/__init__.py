"""Models made of models: guidance, products, tilts, clamps, and posteriors of inverse problems."""
