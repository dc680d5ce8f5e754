"""What a step may be made of: parts of a batch, half precision, optimisers and rates of one's own, learned weights."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import DATA, F64, Fails, same, tiny, weights
from torch import Tensor, nn

from scoresde import (
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    RectifiedFlow,
    ScoreModel,
    SolverError,
    fit,
    losses,
)
from scoresde.models import checkpoint
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream
from scoresde.training import Trainer
from scoresde.training.losses.uncertainty import Uncertainty
from scoresde.transforms import RandomCrop, RandomFlip

OPTIONS: dict[str, Any] = {"steps": 12, "batch_size": 20, "progress": False, "save_every": 4}


def double(**options: Any) -> ScoreModel:
    return ScoreModel(MLP(2, width=16, depth=1).double(), VPSDE(), **options)


def run_trainer(trainer: Trainer, steps: int = 6, size: int = 20) -> Trainer:
    for k in range(steps):
        trainer(DATA[k * size : (k + 1) * size].to(trainer.dtype))
    return trainer


@pytest.mark.parametrize("parts", [2, 3, 20])
@pytest.mark.parametrize("uncertainty", [False, True])
def test_a_batch_in_parts_is_the_same_step(parts: int, uncertainty: bool) -> None:
    whole, split = (
        run_trainer(Trainer(double(), accumulate=n, uncertainty=uncertainty, learning_rate=1e-2)) for n in (1, parts)
    )
    for one, other in zip(whole.parameters, split.parameters, strict=True):
        # The learned weight is kept in float32.
        near = {"rtol": 1e-9, "atol": 1e-12} if one.dtype == F64 else {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(one, other, **near)
    torch.testing.assert_close(whole.gradient_norm, split.gradient_norm)
    assert torch.allclose(whole.bins.sums, split.bins.sums)
    calls: list[int] = []
    split.net.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    split(DATA[:20].double())
    assert len(calls) == parts
    assert sum(calls) == 20


def test_an_objective_in_parts_sees_every_sample_and_its_condition() -> None:
    seen: list[Tensor] = []

    def objective(model: ScoreModel, x: Tensor, generator: torch.Generator, cond: Any) -> Tensor:
        seen.append(cond["c"])
        return (model.net(x, torch.zeros(len(x), dtype=F64)) - cond["c"][:, None]).square().mean(1)

    told = {"c": torch.arange(20, dtype=F64)}
    trained = []
    for parts in (1, 3):
        seen.clear()
        trainer = Trainer(double(), objective=objective, accumulate=parts)
        trainer(DATA[:20].double(), told)
        assert torch.equal(torch.cat(seen), told["c"])
        trained.append(trainer.parameters)
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_half_precision_scales_the_loss_and_leaves_out_steps_that_overflow(tmp_path: Path) -> None:
    """Weights stay float32; the scale halves where a gradient overflows, and the step then changes nothing."""
    trainer = Trainer(tiny(), autocast=torch.float16, learning_rate=1e-3)
    full = Trainer(tiny(), learning_rate=1e-3)
    kinds: set[torch.dtype] = set()
    trainer.net.first[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    losses = [(float(trainer(DATA[:64])), float(full(DATA[:64]))) for _ in range(20)]
    assert kinds == {torch.float16}
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    for half, single in losses:
        assert half == pytest.approx(single, rel=0.05)
    assert float(trainer.gradient_norm) == pytest.approx(float(full.gradient_norm), rel=0.1)  # without the scale
    scale = trainer.update.scale
    assert scale is not None
    before, known = float(scale), weights(trainer.model)
    trainer.update.scale = scale.fill_(2.0**127)
    trainer(DATA[:64])
    assert bool(trainer.skipped)
    assert float(scale) == 2.0**126
    assert same(known, weights(trainer.model))
    assert math.log2(before) in range(8, 17)
    scale.fill_(1024.0)
    numbers, tensors = trainer.state()
    heir = Trainer(copy.deepcopy(trainer.model), autocast=torch.float16)
    heir.restore(numbers, {name: value.clone() for name, value in tensors.items()})
    assert float(heir.update.scale) == 1024.0


def test_half_precision_takes_the_scale_out_of_the_gradient_again() -> None:
    """SGD moves by the gradient itself, with a kernel that divides by the scale and without one."""
    moved = []
    for autocast, fused in ((None, False), (torch.float16, True), (torch.float16, False)):
        make = functools.partial(torch.optim.SGD, lr=0.1, fused=fused)
        trainer = Trainer(tiny(), optimizer=make, autocast=autocast, clip_norm=None)
        if trainer.update.scale is not None:
            trainer.update.scale.fill_(256.0)
        before = [p.detach().clone() for p in trainer.parameters]
        trainer(DATA[:200])
        moved.append(torch.cat([(p.detach() - b).flatten() for p, b in zip(trainer.parameters, before, strict=True)]))
    for half in moved[1:]:
        torch.testing.assert_close(half, moved[0], rtol=0.02, atol=0.01 * float(moved[0].abs().max()))


def test_the_usual_optimiser_given_as_ones_own_makes_the_same_steps() -> None:
    """AdamW at rate 1e-3 with a factor is AdamW at that rate, with a fused kernel and without one."""
    usual = run_trainer(Trainer(double(), learning_rate=lambda k: 1e-3 / (k + 1)))
    for fused in (True, False):
        own = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0, fused=fused)
        mine = run_trainer(Trainer(double(), optimizer=own, learning_rate=lambda k: 1 / (k + 1)))
        assert mine.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 6)
        for one, other in zip(usual.parameters, mine.parameters, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_any_optimiser_gets_the_clipped_gradient_and_skips_what_is_not_finite() -> None:
    trainer = Trainer(double(), optimizer=functools.partial(torch.optim.SGD, lr=0.5), clip_norm=0.01)
    before = [p.detach().clone() for p in trainer.parameters]
    trainer(DATA[:20].double())
    moved = math.sqrt(
        sum(float((p.detach() - b).square().sum()) for p, b in zip(trainer.parameters, before, strict=True))
    )
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-6)  # SGD moves by the rate times the clipped norm
    before = [p.detach().clone() for p in trainer.parameters]
    trainer(torch.full((20, 2), math.inf, dtype=F64))
    assert bool(trainer.skipped)
    assert all(torch.equal(p, b) for p, b in zip(trainer.parameters, before, strict=True))


OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "two groups": lambda p: torch.optim.Adam([{"params": p[:2], "lr": 1e-2}, {"params": p[2:], "lr": 1e-3}]),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "averaged": lambda p: torch.optim.ASGD(p, lr=1e-2),
}


class Stop(Exception):
    """Raised in the middle of a run."""


def stop_at(step: int) -> Callable[[Any], None]:
    def stop(record: Any) -> None:
        if record["step"] == step:
            raise Stop

    return stop


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_run_with_any_optimiser_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    given = {**OPTIONS, "optimizer": OPTIMISERS[name], "decay": "linear"}
    whole, cut = tiny(), tiny()
    fit(whole, DATA, folder=tmp_path / "whole", **given)
    with pytest.raises(Stop):
        fit(tiny(), DATA, folder=tmp_path / "cut", log_every=1, on_log=stop_at(9), **given)
    fit(cut, DATA, folder=tmp_path / "cut", resume=True, **given)
    assert same(weights(whole), weights(cut))
    if name == "momentum":
        other = {**given, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)}
        with pytest.raises(ConfigError, match=r"another run: optimizer .*momentum=0.9.*now .*momentum=0.8"):
            fit(tiny(), DATA, folder=tmp_path / "cut", resume=True, **other)


def test_an_optimiser_that_was_made_is_used() -> None:
    model = tiny()
    made = torch.optim.SGD(model.net.parameters(), lr=0.1)
    result = fit(model, DATA, optimizer=made, learning_rate=lambda k: 0.5, **OPTIONS)
    assert result.log[-1]["learning_rate"] == pytest.approx(0.05)
    assert made.param_groups[0]["lr"] == 0.1  # as it was made


def test_a_rate_of_ones_own_is_all_of_it(tmp_path: Path) -> None:
    result = fit(tiny(), DATA, learning_rate=lambda k: 1e-3 * (k + 1), log_every=1, **OPTIONS)
    assert [record["learning_rate"] for record in result.log] == pytest.approx([1e-3 * (k + 1) for k in range(12)])


def test_a_learned_weight_tends_to_the_logarithm_of_the_losses() -> None:
    """d/du (e^-u l + u) = 0 at u = log l: where l is exp of a line in log-SNR, u is that line, exactly."""
    sde = VPSDE()
    weight = Uncertainty(sde, torch.device("cpu")).double()
    log_snr = torch.linspace(weight.low, weight.high, 400, dtype=F64)
    losses = torch.exp(0.3 * log_snr - 1)
    assert torch.equal(weight.weigh(losses, weight.places(log_snr)), losses)  # u starts at 0
    solver = torch.optim.LBFGS(weight.parameters(), lr=1, max_iter=2000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        total = weight.weigh(losses, weight.places(log_snr)).mean()
        total.backward()
        return total

    solver.step(closure)
    u = weight(weight.places(log_snr)).detach()
    torch.testing.assert_close(u, losses.log(), rtol=0, atol=1e-3)


def test_training_learns_the_weight_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    """At a network that hardly moves, u is the log of the mean loss at each log-SNR after enough steps."""
    slow = lambda p: torch.optim.Adam([{"params": p[:-1], "lr": 1e-12}, {"params": p[-1:], "lr": 0.05}])  # noqa: E731
    trainer = Trainer(double(), uncertainty=True, optimizer=slow, clip_norm=None, times="log_snr", weight="min_snr")
    for _ in range(400):
        loss = trainer(DATA.double())
    means = torch.tensor([value for value in trainer.bins.take_means() if value is not None])
    u = trainer.uncertainty(trainer.uncertainty.places(torch.tensor(trainer.bins.centres, dtype=F64))).detach()
    assert float(means.log().min()) < -4  # min(1, 5/SNR), over four decades
    torch.testing.assert_close(u.float(), means.log(), rtol=0, atol=0.5)
    assert float(loss) == pytest.approx(float(means.mean()), rel=0.2)  # the log has the loss before the weight
    given = {**OPTIONS, "uncertainty": True}
    whole, cut = tiny(), tiny()
    fit(whole, DATA, folder=tmp_path / "whole", **given)
    with pytest.raises(Stop):
        fit(tiny(), DATA, folder=tmp_path / "cut", log_every=1, on_log=stop_at(9), **given)
    fit(cut, DATA, folder=tmp_path / "cut", resume=True, **given)
    assert same(weights(whole), weights(cut))


def test_the_data_prediction_is_trained_with_the_velocitys_loss() -> None:
    """weight="velocity" on a network that predicts the data counts |v_hat - v|^2 of the rectified flow, v = z - x_0."""
    from scoresde import denoising_score_matching

    sde, x0, z = RectifiedFlow(), DATA[:50].double(), normal((50, 2), stream(3), dtype=F64)
    net = MLP(2, width=8, depth=1, seed=1).double()
    nn.init.constant_(net.output.weight, 0.1)
    t = torch.linspace(0.05, 0.95, 50, dtype=F64)
    model = ScoreModel(net, sde, predicts="data")
    losses = denoising_score_matching(model, x0, weight="velocity", t=t, noise=z)
    x = (1 - t)[:, None] * x0 + t[:, None] * z
    guess = model(x, t).data
    velocity = (x - guess) / t[:, None]
    torch.testing.assert_close(losses, (velocity - (z - x0)).square().mean(1), rtol=1e-8, atol=0)


def test_flips_mirror_the_stated_share_and_nothing_else() -> None:
    x = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4).repeat(4000, 1, 1, 1)
    y = RandomFlip((-1, -2), 0.25)(x, stream(0))
    turned = [torch.equal(a, x[0].flip(-1)) for a in y], [torch.equal(a, x[0].flip(-2)) for a in y]
    both = [torch.equal(a, x[0].flip(-1, -2)) for a in y]
    for found, share in ((turned[0], 3 / 16), (turned[1], 3 / 16), (both, 1 / 16)):
        assert abs(sum(found) / 4000 - share) < 6 * math.sqrt(share * (1 - share) / 4000)
    assert sum(map(sum, (*turned, both))) + sum(torch.equal(a, x[0]) for a in y) == 4000
    assert torch.equal(RandomFlip(probability=0.0)(x, stream(0)), x)
    assert torch.equal(RandomFlip(probability=1.0)(x.byte(), stream(0)), x.byte().flip(-1))


def test_crops_are_parts_of_the_data_at_every_place_alike() -> None:
    x = torch.arange(5 * 6.0).reshape(1, 1, 5, 6).repeat(6000, 1, 1, 1)
    y = RandomCrop((3, 4))(x, stream(1))
    assert y.shape == (6000, 1, 3, 4)
    corners = y[:, 0, 0, 0].long()
    row, column = corners // 6, corners % 6
    assert torch.equal(y, torch.stack([x[0, :, r : r + 3, c : c + 4] for r, c in zip(row, column, strict=True)]))
    counts = torch.bincount(row * 3 + column, minlength=9).double()
    assert float(((counts - 6000 / 9).square() / (6000 / 9)).sum()) < 45  # chi-squared of 8: P = 4e-7
    line = torch.arange(1.0, 5.0).reshape(1, 1, 4).repeat(500, 1, 1)
    mirrored = {tuple(row.tolist()) for row in RandomCrop((4,), padding=2)(line, stream(2))[:, 0]}
    assert mirrored == {(3, 2, 1, 2), (2, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 3), (3, 4, 3, 2)}
    empty = {tuple(row.tolist()) for row in RandomCrop((4,), padding=1, fill="zeros")(line, stream(2))[:, 0]}
    assert empty == {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 0)}


def test_training_sees_augmented_data_and_their_moments(tmp_path: Path) -> None:
    """All data lie on one side; mirrored, their mean is 0 on that axis. The model has no transform of it."""
    data = (0.1 * normal((400, 1, 2, 3), stream(5)) + torch.tensor([-1.0, 0.0, 1.0])).contiguous()
    seen: list[Tensor] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return RandomFlip()(x, generator)

    model = ScoreModel(MLP((1, 2, 3), width=8, depth=1), VPSDE())
    fit(model, data, augment=augment, folder=tmp_path / "run", **OPTIONS)
    assert float(model.moments.mean.abs().max()) < 0.2
    assert model.transform is None
    assert sum(map(len, seen)) == 400 + 12 * 20
    cropped = ScoreModel(MLP((1, 2, 2), width=8, depth=1), VPSDE())
    fit(cropped, data, augment=RandomCrop((2, 2)), **OPTIONS)
    assert cropped.moments.mean.shape == (1, 2, 2)
    flipped = {**OPTIONS, "folder": tmp_path / "flips"}
    fit(model, data, augment=RandomFlip(), **flipped)
    with pytest.raises(ConfigError, match=r"another run: augment 'RandomFlip\(dims=\(-1,\), prob.*', now None"):
        fit(model, data, resume=True, **flipped)


class Own(nn.Module):
    """A network with dropout, whose draws are torch's, and with buffers that every forward pass moves."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(3, 16), nn.Linear(16, 2)
        self.drop, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(16)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        hidden = self.norm(self.first(torch.cat([x, c_noise[:, None] / 10], 1)).relu())
        return self.second(self.drop(hidden))


