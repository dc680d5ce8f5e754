"""Guidance and products of models, against exact laws: conditional Gaussians and mixtures of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    EDMSDE,
    VPSDE,
    Affine,
    CheckpointError,
    CombinedModel,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    MappedModel,
    Moments,
    ProbabilityFlow,
    RectifiedFlow,
    ScoreModel,
    ShapeError,
    TrainingWarning,
    encode,
    fit,
    guided,
    log_likelihood,
    map_prediction,
    product,
    sample,
    tilted,
)
from scoresde.models.guidance import Clamp, DynamicThreshold
from scoresde.nn import MLP
from scoresde.noise import normal, stream

MEANS = torch.tensor([-2.0, 0.5, 1.5], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
X = torch.linspace(-2.5, 2.5, 7, dtype=torch.float64)[:, None]
LABEL = torch.tensor([0, 1, 2, 0, 1, 2, 1])


class Labelled(nn.Module):
    """The exact v prediction of N(MEANS[label], STDS[label]^2); without a label, of their equal mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        alpha, sigma = torch.sigmoid(log_snr).sqrt()[:, None], torch.sigmoid(-log_snr).sqrt()[:, None]
        variance = alpha**2 * STDS.to(x) ** 2 + sigma**2
        away = (x - alpha * MEANS.to(x)) / variance  # (B, 3)
        noise = alpha * sigma * away - sigma * (MEANS.to(x) + alpha * STDS.to(x) ** 2 * away)
        share = torch.softmax(-0.5 * (x - alpha * MEANS.to(x)) ** 2 / variance - 0.5 * variance.log(), 1)
        free = (share * noise).sum(1, keepdim=True)
        if label is None:
            return free
        own = noise.gather(1, label.clamp_min(0)[:, None])
        return torch.where(label[:, None] < 0, free, own)

    @property
    def condition_names(self) -> frozenset[str]:
        return frozenset({"label"})

    def check_conditions(self, x_shape: torch.Size, cond: object) -> None: ...

    def null_conditions(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.full_like(value, -1) for name, value in cond.items()}


def exact(sde=None) -> ScoreModel:
    moments = Moments(MEANS.mean()[None], ((STDS**2).mean() + MEANS.var(correction=0))[None])
    return ScoreModel(Labelled(), sde or VPSDE(), predicts="v", moments=moments)


def noise(model, x: Tensor, t: float, **cond: Tensor) -> Tensor:
    return model(x, torch.tensor(t, dtype=torch.float64), cond or None).noise


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, -0.5])
def test_guidance_is_its_formula(sde, scale: float) -> None:
    model = exact(sde)
    t = sde.t_min + 0.3 * (sde.t_max - sde.t_min)
    one, none = noise(model, X, t, label=LABEL), noise(model, X, t)
    got = noise(guided(model, scale), X, t, label=LABEL)
    torch.testing.assert_close(got, none + scale * (one - none), rtol=1e-9, atol=1e-9)
    # Another SDE at equal log-SNR.
    other = guided(model, scale).with_sde(VPSDE(0.2, 12.0))
    assert other.sde == other.first.sde == VPSDE(0.2, 12.0)


def test_a_step_asks_the_network_once_on_a_doubled_batch() -> None:
    model = exact()
    sample(guided(model, 2.0), 6, cond={"label": torch.arange(6) % 3}, solver="ddim", steps=4)
    assert model.net.calls == [12] * 4
    model.net.calls.clear()
    # Outside the interval of noise levels the conditional prediction stands alone.
    part = guided(model, 2.0, interval=(0.1, 1.0))
    sample(part, 6, cond={"label": torch.arange(6) % 3}, solver="ddim", steps=20)
    assert set(model.net.calls) == {6, 12}
    assert len(model.net.calls) == 20


