"""Training: the average does not stagnate, the step is Adam's, the loop can stop anywhere and says what went wrong."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from watchers import NoReading, NoSync

from scoresde import (
    VPSDE,
    Affine,
    CheckpointError,
    ConfigError,
    DomainError,
    DTypeError,
    GaussianModel,
    ScoreModel,
    ShapeError,
    SolverError,
)
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import DECAYS, EMA, Trainer, fit
from scoresde.training.batches import Batches
from scoresde.training.ema import choose_stride
from scoresde.training.losses import TIMES, WEIGHTS, denoising_score_matching
from scoresde.training.losses.denoising import read_scalars

F64 = torch.float64
MEAN, COVARIANCE = torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])
EXACT = GaussianModel(sde=VPSDE(), mean=MEAN, covariance=COVARIANCE)
DATA = EXACT.sample_data(1000, stream(0, "data"))
QUIET = {"progress": False, "batch_size": 32, "learning_rate": 3e-3}


def tiny(**options: object) -> ScoreModel:
    return ScoreModel(MLP(2, width=16, depth=1), VPSDE(), **options)


def weights(model: ScoreModel | nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The average


class One(nn.Module):
    def __init__(self, value: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), value, dtype=dtype))
        self.register_buffer("b", torch.tensor([7.0]))


def value(ema: EMA) -> float:
    return float(ema.base[0].double() + ema.offset[0].double())


@pytest.mark.parametrize(
    ("target", "dtype", "reference"),
    [(1.0005, torch.float32, 1.000496595873), (2.0, torch.bfloat16, 1.993263737389)],
)
def test_average_near_one_reaches_its_reference(target: float, dtype: torch.dtype, reference: float) -> None:
    module = One(1.0, dtype)
    ema = EMA(module, 0.9999)
    with torch.no_grad():
        module.p.fill_(target)
    for _ in range(50_000):
        ema.update()
    assert value(ema) == pytest.approx(reference, abs=5e-9)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_of_moving_weights_is_the_float64_recursion(decay: float, warmup: bool, every: int) -> None:
    net = MLP(2, width=8, depth=1)
    ema = EMA(net, decay, warmup=warmup, every=every)
    exact = {name: p.detach().double() for name, p in net.named_parameters()}
    for k in range(300):
        with torch.no_grad():
            for j, p in enumerate(net.parameters()):
                p.add_(0.1 * normal(p.shape, stream(k, j)))
        ema.update()
        if (k + 1) % every:
            continue
        d = (min(decay, (1 + k) / (10 + k)) if warmup else decay) ** every
        exact = {name: d * exact[name] + (1 - d) * p.detach().double() for name, p in net.named_parameters()}
    for name, averaged in ema.state_dict().items():
        torch.testing.assert_close(averaged.double(), exact[name], rtol=1e-6, atol=1e-6)
    for i, name in enumerate(ema.names):
        torch.testing.assert_close(ema.base[i].double() + ema.offset[i], exact[name], rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize(("decay", "steps"), [(0.0, 1), (0.99, 1), (0.995, 2), (0.999, 8), (0.9999, 8)])
def test_one_update_moves_an_average_by_a_hundredth_at_most(decay: float, steps: int) -> None:
    assert choose_stride(decay) == steps


def test_a_strided_average_has_the_mean_age_of_a_dense_one() -> None:
    # Weights that grow by one a step: the average lags by its mean age, d/(1 - d) steps, and m/2 more or less.
    module = One(0.0, torch.float64)
    dense, strided = EMA(module, 0.99), EMA(module, 0.99, every=4)
    for k in range(4000):
        with torch.no_grad():
            module.p.fill_(float(k))
        dense.update()
        strided.update()
    assert 3999 - value(dense) == pytest.approx(99, abs=1e-6)
    assert value(strided) == pytest.approx(value(dense), abs=2)


def test_raw_and_averaged_weights_never_mix() -> None:
    net = MLP(2, width=8, depth=1)
    first = weights(net)
    ema = EMA(net, 0.5)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    ema.update()
    raw = weights(net)
    half = [0.5 * (a + b) for a, b in zip(first, raw, strict=True)]
    made = ema.copy()
    assert same(weights(net), raw)
    for a, b in zip(weights(made), half, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)

    def fail_inside() -> None:
        with ema.applied():
            assert same(weights(net), weights(made))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert same(weights(net), raw)
    with torch.no_grad():
        next(made.parameters()).zero_()
    assert same(weights(net), raw)


def test_average_keeps_buffers_frozen_and_tied_parameters() -> None:
    module = One(1.0)
    module.frozen = nn.Parameter(torch.tensor([3.0]), requires_grad=False)
    module.tied = module.p
    ema = EMA(module, 0.5)
    with torch.no_grad():
        module.p.fill_(2.0)
        module.b.fill_(8.0)
    ema.update()
    assert {name: float(v) for name, v in ema.state_dict().items()} == {"p": 1.5, "b": 8.0, "frozen": 3.0, "tied": 1.5}


def test_changed_parameters_are_refused() -> None:
    module = One(1.0)
    ema = EMA(module, 0.9)
    module.p = nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match=r"parameters are not the 1 that the average began with .*make a new EMA"):
        ema.state_dict()
    ema = EMA(module, 0.9)
    module.p.data = torch.ones(1)
    for _ in range(63):
        ema.update()
    with pytest.raises(ConfigError, match="make a new EMA"):
        ema.update()


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan, 2])
def test_decay_outside_its_interval_is_refused(decay: float) -> None:
    with pytest.raises(DomainError, match=r"decay must lie in \[0, 1\), got"):
        EMA(One(1.0), decay)


# ---------------------------------------------------------------------------------------------------------------------
# The step


@pytest.mark.parametrize("clip_norm", [None, 1e-3, 0.05, 1e3])
def test_step_is_the_loss_then_clipping_then_adam(clip_norm: float | None) -> None:
    # The same by torch's own pieces, in the order in which everyone writes them.
    model, other = tiny(predicts="v"), tiny(predicts="v")
    trainer = Trainer(model, learning_rate=lambda k: 1e-3 / (k + 1), clip_norm=clip_norm, weight_decay=0.1, seed=5)
    optimizer = torch.optim.AdamW(other.parameters(), weight_decay=0.1)
    for k in range(70):
        x0 = DATA[8 * k : 8 * k + 8]
        optimizer.param_groups[0]["lr"] = 1e-3 / (k + 1)
        t, noise = trainer.draw_times(8, k), trainer.draw_noise(x0, k)
        loss = denoising_score_matching(other, x0, t=t, noise=noise).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), math.inf if clip_norm is None else clip_norm)
        optimizer.step()
        torch.testing.assert_close(trainer(x0), loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(trainer.gradient_norm, norm, rtol=1e-4, atol=1e-7)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_coefficients_of_a_step_do_not_depend_on_the_step_before(batch: int) -> None:
    def at(step: int, trainer: Trainer) -> list[Tensor]:
        trainer.step = step
        multipliers, c_noise, bins = trainer._prepare(batch, torch.float32)
        return [c.clone() for c in (*multipliers, c_noise, bins)]

    walking, model = Trainer(tiny(), seed=3), tiny()
    for k in range(130):
        here = at(k, walking)
        if k % 13 == 0:
            assert same(here, at(k, Trainer(model, seed=3)))
            t = TIMES["low_discrepancy"](batch, VPSDE(), stream(3, "times", k))
            scalars = read_scalars(model, model.sde.at(t), WEIGHTS["simple"])
            for ours, exact in zip(here[:5], scalars.multipliers, strict=True):
                torch.testing.assert_close(ours, exact.float(), rtol=2e-7, atol=0)
            torch.testing.assert_close(here[5], scalars.c_noise.float(), rtol=2e-7, atol=1e-6)
            assert torch.equal(here[6], walking.bins.find(scalars.log_snr))


def test_step_never_waits_for_the_device() -> None:
    trainer = Trainer(tiny(), seed=0)
    trainer(DATA[:16])
    with NoSync(), NoReading():
        for _ in range(3):
            trainer(DATA[:16])


class Fails(nn.Module):
    """A network that answers NaN for some samples from call ``first`` to call ``last``."""

    def __init__(self, first: int, last: float = math.inf, where: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inner, self.first, self.last, self.calls = MLP(2, width=16, depth=1), first, last, 0
        self.where = where or (lambda c_noise: c_noise < 100)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.calls += 1
        out = self.inner(x, c_noise)
        if self.first <= self.calls - 1 <= self.last:
            out = torch.where(self.where(c_noise)[:, None], math.nan, out)
        return out


def test_a_step_without_a_finite_gradient_changes_nothing() -> None:
    model = ScoreModel(Fails(3, 3), VPSDE())
    trainer = Trainer(model)
    for _ in range(3):
        trainer(DATA[:16])
    before, moments = weights(model), [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]
    assert not torch.isfinite(trainer(DATA[:16]))
    assert same(weights(model), before)
    assert same([v for s in trainer.optimizer.state.values() for v in s.values()], moments)
    assert torch.isfinite(trainer(DATA[:16]))
    assert not same(weights(model), before)
    assert all(bool(torch.isfinite(v).all()) for v in trainer.ema.state_dict().values())


def test_state_goes_on_to_the_same_bits() -> None:
    model, other = tiny(), tiny()
    trainer, heir = Trainer(model, seed=1), Trainer(other, seed=1)
    for k in range(100):
        if k == 70:
            numbers, tensors = trainer.state()
            other.load_state_dict(model.state_dict())
            heir.restore(json.loads(json.dumps(numbers)), {name: v.clone() for name, v in tensors.items()})
        x0 = DATA[8 * k : 8 * k + 8]
        loss = trainer(x0)
        if k >= 70:
            assert torch.equal(heir(x0), loss)
    assert same(weights(model), weights(other))
    assert same(list(trainer.ema.state_dict().values()), list(heir.ema.state_dict().values()))


def test_autocast_computes_in_bf16_and_keeps_float32_weights() -> None:
    full, low = (Trainer(tiny(), autocast=dtype) for dtype in (None, torch.bfloat16))
    seen: list[torch.dtype] = []
    low.net.first[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    losses = [[float(t(DATA[:256])) for _ in range(20)] for t in (full, low)]
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in low.parameters} == {torch.float32}
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[0] != losses[1]


# ---------------------------------------------------------------------------------------------------------------------
# The order of the data


def batches(
    n: int, size: int, cond: dict[str, Tensor] | None = None, label_dropout: float = 0.0, seed: int = 0
) -> Batches:
    data = torch.arange(float(n))[:, None]
    return Batches(data, cond, size=size, label_dropout=label_dropout, seed=seed, device=torch.device("cpu"))


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 10), (7, 3), (3, 8), (1, 5)])
def test_every_epoch_has_every_sample_once(n: int, size: int) -> None:
    source = batches(n, size)
    seen = torch.cat([source(k)[0] for k in range(3 * n)]).flatten()
    epochs = seen[: len(seen) // n * n].reshape(-1, n)
    assert all(sorted(e.tolist()) == list(range(n)) for e in epochs)
    if n > 3:
        assert len({tuple(e.tolist()) for e in epochs}) > 1
    # Any batch is reached without those before it.
    assert torch.equal(batches(n, size)(2 * n)[0], source(2 * n)[0])
    assert n == 1 or not torch.equal(seen, torch.cat([batches(n, size, seed=1)(k)[0] for k in range(3 * n)]).flatten())


def test_conditions_follow_their_data_and_labels_are_dropped() -> None:
    labels = torch.arange(50)
    x, cond = batches(50, 20, {"label": labels, "twice": 2.0 * labels})(7)
    assert torch.equal(x[:, 0].long(), cond["label"])
    assert torch.equal(2 * x[:, 0], cond["twice"])
    source = batches(50, 20, {"label": labels}, label_dropout=0.5)
    dropped = [source(k)[1]["label"] for k in range(200)]
    share = float((torch.cat(dropped) == -1).double().mean())
    assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(4000)  # six standard deviations
    assert torch.equal(source(7)[1]["label"], dropped[7])
    kept = dropped[7] != -1
    assert torch.equal(dropped[7][kept], cond["label"][kept])
    assert torch.equal(labels, torch.arange(50))


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def test_fit_reaches_the_loss_of_the_exact_model() -> None:
    data = EXACT.sample_data(4096, stream(0, "fit"))
    model = ScoreModel(MLP(2, width=64, depth=2), VPSDE())
    result = fit(model, data, steps=800, batch_size=256, learning_rate=3e-3, progress=False)
    test = EXACT.sample_data(20_000, stream(0, "test"))
    with torch.no_grad():
        losses = [float(denoising_score_matching(m, test, generator=stream(3)).mean()) for m in (EXACT, result.model)]
    assert losses[1] < 1.08 * losses[0]
    # And not by seeing something else than the others do: nothing beats the exact model.
    assert losses[1] > 0.999 * losses[0]
    assert float(result.losses[-100:].mean()) == pytest.approx(losses[0], rel=0.15)
    torch.testing.assert_close(model.moments.mean, data.double().mean(0))
    torch.testing.assert_close(result.model.moments.covariance, data.double().T.cov(correction=0))


def test_fit_repeats_to_the_bit_and_its_seed_matters() -> None:
    runs = []
    for seed in (0, 0, 1):
        model = tiny()
        result = fit(model, DATA, steps=60, seed=seed, cond=None, **QUIET)
        runs.append((result.losses, weights(model), weights(result.model)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert same(runs[0][1], runs[1][1])
    assert same(runs[0][2], runs[1][2])
    assert not torch.equal(runs[0][0], runs[2][0])
    # The model that comes back has the averages; the model that went in, the raw weights.
    assert not same(runs[0][1], runs[0][2])
    assert fit(tiny(), DATA, steps=1, seed=None, **QUIET).seed != fit(tiny(), DATA, steps=1, seed=None, **QUIET).seed


class Moody(nn.Module):
    """Records its modes and may raise."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.inner, self.fail, self.modes = MLP(2, width=8, depth=1), fail, []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.modes.append((self.training, self.inner.training))
        if self.fail:
            raise KeyError("network")
        return self.inner(x, c_noise)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_every_mode_is_restored(mode: bool, fail: bool) -> None:
    model = ScoreModel(Moody(fail), VPSDE())
    model.train(mode)
    model.net.inner.input.train(not mode)
    before = [m.training for m in model.modules()]
    if fail:
        with pytest.raises(KeyError):
            fit(model, DATA, steps=3, **QUIET)
    else:
        result = fit(model, DATA, steps=3, **QUIET)
        assert [m.training for m in result.model.modules()] == before
    assert [m.training for m in model.modules()] == before
    assert set(model.net.modes) == {(True, True)}


