"""Models: one affine readout of a network, exact models, and the folder in which a model is kept."""
