"""The model of a score under any SDE: its readout, its law at the end, training, sampling, and files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from noisy import F64, GROWTH, SWIRL, UNEVEN, WELL, Coupled
from torch import Tensor

from scoresde import (
    SDE,
    VPSDE,
    CheckpointError,
    ConfigError,
    DomainError,
    DTypeError,
    Gaussian,
    ProbabilityFlow,
    ScoreModel,
    SDEModel,
    ShapeError,
    SolverError,
    TrainingWarning,
    bridge,
    fit,
    losses,
    sample,
)
from scoresde.models.sde_model import Ends, graded_times
from scoresde.nn import MLP
from scoresde.noise import normal, stream

GRID = graded_times(WELL, 60).flip(0)


def wavy(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.sin(x) + 0.1 * c_noise.to(x)[:, None]


def small(size: int = 1) -> MLP:
    return MLP(size, width=16, depth=1)


@pytest.mark.parametrize("sde", [WELL, GROWTH, SWIRL, Coupled(t_min=1e-3)], ids=lambda s: type(s).__name__)
def test_run_backwards_a_state_follows_the_forward_drift(sde: SDE) -> None:
    """f - d g^2 - g^2 score = -f - g F/sqrt(tau): the equilibrium's part, whatever the noise."""
    size = 1 if sde in (WELL, GROWTH) else 2
    x, t = 0.5 + normal((6, size), stream(0), dtype=F64).abs(), torch.linspace(0.1, 0.9, 6, dtype=F64)
    model = SDEModel(wavy, sde)
    g, tau = sde.diffusion_at(x, t), t - sde.t_min
    output = torch.sin(x) - 0.1 * (tau / (sde.t_max - sde.t_min)).log()[:, None]
    expected = -sde.drift(x, t) - g * output / tau.sqrt()[:, None]
    torch.testing.assert_close(sde.reverse(model).drift(x, t), expected, rtol=1e-10, atol=1e-10)
    plain = SDEModel(wavy, sde, baseline="none")
    torch.testing.assert_close(plain(x, t), output / (g * tau.sqrt()[:, None]), rtol=1e-12, atol=1e-12)