@pytest.mark.parametrize("dropped", [False, True])
def test_a_network_that_draws_is_trained_to_the_same_bits_and_moves_no_random_state(
    dropped: bool, tmp_path: Path
) -> None:
    def network() -> nn.Module:
        return UNet(1, dims=1, width=4, multipliers=(1,), dropout=0.3) if dropped else Own()

    whole, cut = (ScoreModel(network(), VPSDE()) for _ in range(2))
    data = DATA[:, None] if dropped else DATA
    state = torch.get_rng_state()
    fit(whole, data, folder=tmp_path / "whole", **OPTIONS)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    with pytest.raises(Stop):
        fit(ScoreModel(network(), VPSDE()), data, folder=tmp_path / "cut", log_every=1, on_log=stop_at(9), **OPTIONS)
    fit(cut, data, folder=tmp_path / "cut", resume=True, **OPTIONS)
    torch.set_rng_state(state)
    assert same(weights(whole), weights(cut))


def test_a_step_that_is_left_out_leaves_buffers_as_they_were() -> None:
    trainer = Trainer(ScoreModel(Own(), VPSDE()))
    trainer(DATA[:20])
    before = [b.clone() for b in trainer.net.buffers()]
    trainer(DATA[:20] * math.inf)
    assert bool(trainer.skipped)
    kept = [torch.equal(a, b) for a, b in zip(before, trainer.net.buffers(), strict=True) if a.is_floating_point()]
    assert kept == [True, True]


