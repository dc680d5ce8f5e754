"""Distances between two sets of samples, each beside its sampling floor, and tests of whether their laws are one.

Let x be n samples of a law P and y m samples of a law Q, tensors or NumPy arrays, both flattened to D coordinates. Each
number is a float computed in float64 where the device has it:

* sliced Wasserstein-2, in units of the data.  SW2^2 = E_theta W2^2(theta.x, theta.y), theta uniform on the unit sphere.
  In one dimension W2^2 = int_0^1 (F^-1(u) - G^-1(u))^2 du with the two empirical quantile functions. Both are constant
  between the points {i/n} and {j/m}, so the integral is a finite sum, exact for unequal n and m.
* energy distance, in the square root of the data's unit.  D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|, with the mean over
  *all* pairs, a pair of a sample with itself included (the V-statistic: never negative, biased upwards by about
  E|x - x'| (1/n + 1/m) for equal laws; the floor shows that bias).
* maximum mean discrepancy, without unit.  MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), k(x, y) =
  exp(-|x - y|^2/(2 h^2)), without the pairs of a sample with itself (the U-statistic: unbiased, so its floor is 0 and
  it may be negative).
* Frechet distance, in squared units of the features, as FID is reported.  The squared Wasserstein-2 distance of the
  two fitted Gaussians, |mu_x - mu_y|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).
* one-dimensional distances of each coordinate: Wasserstein-1 in its unit, Kolmogorov-Smirnov without unit.

**The floor.** A finite set differs from another finite set of the same law. ``floor`` measures by how much: the mean
and the standard deviation of the metric between two disjoint random subsets of a reference, of the sizes that are
compared. A sampler whose distance is within two standard deviations of the floor cannot be told from
the data by this metric at these sizes; a distance below the floor says nothing more.

**The tests.** ``two_sample_test`` and ``classifier_two_sample_test`` return a p-value: if P = Q, it is at most a with a
probability of at most a, for every a and all sizes. A large one is no proof of P = Q: with few samples every test
passes, and with many a sampler that is good enough fails.
"""

from __future__ import annotations

from scoresde.metrics.discrepancy import median_bandwidth, mmd
from scoresde.metrics.distances import energy_distance, sliced_wasserstein
from scoresde.metrics.floors import Comparison, Floor, floor
from scoresde.metrics.frechet import frechet_distance, frechet_distance_of_moments
from scoresde.metrics.marginals import marginal_distances
from scoresde.metrics.two_sample import Classifier, TwoSampleTest, classifier_two_sample_test, two_sample_test

__all__ = [
    "Classifier",
    "Comparison",
    "Floor",
    "TwoSampleTest",
    "classifier_two_sample_test",
    "energy_distance",
    "floor",
    "frechet_distance",
    "frechet_distance_of_moments",
    "marginal_distances",
    "median_bandwidth",
    "mmd",
    "sliced_wasserstein",
    "two_sample_test",
]
