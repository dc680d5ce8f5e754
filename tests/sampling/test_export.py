"""A whole sampler as a module: it is ``sample``, and it can be exported and run without the library's loop."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import SDES, Net, gaussian
from torch import nn
from torch._ops import HigherOrderOperator

from scoresde import (
    VPSDE,
    Affine,
    ConfigError,
    DTypeError,
    Moments,
    SamplingModule,
    ScoreModel,
    ShapeError,
    sample,
    solvers,
)
from scoresde.nn import MLP, UNet
from scoresde.noise import normal, stream


def trained(net: nn.Module, shape: tuple[int, ...], **options: object) -> ScoreModel:
    """A network whose weights are not those at which it returns 0, and a model that knows some moments."""
    for k, p in enumerate(net.parameters()):
        p.data += 0.05 * normal(p.shape, stream(3, k))
    data = 3 + 2 * normal((40, *shape[1:]), stream(4))
    return ScoreModel(net, VPSDE(), moments=Moments.of(data), **options)


CASES = {
    "vectors": (lambda: MLP(2, width=16, depth=1), (5, 2)),
    "images": (lambda: UNet(1, width=8, multipliers=(1, 2)), (2, 1, 8, 8)),
}


@pytest.mark.parametrize("solver", ["flow_abm", "dpmpp_2m", "heun", "unipc"])
@pytest.mark.parametrize("case", CASES)
def test_an_exported_sampler_is_the_sampler(case: str, solver: str) -> None:
    make, shape = CASES[case]
    model, z = trained(make(), shape), normal(shape, stream(5))
    want = sample(model, shape, noise=[z], solver=solver, steps=4)
    module = SamplingModule(model, shape, solver=solver, steps=4)
    torch.testing.assert_close(module(z), want, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        program = torch.export.export(module, (z,))
    again = normal(shape, stream(6))
    got = program.module()(again)
    torch.testing.assert_close(got, sample(model, shape, noise=[again], solver=solver, steps=4), rtol=1e-5, atol=1e-5)
    # Straight-line code: calls of the network and sums, with nothing left to decide.
    branches = {node.target.name() for node in program.graph.nodes if isinstance(node.target, HigherOrderOperator)}
    assert branches <= {"wrap_with_autocast", "wrap_with_set_grad_enabled"}


def test_conditions_transforms_and_types_are_kept() -> None:
    labels = torch.tensor([0, 1, 2])
    model = trained(MLP(2, width=16, depth=1, classes=3), (3, 2), transform=Affine(10.0, 100.0))
    z = normal((3, 2), stream(5), dtype=torch.float64)
    module = SamplingModule(model, (3, 2), solver="ddim", steps=3, cond={"label": labels}, dtype=torch.float64)
    want = sample(model, (3, 2), noise=[z], solver="ddim", steps=3, cond={"label": labels}, dtype=torch.float64)
    torch.testing.assert_close(module(z), want, rtol=1e-6, atol=1e-6)
    model.transform = None
    bare = sample(model, (3, 2), noise=[z], solver="ddim", steps=3, cond={"label": labels}, dtype=torch.float64)
    torch.testing.assert_close(want, 10 + 100 * bare, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", SDES)
def test_every_diffusion_starts_from_its_own_prior(sde: str) -> None:
    exact, z = gaussian(SDES[sde]), normal((6,), stream(7), dtype=torch.float64)
    module = SamplingModule(exact, (6,), steps=5, dtype=torch.float64)
    torch.testing.assert_close(module(z), sample(exact, (6,), noise=[z], steps=5, dtype=torch.float64))


def test_gradients_pass_and_copies_are_the_same() -> None:
    model = trained(MLP(2, width=16, depth=1), (5, 2))
    module, z = SamplingModule(model, (5, 2), steps=3), normal((5, 2), stream(5)).requires_grad_()
    module(z).sum().backward()
    assert float(z.grad.abs().min()) > 0
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(z), module(z))


def test_what_is_no_straight_line_is_refused() -> None:
    model = ScoreModel(Net(), VPSDE())
    with pytest.raises(ConfigError, match=r"'ancestral .*' draws noise, and a module has none"):
        SamplingModule(model, (3, 2), solver="ancestral")
    with pytest.raises(DTypeError, match="chooses its own steps and has no table"):
        SamplingModule(model, (3, 2), solver=solvers.ProbabilityFlow())
    module = SamplingModule(model, (3, 2), steps=2)
    with pytest.raises(ShapeError, match=r"z must have the shape \(3, 2\) that the module was made for, got \(4, 2\)"):
        module(torch.zeros(4, 2))