def test_transform_is_applied_and_carried() -> None:
    units = Affine((100.0, -3.0), (50.0, 0.1))
    data = units.inverse(DATA).double().requires_grad_(True)
    before = data.detach().clone()
    plain, carried = tiny(), tiny(transform=units)
    given = fit(plain, data, steps=20, transform=units, **QUIET)
    own = fit(carried, data, steps=20, **QUIET)
    assert plain.transform == given.model.transform == own.model.transform == units
    assert same(weights(given.model), weights(own.model))
    torch.testing.assert_close(plain.moments.mean, DATA.double().mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(data.detach(), before)
    assert data.requires_grad
    assert data.grad is None


def test_half_and_float64_data_train_in_the_networks_type() -> None:
    for dtype in (torch.bfloat16, F64):
        model = tiny()
        assert torch.isfinite(fit(model, DATA.to(dtype), steps=5, **QUIET).losses).all()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    wide = ScoreModel(MLP(2, width=8, depth=1).double(), VPSDE())
    assert torch.isfinite(fit(wide, DATA, steps=5, **QUIET).losses).all()
    narrow = ScoreModel(MLP(2, width=8, depth=1).to(torch.bfloat16), VPSDE())
    result = fit(narrow, DATA, steps=5, **QUIET)
    assert torch.isfinite(result.losses).all()
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("decay", "late"), [("cosine", 0.5 * (1 + math.cos(math.pi * 0.75))), ("linear", 0.25)])
def test_learning_rate_rises_and_falls(decay: str, late: float) -> None:
    log = fit(tiny(), DATA, steps=50, warmup=10, decay=decay, log_every=1, progress=False, learning_rate=0.01).log
    rates = [record["learning_rate"] for record in log]
    np.testing.assert_allclose(rates[:10], 0.01 * np.arange(1, 11) / 11, rtol=1e-12)
    assert rates[10] == 0.01
    assert rates[40] == pytest.approx(0.01 * late, rel=1e-12)
    assert 0 < rates[49] < 0.01 * 0.04
    assert DECAYS[decay](0.0) == 1.0
    assert DECAYS[decay](1.0) == pytest.approx(0.0, abs=1e-15)


