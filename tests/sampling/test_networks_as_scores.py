"""A network of ``scoresde.nn`` is no score function: whoever takes a score refuses it, and says what to make of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scoresde import SDE, VPSDE, DTypeError, ScoreModel, evolve_density, langevin, sample
from scoresde.nn import MLP, UNet


class Own(SDE):
    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        return -x

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


class Score(nn.Module):
    """A user's own score function, of N(0, 1) at every time, which happens to be a module."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -x


NETS = {
    "mlp": MLP(2, width=8),
    "classes": MLP(2, width=8, classes=3),
    "unet": UNet(2, width=8),
    "compiled": torch.compile(MLP(2, width=8), backend="eager"),
    "parallel": nn.DataParallel(MLP(2, width=8)),
}
TAKERS: dict[str, Callable[[nn.Module], object]] = {
    "sample": lambda net: sample(net, (4, 2), sde=VPSDE(), steps=3, seed=0),
    "sample without an SDE": lambda net: sample(net, (4, 2), steps=3, seed=0),
    "sample an SDE without alpha": lambda net: sample(net, x_init=torch.zeros(4, 2), sde=Own(), seed=0),
    "langevin": lambda net: langevin(net, torch.zeros(4, 2), 0.1, 3, seed=0),
    "langevin, tested": lambda net: langevin(net, torch.zeros(4, 2), 0.1, 3, energy=lambda x: x.sum(1), seed=0),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("net", NETS)
def test_it_is_refused_with_the_model_to_make_of_it(net: str, taker: str) -> None:
    words = r"(MLP|UNet) is a network, net\(x, c_noise\), and no score function: .* ScoreModel\(net, sde\)"
    with pytest.raises(DTypeError, match=words):
        TAKERS[taker](NETS[net])


def test_a_reverse_sde_refuses_it_too() -> None:
    with pytest.raises(DTypeError, match=r"MLP is a network, .* ScoreModel\(net, sde\)"):
        evolve_density(VPSDE().reverse(NETS["mlp"]), lambda x: x[:, 0], [(-1, 1, 9)], torch.tensor([1.0, 0.5]))


def test_a_module_of_ones_own_is_a_score_function() -> None:
    got = sample(Score(), (4, 2), sde=VPSDE(), steps=3, seed=0)
    assert torch.equal(got, sample(lambda x, t: -x, (4, 2), sde=VPSDE(), steps=3, seed=0))
    assert VPSDE().reverse(Score()).drift(got, 0.5).shape == got.shape
    # One of the library's that was trained as a score is named as one.
    assert ScoreModel.from_callable(NETS["mlp"], VPSDE())(got, 0.5).score.shape == got.shape
