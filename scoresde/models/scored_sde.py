"""A score function under any SDE, also one without alpha and sigma."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import DTypeError
from scoresde.errors.tensors import check_floating
from scoresde.models.prediction import Condition
from scoresde.ops import flat
from scoresde.transforms.base import Transform

__all__ = ["RUNS_AWAY", "ScoredSDE", "runs_away"]

NEARER = 40
RUNS_AWAY = (
    "the reverse drift carries states away, and smaller steps do not help: far out, where a network has seen no data, "
    "the score must grow as 2 f/g^2 does, which SDEModel(net, sde) adds to the network; or lower t_max"
)


def runs_away(sde: SDE, x: Tensor, t: float, sign: float = 1.0) -> bool:
    """Return whether the drift points outwards at the farthest of states x (B, *), of which some were lost after t.

    Where it does, they run to infinity whatever the steps, and where it points back they were thrown over by one.

    Args:
        sde: drift in forward time.
        x: the last states that were finite.
        t: their time.
        sign: 1 where time increases, -1 where it decreases.
    """
    with torch.no_grad():
        x = x.detach()
        far = flat(x).double().square().sum(1)
        worst = int(torch.where(torch.isfinite(far), far, -1.0).argmax())
        # Very far out the drift may be no number itself; it is then asked further in, on the same ray.
        for _ in range(NEARER):
            # Of all states, since conditions are those of the batch.
            drift = sde.drift(x, t)[worst]
            if bool(torch.isfinite(drift).all()):
                return bool((sign * drift * x[worst]).sum() > 0)
            x = 0.1 * x
        return False


class ScoredSDE(nn.Module):
    """A score function under any SDE, also one without alpha and sigma.

    Args:
        net: (x, t, **cond) -> score of x's shape; t has shape (B,), in float32 or in x's wider type.
        sde: any SDE.
    """

    moments: Moments | None = None
    transform: Transform | None = None

    def __init__(self, net: Callable[..., Tensor], sde: SDE) -> None:
        super().__init__()
        self.net = net
        self.sde = sde

    def forward(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """Return the score at x (B, *) and t of shape () or (B,)."""
        time = self.sde.check_time(t, check_floating(x))
        time = time.to(x.device, torch.promote_types(torch.float32, x.dtype)).expand(x.shape[0])
        out: object = self.net(x, time) if cond is None else self.net(x, time, **cond)
        if not isinstance(out, Tensor):
            raise DTypeError(f"the score function must return a tensor of x's shape, got {type(out).__name__}")
        return out.to(x)

    def prior(self, t: float) -> Gaussian:
        """Return the law that sampling starts from at t; ConfigError where the SDE names none."""
        return self.sde.prior(t)

    @property
    def device(self) -> torch.device | None:
        """The device of the function's parameters; None where it has none."""
        return next((p.device for p in self.parameters()), None)