def test_log_says_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[dict[str, float | None]] = []
    result = fit(tiny(), DATA, steps=25, log_every=10, folder=tmp_path / "run", on_log=heard.append, batch_size=16)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert lines == heard == list(result.log)
    assert [line["step"] for line in lines] == [10, 20, 25]
    means = [float(result.losses[a:b].double().mean()) for a, b in ((0, 10), (10, 20), (20, 25))]
    np.testing.assert_allclose([line["loss"] for line in lines], means, rtol=1e-12)
    assert all(line["gradient_norm"] > 0 and line["skipped"] == 0 for line in lines)
    bar = capsys.readouterr().err
    assert "/25 [" in bar
    assert f"loss {lines[-1]['loss']:.4g}" in bar


def test_checkpoint_holds_both_weights_and_the_model_loads(tmp_path: Path) -> None:
    model = tiny(predicts="v")
    result = fit(model, DATA, steps=30, transform=Affine(1.0, 2.0), folder=tmp_path / "run", **QUIET)
    folder = tmp_path / "run" / "checkpoint"
    assert same(weights(ScoreModel.load(folder)), weights(result.model))
    assert same(weights(ScoreModel.load(folder, weights="raw")), weights(model))
    loaded = ScoreModel.load(folder)
    assert loaded.transform == Affine(1.0, 2.0)
    assert torch.equal(loaded.moments.mean, model.moments.mean)
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"checkpoint", "log.jsonl"}


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT: a shell's background job starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
@pytest.mark.parametrize("stop", [1, 33, 64, 70])
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    options = {**QUIET, "steps": 90, "log_every": 1, "cond": {"label": torch.arange(1000) % 3}, "label_dropout": 0.2}

    def model() -> ScoreModel:
        return ScoreModel(MLP(2, width=16, depth=1, classes=3), VPSDE())

    def interrupt(record: dict[str, float | None]) -> None:
        if record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)

    whole = model()
    reference = fit(whole, DATA, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), DATA, folder=tmp_path / "run", save_every=1000, on_log=interrupt, **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with (tmp_path / "run" / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 999, "loss": 1}\n{"step": 10')  # as a run that was killed later would leave it
    again = model()
    result = fit(again, DATA, folder=tmp_path / "run", resume=True, **options)
    assert same(weights(again), weights(whole))
    assert same(weights(result.model), weights(reference.model))
    assert torch.equal(result.losses, reference.losses[stop:])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 91))
    assert [line["loss"] for line in lines] == [record["loss"] for record in reference.log]


