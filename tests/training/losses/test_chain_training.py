"""Objectives on a chain: their indices, in the training loop, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Net
from torch import Tensor, nn
from two_headed import CHAINS, F64, X0, Wide, Z, wide

from scoresde import DDPM, VPSDE, ConfigError, DomainError, DTypeError, ScoreModel, ShapeError, SolverError, fit, sample
from scoresde.nn import MLP
from scoresde.noise import normal, stream
from scoresde.training import Trainer
from scoresde.training.losses import ChainLoss, ImportanceIndices, denoising_score_matching


def test_indices_are_spread_evenly() -> None:
    """A batch of a multiple of n holds every index equally often, whatever the generator."""
    chain = CHAINS["ddpm"]
    model, seen = wide(chain), list[float]()
    net = ScoreModel(lambda x, c: (seen.extend(c.tolist()), model.net(x, c))[1], model.sde, variance="learned")
    losses = ChainLoss.simple(chain)(net, X0.repeat(12, 1, 1), stream(4))
    assert losses.shape == (84,)
    found = torch.tensor(seen, dtype=F64)[:, None] - chain.points.log_snr[1:]
    assert torch.equal(found.abs().argmin(1).bincount(minlength=12), torch.full((12,), 7))
    again = ChainLoss.simple(chain)(net, X0.repeat(12, 1, 1), stream(4))
    assert torch.equal(losses, again)
    assert not torch.equal(losses, ChainLoss.simple(chain)(net, X0.repeat(12, 1, 1), stream(5)))


def test_importance_sampling_keeps_the_mean() -> None:
    """Indices come as often as their probability says, and the weights 1/(n p) put the mean back."""
    chain = CHAINS["ddpm"]
    indices = ImportanceIndices(12, history=2, uniform_share=0.1)
    size = torch.arange(1, 13, dtype=F64) ** 2
    for _ in range(2):
        indices.update(torch.arange(12), size)
    law = 0.9 * size / size.sum() + 0.1 / 12
    torch.testing.assert_close(indices.probabilities, law, rtol=1e-12, atol=0)
    calls: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            calls.append((c_noise[:, None] - chain.points.log_snr[1:]).abs().argmin(1))
            return torch.zeros_like(x)

    model, batch = ScoreModel(Recorder(), chain.sde()), 4000
    ones = torch.ones(batch, 1, dtype=F64)
    with torch.no_grad():
        losses = ChainLoss.simple(chain, indices=indices)(model, ones, stream(6), noise=ones)
    counts = calls[0].bincount(minlength=12)
    assert float((counts - batch * law).abs().max()) <= 1.0
    # The error of a network that says 0 is z = 1, so each loss is its weight.
    torch.testing.assert_close(losses, 1 / (12 * law[calls[0]]), rtol=1e-9, atol=0)
    assert float(losses.mean()) == pytest.approx(1.0, abs=12 / batch / float(law.min()))


def test_history_forgets_the_oldest_and_what_is_not_finite() -> None:
    indices = ImportanceIndices(3, history=2, uniform_share=0.0)
    even = torch.full((3,), 1 / 3, dtype=F64)
    for value in (1.0, math.nan, math.inf):
        indices.update(torch.tensor([0, 1, 2]), torch.full((3,), value))
        assert torch.equal(indices.probabilities, even)
    indices.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 1.0, 3.0]))
    size = torch.tensor([1.0, 1.0, math.sqrt(5.0)], dtype=F64)
    torch.testing.assert_close(indices.probabilities, size / size.sum(), rtol=1e-12, atol=0)
    indices.update(torch.tensor([0, 0, 0]), torch.tensor([7.0, 2.0, 4.0]))
    size[0] = math.sqrt(10.0)
    torch.testing.assert_close(indices.probabilities, size / size.sum(), rtol=1e-12, atol=0)
    zero = ImportanceIndices(2, history=1)
    zero.update(torch.tensor([0, 1]), torch.zeros(2))
    assert torch.equal(zero.probabilities, torch.full((2,), 0.5, dtype=F64))


def test_a_loss_feeds_its_indices_while_it_trains() -> None:
    chain = DDPM.cosine(3)
    indices = ImportanceIndices(3, history=1, uniform_share=0.0)
    loss, model = ChainLoss.bound(chain, indices=indices), wide(chain)
    with torch.no_grad():
        loss(model, X0, index=torch.tensor([0, 1, 2, 0, 1, 2, 0]), noise=Z)
    assert torch.equal(indices.probabilities, torch.full((3,), 1 / 3, dtype=F64))
    values = loss(model, X0, index=torch.tensor([0, 1, 2, 0, 1, 2, 0]), noise=Z).detach()
    last = values[[6, 4, 5]].abs()
    torch.testing.assert_close(indices.probabilities, last / last.sum(), rtol=1e-12, atol=0)


def test_a_step_takes_the_objective_and_its_own_generator() -> None:
    chain, x0 = DDPM.cosine(5), X0[:, 0].float()
    model = ScoreModel(MLP(3, width=8, depth=1), chain.sde())
    loss = ChainLoss.simple(chain)
    trainer = Trainer(model, objective=loss, seed=3)
    assert torch.equal(trainer.losses(x0), loss(model, x0, stream(3, "objective", 0)))
    expected = loss(model, x0, stream(3, "objective", 0)).mean().item()
    assert float(trainer(x0)) == expected
    assert not torch.equal(loss(model, x0, stream(3, "objective", 0)), trainer.losses(x0))


def test_fit_resumes_an_objective_to_the_bit(tmp_path: Path) -> None:
    chain, data = DDPM.cosine(5), normal((30, 2), stream(7))

    def run(steps: int, folder: str, **options: object) -> Tensor:
        model = ScoreModel(MLP(2, width=8, depth=1, out_channels=4), chain.sde(), variance="learned")
        objective = ChainLoss.hybrid(chain)
        options = {"progress": False, "decay": "constant", "warmup": 0, "folder": tmp_path / folder, **options}
        got = fit(model, data, steps=steps, batch_size=8, objective=objective, **options)
        assert got.log[-1]["loss_by_log_snr"] == [None] * 10
        assert got.model.variance == "learned"
        return torch.cat([p.detach().flatten() for p in got.model.net.parameters()])

    whole = run(6, "whole")
    run(3, "parts")
    assert torch.equal(run(6, "parts", resume=True), whole)
    loaded = ScoreModel.load(tmp_path / "whole" / "checkpoint")
    table = chain.ancestral(variance="learned")
    assert sample(loaded, (4, 2), solver=table, final="sample", seed=0).isfinite().all()


def test_an_objective_may_be_any_function() -> None:
    def halved(model: ScoreModel, x0: Tensor, generator: torch.Generator, cond: object) -> Tensor:
        return 0.5 * denoising_score_matching(model, x0, generator=generator)

    model = ScoreModel(MLP(2, width=8, depth=1), VPSDE())
    x0 = normal((6, 2), stream(8))
    got = Trainer(model, objective=halved, seed=1).losses(x0)
    assert torch.equal(got, 0.5 * denoising_score_matching(model, x0, generator=stream(1, "objective", 0)))
    with torch.no_grad():
        model.net.output.weight.fill_(0.1)
    low = Trainer(model, objective=ChainLoss.simple(DDPM.cosine(5)), autocast=torch.bfloat16, seed=1).losses(x0)
    wide_type = Trainer(model, objective=ChainLoss.simple(DDPM.cosine(5)), seed=1).losses(x0)
    assert low.dtype == torch.float32
    assert not torch.equal(low, wide_type)
    torch.testing.assert_close(low, wide_type, rtol=0.1, atol=0.05)


def test_objectives_that_do_not_fit() -> None:
    chain, data = DDPM.cosine(5), normal((30, 2), stream(9))
    model, loss = ScoreModel(MLP(2, width=8, depth=1), VPSDE()), ChainLoss.simple(chain)
    for option in ({"weight": "likelihood"}, {"times": "uniform"}):
        with pytest.raises(ConfigError, match="an objective= has its own, leave them out"):
            Trainer(model, objective=loss, **option)
    with pytest.raises(DTypeError, match="objective must be a function"):
        Trainer(model, objective="hybrid")
    with pytest.raises(ShapeError, match=r"objective must return losses of shape \(30,\), got \(\)"):
        Trainer(model, objective=lambda m, x, g, c: loss(m, x, g).mean())(data)
    with pytest.raises(ConfigError, match="this loss has a learned variance, the model has none; pass ScoreModel"):
        fit(model, data, steps=2, objective=ChainLoss.hybrid(chain), progress=False)
    with pytest.raises(SolverError, match=r"not finite at step 1, learning rate .*: 30 of 30 samples; no checkpoint"):
        fit(model, data, steps=2, batch_size=30, objective=lambda m, x, g, c: loss(m, x, g) * math.nan, progress=False)


def test_types_of_the_losses() -> None:
    chain = CHAINS["ddpm"]
    model = ScoreModel(Wide(torch.float32), chain.sde(), variance="learned")
    loss = ChainLoss.hybrid(chain)
    wide_loss = loss(model, X0.float(), index=3, noise=Z.float())
    assert wide_loss.dtype == torch.float32
    half = loss(model, X0.bfloat16(), index=3, noise=Z.bfloat16())
    assert half.dtype == torch.float32
    rounded = loss(model, X0.bfloat16().float(), index=3, noise=Z.bfloat16().float())
    assert torch.equal(half, rounded)
    assert loss(model, X0[:0].float(), stream(0)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda loss, model: loss(None, X0, stream(0)), DTypeError, "model must be a ScoreModel"),
        (lambda loss, model: loss(model, X0.long(), stream(0)), DTypeError, "x0 must have a real floating dtype"),
        (lambda loss, model: loss(model, X0, index=0.5, noise=Z), DTypeError, "index of a chain must be an integer"),
        (lambda loss, model: loss(model, X0, index=12, noise=Z), DomainError, r"index must lie in \[0, 12\)"),
        (lambda loss, model: loss(model, X0, index=torch.zeros(3).long(), noise=Z), ShapeError, r"\(7,\), got \(3,\)"),
        (lambda loss, model: loss(model, X0, index=1, noise=Z[:, :1]), ShapeError, "noise must have the shape"),
        (lambda loss, model: loss(model, X0, index=1, noise=Z.to("meta")), ConfigError, "noise is on meta, x0 on cpu"),
        (lambda loss, model: loss(model, X0, index=1), ConfigError, "generator must be a torch.Generator on the CPU"),
        (lambda loss, model: loss(model, X0, noise=Z), ConfigError, "generator must be a torch.Generator on the CPU"),
        (lambda loss, model: loss(model, X0, stream(0), {"label": X0[:2]}), ShapeError, "first dimension of 7"),
    ],
)
def test_bad_calls(call: Callable[..., object], error: type[Exception], message: str) -> None:
    chain = CHAINS["ddpm"]
    net = Net(dtype=F64)
    with pytest.raises(error, match=message):
        call(ChainLoss.simple(chain), ScoreModel(net, chain.sde()))
    assert net.calls == []


def test_bad_objectives() -> None:
    chain = CHAINS["ddpm"]
    with pytest.raises(DTypeError, match="chain must be a chain"):
        ChainLoss.simple(VPSDE())
    with pytest.raises(ConfigError, match="unknown variance 'learnt'; did you mean 'learned'"):
        ChainLoss.bound(chain, variance="learnt")
    with pytest.raises(DomainError, match="weight must lie in"):
        ChainLoss.hybrid(chain, weight=-1.0)
    with pytest.raises(ConfigError, match="indices are for 5 indices, the chain has 12"):
        ChainLoss.simple(chain, indices=ImportanceIndices(5))
    for options, message in (
        ({"n": 0}, "n must be"),
        ({"history": 0}, "history must"),
        ({"uniform_share": 2.0}, "share"),
    ):
        with pytest.raises(DomainError, match=message):
            ImportanceIndices(**{"n": 3, **options})


def test_the_history_of_the_indices_goes_on_with_the_run(tmp_path: Path) -> None:
    """A run that was stopped draws the indices of one that was not; held-out losses do not feed the history."""

    class Stop(Exception):
        pass

    def objective() -> ChainLoss:
        return ChainLoss.bound(chain, indices=ImportanceIndices(len(chain), history=2))

    def stop(record: object) -> None:
        if record["step"] == 30:
            raise Stop

    chain, data = DDPM.cosine(5), normal((60, 2), stream(9))
    options = {"steps": 40, "batch_size": 8, "save_every": 20, "log_every": 10, "progress": False}
    runs = {}
    for name, held_out in (("whole", None), ("judged", data[:20])):
        runs[name] = loss = objective()
        model = ScoreModel(MLP(2, width=8, depth=1), VPSDE())
        fit(model, data, objective=loss, folder=tmp_path / name, held_out=held_out, **options)
        assert "not full yet" not in repr(loss)
    assert torch.equal(runs["whole"].indices.probabilities, runs["judged"].indices.probabilities)
    with pytest.raises(Stop):
        fit(
            ScoreModel(MLP(2, width=8, depth=1), VPSDE()), data, objective=objective(), folder=tmp_path / "cut",
            on_log=stop, **options,
        )  # fmt: skip
    heir, again = objective(), ScoreModel(MLP(2, width=8, depth=1), VPSDE())
    fit(again, data, objective=heir, folder=tmp_path / "cut", resume=True, **options)
    assert torch.equal(heir.indices.probabilities, runs["whole"].indices.probabilities)
    whole = ScoreModel.load(tmp_path / "whole", weights="raw")
    for one, other in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)