def test_on_an_interval_and_elsewhere() -> None:
    model = exact()
    part, full = guided(model, 2.0, interval=(0.5, 2.0)), guided(model, 2.0)
    for t in (0.02, 0.13, 0.3, 0.45, 0.9):  # sigma/alpha 0.07, 0.45, 0.99, 2.6, 59
        point = model.sde.at(t)
        inside = 0.5 <= float(point.sigma / point.alpha) <= 2.0
        wanted = noise(full if inside else model, X, t, label=LABEL)
        torch.testing.assert_close(noise(part, X, t, label=LABEL), wanted, rtol=1e-9, atol=1e-9)
    # Every sample at a time of its own, too.
    t = torch.linspace(0.02, 0.95, 7, dtype=torch.float64)
    each = torch.cat([part(X[k : k + 1], t[k], {"label": LABEL[k : k + 1]}).noise for k in range(7)])
    torch.testing.assert_close(part(X, t, {"label": LABEL}).noise, each, rtol=1e-9, atol=1e-9)


def test_scales_of_samples_and_of_coordinates() -> None:
    model, scales = exact(), torch.linspace(-1, 3, 7, dtype=torch.float64)
    got = guided(model, 9.0)(X, 0.4, {"label": LABEL, "guidance_scale": scales}).noise
    one, none = noise(model, X, 0.4, label=LABEL), noise(model, X, 0.4)
    torch.testing.assert_close(got, none + scales[:, None] * (one - none), rtol=1e-9, atol=1e-9)
    chunked = sample(
        guided(model, 1.0),
        7,
        cond={"label": LABEL, "guidance_scale": scales},
        steps=6,
        seed=0,
        chunk_size=3,
        dtype=torch.float64,
    )
    whole = sample(
        guided(model, 1.0), 7, cond={"label": LABEL, "guidance_scale": scales}, steps=6, seed=0, dtype=torch.float64
    )
    torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-9)
    by_coordinate = guided(model, torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(
        noise(by_coordinate, X, 0.4, label=LABEL), noise(guided(model, 2.0), X, 0.4, label=LABEL), rtol=1e-9, atol=1e-9
    )


def test_rescaling_keeps_the_spread_of_the_conditional_prediction() -> None:
    net = MLP(6, width=16, depth=1, classes=3).double()
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p += 0.3 * normal(tuple(p.shape), stream(0, k))
    model = ScoreModel(net, VPSDE(), predicts="v")
    x, label = normal((5, 6), stream(1), dtype=torch.float64), torch.arange(5) % 3
    data = {phi: guided(model, 4.0, rescale=phi)(x, 0.4, {"label": label}).data for phi in (0.0, 0.3, 1.0)}
    own = model(x, 0.4, {"label": label}).data
    torch.testing.assert_close(data[1.0].std(1), own.std(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(data[0.3], 0.3 * data[1.0] + 0.7 * data[0.0], rtol=1e-6, atol=1e-8)
    # Off, in part and everywhere.
    off = guided(model, 4.0, rescale=1.0, interval=(0.0, 1e-3))(x, 0.4, {"label": label}).data
    torch.testing.assert_close(off, own, rtol=1e-6, atol=1e-8)


def test_away_from_a_weak_model_and_from_another_class() -> None:
    model, weak = exact(), GaussianModel(sde=VPSDE(), mean=torch.zeros(1), covariance=torch.ones(1))
    one, other = noise(model, X, 0.4, label=LABEL), noise(weak, X, 0.4)
    unlabelled = guided(exact(), 2.0, weak=weak)
    got = noise(unlabelled, X, 0.4)
    torch.testing.assert_close(got, 2 * noise(model, X, 0.4) - other, rtol=1e-8, atol=1e-8)
    third = noise(model, X, 0.4, label=torch.full((7,), 2))
    got = noise(guided(model, 2.0, negative={"label": 2}), X, 0.4, label=LABEL)
    torch.testing.assert_close(got, 2 * one - third, rtol=1e-9, atol=1e-9)


def test_products_add_scores_whatever_the_networks_predict() -> None:
    sde = VPSDE()
    a = GaussianModel(sde=sde, mean=torch.tensor([1.0]), covariance=torch.tensor([0.5]))
    b = ScoreModel.from_callable(lambda x, t: -x, sde)
    got = product([a, b, a], [0.5, 2.0, -0.25])(X, 0.3).score
    torch.testing.assert_close(got, 0.25 * a(X, 0.3).score - 2 * X, rtol=1e-9, atol=1e-9)
    model = exact()
    both = product([model, model], [1.0, -0.5], [{"label": 0}, {"label": 2}])
    wanted = noise(model, X, 0.3, label=torch.zeros(7, dtype=torch.long)) - 0.5 * noise(
        model, X, 0.3, label=torch.full((7,), 2)
    )
    torch.testing.assert_close(noise(both, X, 0.3), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "flow_abm", "heun"])
def test_every_table_and_the_flow_see_guidance(solver: str) -> None:
    """At scale 1 it is the conditional model, whose law is known."""
    label = torch.full((2000,), 2)
    x = sample(guided(exact(), 1.0), 2000, cond={"label": label}, solver=solver, steps=40, seed=0)
    assert float(x.mean()) == pytest.approx(1.5, abs=0.02)
    assert float(x.std()) == pytest.approx(0.2, abs=0.04)


def test_the_flow_encoding_and_likelihood_run_on_guidance() -> None:
    model = guided(exact(), 1.0)
    x, cond = torch.tensor([[-1.8], [0.4]], dtype=torch.float64), {"label": torch.tensor([0, 1])}
    tight = ProbabilityFlow(1e-7, 1e-7)
    z = encode(model, x, solver=tight, cond=cond)
    back = sample(model, x_init=z, solver=tight, cond=cond, final="sample", dtype=torch.float64)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    got = log_likelihood(model, x, cond=cond, solver=tight).values
    wanted = torch.distributions.Normal(MEANS[:2], STDS[:2]).log_prob(x[:, 0])
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.02)


def test_a_guided_model_is_saved_as_its_parts(tmp_path: Path) -> None:
    draw = stream(2)
    data, label = normal((64, 2), draw), torch.arange(64) % 2
    model = fit(
        ScoreModel(MLP(2, width=8, depth=1, classes=2), VPSDE()),
        data,
        steps=3,
        cond={"label": label},
        label_dropout=0.2,
        progress=False,
    ).model
    whole = guided(model, 2.5, interval=(0.1, 3.0), rescale=0.5, weak=ScoreModel(MLP(2, width=4, classes=2), VPSDE()))
    whole.save(tmp_path / "guided")
    again = CombinedModel.load(tmp_path / "guided")
    assert repr(again) == repr(whole)
    cond = {"label": torch.arange(6) % 2}
    torch.testing.assert_close(
        sample(again, 6, cond=cond, steps=5, seed=1), sample(whole, 6, cond=cond, steps=5, seed=1)
    )
    with pytest.raises(CheckpointError, match=r"read it with CombinedModel\.load"):
        ScoreModel.load(tmp_path / "guided")
    other = product([model, model], [2.0, -1.0], [None, {"label": 1}])
    other.save(tmp_path / "guided")
    again = CombinedModel.load(tmp_path / "guided")
    torch.testing.assert_close(
        sample(again, 6, cond=cond, steps=5, seed=1), sample(other, 6, cond=cond, steps=5, seed=1)
    )
    with pytest.raises(ConfigError, match="the scale is a tensor"):
        guided(model, torch.ones(2)).save(tmp_path / "other")


@pytest.mark.parametrize("change", [Clamp(-0.5, 0.75), DynamicThreshold(0.5, 0.8)], ids=["clamp", "threshold"])
def test_a_clamped_guided_model_is_saved_as_its_parts(change: Clamp | DynamicThreshold, tmp_path: Path) -> None:
    """Also under another SDE than the model inside, and with a clamp inside the guidance."""
    model = ScoreModel(MLP(2, width=8, depth=1, classes=2), VPSDE(), moments=Moments.of(normal((64, 2), stream(2))))
    cond = {"label": torch.arange(6) % 2}
    outside = map_prediction(guided(model, 2.5), change)
    for whole in (outside, outside.with_sde(EDMSDE()), map_prediction(outside, Clamp(0.0, 0.2))):
        whole.save(tmp_path / "changed")
        again = MappedModel.load(tmp_path / "changed")
        assert repr(again) == repr(whole)
        torch.testing.assert_close(
            sample(again, 6, cond=cond, steps=5, seed=1), sample(whole, 6, cond=cond, steps=5, seed=1)
        )
    with pytest.raises(CheckpointError, match=r"holds a changed model; read it with MappedModel\.load"):
        ScoreModel.load(tmp_path / "changed")
    with pytest.raises(CheckpointError, match=r"holds a MappedModel; read it with MappedModel\.load"):
        CombinedModel.load(tmp_path / "changed")
    inside = guided(map_prediction(model, change), 2.5)
    inside.save(tmp_path / "guided")
    again = CombinedModel.load(tmp_path / "guided")
    assert repr(again) == repr(inside)
    with pytest.raises(ConfigError, match="holds a function, which a file cannot"):
        map_prediction(model, lambda p: p.data).save(tmp_path / "other")
    with pytest.raises(ConfigError, match="a part is a TiltedModel, which a file cannot hold"):
        guided(tilted(model, lambda x: -x.square().sum(1)), 2.0).save(tmp_path / "other")


def untrained() -> ScoreModel:
    data, label = normal((64, 1), stream(2)), torch.arange(64) % 2
    net = ScoreModel(MLP(1, width=8, depth=1, classes=2), VPSDE())
    return fit(net, data, steps=1, cond={"label": label}, progress=False).model


def test_guidance_of_a_model_trained_without_dropout_warns() -> None:
    model = untrained()
    with pytest.warns(TrainingWarning, match=r"trained without dropping conditions.*label_dropout=0\.1"):
        guided(model, 2.0)
    guided(model, 2.0, weak=model)
    guided(model, 2.0, negative={"label": 1})


# ---------------------------------------------------------------------------------------------------------------------
# Tilts and clamps


def test_the_exact_classifier_of_states_makes_the_posterior() -> None:
    """p(x_t) p(y | x_t) is p(x_t | y): the tilted mixture is its component, under every diffusion, to rounding."""
    for sde in (VPSDE(), EDMSDE(), RectifiedFlow()):
        model = exact(sde)

        def log_prob(x: Tensor, t: Tensor, label: Tensor, model=model) -> Tensor:
            point = model.sde.at(t)
            alpha, sigma = (c.to(x)[:, None] for c in (point.alpha, point.sigma))
            variance = alpha**2 * STDS**2 + sigma**2
            logs = -0.5 * (x - alpha * MEANS) ** 2 / variance - 0.5 * variance.log()
            return logs.log_softmax(1).gather(1, label[:, None])[:, 0]

        posterior = tilted(model, log_prob, names=("label",))
        t = sde.t_min + 0.4 * (sde.t_max - sde.t_min)
        got, wanted = noise(posterior, X, t, label=LABEL), noise(model, X, t, label=LABEL)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)
        other = posterior.with_sde(VPSDE(0.3, 15.0))
        point = VPSDE(0.3, 15.0).at(0.5)
        torch.testing.assert_close(
            other.at(X, point, {"label": LABEL}).noise, model.at(X, point, {"label": LABEL}).noise, rtol=1e-8, atol=1e-8
        )