@pytest.mark.parametrize(
    ("rate", "kind", "message"),
    [
        (lambda k: math.nan, DomainError, r"learning_rate must lie in \[0, inf\), got nan"),
        (lambda k: -1e-3, DomainError, r"learning_rate must lie in \[0, inf\), got -0.001"),
        (lambda k: None, DTypeError, "learning_rate must be a number, got None"),
    ],
)
def test_a_rate_that_is_none_is_refused(rate: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fit(tiny(), DATA, learning_rate=rate, **OPTIONS)


class Ruin(torch.optim.SGD):
    """An optimiser whose eighth step is none."""

    made = 0

    def step(self, closure: object = None) -> None:
        super().step()
        self.made += 1
        if self.made == 8:
            self.param_groups[0]["params"][0].data.fill_(math.nan)


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    """An update that ruins them in the last step before a save: the checkpoint before it stands, and is named."""
    given = {**OPTIONS, "learning_rate": lambda k: 1.0, "optimizer": lambda p: Ruin(p, lr=1e-3)}
    with pytest.raises(SolverError, match=r"weights are not finite after step 7, learning rate 1; the last good"):
        fit(tiny(), DATA, folder=tmp_path, **given)
    assert all(bool(torch.isfinite(v).all()) for v in ScoreModel.load(tmp_path, weights="raw").parameters())


def test_the_first_overflows_of_float16_do_not_end_a_run() -> None:
    model = ScoreModel(MLP(2, width=64, depth=3), RectifiedFlow(), predicts="velocity")
    result = fit(model, DATA, autocast=torch.float16, log_every=1, **OPTIONS)
    assert result.steps == 12
    assert sum(record["skipped"] for record in result.log) >= 1  # the scale that it begins with is too large here


def test_the_scale_of_the_loss_is_searched_for_and_a_loss_that_is_none_still_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More overflows in a row than bad records end a run; a network that answers NaN for ever ends it all the same."""
    monkeypatch.setattr("scoresde.training.updates.FIRST_SCALE", 2.0**26)
    result = fit(tiny(), DATA, autocast=torch.float16, log_every=1, **{**OPTIONS, "steps": 30})
    skipped = [record["skipped"] for record in result.log]
    assert skipped[:4] == [1, 1, 1, 1]
    assert skipped[-1] == 0
    monkeypatch.setattr("scoresde.training.updates.FIRST_SCALE", 2.0**4)
    broken = ScoreModel(Fails(first=0), VPSDE())
    with pytest.raises(SolverError, match="the loss is not finite at step"):
        fit(broken, DATA, autocast=torch.float16, log_every=1, **{**OPTIONS, "steps": 30})


def test_what_a_network_draws_is_another_in_every_step() -> None:
    drawn: list[Tensor] = []
    net = Own()
    net.drop.register_forward_hook(lambda module, args, out: drawn.append((out == 0).detach()))
    trainer = Trainer(ScoreModel(net, VPSDE()))
    for _ in range(2):
        trainer(DATA[:20])
    again = Trainer(ScoreModel(Own(), VPSDE()))
    again.net.drop.register_forward_hook(lambda module, args, out: drawn.append((out == 0).detach()))
    again(DATA[:20])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_an_optimiser_must_have_all_that_is_trained() -> None:
    model = tiny()
    part = torch.optim.SGD([*model.net.parameters()][:3], lr=0.1)
    with pytest.raises(ConfigError, match=r"lacks [0-9]+ of the [0-9]+ parameters to train; pass a function"):
        fit(model, DATA, optimizer=part, **OPTIONS)
    with pytest.raises(ConfigError, match="also those of uncertainty="):
        fit(model, DATA, optimizer=torch.optim.SGD(model.net.parameters(), lr=0.1), uncertainty=True, **OPTIONS)
    # Frozen ones may be among those it was made of.
    made = torch.optim.Adam(model.net.parameters(), lr=1e-3)
    model.net.input.requires_grad_(False)
    fit(model, DATA, optimizer=made, **OPTIONS)


def test_what_a_function_holds_is_part_of_the_run(tmp_path: Path) -> None:
    for number, (name, first, other) in enumerate(
        (
            ("weight", losses.min_snr(gamma=5.0), losses.min_snr(gamma=1.0)),
            ("augment", functools.partial(_shift, by=0.0), functools.partial(_shift, by=1.0)),
            ("learning_rate", functools.partial(_fall, peak=1e-3), functools.partial(_fall, peak=1e-2)),
        )
    ):
        folder = tmp_path / str(number)
        fit(tiny(), DATA, folder=folder, **{**OPTIONS, name: first})
        fit(tiny(), DATA, folder=folder, resume=True, **{**OPTIONS, name: first})
        with pytest.raises(ConfigError, match=f"another run: {name}"):
            fit(tiny(), DATA, folder=folder, resume=True, **{**OPTIONS, name: other})


def _shift(x: Tensor, generator: torch.Generator, *, by: float) -> Tensor:
    return x + by


def _fall(k: int, *, peak: float) -> float:
    return peak / (k + 1)


def sgd(momentum: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum)


@pytest.mark.parametrize(
    ("first", "other", "kept"),
    [
        ({"optimizer": sgd(0.9)}, {}, {"exp_avg", "exp_avg_sq", "step"}),
        ({}, {"optimizer": sgd(0.5)}, {"momentum_buffer"}),
        ({"optimizer": sgd(0.9)}, {"optimizer": sgd(0.2)}, {"momentum_buffer"}),
        ({"sigma_rel": 0.1}, {"sigma_rel": (0.1, 0.05)}, {"exp_avg", "exp_avg_sq", "step", "base1", "offset1"}),
        ({}, {"uncertainty": True}, {"exp_avg", "exp_avg_sq", "step", "value"}),
    ],
)
def test_a_run_is_changed_on_purpose(
    tmp_path: Path, first: dict[str, Any], other: dict[str, Any], kept: set[str]
) -> None:
    """What has no counterpart in the checkpoint begins anew, and options are the new ones."""
    fit(tiny(), DATA, folder=tmp_path, **{**OPTIONS, **first})
    model = tiny()
    result = fit(model, DATA, folder=tmp_path, resume="change", **{**OPTIONS, **other, "steps": 16})
    assert result.steps == 16
    trained, averaged = (torch.cat([v.flatten() for v in weights(one)]) for one in (model, result.model))
    assert float((trained - averaged).norm()) < float(trained.norm())
    contents = checkpoint.read(tmp_path / "checkpoint")
    names = {name.partition(".")[0] for name in contents.tensors("training_state")}
    assert names - {"base", "offset", "loss_bins", "recent_losses"} == kept
    groups = contents.document("training").get("optimizer", {}).get("groups", [])
    made = other["optimizer"]([nn.Parameter(torch.zeros(1))]).param_groups if "optimizer" in other else []
    assert [group["momentum"] for group in groups] == [group["momentum"] for group in made]
