"""The loop: it repeats, can stop anywhere and go on, keeps a log, and says what went wrong."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import DATA, EXACT, F64, QUIET, Fails, same, tiny, weights
from torch import Tensor, nn

from scoresde import VPSDE, Affine, ScoreModel, SolverError
from scoresde.nn import MLP
from scoresde.noise import stream
from scoresde.training import DECAYS, fit
from scoresde.training.losses import denoising_score_matching


def test_fit_reaches_the_loss_of_the_exact_model() -> None:
    data = EXACT.sample_data(4096, stream(0, "fit"))
    model = ScoreModel(MLP(2, width=64, depth=2), VPSDE())
    result = fit(model, data, steps=800, batch_size=256, learning_rate=3e-3, progress=False)
    test = EXACT.sample_data(20_000, stream(0, "test"))
    with torch.no_grad():
        losses = [
            float(denoising_score_matching(m, test, weight="simple", generator=stream(3)).mean())
            for m in (EXACT, result.model)
        ]
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
        assert not any(m.training for m in result.model.modules())
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
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"checkpoint", "log.jsonl", "log.csv"}


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
