"""The Fokker-Planck equation: the density of an SDE over time, on a grid in one or two dimensions."""

from scoresde.likelihood.fokker_planck.densities import Densities
from scoresde.likelihood.fokker_planck.evolve import evolve_density

__all__ = ["Densities", "evolve_density"]