def test_an_energy_of_the_data_in_their_own_units() -> None:
    """Gaussian data and a quadratic energy: the gradient is J times that at the prediction, J = alpha c/V."""
    sde, variance = VPSDE(), 0.6
    model = GaussianModel(sde=sde, mean=torch.tensor([0.3]), covariance=torch.tensor([variance]))
    model.transform = Affine(1.0, 2.0)  # data = 2 y + 1
    bent = tilted(model, lambda x0: -((x0[:, 0] - 4.0) ** 2), 0.5, at="data")
    point = sde.at(0.3)
    alpha, sigma = float(point.alpha), float(point.sigma)
    data = model(X, 0.3).data
    jacobian = alpha * variance / (alpha**2 * variance + sigma**2)
    slope = -2 * (2 * data + 1 - 4) * 2 * jacobian
    torch.testing.assert_close(bent(X, 0.3).score, model(X, 0.3).score + 0.5 * slope, rtol=1e-7, atol=1e-7)
    draws = sample(bent, 500, steps=20, seed=0)
    assert abs(float(draws.mean()) - 4.0) < abs(float(sample(model, 500, steps=20, seed=0).mean()) - 4.0)


def test_clamps_change_the_data_prediction() -> None:
    model = exact()
    x = normal((4, 1), stream(0), dtype=torch.float64) * 3
    clamped = map_prediction(model, Clamp(-0.5, 0.5))
    torch.testing.assert_close(clamped(x, 0.2).data, model(x, 0.2).data.clamp(-0.5, 0.5))
    wide = ScoreModel.from_callable(lambda x, t: x, VPSDE(), predicts="data")
    values = torch.linspace(-4, 4, 101, dtype=torch.float64).repeat(2, 1)
    values[1] /= 8
    got = map_prediction(wide, DynamicThreshold(0.9, 1.0))(values, 0.5).data
    s = float(values[0].abs().sort().values[90])  # the least that 90 % do not exceed
    torch.testing.assert_close(got[0], values[0].clamp(-s, s) / s)
    torch.testing.assert_close(got[1], values[1])
    with pytest.raises(DomainError, match="low must be below high"):
        Clamp(1.0, -1.0)
    with pytest.raises(DomainError, match=r"quantile must lie in \(0, 1\]"):
        DynamicThreshold(0.0)


