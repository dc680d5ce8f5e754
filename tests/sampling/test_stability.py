"""What ``sample`` says of a table that makes too much of Gaussian data, before the network is called."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from scoresde import (
    DDPM,
    VPSDE,
    CosineVPSDE,
    DomainError,
    GaussianMixtureModel,
    GaussianModel,
    Langevin,
    UnstableSamplerWarning,
    build_table,
    sample,
    solvers,
)
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.sampling.stability import find_variance, measure_excess, measure_table
from scoresde.solvers import SOLVERS, Solver, by_name
from scoresde.solvers.named import ALIASES

NAMES = sorted(name for name in SOLVERS if name not in ALIASES and isinstance(by_name(name), Solver))


def mixture(variance: float = 1.0) -> GaussianMixtureModel:
    means = torch.tensor([[-1.2], [0.1], [1.2]]) * variance**0.5
    return GaussianMixtureModel(sde=CosineVPSDE(), weights=torch.ones(3), means=means, std=0.2 * variance**0.5)


@pytest.mark.parametrize(("name", "steps"), [("seeds_2", 4), ("sra1", 3), ("euler_maruyama", 3), ("edm", 4)])
def test_an_unstable_table_is_said_once_with_cures_that_are_fine(name: str, steps: int) -> None:
    model = mixture()
    with pytest.warns(UnstableSamplerWarning) as caught:
        x = sample(model, (7, 1), solver=name, steps=steps, chunk_size=2, seed=0)
    assert isinstance(x, torch.Tensor)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    excess = measure_excess(build_table(model.sde, name, steps=steps), find_variance(model.moments))  # type: ignore[arg-type]
    assert f"it makes {excess:.3g} times the variance" in text
    more = re.search(r"take steps=(\d+)", text)
    other = re.search(r"solver='(\w+)' with steps=(\d+)", text)
    assert more is not None
    assert other is not None
    for cure, count in ((name, more[1]), (other[1], other[2])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y = sample(model, (400, 1), solver=cure, steps=int(count), seed=0)
        assert isinstance(y, torch.Tensor)
        assert 0.5 < float(y.var()) < 2.0, (cure, count)


def test_the_samples_have_the_variance_that_is_said() -> None:
    """For Gaussian data the law is exact: the samples of the table that is warned of show it."""
    model = GaussianModel(sde=CosineVPSDE(), mean=torch.zeros(1), covariance=torch.tensor(0.5))
    with pytest.warns(UnstableSamplerWarning):
        x = sample(model, (20_000, 1), solver="seeds_2", steps=4, seed=0, dtype=torch.float64)
    assert isinstance(x, torch.Tensor)
    expected = 0.5 * measure_excess(build_table(model.sde, "seeds_2", steps=4), 0.5)
    assert float(x.var()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_of_a_named_solver_are_sound(name: str) -> None:
    """The default number of steps makes at most four times the variance, under every diffusion that it serves."""
    for sde in (kind() for kind in DIFFUSIONS.values()):
        try:
            table = build_table(sde, name, steps=20)  # type: ignore[arg-type]
        except DomainError:
            continue
        assert measure_excess(table, 1.0) <= 4.0, sde


def test_a_run_that_the_law_does_not_describe_is_not_warned_of() -> None:
    """A corrector repairs what the predictor leaves; a flow has no table; a learned variance stands at its largest."""
    model, kernels = mixture(), [Langevin(snr=0.16)]
    sample(model, (3, 1), solver=solvers.langevin.corrector_only(), steps=3, kernels=kernels, seed=0)
    sample(model, (3, 1), solver="probability_flow", seed=0)
    chain = DDPM.linear(100)
    learned = chain.ancestral(variance="learned")
    assert measure_excess(learned, 1.0) == measure_excess(learned.at_fraction(1.0), 1.0)
    assert measure_table(VPSDE(), by_name("probability_flow")) == (None, None)


def test_the_data_decide_not_their_unit_in_the_samples() -> None:
    """A table is judged by the moments in the model's coordinates; where they are unknown, by unit variance."""
    table = build_table(CosineVPSDE(), "edm", steps=10)
    small, large = measure_excess(table, 0.05), measure_excess(table, 4.0)
    assert small > 1.3 * large
    assert find_variance(None) == 1.0
    model = mixture(0.05)
    assert find_variance(model.moments) == pytest.approx(0.05, rel=0.02)
    got = measure_table(model.sde, by_name("edm"), 10, model.moments)
    assert got == (table.amplification("data", find_variance(model.moments)), pytest.approx(small, rel=0.02))
