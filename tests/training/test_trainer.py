"""The step is the loss, then clipping, then Adam; the order of the data comes from (seed, epoch)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from small_models import DATA, Fails, same, tiny, weights
from torch import Tensor, nn
from watchers import NoReading, NoSync

from scoresde import VPSDE, ScoreModel
from scoresde.noise import stream
from scoresde.training import Trainer
from scoresde.training.batches import Batches
from scoresde.training.losses import TIMES, WEIGHTS, denoising_score_matching
from scoresde.training.losses.denoising import read_scalars
from scoresde.training.sources import RowSource


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


def batches(
    n: int, size: int, cond: dict[str, Tensor] | None = None, dropout: dict[str, float] | None = None, seed: int = 0
) -> Batches:
    data = torch.arange(float(n))[:, None]
    source = RowSource(data, cond, size=size, seed=seed)
    return Batches(source, dropout=dropout or {}, seed=seed, device=torch.device("cpu"), dtype=torch.float32)


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
    source = batches(50, 20, {"label": labels}, dropout={"label": 0.5})
    dropped = [source(k)[1]["label"] for k in range(200)]
    share = float((torch.cat(dropped) == -1).double().mean())
    assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(4000)  # six standard deviations
    assert torch.equal(source(7)[1]["label"], dropped[7])
    kept = dropped[7] != -1
    assert torch.equal(dropped[7][kept], cond["label"][kept])
    assert torch.equal(labels, torch.arange(50))
