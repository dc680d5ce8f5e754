"""Langevin correctors: their exact law, what they depend on, what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import MEAN, SDES, VARIANCE, Net, gaussian, tabulated
from torch import Tensor

from scoresde import (
    MALA,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    EnergyModel,
    GaussianSDE,
    Langevin,
    ScoreModel,
    build_table,
    sample,
    solvers,
)
from scoresde.models.prediction import Prepared
from scoresde.noise import SampleNoise, TapeNoise
from scoresde.sampling.kernels import Kernel
from scoresde.solvers.rows import Knot, Row
from scoresde.solvers.tableau import Tableau

X = torch.tensor([[0.3, -1.2], [2.0, 0.7], [-0.4, 0.1]], dtype=torch.float64)
Z = [torch.cos(1.7 * k + X) for k in range(1, 40)]
TIMES = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)


def apply(kernel: Kernel, model: ScoreModel, x: Tensor, tape: list[Tensor], index: int = 0) -> Tensor:
    return kernel(x, index, model.prepare(model.sde.at(TIMES), x), TapeNoise(tape))


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("snr", [0.05, 0.16, 0.4])
def test_level_steps_have_their_exact_biased_law(sde: str, snr: float) -> None:
    """For N(alpha m, V) and e = 2 (snr sigma)^2 the chain is x <- x - e/V (x - alpha m) + sqrt(2 e) z, an AR(1).

    Its stationary variance is V/(1 - e/(2V)): it is read off the kernel's own coefficients, without samples.
    """
    model = gaussian(SDES[sde])
    for index, t in enumerate(TIMES):
        point = model.sde.at(t)
        variance = float(point.alpha**2 * VARIANCE + point.sigma**2)
        e = 2 * (snr * float(point.sigma)) ** 2
        x, z = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        constant, on_x, on_z = (apply(Langevin(snr), model, x, [z], index)).tolist()
        on_x, on_z = on_x - constant, on_z - constant
        assert on_x == pytest.approx(1 - e / variance, rel=1e-12)
        assert on_z == pytest.approx(math.sqrt(2 * e), rel=1e-12)
        assert constant == pytest.approx(e / variance * float(point.alpha) * MEAN, rel=1e-12)
        assert on_z**2 / (1 - on_x**2) == pytest.approx(variance / (1 - e / (2 * variance)), rel=1e-12)
        assert constant / (1 - on_x) == pytest.approx(float(point.alpha) * MEAN, rel=1e-12)
        two = apply(Langevin(snr, steps=2), model, x, [z, torch.zeros_like(z)], index)
        assert two[2] - two[0] == pytest.approx(on_x * on_z, rel=1e-12)


def published_corrector(x: np.ndarray, score, noises: list[np.ndarray], snr: float, norms: str) -> np.ndarray:
    """Song et al. 2021, algorithms 4 and 5, with the norms of the batch's mean or of each sample."""
    for z in noises:
        gradient = score(x)
        top, bottom = np.linalg.norm(z, axis=1), np.linalg.norm(gradient, axis=1)
        ratio = top.mean() / bottom.mean() if norms == "batch" else (top / bottom)[:, None]
        step = 2 * (snr * ratio) ** 2
        x = x + step * gradient + np.sqrt(2 * step) * z
    return x


@pytest.mark.parametrize("norms", ["batch", "sample"])
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_steps_are_the_published_ones(norms: str, sde: str) -> None:
    model = gaussian(SDES[sde])
    point = model.sde.at(TIMES[1])
    a, v = float(point.alpha), float(point.alpha**2 * VARIANCE + point.sigma**2)
    got = apply(Langevin(0.16, steps=3, norms=norms), model, X, Z, 1)
    tape = [z.numpy() for z in Z[:3]]
    expected = published_corrector(X.numpy(), lambda x: -(x - a * MEAN) / v, tape, 0.16, norms)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("norms", ["level", "sample", "batch"])
