"""Bounds: units, transforms, drawn indices and noise, types, and the caller left alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from exact_bounds import between, even_chain, exact_bound, vector
from helpers import MEAN, VARIANCE, Net, gaussian
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    Affine,
    Bound,
    Compose,
    ConfigError,
    Dequantise,
    GaussianModel,
    LevelsDecoder,
    Logit,
    ScoreModel,
    continuous_elbo,
    variational_bound,
)

# ---------------------------------------------------------------------------------------------------------------------
# Units, draws, types


def test_with_a_transform_the_bound_is_that_of_the_datas_density() -> None:
    chain, x = DDPM.linear(25), torch.linspace(-2, 3, 8, dtype=torch.float64).reshape(4, 2)
    plain = GaussianModel(sde=VPSDE(), mean=vector(0.2, 0.1), covariance=vector(0.5, 0.9))
    moved = GaussianModel(sde=VPSDE(), mean=vector(0.2, 0.1), covariance=vector(0.5, 0.9))
    moved.transform = Affine((1.0, 2.0), (3.0, 0.5))
    y = moved.transform.forward(x)
    for function, through in ((variational_bound, chain), (continuous_elbo, VPSDE())):
        inner, outer = function(plain, through, y, seed=5), function(moved, through, x, seed=5)
        torch.testing.assert_close(outer.per_sample, inner.per_sample + math.log(1.5), rtol=1e-12, atol=1e-12)
        assert outer.total == pytest.approx(outer.prior + float(outer.terms.sum()) - outer.log_abs_det)


def test_a_transform_that_draws_uses_one_draw_for_the_value_and_the_determinant() -> None:
    levels = Dequantise(8, 0.0, 1.0)
    model = GaussianModel(sde=VPSDE(), mean=vector(0.0, 0.0), covariance=vector(1.0, 1.0))
    model.transform = Compose((levels, Logit(1e-6, *levels.range)))
    x = torch.tensor([[0.0, 1 / 7], [3 / 7, 1.0]], dtype=torch.float64)
    bound = variational_bound(model, DDPM.linear(25), x, generator=torch.Generator().manual_seed(3))
    spread = levels.forward(x, torch.Generator().manual_seed(3))
    wanted = Logit(1e-6, *levels.range).log_abs_det(spread).mean()
    assert bound.log_abs_det == pytest.approx(float(wanted), rel=1e-12)
    with pytest.raises(ConfigError, match="without Dequantise"):
        variational_bound(model, DDPM.linear(25), x, decoder=LevelsDecoder(8, 0.0, 1.0))


def test_drawn_indices_meet_every_layer_equally_often() -> None:
    chain, model = even_chain(13), gaussian()
    x, z = torch.full((4,), MEAN, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    every = variational_bound(model, chain, x, noise=[z] * 13)
    for seed in range(3):
        some = variational_bound(model, chain, x, indices=3, noise=[z] * 4, seed=seed)
        torch.testing.assert_close(some.terms, every.terms, rtol=1e-12, atol=1e-12)
        assert some.total == pytest.approx(every.total, rel=1e-12)
        assert float(some.per_sample.std()) > 0
    whole = variational_bound(model, chain, x, indices=12, seed=1)
    torch.testing.assert_close(whole.per_sample, variational_bound(model, chain, x, seed=1).per_sample)
    sparse = variational_bound(model, chain, x[:1], indices=2)
    assert int(sparse.terms.isnan().sum()) == 10
    assert math.isfinite(sparse.total)


def test_drawn_indices_differ_between_samples_and_seeds() -> None:
    chain, x = DDPM.linear(40), torch.full((3,), MEAN, dtype=torch.float64)
    drawn = [
        frozenset((~variational_bound(gaussian(), chain, x, indices=1, seed=s).terms.isnan()).nonzero()[:, 0].tolist())
        for s in range(4)
    ]
    assert all(len(d) == 4 for d in drawn)  # the reconstruction and three layers
    assert len(set(drawn)) > 1


def test_draws_do_not_depend_on_the_chunks_but_on_the_seed() -> None:
    x = torch.linspace(-1, 2, 14, dtype=torch.float64).reshape(7, 2)
    model = GaussianModel(sde=VPSDE(), mean=vector(0.2, 0.1), covariance=vector(0.5, 0.9))
    cond = {"label": torch.arange(7.0)}
    net = ScoreModel(Net(dtype=torch.float64), VPSDE())
    calls: list[Callable[[int, int], Bound]] = [
        lambda size, seed: variational_bound(model, DDPM.linear(25), x, chunk_size=size, seed=seed),
        lambda size, seed: variational_bound(model, DDPM.linear(25), x, indices=5, chunk_size=size, seed=seed),
        lambda size, seed: continuous_elbo(model, VPSDE(), x, samples=3, chunk_size=size, seed=seed),
        lambda size, seed: variational_bound(net, DDPM.linear(25), x, cond=cond, chunk_size=size, seed=seed),
    ]
    for call in calls:
        whole = call(512, 0)
        for size in (1, 3, 7, 20):
            torch.testing.assert_close(call(size, 0).per_sample, whole.per_sample, rtol=1e-12, atol=1e-12)
        assert call(512, 1).total != whole.total
    net_calls = [shape[0] for shape, _ in net.net.calls]
    assert max(net_calls) <= 512


def test_the_noise_is_not_that_of_a_sample_of_the_same_seed() -> None:
    from scoresde.noise import SampleNoise

    net = Net(dtype=torch.float64)
    variational_bound(ScoreModel(net, VPSDE()), DDPM.linear(25), torch.zeros(5, 2, dtype=torch.float64), seed=0)
    z = torch.empty(5, 2, dtype=torch.float64)
    SampleNoise(0).fill(z)
    ratio = net.inputs[0] / z
    assert float(ratio.std()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_agree_with_float64(dtype: torch.dtype) -> None:
    x = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(6, 2).to(dtype)
    model = GaussianModel(sde=VPSDE(), mean=vector(0.2, 0.1), covariance=vector(0.5, 0.9))
    for call in (
        lambda v: variational_bound(model, DDPM.linear(200), v, seed=2),
        lambda v: continuous_elbo(model, VPSDE(), v, samples=4, seed=2),
    ):
        wide = call(x.double())
        assert call(x).per_sample.dtype == torch.float64
        torch.testing.assert_close(call(x).per_sample, wide.per_sample, rtol=2e-3, atol=2e-3)


def test_the_caller_is_left_alone() -> None:
    net = Net()
    model = ScoreModel(net, VPSDE())
    model.train()
    x = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
    before = x.detach().clone()
    bound = variational_bound(model, DDPM.linear(25), x)
    assert not bound.per_sample.requires_grad
    assert model.training
    assert not any(net.modes)
    assert torch.equal(x.detach(), before)
    continuous_elbo(model, VPSDE(), x, generator=torch.Generator().manual_seed(0))
    assert model.training


def test_standard_error_and_empty_batches() -> None:
    chain = DDPM.linear(25)
    bound = variational_bound(gaussian(), chain, vector(0.1, 0.5, 0.9, 1.5))
    assert bound.standard_error == pytest.approx(float(bound.per_sample.std()) / 2)
    assert math.isnan(variational_bound(gaussian(), chain, vector(0.1)).standard_error)
    net = Net()
    for empty in (
        variational_bound(ScoreModel(net, VPSDE()), chain, torch.zeros(0, 2)),
        continuous_elbo(ScoreModel(net, VPSDE()), VPSDE(), torch.zeros(0, 2)),
    ):
        assert empty.per_sample.shape == (0,)
        assert math.isnan(empty.total)
    assert net.calls == []


def test_drawn_noise_gives_the_exact_expectation() -> None:
    # A z-test in two stages, of a family-wise false alarm below 1e-6.
    def score(call: Callable[[Tensor, int], Bound], wanted: float, seed: int, n: int) -> float:
        x = gaussian().sample_data(n, torch.Generator().manual_seed(seed)).double()
        bound = call(x, seed)
        return abs(bound.total - wanted) / bound.standard_error

    chain, sde = even_chain(20), between(VPSDE())
    limit = exact_bound(even_chain(2)).reconstruction + 0.5 * math.log1p(VARIANCE * math.exp(8.0))
    for call, wanted in (
        (lambda x, seed: variational_bound(gaussian(), chain, x, indices=2, seed=seed), exact_bound(chain).total),
        (lambda x, seed: continuous_elbo(gaussian(), sde, x, samples=2, seed=seed), limit),
    ):
        if score(call, wanted, 11, 4000) > 3.29:
            assert score(call, wanted, 12, 32000) < 4.42