def test_an_interrupt_from_elsewhere_leaves_a_checkpoint_too(tmp_path: Path) -> None:
    def stop(record: dict[str, float | None]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), DATA, steps=50, log_every=7, folder=tmp_path / "run", on_log=stop, **QUIET)
    result = fit(tiny(), DATA, steps=50, folder=tmp_path / "run", resume=True, **QUIET)
    assert len(result.losses) == 43


def test_a_loss_that_stays_nan_stops_the_run_and_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    model = ScoreModel(Fails(30, where=lambda c_noise: c_noise > 2.0), VPSDE())
    with pytest.raises(SolverError) as error:
        fit(model, DATA, steps=500, log_every=5, save_every=1, folder=tmp_path / "run", **QUIET)
    text = str(error.value)
    # Three checks of five steps each after step 30, and the rate of the warm-up's end or just after.
    assert "the loss is not finite at step 44, learning rate 0.0029" in text
    # log_snr > 2 is t below 0.14, about that share of 32 evenly spread times.
    assert "4 of 32 samples, at t from" in text or "5 of 32 samples, at t from" in text
    last = float(text.split(" to ")[1].split(";")[0])
    assert 0.08 < last < float(VPSDE().time(2.0))
    assert "the last good checkpoint is in" in text
    assert "Lower learning_rate" in text
    good = ScoreModel.load(tmp_path / "run" / "checkpoint", ScoreModel(Fails(0), VPSDE()).net, weights="raw")
    assert same(weights(good), weights(model))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["skipped"] for line in lines] == [0] * 6 + [5] * 3
    assert [line["loss"] is None for line in lines] == [False] * 6 + [True] * 3


