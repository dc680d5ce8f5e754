r"""Energy models: the score as minus the gradient of a scalar.

A network E(x', c_noise) gives each sample an energy in the normalised coordinates x' = x/r, with
r = sqrt(alpha^2 + sigma^2).
The density at noise level t is proportional to e^{-E}, so that

    r score = -dE/dx',

which is what "score" means as a network's output. A conservative field can be integrated: differences of E are
differences of log density, which a Metropolis step needs (Salimans and Ho 2021, "Should EBMs model the energy or the
score?").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import DTypeError, show
from scoresde.errors.tensors import check_floating
from scoresde.models.networks import Gradient
from scoresde.models.prediction import Condition, check_condition
from scoresde.models.score_model import ScoreModel
from scoresde.ops import combine
from scoresde.transforms.base import Transform

__all__ = ["EnergyModel"]


class EnergyModel(ScoreModel):
    """A score model whose score is minus the gradient of an energy.

    Args:
        net: ``net(x, c_noise, **cond)`` -> energies (B,) in nats, differentiable twice in x for training.
        sde: the diffusion.
        moments: the data's moments, for priors.
        transform: from data to the model's coordinates.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: GaussianSDE,
        *,
        moments: Moments | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not callable(net):
            raise DTypeError(f"net must be a network, net(x, c_noise) -> energies (B,), got {show(net)}")
        super().__init__(Gradient(net), sde, predicts="score", moments=moments, transform=transform)

    def energy(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """Return the energy of x (B, *) at t, (B,): minus the log density of x_t up to a constant of t, in nats."""
        self.check_device(check_floating(x).device)
        cond = check_condition(cond, x.shape[0], x.device)
        readout = self.readout(self.sde.at(self.sde.check_time(t, x)))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = combine((readout.c_in, wide)).to(self.dtype or wide.dtype)
        assert isinstance(self.net, Gradient)
        return self.net.energy(scaled, self.c_noise_for(readout.c_noise, x).expand(len(x)), cond)
