"""The log likelihood along the flow, against densities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import gaussian, slope
from known import SDES, at_the_end, correlated, data_of, many, ring
from torch import Tensor

from scoresde import (
    DDPM,
    VPSDE,
    Affine,
    Compose,
    ConfigError,
    DomainError,
    EnergyModel,
    Gaussian,
    GaussianModel,
    Logit,
    ProbabilityFlow,
    ScoreModel,
    bits_per_dim,
    bridge,
    continuous_elbo,
    grids,
    log_likelihood,
    map_prediction,
    nn,
    solvers,
    variational_bound,
)

TIGHT = ProbabilityFlow(rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("event", [(), (4,), (2, 2)])
def test_gaussian_data_of_any_shape(sde: str, event: tuple[int, ...]) -> None:
    model = correlated(SDES[sde]) if event else gaussian(SDES[sde])
    if event:
        law = model.moments
        model = GaussianModel(sde=SDES[sde], mean=law.mean.reshape(event), covariance=law.covariance)
    x = data_of(model, 6)
    got = log_likelihood(model, x, solver=TIGHT)
    torch.testing.assert_close(got.values, at_the_end(model, x), rtol=0, atol=3e-7)
    assert got.each.shape == (6, 1)
    assert bool((got.standard_error == 0).all())
    # The prior has the data's moments: it is the law at t_max. What is left to the data's own density is truncation.
    assert float(got.prior_mismatch.abs().max()) < 1e-8
    torch.testing.assert_close(got.corrected, model.log_prob(x), rtol=0, atol=2e-4 if sde == "ve" else 2e-6)


@pytest.mark.parametrize(("sde", "make"), [*((sde, ring) for sde in SDES), ("vp", many), ("rectified", many)])
def test_worst_errors_and_evaluations_on_mixtures(sde: str, make) -> None:
    """The errors of the page: 1e-3 at 200 evaluations, 1e-4 at 300, 1e-6 in float64 at 500."""
    model = make(SDES[sde])
    x = data_of(model, 24)
    exact = at_the_end(model, x)
    prior = model.moments.at(*(float(c) for c in model.sde.at(model.sde.t_max).numbers[1:3]))
    for tolerance, most, evaluations in ((None, 1e-3, 200), (1e-6, 1e-4, 300), (1e-7, 1e-6, 500)):
        got = log_likelihood(model, x, solver=tolerance and ProbabilityFlow(tolerance, tolerance))
        # At alpha = 0 the prior is the law itself.
        gap = 0.0 if sde == "rectified" else model.log_prob(got.latent, model.sde.t_max) - prior.log_prob(got.latent)
        assert float((got.values + gap - exact).abs().max()) < most
        assert float(got.nfe.double().mean()) < evaluations


@pytest.mark.parametrize("sde", ["vp", "edm", "rectified"])
def test_down_to_no_noise_at_all(sde: str) -> None:
    """A model whose flow is finite at sigma = 0 gives the data's own density."""
    model = ring(SDES[sde])
    x = data_of(model, 40)
    times = torch.tensor([model.sde.t_max, 0.0], dtype=torch.float64)
    got = log_likelihood(model, x, solver=TIGHT, times=times)
    assert bool((got.truncation == 0).all())
    torch.testing.assert_close(got.values + got.prior_mismatch, model.log_prob(x), rtol=0, atol=2e-6)


def test_narrow_modes() -> None:
    for std in (0.02, 0.05, 0.4):
        model = ring(std=std)
        x = data_of(model, 40)
        got = log_likelihood(model, x)
        assert float((got.values - at_the_end(model, x)).abs().max()) < 1e-3
        assert float(got.nfe.double().mean()) < 250