def test_a_run_does_not_end_on_a_bad_loss_and_survives_a_single_one(tmp_path: Path) -> None:
    with pytest.raises(SolverError, match=r"at step 9.*32 of 32 samples.*no checkpoint was written"):
        fit(ScoreModel(Fails(5), VPSDE()), DATA, steps=10, log_every=5, folder=tmp_path / "a", save_every=10, **QUIET)
    result = fit(ScoreModel(Fails(5, 6), VPSDE()), DATA, steps=10, log_every=5, **QUIET)
    assert [record["skipped"] for record in result.log] == [0, 2]
    assert torch.isfinite(result.losses).sum() == 8


def test_a_rate_that_explodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(SolverError, match=r"learning rate .*e\+29"):
        fit(tiny(), DATA, steps=100, log_every=5, progress=False, learning_rate=1e30, warmup=0)


# ---------------------------------------------------------------------------------------------------------------------
# Errors come before training


def broken() -> Tensor:
    data = DATA.clone()
    data[17, 1] = math.nan
    return data


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"steps": 0}, DomainError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, DTypeError, "steps must be an integer, got 2.0"),
        ({"batch_size": 0}, DomainError, "batch_size must be at least 1, got 0"),
        ({"batch_size": True}, DTypeError, "batch_size must be an integer"),
        ({"ema_decay": 1.0}, DomainError, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.0}, DomainError, r"learning_rate must lie in \(0, inf\), got 0.0"),
        ({"learning_rate": math.nan}, DomainError, "learning_rate must lie in"),
        ({"warmup": 11}, DomainError, r"warmup must be in \[0, 10\], got 11"),
        ({"transform": 3}, DTypeError, "transform must be one of scoresde.transforms, e.g. Affine.*got 3"),
        ({"decay": "cosinus"}, ConfigError, r"unknown decay 'cosinus'; did you mean 'cosine'\?"),
        ({"weight": "simpel"}, ConfigError, r"unknown weight 'simpel'; did you mean 'simple'\?"),
        ({"times": "low_discrepency"}, ConfigError, r"unknown time sampler .*did you mean 'low_discrepancy'\?"),
        ({"clip_norm": 0.0}, DomainError, r"clip_norm must lie in \(0, inf\)"),
        ({"weight_decay": -1.0}, DomainError, r"weight_decay must lie in \[0, inf\)"),
        ({"autocast": torch.float16}, ConfigError, "autocast must be None or torch.bfloat16, got torch.float16"),
        ({"seed": -1}, DomainError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"log_every": 0}, DomainError, "log_every must be at least 1"),
        ({"save_every": 0}, DomainError, "save_every must be at least 1"),
        ({"data": DATA[:0]}, ShapeError, "data is empty: training needs at least one sample"),
        ({"data": DATA.long()}, DTypeError, "data must have a real floating dtype, got torch.int64"),
        ({"data": broken()}, DomainError, r"data has 1 non-finite values of 2000, the first at index \(17, 1\)"),
        ({"data": DATA.tolist()}, DTypeError, "data must be a torch.Tensor, got list"),
        ({"cond": {"label": torch.zeros(3)}}, ShapeError, r"cond\['label'\] must have a first dimension of 1000"),
        ({"cond": torch.zeros(3)}, ConfigError, "cond must be a dict of tensors"),
        ({"label_dropout": 0.1}, ConfigError, r'label_dropout needs cond=\{"label": labels\}'),
        ({"label_dropout": 0.1, "cond": {"class": DATA}}, ConfigError, r"acts on cond\['label'\]; cond holds class"),
        ({"label_dropout": 1.5}, DomainError, r"label_dropout must lie in \[0, 1\]"),
        ({"transform": Affine((1.0, 2.0, 3.0), 1.0)}, ShapeError, "the transform serves 3 channels"),
        ({"resume": True}, ConfigError, "resume=True needs the folder="),
        ({"model": MLP(2)}, DTypeError, "model must be a ScoreModel, got MLP; wrap a network as"),
        ({"model": EXACT}, ConfigError, "the model's network has no trainable parameters"),
    ],
)
def test_bad_options_change_nothing(
    tmp_path: Path, options: dict[str, object], kind: type[Exception], message: str
) -> None:
    model, folder = tiny(), tmp_path / "run"
    before = weights(model)
    given: dict[str, object] = {"model": model, "data": DATA, "steps": 10, "progress": False}
    given |= {"folder": folder} if "resume" not in options else {}
    given |= options
    with pytest.raises(kind, match=message):
        fit(given.pop("model"), given.pop("data"), **given)
    assert same(weights(model), before)
    assert model.moments is None
    assert not folder.exists()