def test_only_the_published_norms_couple_a_sample_to_its_neighbours(norms: str) -> None:
    model, kernel = gaussian(), Langevin(0.2, steps=2, norms=norms)
    together = apply(kernel, model, X, Z)
    neighbour = X.clone()
    neighbour[1:] *= 3
    tape = [z.clone() for z in Z]
    tape[0][2] += 1
    moved = apply(kernel, model, neighbour, tape)[0]
    alone = apply(kernel, model, X[:1], [z[:1] for z in Z])[0]
    if norms == "batch":
        assert float((moved - together[0]).abs().max()) > 1e-3
    else:
        assert torch.equal(moved, together[0])
        assert torch.equal(alone, together[0])


@pytest.mark.parametrize("norms", ["level", "sample", "batch"])
def test_a_score_of_zero_gives_no_nan(norms: str) -> None:
    """With norms of samples the step has no size there and the sample stays; by level only the noise moves it."""
    silent = ScoreModel(lambda x, c: torch.where(x == X, torch.zeros_like(x), x), VPSDE())
    got = apply(Langevin(0.16, norms=norms), silent, X, Z)
    sigma = float(VPSDE().sigma(TIMES[0]))
    expected = X + 2 * 0.16 * sigma * Z[0] if norms == "level" else X
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    # One silent sample among others.
    mixed = ScoreModel(lambda x, c: torch.where(torch.arange(3)[:, None] == 1, torch.zeros_like(x), x), VPSDE())
    got = apply(Langevin(0.16, norms=norms), mixed, X, Z)
    assert bool(torch.isfinite(got).all())
    if norms == "sample":
        assert torch.equal(got[1], X[1])
        assert not torch.equal(got[0], X[0])
    # No noise either: 0/0.
    still = apply(Langevin(0.16, norms=norms), silent, X, [torch.zeros_like(X)])
    assert torch.equal(still, X)


def test_the_kernel_leaves_its_input_alone() -> None:
    kept = X.clone()
    apply(Langevin(0.16, steps=3), gaussian(), kept, Z)
    assert torch.equal(kept, X)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"snr": 0.0}, DomainError, r"snr must lie in \(0, inf\), got 0"),
        ({"snr": -0.1}, DomainError, "snr must lie in .*, got -0.1"),
        ({"snr": math.nan}, DomainError, "snr"),
        ({"snr": "0.1"}, DTypeError, "snr must be a number"),
        ({"steps": 0}, DomainError, "steps must be at least 1, got 0"),
        ({"steps": 1.0}, DTypeError, "steps must be an integer"),
        ({"steps": True}, DTypeError, "steps must be an integer"),
        ({"norms": "smaple"}, ConfigError, "did you mean 'sample'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], kind, words: str) -> None:
    with pytest.raises(kind, match=words):
        Langevin(**options)


# --- with a Metropolis test

SHARES, MEANS, STD = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 0.8]).double(), 0.35


def mixture_energy(x: Tensor, log_snr: Tensor) -> Tensor:
    """Minus the log density of a mixture in each coordinate of x/sqrt(alpha^2 + sigma^2), up to a constant, (B,)."""
    alpha, sigma = (torch.sigmoid(s * log_snr).sqrt().reshape(-1, *(1,) * x.ndim) for s in (1, -1))
    variance = (alpha * STD) ** 2 + sigma**2
    each = SHARES.log() - 0.5 * (x[..., None] - alpha * MEANS) ** 2 / variance
    return -torch.logsumexp(each, -1).reshape(len(x), -1).sum(1)


def prepared(model: ScoreModel, t: float, x: Tensor) -> Prepared:
    return model.prepare(model.sde.at(torch.tensor([t], dtype=torch.float64)), x)


def energy_model(sde: GaussianSDE) -> EnergyModel:
    return EnergyModel(mixture_energy, sde)


