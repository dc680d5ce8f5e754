"""Probes of the divergence: the law of the estimate, groups by lattice and learned, the standard error."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from known import SDES, at_the_end, correlated, data_of, many
from torch import Tensor

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    LogLikelihood,
    ProbabilityFlow,
    ScoreModel,
    ShapeError,
    colour,
    log_likelihood,
    nn,
)
from scoresde.likelihood.colour import partition
from scoresde.likelihood.probes import lattice

TIGHT = ProbabilityFlow(rtol=1e-8, atol=1e-8)


def jacobian(model: GaussianModel) -> Tensor:
    """M, the integral of the flow's Jacobian for Gaussian data: in the eigendirections half the log of V_T/V_t."""
    law = model.moments
    ends = [model.sde.at(t) for t in (model.sde.t_min, model.sde.t_max)]
    start, end = (law.at(float(p.alpha), float(p.sigma)).variance for p in ends)
    return law.basis @ torch.diag(0.5 * (end / start).log()) @ law.basis.T


def repeat(model: GaussianModel, n: int, **options: object) -> Tensor:
    """Return the errors of n estimates at one datum, each with its own signs."""
    x = data_of(model, 1).expand(n, 4)
    return (log_likelihood(model, x, solver=TIGHT, **options).each - at_the_end(model, x)[:, None]).flatten()


def test_every_estimate_is_a_quadratic_form_of_one_matrix() -> None:
    """For one group and D = 4 the 16 choices of signs give 8 values, e^T M e - tr M, and no other."""
    model = correlated()
    m = jacobian(model)
    forms = [
        float(e @ m @ e - m.trace()) for e in (torch.tensor(s).double() for s in itertools.product((-1, 1), repeat=4))
    ]
    values = torch.tensor(sorted({round(form, 9) for form in forms}), dtype=torch.float64)
    errors = repeat(model, 64, probes=1, draws=1)
    nearest = (errors[:, None] - values).abs().min(1).values
    assert float(nearest.max()) < 1e-6
    assert len({round(float(e), 4) for e in errors}) > 3


@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
def test_the_variance_is_that_of_the_pairs_inside_the_groups(groups: list[int]) -> None:
    model, n = correlated(), 1500
    m = jacobian(model)
    pairs = [(i, j) for i, j in itertools.permutations(range(4), 2) if groups[i] == groups[j]]
    variance = 2 * sum(float(m[i, j]) ** 2 for i, j in pairs)
    errors = repeat(model, n, groups=torch.tensor(groups), draws=1)
    # Bounded forms: five standard errors of the mean and of the variance.
    assert abs(float(errors.mean())) < 5 * math.sqrt(variance / n) + 1e-6
    fourth = float(((errors - errors.mean()) ** 4).mean()) - variance**2
    assert abs(float(errors.var()) - variance) < 5 * math.sqrt(max(fourth, 0.0) / n) + 1e-7


def test_groups_that_part_what_is_correlated_are_exact() -> None:
    """M is block diagonal in the pairs (0, 1) and (2, 3): with these apart two probes are the trace."""
    errors = repeat(correlated(), 8, groups=torch.tensor([0, 1, 0, 1]), draws=1)
    assert float(errors.abs().max()) < 1e-6


def test_as_many_probes_as_coordinates_are_the_trace() -> None:
    model = correlated()
    x = data_of(model, 3)
    exact, all_apart = log_likelihood(model, x), log_likelihood(model, x, probes=4)
    assert torch.equal(exact.values, all_apart.values)
    assert all_apart.exact
    assert all_apart.each.shape == (3, 1)
    with pytest.raises(DomainError, match="probes must be"):
        log_likelihood(model, x, probes=5)


def test_the_standard_error_is_calibrated() -> None:
    """Over seeds the truth lies within two standard errors 95 times in 100."""
    model = many()
    x = data_of(model, 80)
    options = {"solver": "rk3", "steps": 8}
    exact = log_likelihood(model, x, **options).values
    inside = []
    for seed in range(5):
        got = log_likelihood(model, x, probes=2, draws=16, seed=seed, **options)
        inside.append((got.values - exact).abs() < 2 * got.standard_error)
    share = float(torch.cat(inside).double().mean())
    # 400 trials at 0.95: a standard deviation of 0.011.
    assert 0.91 < share < 0.985
    assert bool(log_likelihood(model, x[:2], probes=2, draws=1, **options).standard_error.isnan().all())