def test_the_network_sees_scaled_states_and_a_clock() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        seen.append((x, c_noise))
        return x

    model = SDEModel(net, WELL)
    model.shift, model.scale = torch.tensor([1.0]), torch.tensor([2.0])
    x = torch.tensor([[1.0], [5.0]])
    model(x, torch.tensor([WELL.t_max, WELL.t_min], dtype=F64))
    (y, c_noise), *_ = seen
    torch.testing.assert_close(y, torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(c_noise, torch.tensor([0.0, -math.log(1e-5)]))


def test_ends_are_drawn_evenly_and_sample_by_sample() -> None:
    states = torch.arange(10.0)[:, None]
    quantiles = torch.special.ndtri((torch.arange(40, dtype=F64) + 0.5) / 40)[:, None]
    drawn = Ends(states, 1.0).from_noise(quantiles)
    torch.testing.assert_close(drawn, states.double().repeat_interleave(4, 0))
    assert Ends(states, 1.0).from_noise(torch.tensor([[-50.0], [50.0]])).tolist() == [[0.0], [9.0]]
    with pytest.raises(ShapeError, match=r"z must have shape \(B, \*\(1,\)\)"):
        Ends(states, 1.0).from_noise(torch.zeros(2, 3))


def trained(sde: SDE = WELL, **options: object) -> SDEModel:
    model = SDEModel(small(), sde, **{k: options.pop(k) for k in ("prior", "baseline") if k in options})
    x = -1 + 0.3 * normal((512, 1), stream(0, "data"))
    settings = {"steps": 2, "batch_size": 64, "progress": False, "seed": 0} | options
    return fit(model, x, **settings).model


def test_a_trained_model_gives_the_data_back() -> None:
    """Few steps, since the paths' target has little noise; its mean and spread against those of 512 data."""
    pytest.importorskip("torchsde")
    model = trained(steps=60, batch_size=512, learning_rate=1e-2, objective=losses.SimulatedLoss(steps=40))
    x = sample(model, (2000, 1), solver=bridge.TorchSDE(), times=GRID, final="sample", seed=1)
    assert float(x.mean()) == pytest.approx(-1, abs=0.1)
    assert float(x.std()) == pytest.approx(0.3, abs=0.08)


def test_samples_are_those_of_their_seed_alone() -> None:
    pytest.importorskip("torchsde")
    options = {"solver": bridge.TorchSDE(), "times": GRID, "final": "sample", "seed": 3}
    model = trained()
    whole = sample(model, (6, 1), **options)
    torch.testing.assert_close(sample(model, (6, 1), chunk_size=4, **options), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sample(model, 1, first_sample=4, **options), whole[4:5], rtol=1e-5, atol=1e-5)
    assert isinstance(model.law, Ends)


@pytest.mark.parametrize("objective", ["reverse", "implicit", "sliced"])
def test_conditions_and_held_out_data_go_into_a_training(objective: str) -> None:
    """The held-out loss is that of the objective at draws that are always the same, with the averaged weights."""
    label = torch.arange(64) % 2
    x = (2.0 * label - 1)[:, None] + 0.1 * normal((64, 1), stream(0))
    options = {"cond": {"label": label}, "held_out": x[:32], "held_out_cond": {"label": label[:32]}, "ema_decay": 0.0}
    model = SDEModel(MLP(1, width=8, depth=1, classes=2), WELL)
    r = fit(model, x, objective=objective, steps=2, batch_size=16, seed=5, progress=False, **options)
    loss = losses.SimulatedLoss(objective)(r.model, x[:32], stream(5, "held out", "objective"), {"label": label[:32]})
    assert r.log[-1]["held_out_loss"] == pytest.approx(float(loss.detach().mean()), rel=1e-5, abs=1e-6)
    with pytest.raises(ConfigError, match=r"label"):
        r.model(x, 0.5, {"lable": label})
    assert not torch.allclose(r.model(x, 0.5, {"label": label}), r.model(x, 0.5, {"label": 1 - label}))


def test_ends_have_the_law_of_the_sde() -> None:
    """A linear SDE, from data of spread 0: the mean and variance of each coordinate, within what 16 384 paths tell."""
    model = SDEModel(small(2), UNEVEN)
    model.measure(torch.ones(3, 2), seed=0)
    mean, variance = UNEVEN.law(1.0, 0.0, UNEVEN.t_max - UNEVEN.t_min)
    states = model.prior(1.0).states.double()
    assert len(states) == 16_384
    torch.testing.assert_close(states.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(states.var(0), variance, rtol=0.06, atol=0)
    gaussian = SDEModel(small(2), UNEVEN, prior="gaussian")
    gaussian.measure(torch.ones(3, 2), seed=0)
    torch.testing.assert_close(gaussian.law.mean, states.mean(0))


class Settled(type(WELL)):
    """Of the double well, with a prior of its own that is far from where paths end."""

    def prior(self, t: object = None, moments: object = None) -> Gaussian:
        return Gaussian(torch.zeros(()), torch.ones(()))


def test_a_prior_that_is_not_the_law_of_the_ends_is_told() -> None:
    with pytest.warns(TrainingWarning, match=r"distribution of a simulated coordinate is 0\.\d+ from the prior's"):
        model = trained(Settled(t_min=1e-3, t_max=1.0))
    assert isinstance(model.law, Gaussian)
    ends = trained().law.states
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear = type(UNEVEN)(t_min=1e-3, t_max=1.0)
        fitted = SDEModel(small(2), linear, prior="gaussian")
        fit(fitted, normal((256, 2), stream(0)), steps=1, progress=False)
    assert ends.shape == (16_384, 1)


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options = {"save_every": 2, "decay": "constant", "warmup": 0, "ema_decay": 0.5}
    short = trained(steps=2, folder=tmp_path / "run", **options)
    again = trained(steps=4, folder=tmp_path / "run", resume=True, **options)
    straight = trained(steps=4, **options)
    for a, b in zip(again.net.parameters(), straight.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(short.net.parameters(), again.net.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"another run: objective .*'reverse'.*now .*'sliced'"):
        trained(steps=6, folder=tmp_path / "run", resume=True, objective="sliced", **options)


@pytest.mark.parametrize("prior", [None, "gaussian", Gaussian(torch.zeros(1), torch.ones(1))], ids=str)
@pytest.mark.filterwarnings("ignore:at t_max the distribution")
def test_a_model_comes_back_from_its_folder(tmp_path: Path, prior: object) -> None:
    model = trained(prior=prior)
    model.save(tmp_path / "model")
    back = SDEModel.load(tmp_path / "model", sde=WELL)
    x, z = normal((5, 1), stream(1)), normal((5, 1), stream(2))
    assert torch.equal(back(x, 0.5), model(x, 0.5))
    torch.testing.assert_close(back.prior(1.0).from_noise(z), model.prior(1.0).from_noise(z))
    assert repr(back) == repr(model)


def test_files_of_other_models_and_sdes_are_refused(tmp_path: Path) -> None:
    trained().save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"your own SDE Well, which JSON cannot rebuild; pass it: SDEModel\.load"):
        SDEModel.load(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"times from 0\.001 to 1, got an SDE from 0\.001 to 2"):
        SDEModel.load(tmp_path / "model", sde=type(WELL)(t_min=1e-3, t_max=2.0))
    with pytest.raises(CheckpointError, match=r"holds an SDEModel; read it with SDEModel\.load"):
        ScoreModel.load(tmp_path / "model")
    ScoreModel(small(), VPSDE()).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"holds no SDEModel; read it with ScoreModel\.load"):
        SDEModel.load(tmp_path / "other", sde=WELL)


class Frozen(type(WELL)):
    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(torch.as_tensor(t))


MAKE = SDEModel(small(), WELL)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: SDEModel(small(), VPSDE()), ConfigError, r"closed marginals, of which.*take ScoreModel\(net, sde\)"),
        (lambda: SDEModel(small(), "well"), DTypeError, "sde must be an SDE of your own"),
        (lambda: SDEModel(3, WELL), DTypeError, "net must be a network"),
        (lambda: SDEModel(small(), WELL, baseline="2f"), ConfigError, "unknown baseline '2f'"),
        (lambda: SDEModel(small(), WELL, prior="uniform"), ConfigError, "unknown prior of an SDEModel 'uniform'"),
        (
            lambda: ScoreModel(small(), WELL),
            DTypeError,
            r"Well has no alpha and sigma; the model.*SDEModel\(net, sde\)",
        ),
        (
            lambda: MAKE.prior(1.0),
            ConfigError,
            "simulated from the data when fit begins, and this model is not trained",
        ),
        (lambda: MAKE.with_sde(GROWTH), ConfigError, "that of its own SDE"),
        (lambda: sample(MAKE, (2, 1), sde=GROWTH), ConfigError, "that of its own SDE; leave sde= out"),
        (lambda: trained(calibrate=True), ConfigError, "calibrate= finds a table"),
        (lambda: trained(weight="simple"), ConfigError, "weight= and times= belong to the denoising loss"),
        (lambda: trained(Frozen(t_min=1e-3)), DomainError, "2 f/g.2 has no value there.*baseline='none'"),
        (lambda: trained().prior(0.5), ConfigError, "the law at t_max = 1, and the run starts at t = 0.5"),
        (
            lambda: SDEModel(lambda x, c: x[:1], WELL)(torch.zeros(2, 1), 0.5),
            ShapeError,
            r"must return the shape \(2, 1\)",
        ),
    ],
)
def test_bad_models_and_uses_are_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