def mixture_log_density(x: Tensor, sde: GaussianSDE, t: float) -> tuple[Tensor, Tensor]:
    """Log density up to a constant, (B,), and score, (B, *), in x itself, by hand."""
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    variance = (alpha * STD) ** 2 + sigma**2
    each = SHARES.log() - 0.5 * (x[..., None] - alpha * MEANS) ** 2 / variance
    share = torch.softmax(each, -1)
    return torch.logsumexp(each, -1).sum(1), (share * (alpha * MEANS - x[..., None]) / variance).sum(-1)


@pytest.mark.parametrize(("sde", "snr"), [(VPSDE(), 0.7), (VESDE(sigma_min=0.05, sigma_max=5.0), 1.6)], ids=repr)
def test_mala_is_metropolis_adjusted_langevin(sde: GaussianSDE, snr: float) -> None:
    """Two proposals with their tests, written out in x; about half of them are refused."""
    model, t = energy_model(sde), 0.3
    x = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64).reshape(20, 2)
    tape = [torch.cos(17 * k * x + k) * 1.3 for k in range(1, 5)]
    kernel = MALA(snr, steps=2)
    assert (kernel.calls, kernel.draws) == (3, 4)
    got = kernel(x, 0, prepared(model, t, x), TapeNoise(tape))
    e = 2 * (snr * float(sde.sigma(t))) ** 2
    refused = 0
    for z, test in (tape[:2], tape[2:]):
        log_p, score = mixture_log_density(x, sde, t)
        proposal = x + e * score + math.sqrt(2 * e) * z
        new_log_p, new_score = mixture_log_density(proposal, sde, t)
        forth = -(proposal - x - e * score).square().sum(1) / (4 * e)
        back = -(x - proposal - e * new_score).square().sum(1) / (4 * e)
        uniform = 0.5 * torch.special.erfc(-test[:, 0] / math.sqrt(2))
        accepted = uniform < (new_log_p - log_p + back - forth).exp()
        refused += int((~accepted).sum())
        x = torch.where(accepted[:, None], proposal, x)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)
    assert 8 <= refused <= 32