FAULTS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no condition": (lambda: sample(guided(exact(), 2.0), 3), ConfigError, "guidance needs conditions"),
    "one coordinate": (
        lambda: sample(guided(exact(), 2.0, rescale=0.5), 2, cond={"label": LABEL[:2]}),
        ShapeError,
        "compares spreads over a sample's coordinates",
    ),
    "two ways": (lambda: guided(exact(), 2.0, weak=exact(), negative={"label": 1}), ConfigError, "pass one of them"),
    "scale": (lambda: guided(exact(), math.inf), DomainError, "scale must lie in"),
    "interval": (lambda: guided(exact(), 2.0, interval=(2.0, 1.0)), DomainError, r"interval\[1\] must"),
    "one level": (
        lambda: guided(exact(), 2.0, interval=3.0),
        DTypeError,
        "interval must be a list of two noise levels",
    ),
    "rescale": (lambda: guided(exact(), 2.0, rescale=1.5), DomainError, r"rescale must lie in \[0, 1\]"),
    "shape": (
        lambda: sample(guided(exact(), torch.ones(3)), 2, cond={"label": LABEL[:2]}),
        ShapeError,
        "does not broadcast against the event",
    ),
    "own": (
        lambda: sample(guided(exact(), 1.0), 2, cond={"label": LABEL[:2], "guidance_scale": torch.ones(2, 1)}),
        ShapeError,
        r"guidance_scale must have shape \(2,\)",
    ),
    "null": (
        lambda: sample(guided(ScoreModel(lambda x, c, label: x, VPSDE()), 2.0), (2, 1), cond={"label": LABEL[:2]}),
        ConfigError,
        "does not say what it takes for no condition; pass negative=",
    ),
    "none": (lambda: product([]), ConfigError, "at least one model"),
    "counts": (lambda: product([exact()], [1.0, 2.0]), ConfigError, "1 models need as many powers"),
    "factor": (lambda: tilted(exact(), 3.0), DTypeError, "log_factor must be a function"),
    "place": (lambda: tilted(exact(), lambda x: x, at="noise"), ConfigError, "unknown place of a factor 'noise'"),
    "told": (
        lambda: sample(tilted(exact(), lambda x, t, y: x[:, 0], names=("y",)), 2),
        ConfigError,
        "log_factor takes 'y': pass cond=",
    ),
    "numbers": (lambda: sample(tilted(exact(), lambda x, t: x), 2), ShapeError, r"one number a sample, \(2,\)"),
    "sdes": (lambda: product([exact(), exact(EDMSDE())]), ConfigError, "use with_sde on one"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_suit_is_refused_before_a_call(name: str) -> None:
    call, kind, words = FAULTS[name]
    with pytest.raises(kind, match=words):
        call()