def test_the_standard_error_of_few_draws_is_wider() -> None:
    """By Student's law at 0.975 over the normal law's: 12.706, 4.303 and 2.447 over 1.960 for 2, 3 and 7 draws."""
    each = torch.linspace(-1, 1, 7, dtype=torch.float64).repeat(2, 1)
    blank = torch.zeros(2, dtype=torch.float64)
    for draws, quantile in ((2, 12.7062), (3, 4.30265), (7, 2.44691)):
        found = LogLikelihood(each[:, :draws], blank, blank, blank, blank.long(), blank, exact=False, discrete=False)
        expected = each[:, :draws].std(1) / math.sqrt(draws) * quantile / 1.959964
        torch.testing.assert_close(found.standard_error, expected, rtol=1e-5, atol=0)


def test_lattices() -> None:
    board = lattice((1, 4, 4), 2)
    assert torch.equal(board[0], (torch.arange(4)[:, None] + torch.arange(4)) % 2)
    assert torch.equal(lattice((7,), 3), torch.arange(7) % 3)
    assert torch.equal(lattice((2, 3), 99), torch.arange(6).reshape(2, 3))
    assert lattice((), 1).tolist() == 0
    # Channels of one place are apart as soon as there are as many groups.
    rgb = lattice((3, 8, 8), 12)
    assert all(len(set(rgb[:, i, j].tolist())) == 3 for i in range(8) for j in range(8))
    assert lattice((3, 8, 8), 2).shape == (3, 8, 8)


@pytest.mark.parametrize("event", [(1, 8, 8), (3, 6, 5), (2, 16), (1, 4, 4, 4), (9,)])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 12])
def test_a_lattice_keeps_its_groups_apart(event: tuple[int, ...], k: int) -> None:
    """At most k groups without a gap; a denser lattice never brings two places of one group nearer."""
    groups = lattice(event, k)
    used = groups.unique().tolist()
    assert used == list(range(len(used)))
    assert len(used) <= k

    def nearest(groups: Tensor) -> float:
        places = torch.tensor(list(itertools.product(*(range(n) for n in event))), dtype=torch.float64)
        places = places[:, 1:] if len(event) > 1 else places
        far = torch.cdist(places, places)
        same = (groups.flatten()[:, None] == groups.flatten()) & ~torch.eye(groups.numel(), dtype=torch.bool)
        return float(far[same].min()) if bool(same.any()) else math.inf

    # The lattice with one group more may part the channels, and then has fewer for the places.
    assert nearest(lattice(event, k + 1)) >= nearest(groups) - 1e-9 or k + 1 == event[0]


def test_apartition_finds_a_planted_one() -> None:
    """Coordinates that do not touch belong together: three groups of four without a weight inside."""
    planted = torch.arange(12) % 3
    weights = 1.0 + torch.arange(144.0, dtype=torch.float64).reshape(12, 12).cos()
    weights = (weights + weights.T) * (planted[:, None] != planted)
    got = partition(weights, 3)
    assert float((weights * (got[:, None] == got)).sum()) == 0
    # As many groups as coordinates: each by itself.
    assert partition(torch.ones(5, 5, dtype=torch.float64), 5).unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sde", ["vp", "edm"])
def test_learned_groups_are_those_of_the_data(sde: str) -> None:
    """The exact model's own correlations, found from its Jacobians: two probes are then the trace."""
    model = correlated(SDES[sde])
    groups = colour(model, data_of(model, 3), 2)
    assert groups[0] != groups[1]
    assert groups[2] != groups[3]
    errors = repeat(model, 8, groups=groups, draws=1)
    assert float(errors.abs().max()) < 1e-6


def test_a_model_keeps_its_groups(tmp_path: Path) -> None:
    model = ScoreModel(nn.MLP(4, width=8, depth=1), VPSDE())
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    model.groups[2] = torch.tensor([0, 1, 1, 0])
    model.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert again.groups.keys() == {2}
    assert torch.equal(again.groups[2], model.groups[2])
    options = {"solver": "heun", "steps": 4}
    kept = log_likelihood(again, x, probes=2, **options)
    assert torch.equal(kept.each, log_likelihood(model, x, groups=model.groups[2], **options).each)
    assert torch.equal(again.with_sde(again.sde).groups[2], model.groups[2])


def test_bad_groups_and_data_are_refused() -> None:
    model = correlated()
    x = data_of(model, 2)
    with pytest.raises(DTypeError, match="groups must be a tensor of integers"):
        log_likelihood(model, x, groups=torch.zeros(4))
    with pytest.raises(ShapeError, match="groups must have the event's shape"):
        log_likelihood(model, x, groups=torch.zeros(5, dtype=torch.long))
    with pytest.raises(ConfigError, match="at least one sample"):
        colour(model, x[:0], 2)
    with pytest.raises(DomainError, match="k must be"):
        colour(model, x, 9)