def acceptance(model: ScoreModel, kernel: MALA, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals and the kernel's own acceptance probabilities, read off it by bisection in the test's draw."""
    there = prepared(model, 0.3, x)
    low, high = torch.full((len(x),), -9.0).double(), torch.full((len(x),), 9.0).double()
    moved = kernel(x, 0, there, TapeNoise([z, torch.full_like(x, -30.0)]))
    for _ in range(60):
        middle = 0.5 * (low + high)
        after = kernel(x, 0, there, TapeNoise([z, middle[:, None].expand_as(x)]))
        accepted = (after != x).any(1)
        low, high = torch.where(accepted, middle, low), torch.where(accepted, high, middle)
    return moved, torch.special.ndtr(low)


def test_mala_keeps_the_density_exactly() -> None:
    """Detailed balance, p(x) q(x'|x) A(x, x') = p(x') q(x|x') A(x', x), at a step so large that Langevin is far off."""
    sde, kernel = VPSDE(), MALA(0.8)
    model, x = energy_model(sde), torch.linspace(-1.8, 1.7, 24, dtype=torch.float64).reshape(12, 2)
    z = torch.sin(5 * x + 1)
    e = 2 * (0.8 * float(sde.sigma(0.3))) ** 2
    proposal, forth = acceptance(model, kernel, x, z)
    log_p, score = mixture_log_density(x, sde, 0.3)
    new_log_p, new_score = mixture_log_density(proposal, sde, 0.3)
    torch.testing.assert_close(proposal, x + e * score + math.sqrt(2 * e) * z, rtol=1e-12, atol=1e-12)
    z_back = (x - proposal - e * new_score) / math.sqrt(2 * e)
    back_to, back = acceptance(model, kernel, proposal, z_back)
    torch.testing.assert_close(back_to, x, rtol=1e-10, atol=1e-10)
    left = log_p - 0.5 * z.square().sum(1) + forth.log()
    right = new_log_p - 0.5 * z_back.square().sum(1) + back.log()
    torch.testing.assert_close(left, right, rtol=0, atol=1e-8)
    assert float(torch.minimum(forth, back).min()) < 0.7


def test_mala_corrects_in_the_sampler() -> None:
    """As a corrector: sample k is the same in any batch, each evaluation is counted, a large step stays unbiased."""
    sde = VESDE(sigma_min=0.05, sigma_max=5.0)
    model = energy_model(sde)
    options = {"solver": "reverse_diffusion", "steps": 6, "kernels": [MALA(0.3, steps=2)], "seed": 3}
    whole = sample(model, (5, 2), full_output=True, **options)
    assert whole.nfe.tolist() == [6 + 6 * 3] * 5
    assert torch.equal(sample(model, (5, 2), chunk_size=2, **options), whole.x)
    assert torch.equal(sample(model, (1, 2), first_sample=4, **options), whole.x[4:])


def test_mala_is_stationary_where_langevin_is_not() -> None:
    """From exact draws of one Gaussian level, ten steps of e = V: the variance stays, Langevin's doubles."""
    sde, n = VESDE(sigma_min=0.05, sigma_max=5.0), 20_000
    model = EnergyModel(lambda x, c: 0.5 * (x / torch.sigmoid(-c)[:, None].sqrt()).square().sum(1), sde)
    # Data at 0: V = sigma^2, in normalised coordinates sigma^2/(1 + sigma^2).
    sigma = float(sde.sigma(0.5))

    def run(kernel: Kernel, seed: int, count: int) -> Tensor:
        noise = SampleNoise(seed)
        x = torch.empty(count, 1, dtype=torch.float64)
        noise.fill(x)
        return kernel(sigma * x, 0, prepared(model, 0.5, x), noise) / sigma

    def z_score(seed: int, count: int) -> float:
        x = run(MALA(math.sqrt(0.5), steps=10), seed, count)
        # x^2 has the variance 2.
        return abs(float(x.square().mean()) - 1) / math.sqrt(2 / count)

    # Stage one at 1e-3; on rejection a fresh seed, eight times the samples and 1e-5.
    assert z_score(1, n) < 3.29 or z_score(2, 8 * n) < 4.42
    langevin = run(Langevin(math.sqrt(0.5), steps=10), 1, n).detach()
    assert float(langevin.square().mean()) == pytest.approx(2.0, abs=0.2)


def test_mala_needs_an_energy_and_no_graph() -> None:
    net = Net()
    with pytest.raises(ConfigError, match="MALA compares energies, and this model has none; use an EnergyModel"):
        sample(ScoreModel(net, VPSDE()), (2, 2), solver="ddim", steps=3, kernels=[MALA()], seed=0)
    assert net.calls == []
    start = X.clone().requires_grad_()
    with pytest.raises(ConfigError, match="MALA accepts or rejects, which has no gradient"):
        sample(
            energy_model(VPSDE()), x_init=start, solver="ddim", steps=3, kernels=[MALA()], seed=0, differentiable=True
        )
    with pytest.raises(DomainError, match=r"snr must lie in \(0, inf\), got 0"):
        MALA(0.0)
    with pytest.raises(DomainError, match="steps must be at least 1, got 0"):
        MALA(steps=0)
    # A proposal without an energy is refused: the sample stays.
    broken = EnergyModel(lambda x, c: torch.where(x[:, 0] == X[:, 0], 0.0, math.nan) + 0 * x.sum(1), VPSDE())
    assert torch.equal(apply(MALA(0.2), broken, X, Z), X)


# --- predictor-corrector


def test_a_corrector_runs_before_each_step_at_that_steps_time() -> None:
    """Song's loop as a recursion of numbers: correct at t_i, then predict to t_{i+1}; draws in that order."""
    model, table = gaussian(), solvers.euler_maruyama()(VPSDE(), TIMES)
    kernels = [Langevin(0.2), Langevin(0.1, steps=2)]
    unit = torch.eye(2 + 2 * 4, dtype=torch.float64)
    out = sample(model, x_init=unit[1], noise=list(unit[2:]), solver=table, kernels=kernels, final="sample").numpy()
    x, draw = np.eye(len(unit))[1], iter(np.eye(len(unit))[2:])
    for row in table.rows:
        a, s = row.at.alpha, row.at.sigma
        variance = a**2 * VARIANCE + s**2
        for snr in (0.2, 0.1, 0.1):
            e = 2 * (snr * s) ** 2
            x = x - e / variance * (x - a * MEAN) + math.sqrt(2 * e) * next(draw)
        noise, data = s * (x - a * MEAN) / variance, MEAN + a * VARIANCE / variance * (x - a * MEAN)
        prediction = {"noise": noise, "data": data, "flow": noise - data}[table.prediction]
        x = row.state[0] * x + row.state[1] * prediction + row.noise[0] * next(draw)
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("final", ["denoise", "sample"])
@pytest.mark.parametrize("name", ["euler_maruyama", "reverse_diffusion", "heun", "dpmpp_2m"])
def test_every_evaluation_is_counted(name: str, final: str) -> None:
    net = Net()
    kernels = [Langevin(0.1, steps=2), Langevin(0.1)]
    result = sample(
        ScoreModel(net, VPSDE()), (3, 2), solver=name, steps=5, final=final, kernels=kernels, seed=0, full_output=True
    )
    table = build_table(VPSDE(), solvers.named.by_name(name), steps=5, final=final)
    assert len(net.calls) == table.nfe + 5 * 3
    assert result.nfe.tolist() == [len(net.calls)] * 3
    # The corrector is called at the same log-SNR as the step that follows it.
    assert [c for _, c in net.calls[:4]] == pytest.approx([table.rows[0].at.log_snr] * 4, rel=1e-6)


def test_the_corrector_shrinks_the_error_of_a_coarse_predictor() -> None:
    """The exact law of predictor-corrector, from the sampler's coefficients: closer to the data than without."""
    model, table = gaussian(VESDE()), solvers.reverse_diffusion()(VESDE(), VESDE().time(torch.linspace(-7, 6, 16)))
    errors = []
    for kernels in ([], [Langevin(0.16, steps=3)]):
        draws = 15 * (1 + (3 if kernels else 0))
        unit = torch.eye(2 + draws, dtype=torch.float64)
        out = sample(model, x_init=unit[1], noise=list(unit[2:]), solver=table, kernels=kernels, final="sample")
        weights = (out[1:] - out[0]).numpy()
        start, end = (VARIANCE + k.sigma**2 for k in (table.start, table.end))
        errors.append(abs(weights[0] ** 2 * start + (weights[1:] ** 2).sum() - end) / end)
    assert errors[1] < 0.75 * errors[0]


def test_a_table_that_corrects_its_anchor_takes_no_kernel() -> None:
    here = Knot(0.5, 0.8, 0.6)
    table = Tableau("corrected", "data", (Row(here, (1.0,), anchor=(0.9, 0.1)), Row(here, (1.0,))), here, here, 1.0)
    net = Net()
    with pytest.raises(ConfigError, match="'corrected' corrects its anchor"):
        sample(ScoreModel(net, VPSDE()), (2,), solver=table, kernels=[Langevin()], seed=0)
    assert net.calls == []


def test_a_kernel_of_ones_own_needs_two_members() -> None:
    class Shift:
        calls = 0

        def __call__(self, x, index, model, noise):
            return x + 1

    table = solvers.ddim()(tabulated(), torch.tensor([0.9, 0.5], dtype=torch.float64))
    model = gaussian(tabulated())
    got = sample(model, x_init=X[:, 0], solver=table, kernels=[Shift()], final="sample", full_output=True)
    expected = sample(model, x_init=X[:, 0] + 1, solver=table, final="sample")
    assert torch.equal(got.x, expected)
    assert got.nfe.tolist() == [1] * 3
