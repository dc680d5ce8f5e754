"""A call of the denoising loss: what decides it, in which types it computes, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from told import BATCH, EVENT, F32, F64, X0, Says, Z
from torch import nn
from watchers import NoReading, NoSync

from scoresde import VPSDE, ConfigError, DomainError, DTypeError, ScoreModel, ShapeError
from scoresde.models.parameterization import PARAMETERIZATIONS
from scoresde.nn import MLP
from scoresde.noise import stream
from scoresde.training.losses import WEIGHTS, denoising_score_matching


def test_generator_alone_decides_and_neither_data_nor_state_is_touched() -> None:
    model, x0 = ScoreModel(Says(torch.zeros_like), VPSDE()), X0.float()
    before = x0.clone()
    first, again = (denoising_score_matching(model, x0, generator=stream(3)) for _ in range(2))
    assert torch.equal(first, again)
    generator = stream(3)
    denoising_score_matching(model, x0, generator=generator)
    assert not torch.equal(first, denoising_score_matching(model, x0, generator=generator))
    assert torch.equal(x0, before)
    # Against zeros the loss is the noise's own square: times and noise are drawn, and not from the same numbers.
    assert len(set(first.tolist())) == BATCH
    assert model.net.asked[1].unique().numel() == BATCH


def test_given_times_and_noise_need_no_generator() -> None:
    model = ScoreModel(Says(torch.zeros_like), VPSDE())
    loss = denoising_score_matching(model, X0, t=0.5, noise=Z)
    torch.testing.assert_close(loss, Z.square().mean((1, 2)), rtol=1e-14, atol=0)
    half = [denoising_score_matching(model, X0, generator=stream(3), **given) for given in ({"t": 0.5}, {"noise": Z})]
    assert half[0].shape == half[1].shape == (BATCH,)
    torch.testing.assert_close(half[1], loss, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_in_float32(dtype: torch.dtype) -> None:
    model, x0 = ScoreModel(Says(lambda x: x.cos()), VPSDE(), predicts="v"), X0.to(dtype)
    low = denoising_score_matching(model, x0, generator=stream(4))
    high = denoising_score_matching(model, x0.float(), generator=stream(4))
    assert low.dtype == torch.float32
    assert torch.equal(low, high)


def test_a_bf16_network_is_asked_in_bf16_and_judged_in_float32() -> None:
    class Half(Says):
        def __init__(self) -> None:
            super().__init__(lambda x: x.cos())
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    narrow, wide = ScoreModel(Half(), VPSDE()), ScoreModel(Says(lambda x: x.cos()), VPSDE())
    loss = denoising_score_matching(narrow, X0.float(), generator=stream(4))
    assert narrow.net.asked[0].dtype == torch.bfloat16
    assert narrow.net.asked[1].dtype == torch.float32
    assert loss.dtype == torch.float32
    exact = denoising_score_matching(wide, X0.float(), generator=stream(4))
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.02)


def test_float64_stays_and_float32_agrees_with_it() -> None:
    for predicts, weight in itertools.product(PARAMETERIZATIONS, WEIGHTS):
        model = ScoreModel(Says(lambda x: x.cos()), VPSDE(t_min=1e-3), predicts=predicts)
        t = torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=F64)
        wide, narrow = (denoising_score_matching(model, X0.to(d), weight=weight, t=t, noise=Z) for d in (F64, F32))
        assert (wide.dtype, narrow.dtype) == (F64, F32)
        torch.testing.assert_close(narrow.double(), wide, rtol=2e-5, atol=0)


@pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
def test_loss_and_gradient_never_wait_for_the_device(predicts: str) -> None:
    """With times even in t: a law in log-SNR looks at its times, which are on the CPU on every machine."""
    model = ScoreModel(MLP(EVENT, width=4, depth=1), VPSDE(), predicts=predicts)
    with NoSync(), NoReading():
        loss = denoising_score_matching(model, X0.float(), times="low_discrepancy", generator=stream(5))
        loss.mean().backward()
    assert float(model.net.output.weight.grad.abs().sum()) > 0


def test_weights_times_and_conditions_of_your_own() -> None:
    net = Says(torch.zeros_like)
    model = ScoreModel(net, VPSDE(), predicts="data")
    labels = torch.arange(BATCH)
    loss = denoising_score_matching(
        model,
        X0,
        weight=lambda point, sde: 2.0 * torch.ones_like(point.t),
        times=lambda n, sde, generator: torch.full((n,), 0.25, dtype=F64),
        generator=stream(0),
        cond={"label": labels},
    )
    torch.testing.assert_close(loss, 2 * X0.square().mean((1, 2)), rtol=1e-12, atol=0)
    assert torch.equal(net.asked[2], labels)
    torch.testing.assert_close(net.asked[1], VPSDE().log_snr(0.25).expand(BATCH).to(F64))


def test_an_empty_batch_calls_no_network() -> None:
    net = Says(torch.zeros_like)
    assert denoising_score_matching(ScoreModel(net, VPSDE()), X0[:0], generator=stream(0)).shape == (0,)
    assert net.asked == []


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight": "likelyhood"}, ConfigError, r"unknown weight 'likelyhood'; did you mean 'likelihood'\?"),
        ({"times": "unifrom"}, ConfigError, r"unknown time sampler 'unifrom'; did you mean 'uniform'\?"),
        ({"generator": None}, ConfigError, "generator must be a torch.Generator on the CPU, got None; make one"),
        ({"generator": 3}, ConfigError, "generator must be a torch.Generator on the CPU, got 3"),
        ({"t": 1.5}, DomainError, r"t must lie in \[1e-05, 1\], got 1.5"),
        ({"t": torch.zeros(BATCH, 1)}, ShapeError, r"t must have shape \(\) or \(4,\), got \(4, 1\)"),
        ({"t": torch.ones(BATCH, dtype=torch.long)}, DTypeError, "t must be floating"),
        ({"noise": Z.to("meta")}, ConfigError, "noise is on meta, x0 on cpu; move one of them"),
        ({"noise": Z[:2]}, ShapeError, r"noise must have the shape \(4, 3, 2\) of x0, got \(2, 3, 2\)"),
        ({"cond": {"label": torch.zeros(3)}}, ShapeError, r"cond\['label'\] must have a first dimension of 4"),
        ({"cond": [1]}, ConfigError, "cond must be a dict of tensors"),
        ({"x0": X0.long()}, DTypeError, r"x0 must have a real floating dtype, got torch.int64; convert it"),
        ({"x0": X0[0, 0, 0]}, ShapeError, r"x0 must have shape \(B, \*\)"),
        ({"x0": [1.0]}, DTypeError, "x0 must be a torch.Tensor, got list"),
        ({"model": nn.Identity()}, DTypeError, "model must be a ScoreModel, got Identity; wrap a network as"),
        ({"x0": X0.to("meta")}, ConfigError, "x0 is on meta, the model on cpu; move one of them"),
        ({"weight": lambda p, s: p.t / 0}, DomainError, "the weighted loss is not finite at t = 0.5; raise t_min"),
    ],
)
def test_errors_come_before_the_network(options: dict[str, object], kind: type[Exception], message: str) -> None:
    net = Says(torch.zeros_like)
    net.weight = nn.Parameter(torch.zeros(1))
    given: dict[str, object] = {"model": ScoreModel(net, VPSDE()), "x0": X0, "generator": stream(0)}
    if "t" not in options and "weight" in options and callable(options["weight"]):
        given["t"] = 0.5
    given |= options
    with pytest.raises(kind, match=message):
        denoising_score_matching(given.pop("model"), given.pop("x0"), **given)
    assert net.asked == []
