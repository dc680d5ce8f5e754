"""The learned schedule as a diffusion: its curves against mpmath, its inverse, documents, and what does not see it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor

from scoresde import (
    VPSDE,
    CheckpointError,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianMixtureModel,
    LearnedSchedule,
    ScoreModel,
    build_table,
    denoising_score_matching,
    sample,
)
from scoresde.diffusions.named import sde_from_dict, sde_to_dict
from scoresde.nn import MLP
from scoresde.noise import normal, stream

F64 = torch.float64
MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.2]])
T = torch.linspace(1e-5, 1, 101, dtype=F64)


def bent(units: int = 5, seed: int = 0, size: float = 0.8, **options: float) -> LearnedSchedule:
    """Return a schedule with other numbers than the first ones."""
    sde = LearnedSchedule(units, **options)
    sde.bends.add_(size * normal(tuple(sde.bends.shape), stream(seed, "bends"), dtype=F64))
    return sde


def mixture(sde: LearnedSchedule | VPSDE) -> GaussianMixtureModel:
    return GaussianMixtureModel(sde=sde, weights=torch.ones(3), means=MEANS, std=0.2)


def equal_ends(low: float, high: float) -> VPSDE:
    return VPSDE(t_min=float(VPSDE().time(high)), t_max=float(VPSDE(t_max=2.0).time(low)))


@pytest.mark.parametrize("t", [1e-5, 0.03, 0.4, 0.77, 1.0])
def test_curves_are_those_of_the_formula(t: float) -> None:
    """Values and derivatives in 30 digits, of the formula written anew."""
    sde = bent(low=-9.0, high=12.0)
    a, b, c = ([mpmath.mpf(v) for v in row] for row in sde.bends.tolist())
    with mpmath.workdps(30):
        start, end = mpmath.mpf(1e-5), mpmath.mpf(1)

        def network(u: mpmath.mpf) -> mpmath.mpf:
            units = zip(a, b, c, strict=True)
            return u + sum(mpmath.e**p / (1 + mpmath.e ** (r - mpmath.e**q * u)) for p, q, r in units)

        def log_snr(s: mpmath.mpf) -> mpmath.mpf:
            share = network((s - start) / (end - start)) - network(mpmath.mpf(0))
            return 12 - 21 * share / (network(mpmath.mpf(1)) - network(mpmath.mpf(0)))

        def alpha(s: mpmath.mpf) -> mpmath.mpf:
            return mpmath.sqrt(1 / (1 + mpmath.e ** -log_snr(s)))

        def sigma(s: mpmath.mpf) -> mpmath.mpf:
            return mpmath.sqrt(1 / (1 + mpmath.e ** log_snr(s)))

        expected = {
            "alpha": alpha(t),
            "sigma": sigma(t),
            "log_snr": log_snr(t),
            "alpha_rate": mpmath.diff(alpha, t),
            "sigma_rate": mpmath.diff(sigma, t),
            "drift_rate": mpmath.diff(alpha, t) / alpha(t),
            "diffusion": sigma(t) * mpmath.sqrt(-mpmath.diff(log_snr, t)),
            "log_snr_rate": mpmath.diff(log_snr, t),
        }
        got = {name: float(getattr(sde, name)(t)) for name in expected}
    assert got == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-12, abs=1e-15)
    assert float(sde.prior_std(t)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_log_snr_falls_between_its_ends_and_has_an_inverse(seed: int) -> None:
    sde = bent(9, seed, size=1.5, low=-7.0, high=9.0, t_min=1e-3, t_max=3.0)
    t = torch.linspace(0, 3, 2001, dtype=F64)
    values = sde.log_snr(t)
    assert bool((values.diff() < 0).all())
    assert (float(sde.log_snr(1e-3)), float(sde.log_snr(3.0))) == pytest.approx((9.0, -7.0), abs=1e-13)
    # An error of eps max|log_snr| in log_snr, and of eps in t.
    slack = 4e-15 * (1 + values.abs().max() / sde.log_snr_rate(t).abs())
    assert bool(((sde.time(values) - t).abs() <= slack).all())
    assert bool(((sde.alpha(t).square() + sde.sigma(t).square() - 1).abs() < 1e-14).all())
    beyond = torch.tensor([20.0, -15.0], dtype=F64)  # of another diffusion, whose network it has
    torch.testing.assert_close(sde.at(sde._invert(beyond)).log_snr, beyond, rtol=1e-12, atol=0)
    with pytest.raises(DomainError, match=r"log_snr must be at least -7, reached at t_max = 3"):
        sde.time(-7.1)


def test_it_begins_nearly_linear() -> None:
    sde = LearnedSchedule(low=-10.0, high=10.0)
    assert float((sde.log_snr(T) - (10 - 20 * T)).abs().max()) < 0.15
    assert repr(sde) == "LearnedSchedule(16, low=-10, high=10)"
    assert repr(LearnedSchedule(3, learn_ends=False)) == "LearnedSchedule(3, low=-10, high=13.5, learn_ends=False)"


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "ancestral"])
def test_tables_at_equal_log_snr_are_those_of_another_variance_preserving_diffusion(solver: str) -> None:
    """A table's weights depend on alpha and sigma at its times, and both are functions of log_snr here."""
    sde, other = bent(), VPSDE()
    places = torch.linspace(9.0, -9.0, 8, dtype=F64).flip(0)
    tables = [build_table(one, solver, times=one.time(places), final="sample") for one in (sde, other)]
    for mine, theirs in zip(tables[0].rows, tables[1].rows, strict=True):
        assert mine.state == pytest.approx(theirs.state, rel=1e-10, abs=1e-12)
        assert mine.noise == pytest.approx(theirs.noise, rel=1e-10, abs=1e-12)
    x = sample(mixture(sde), (64, 2), steps=12, seed=0)
    assert bool(torch.isfinite(x).all())