def test_folders_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(CheckpointError, match=r"full is not empty; choose a new folder, or resume=True"):
        fit(model, DATA, steps=1, folder=tmp_path / "full", **QUIET)
    with pytest.raises(CheckpointError, match=r"cannot be written: Not a directory; choose another folder"):
        fit(model, DATA, steps=1, folder=tmp_path / "full" / "notes.txt" / "run", **QUIET)
    with pytest.raises(CheckpointError, match=r"notes.txt cannot be written: File exists"):
        fit(model, DATA, steps=1, folder=tmp_path / "full" / "notes.txt", **QUIET)
    with pytest.raises(CheckpointError, match=r"checkpoint is no folder"):
        fit(model, DATA, steps=1, folder=tmp_path / "full", resume=True, **QUIET)
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert model.moments is None
    fit(model, DATA, steps=1, folder=tmp_path / "run", **QUIET)
    with pytest.raises(ConfigError, match="was trained with seed=0, got seed=1"):
        fit(model, DATA, steps=2, seed=1, folder=tmp_path / "run", resume=True, **QUIET)
    model.save(tmp_path / "other" / "checkpoint")
    with pytest.raises(CheckpointError, match="holds no 'training'"):
        fit(model, DATA, steps=2, folder=tmp_path / "other", resume=True, **QUIET)


def test_a_loss_that_is_infinite_somewhere_is_refused_before_training() -> None:
    with pytest.raises(DomainError, match="the weighted loss is not finite at t = 1e-05"):
        Trainer(tiny(), weight=lambda point, sde: 1e60 * torch.ones_like(point.t) / point.t)
