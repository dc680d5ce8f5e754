"""One, two and three steps of every named solver under every diffusion, and the same sample in any company.

The tables' own ends are the business of ``test_one_step`` and ``test_multistep_ends``; here the real sampler runs them:
it applies the table's numbers, it makes the calls that it reports, or it refuses before the first one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import MEAN, VARIANCE, coefficients, draws, gaussian
from torch import Tensor

from scoresde import (
    VPSDE,
    GaussianMixtureModel,
    GaussianSDE,
    Langevin,
    ProbabilityFlow,
    ScoreModel,
    Solver,
    build_table,
    sample,
)
from scoresde.diffusions.named import DIFFUSIONS
from scoresde.errors import DomainError
from scoresde.solvers import SOLVERS, by_name

BUILT: dict[str, GaussianSDE] = {name: kind() for name, kind in DIFFUSIONS.items()}
START = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)


def counted(sde: GaussianSDE) -> tuple[ScoreModel, list[int]]:
    """The exact model of scalar Gaussian data, and the sizes of the batches that its network sees."""
    model, calls = gaussian(sde), list[int]()
    model.net.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
    return model, calls


@pytest.mark.parametrize("kind", BUILT)
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_few_steps_are_the_tables_or_are_refused(name: str, kind: str) -> None:
    sde, solver = BUILT[kind], by_name(name)
    model, calls = counted(sde)
    if isinstance(solver, ProbabilityFlow):
        start = START * float(sde.prior_std(sde.t_max))
        result = sample(model, x_init=start, solver=solver, full_output=True)
        # It asks for as many samples as are not yet at their end; its steps are its own.
        assert sum(calls) == int(result.nfe.sum())
        exact = model.flow(start, sde.t_max, 0.0)
        torch.testing.assert_close(result.x, exact, rtol=0, atol=1e-3)
        return
    assert isinstance(solver, Solver)
    for steps in (1, 2, 3):
        for final in ("denoise", "sample", "mean"):
            try:
                table = build_table(sde, solver, steps=steps, final=final)
            except DomainError as error:
                assert "alpha" in str(error) or "not all finite" in str(error)  # noqa: PT017 either outcome is right
                with pytest.raises(DomainError):
                    sample(model, (2,), solver=solver, steps=steps, final=final)
                assert calls == []
                continue
            calls.clear()
            result = sample(model, (3,), solver=solver, steps=steps, final=final, seed=1, full_output=True)
            assert calls == [3] * table.nfe
            assert result.nfe.tolist() == [table.nfe] * 3
            assert bool(torch.isfinite(result.x).all())
            weights = table.affine_map(MEAN, VARIANCE)
            assert len(weights) == 2 + draws(table)
            # At alpha = 0 a network is told of a log_snr that is large and finite, where alpha is 2e-9.
            np.testing.assert_allclose(coefficients(model, table), weights, rtol=1e-9, atol=1e-8)
            calls.clear()


@pytest.mark.parametrize("kind", BUILT)
def test_the_closing_step_of_a_long_run_multiplies_no_error(kind: str) -> None:
    """The step into sigma = 0 is far longer than those before it, and extrapolation over it would be by thousands."""
    sde = BUILT[kind]
    for steps in (20, 300, 1000):
        last = build_table(sde, by_name("flow_abm"), steps=steps).rows[-1]
        assert sum(abs(weight) for weight in last.state[1:]) < 0.1
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.5])
    exact, single = (sample(mixture(), x_init=start, steps=1000) for start in (x, x.float()))
    assert float((exact - single).abs().median()) < 5e-6


# --- a sample is the same in any company


def mixture() -> GaussianMixtureModel:
    means = torch.tensor([[-1.2, 0.3], [0.8, 0.9], [0.1, -1.1]], dtype=torch.float64)
    return GaussianMixtureModel(sde=VPSDE(), weights=torch.tensor([0.2, 0.5, 0.3]), means=means, std=0.3)


RUNS: dict[str, dict[str, object]] = {
    **{name: {"solver": name, **({} if name == "probability_flow" else {"steps": 3})} for name in sorted(SOLVERS)},
    "bosh3": {"solver": ProbabilityFlow(rtol=1e-3, atol=1e-3, method="bosh3"), "final": "sample"},
    "Langevin, level": {"solver": "ddim", "steps": 3, "kernels": [Langevin(0.1, norms="level")]},
    "Langevin, sample": {"solver": "ancestral", "steps": 3, "kernels": [Langevin(0.1, steps=2, norms="sample")]},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_sample_follows_its_seed_through_a_permutation(name: str) -> None:
    """A list of seeds in another order, in chunks, or one at a time: the same samples in that order."""
    seeds, order = [11, 5, 0, 2**64 - 1, 7], [3, 0, 4, 1, 2]
    options = {**RUNS[name], "dtype": torch.float64}
    model = mixture()
    whole = sample(model, (5, 2), seeds=seeds, **options)
    assert isinstance(whole, Tensor)
    moved = [seeds[k] for k in order]

    def same(got: object, expected: Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    same(sample(model, (5, 2), seeds=moved, **options), whole[order])
    same(sample(model, (5, 2), seeds=moved, chunk_size=2, **options), whole[order])
    same(torch.cat([sample(model, (1, 2), seeds=[seed], **options) for seed in seeds]), whole)
    assert float(torch.pdist(whole).min()) > 1e-3