def integrate(model: GaussianMixtureModel, parts: int = 200) -> Tensor:
    """Return the integral over t of the loss of fixed data and noise, by Gauss and Legendre's rule in equal parts."""
    sde = model.sde
    nodes, weights = (torch.tensor(v, dtype=F64) for v in (GAUSS_NODES, GAUSS_WEIGHTS))
    places = ((torch.arange(parts, dtype=F64)[:, None] + nodes) / parts).reshape(-1)
    share = (weights / parts).expand(parts, -1).reshape(-1)
    if isinstance(sde, VPSDE):  # evenly in log t, since log_snr falls as -log t near the data
        ratio = math.log(sde.t_max / sde.t_min)
        t = sde.t_min * (ratio * places).exp()
        share = share * ratio * t
    else:
        t = sde.t_min + (sde.t_max - sde.t_min) * places
        share = share * (sde.t_max - sde.t_min)
    x0 = model.sample_data(6, stream(1)).double().repeat_interleave(len(t), 0)
    z = normal((6, 2), stream(2), dtype=F64).repeat_interleave(len(t), 0)
    losses = denoising_score_matching(model, x0, weight="likelihood", t=t.repeat(6), noise=z)
    return losses.reshape(6, -1) @ share


GAUSS_NODES = [
    0.5 + 0.5 * s * r
    for s, r in (
        (-1, 0.906179845938664),
        (-1, 0.538469310105683),
        (0, 0),
        (1, 0.538469310105683),
        (1, 0.906179845938664),
    )
]
GAUSS_WEIGHTS = [0.118463442528095, 0.239314335249683, 64 / 225, 0.239314335249683, 0.118463442528095]


def test_the_bound_is_the_same_between_equal_ends_for_every_datum_and_noise() -> None:
    """int (-d lambda/dt)/2 e(lambda) dt = (1/2) int e d lambda, e of one datum and one noise, for any curve."""
    schedules = [LearnedSchedule(low=-8.0, high=9.0), bent(low=-8.0, high=9.0), bent(9, 3, low=-8.0, high=9.0)]
    found = [integrate(mixture(sde)) for sde in (*schedules, equal_ends(-8.0, 9.0))]
    # The rule's own error is seen in twice as many parts.
    error = max(
        float((integrate(mixture(sde), 400) - one).abs().max()) for sde, one in zip(schedules, found, strict=False)
    )
    assert error < 1e-5
    assert float(found[0].min()) > 0.05
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=2e-5)