def test_a_network_without_the_equilibrium_is_told_why_it_runs_away() -> None:
    """The reverse drift x^3 outwards; a step that is too long in a drift that points back is another thing."""
    pytest.importorskip("torchsde")
    options = {"solver": bridge.TorchSDE(), "steps": 60, "final": "sample", "x_init": torch.full((4, 1), 30.0)}
    plain = SDEModel(lambda x, c: torch.zeros_like(x), WELL, baseline="none")
    with pytest.raises(SolverError, match=r"smaller steps do not help: far out.*SDEModel\(net, sde\) adds"):
        sample(plain, seed=0, **options)
    trained_alone = SDEModel(small(), WELL, baseline="none")  # whose layer norm is NaN very far out
    with pytest.raises(SolverError, match=r"smaller steps do not help: far out"):
        sample(trained_alone, seed=0, **options | {"steps": 200, "x_init": torch.full((4, 1), 4.0)})
    with pytest.raises(SolverError, match=r"probability flow stopped at t = .*smaller steps do not help") as error:
        sample(plain, **options | {"solver": ProbabilityFlow(), "steps": None}, seed=0)
    assert "loosen" not in str(error.value)
    with pytest.raises(SolverError, match=r"take smaller steps$"):
        sample(SDEModel(lambda x, c: torch.zeros_like(x), WELL), seed=0, **options | {"steps": 5})