LOG_SNR, DIFFUSED = grids.log_snr(), grids.diffused()
TABLES = {
    "ddim": (solvers.ddim(), LOG_SNR),
    "dpmpp_2m": (solvers.dpmpp_2m(), LOG_SNR),
    "dpmpp_2s": (solvers.dpmpp_2s(), LOG_SNR),
    "deis": (solvers.deis(), DIFFUSED),
    "unipc": (solvers.unipc(), DIFFUSED),
    "ipndm": (solvers.ipndm(), DIFFUSED),
    "dpm_solver_3": (solvers.dpm_solver_3(), DIFFUSED),
    "flow_ab": (solvers.flow_ab(), DIFFUSED),
    "flow_abm": (solvers.flow_abm(), DIFFUSED),
    "heun": (solvers.heun(), DIFFUSED),
    "midpoint": (solvers.midpoint(), DIFFUSED),
    "rk3": (solvers.rk3(), DIFFUSED),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("sde", ["vp", "edm"])
def test_a_table_carries_the_density_at_its_own_order(name: str, sde: str) -> None:
    """Written in data, noise or flow, with stages, memory or correctors: the density is one more coordinate."""
    (solver, grid), model = TABLES[name], correlated(SDES[sde])
    x, steps = data_of(model, 2), (80, 160)
    results = [log_likelihood(model, x, solver=solver, times=grid(model.sde, n)) for n in steps]
    errors = [float((r.values - at_the_end(model, x)).square().mean().sqrt()) for r in results]
    assert errors[-1] < 2
    assert slope(errors, steps) > solver.order.deterministic - 0.5
    # Its own estimate, from half the steps, is of the error's size.
    estimate = float(results[-1].solver_error.square().mean().sqrt())
    assert 0.5 * errors[-1] < estimate < 2 * errors[-1]


@pytest.mark.parametrize("solver", [bridge.ScipyODE("DOP853", rtol=1e-9, atol=1e-9), bridge.TorchDiffEq(rtol=1e-8)])
def test_other_libraries_carry_it_too(solver: object) -> None:
    model = ring()
    x = data_of(model, 3)
    got = log_likelihood(model, x, solver=solver)
    torch.testing.assert_close(got.values, log_likelihood(model, x, solver=TIGHT).values, rtol=0, atol=1e-4)
    assert bool(got.solver_error.isnan().all())


def test_a_table_and_a_name_are_the_same() -> None:
    model, x = many(), data_of(many(), 3)
    named = log_likelihood(model, x, solver="heun", steps=20)
    made = log_likelihood(model, x, solver=solvers.heun(), steps=20)
    assert torch.equal(named.values, made.values)
    # The coarse run costs half as many again.
    assert named.nfe.tolist() == [60, 60, 60]


@pytest.mark.parametrize("method", ["dopri5", "dop853", "bosh3"])
def test_the_solvers_error_is_estimated_sample_by_sample(method: str) -> None:
    """The sum over the steps of |d log p + score . dx| is nearly always above the true error, and not far from it."""
    model = ring()
    x = data_of(model, 40)
    exact = log_likelihood(model, x, solver=ProbabilityFlow(1e-10, 1e-10, method="dop853")).values
    got = log_likelihood(model, x, solver=ProbabilityFlow(1e-6, 1e-6, method=method))
    ratio = got.solver_error / (got.values - exact).abs().clamp_min(1e-12)
    assert float(ratio.quantile(0.05)) > 1
    assert float(ratio.median()) < {"bosh3": 400, "dopri5": 60, "dop853": 2000}[method]


def test_the_integrals_error_counts_in_the_steps() -> None:
    """Without the weight of the score the error of the states is not seen: it is most of it here."""
    model = ring()
    x = data_of(model, 40)
    loose, tight = (log_likelihood(model, x, solver=ProbabilityFlow(tol, tol)).solver_error for tol in (1e-4, 1e-6))
    assert float((tight / loose).median()) < 0.2


def test_a_prior_that_does_not_fit_is_told() -> None:
    """At t_max = 0.4 the ring is no Gaussian yet."""
    model = ring(VPSDE(t_max=0.4))
    x = data_of(model, 200)
    got = log_likelihood(model, x, solver=TIGHT)
    point = model.sde.at(0.4)
    prior = model.moments.at(float(point.alpha), float(point.sigma))
    mismatch = model.log_prob(got.latent, 0.4) - prior.log_prob(got.latent)
    assert float(mismatch.abs().max()) > 0.2
    error = got.prior_mismatch - mismatch
    # One constant is known to the draws that fix it; the rest is a quadrature.
    assert abs(float(error.mean())) < 0.1
    assert float((error - error.mean()).abs().max()) < 2e-3
    torch.testing.assert_close(got.values + mismatch, at_the_end(model, x), rtol=0, atol=1e-6)


def test_what_the_last_noise_leaves_out_is_told_to_first_order() -> None:
    """log p_0 - log p_nu is the stated term up to nu^4: 16 times less at half the noise."""
    model, errors, terms = ring(), [], []
    x = data_of(model, 50)
    for nu in (0.04, 0.02):
        sde = VPSDE(t_min=float(VPSDE().time(-2 * math.log(nu))))
        got = log_likelihood(model.with_sde(sde), x, solver=TIGHT)
        errors.append(float((got.corrected - model.log_prob(x)).square().mean().sqrt()))
        terms.append(float(got.truncation.square().mean().sqrt()))
    assert terms[0] > 0.1
    assert 12 < errors[0] / errors[1] < 20


def test_the_flow_and_the_bound_differ_where_the_score_is_wrong() -> None:
    """Data N(0, 1), a score off by c under VP: the flow loses 12.6 c^2 nats, the bound 5.0 c^2."""
    c = 0.1
    model = gaussian(VPSDE(), 0.0, 1.0)
    wrong = map_prediction(model, lambda p: p.score + c, "score")
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weight = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    prior = Gaussian(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    flow = log_likelihood(wrong, x, prior=prior, chunk_size=5000)
    entropy = -0.5 * math.log(2 * math.pi * math.e)
    loss = entropy - float((weight * flow.values).sum())
    assert loss == pytest.approx(12.6 * c**2, rel=0.01)
    own = ScoreModel.from_callable(lambda x, t: -x + c, VPSDE(), predicts="score")
    noise = [math.sqrt(1.0) * z for z in torch.ones(65, 2, dtype=torch.float64) * torch.tensor([1.0, -1.0]).double()]
    bound = continuous_elbo(own, own.sde, torch.tensor([1.0, -1.0], dtype=torch.float64), samples=64, noise=noise)
    exact = continuous_elbo(model, model.sde, torch.tensor([1.0, -1.0], dtype=torch.float64), samples=64, noise=noise)
    assert bound.total - exact.total == pytest.approx(5.0 * c**2, rel=0.02)


def test_the_bounds_meet_the_likelihood_from_below() -> None:
    """With the exact score: the chain's bound below the continuous one, which is the flow's value but for t_min."""
    model = ring()
    x = data_of(model, 60)
    flow = log_likelihood(model, x).corrected
    continuous = -continuous_elbo(model, model.sde, x, samples=400).per_sample
    chain = -variational_bound(model, DDPM.from_sde(model.sde, 200), x).per_sample
    noise = float((continuous - flow).std()) / math.sqrt(len(x))
    assert abs(float((continuous - flow).mean())) < 4 * noise
    assert noise < 0.2
    assert float((chain - flow).mean()) < -0.1


def test_transforms_change_the_density() -> None:
    """log p(x) = log p(y) + log |dy/dx|; the exact law of x = 3 y + 7, and of a logit-normal."""
    base = correlated()
    for transform in (Affine(7.0, 3.0), Compose((Affine(1.0, 4.0), Logit(0.0, -1.5, 1.5)))):
        model = map_prediction(base, lambda p: p.data)
        model.transform = transform
        x = transform.inverse(data_of(base, 5))
        exact = at_the_end(base, transform.forward(x)) + transform.log_abs_det(x)
        torch.testing.assert_close(log_likelihood(model, x, solver=TIGHT).values, exact, rtol=0, atol=1e-6)


def test_a_batch_equals_its_members_alone() -> None:
    model = many()
    x = data_of(model, 5)
    options = {"probes": 3, "draws": 2, "seed": 4}
    whole = log_likelihood(model, x, **options)
    chunked = log_likelihood(model, x, chunk_size=2, **options)
    for k in range(5):
        alone = log_likelihood(model, x[k : k + 1], first_sample=k, **options)
        for field in ("each", "solver_error", "prior_mismatch", "truncation", "nfe", "latent"):
            torch.testing.assert_close(getattr(alone, field)[0], getattr(whole, field)[k], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(chunked.each, whole.each, rtol=1e-9, atol=1e-9)
    assert not torch.equal(log_likelihood(model, x, probes=3, seed=5).each[:, 0], whole.each[:, 0])
    empty = log_likelihood(model, x[:0])
    assert empty.values.shape == (0,)
    assert "no samples" in repr(empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_in_a_narrow_type(dtype: torch.dtype) -> None:
    """The state is carried in float64; the network computes in its own type, and the tolerance follows it."""
    net = nn.MLP(3, width=16, depth=1, seed=1)
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p += 0.1 * torch.sin(torch.arange(p.numel()).reshape(p.shape) + k)
    sde = VPSDE(t_min=1e-3)
    exact = log_likelihood(ScoreModel(net.double(), sde), X3, solver=ProbabilityFlow(1e-7, 1e-7)).values
    got = log_likelihood(ScoreModel(net.to(dtype), sde), X3)
    assert got.values.dtype == torch.float64
    error = float((got.values - exact).abs().max())
    assert error < (2e-3 if dtype == torch.float32 else 2.0)


X3 = torch.linspace(-1.0, 1.0, 12).reshape(4, 3).bfloat16().double()


def test_bits_per_dimension_by_hand() -> None:
    """17 levels on [0, 16] with a uniform law: log2(17) bits, as a probability and as a density of width 1."""
    nats = -64 * math.log(17)
    assert bits_per_dim(nats, (1, 8, 8)) == pytest.approx(math.log2(17))
    assert bits_per_dim(nats, (1, 8, 8), 17, (0.0, 16.0)) == pytest.approx(math.log2(17))
    # On [-1, 1] the same density is 8 times as high.
    assert bits_per_dim(nats + 64 * math.log(8), (64,), 17) == pytest.approx(math.log2(17))
    assert isinstance(bits_per_dim(torch.tensor([nats]), (64,)), Tensor)


def test_a_model_of_your_own_mixture_of_models() -> None:
    """A clipped model has a density too: that of its own flow."""
    model = map_prediction(ring(), lambda p: p.data.clamp(-4, 4))
    x = data_of(ring(), 4)
    torch.testing.assert_close(
        log_likelihood(model, x, solver=TIGHT).values, log_likelihood(ring(), x, solver=TIGHT).values, rtol=0, atol=1e-6
    )


class Quadratic(torch.nn.Module):
    """The energy |w x|^2/2 of N(0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return 0.5 * (self.weight * x).square().sum(1)


def test_an_energy_has_a_likelihood() -> None:
    """Its score is a gradient already, and the divergence a gradient of that."""
    x = torch.tensor([[0.3, -1.2], [2.0, 0.5]], dtype=torch.float64)
    exact = -0.5 * x.square().sum(1) - math.log(2 * math.pi)
    got = log_likelihood(EnergyModel(Quadratic(), VPSDE()), x).values
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-4)


REFUSED = [
    ({"divergence": "hutch++"}, "unknown divergence"),
    ({"divergence": "exact", "probes": 3}, "the exact divergence has no probes"),
    ({"probes": 2, "groups": torch.zeros(2, dtype=torch.long)}, "groups= says how many probes"),
    ({"solver": "euler_maruyama"}, "belong together only without noise"),
    ({"solver": solvers.heun(), "differentiable": True, "steps": 0}, "steps"),
    ({"differentiable": True}, "gradients do not pass through the adaptive flow"),
    ({"importance": 4}, "there is no decoder"),
    ({"steps": 20}, "chooses its own steps"),
    ({"solver": solvers.ddim()(VPSDE(), torch.tensor([1.0, 0.1]))}, "runs one way only"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_options_that_do_not_go_together(options: dict[str, object], words: str) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    model = ScoreModel.from_callable(net, VPSDE())
    with pytest.raises((ConfigError, ValueError), match=words):
        log_likelihood(model, torch.zeros(2, 2), **options)


def test_alpha_0_needs_a_prediction_that_is_finite_there() -> None:
    model, x = ring(SDES["rectified"]), torch.zeros(1, 2, dtype=torch.float64)
    for solver in (solvers.deis(), solvers.ipndm()):
        with pytest.raises(DomainError, match="alpha is 0"):
            log_likelihood(model, x, solver=solver, steps=8)