def test_the_bounds_gradient_on_the_shape_is_zero_and_that_of_its_variance_is_not() -> None:
    sde = bent(low=-8.0, high=9.0)
    model = mixture(sde)
    x0 = model.sample_data(256, stream(4)).double()
    z = normal((256, 2), stream(5), dtype=F64)
    t = 1e-5 + (1 - 1e-5) * (torch.arange(256, dtype=F64) + 0.5) / 256
    sde.bends.requires_grad_(True)
    try:
        total = integrate(model).mean()
        (gradient,) = torch.autograd.grad(total, [sde.bends])
        losses = denoising_score_matching(model, x0, weight="likelihood", t=t, noise=z)
        (single,) = torch.autograd.grad(losses.square().mean().log(), [sde.bends])
    finally:
        sde.bends.requires_grad_(False)
    assert float(gradient.abs().max()) < 1e-5
    assert float(single.abs().max()) > 1e-2


def test_documents_and_copies_have_the_same_bits(tmp_path: Path) -> None:
    sde = bent(low=-9.5, high=11.0, learn_ends=False, t_max=2.0)
    for one in (sde, sde.starting_at(0.01), sde.copy()):
        again = sde_from_dict(json.loads(json.dumps(sde_to_dict(one))))
        assert isinstance(again, LearnedSchedule)
        assert torch.equal(again.log_snr(T), one.log_snr(T))
        assert (again.t_min, again.t_max, again.learn_ends) == (one.t_min, one.t_max, False)
    assert torch.equal(sde.starting_at(0.01).log_snr(T), sde.log_snr(T))  # times mean what they meant
    model = ScoreModel(MLP(2, width=4, depth=1).double(), sde)
    model.save(tmp_path)
    loaded = ScoreModel.load(tmp_path)
    assert torch.equal(*(sample(m, (3, 2), steps=4, seed=0, dtype=F64) for m in (model, loaded)))
    other = sde.copy()
    other.bends.zero_()
    assert not torch.equal(other.log_snr(T), sde.log_snr(T))


def test_a_table_of_it_is_near_and_stays() -> None:
    sde = bent(16, 1, size=0.5)
    table = sde.tabulated()
    assert float((table.log_snr(T) - sde.log_snr(T)).abs().max()) < 2e-3
    errors = [float((sde.tabulated(n).log_snr(T[1:-1]) - sde.log_snr(T[1:-1])).abs().max()) for n in (130, 2061)]
    assert errors[1] < errors[0] / 100  # at least second order in the knots' distance
    kept = table.log_snr(T)
    sde.bends.add_(0.1)
    assert torch.equal(table.log_snr(T), kept)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"units": 0}, DomainError, "units must be"),
        ({"units": 2000}, DomainError, r"units must be in \[1, 1024\], got 2000"),
        ({"units": 2.5}, DTypeError, "units must be an integer"),
        ({"low": 1.0}, DomainError, r"low must lie in \[-30, -1\], got 1"),
        ({"high": -1.0}, DomainError, r"high must lie in \[1, 30\], got -1"),
        ({"high": math.nan}, DomainError, "high must lie"),
        ({"learn_ends": "no"}, DTypeError, "learn_ends must be True or False"),
        ({"t_min": 2.0}, DomainError, "t_max must"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LearnedSchedule(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["bends"][0].append(1.0), "the length of bends"),
        (lambda d: d["bends"].pop(), "bends"),
        (lambda d: d["bends"][1].__setitem__(0, 1e3), "bends"),
        (lambda d: d["bends"][1].__setitem__(0, "x"), r"bends\[1\]\[0\] must be a number"),
        (lambda d: d.update(units=10**6), "units must be"),
        (lambda d: d["ends"].reverse(), "low must lie"),
        (lambda d: d.update(learn_ends=1), "learn_ends must be true or false"),
        (lambda d: d.pop("start"), "start must be there"),
        (lambda d: d.update(start=2.0), "t_max must"),
        (lambda d: d.update(width=2.0), "width"),
    ],
)
def test_altered_documents_are_refused(change: object, message: str) -> None:
    from scoresde.models.documents import check_document

    document = {
        "network": {"kind": "Own", "config": None},
        "trained_sde": sde_to_dict(bent()),
        "sde": None,
        "predicts": "noise",
        "sigma_data": 1.0,
        "condition_on": "log_snr",
        "transform": None,
        "variance": "fixed",
    }
    check_document("model", document, Path("m"))
    change(document["trained_sde"])  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        check_document("model", document, Path("m"))
    if message == "start must be there":
        with pytest.raises(ConfigError, match="lacks 'start'"):
            sde_from_dict(document["trained_sde"])  # type: ignore[arg-type]
