"""What every comparison with diffusers' schedulers needs: one exact model, their knots as our times, their loop.

A scheduler's ``sigmas`` are nu = sigma/alpha at its knots, in float32, decreasing and perhaps 0 at the end. Its state
is x under the variance-preserving diffusion, or x/alpha where ``scale_model_input`` divides by sqrt(1 + nu^2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde import VPSDE, GaussianMixtureModel, Solver, Tableau, sample

# Wider than the linear chain of 1000 betas, whose largest nu is 157.
SDE = VPSDE(t_min=1e-7, t_max=1.2)
MODEL = GaussianMixtureModel(
    sde=SDE,
    weights=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    means=torch.tensor([[-1.2, 0.3], [0.8, 0.9], [0.1, -1.1]], dtype=torch.float64),
    std=torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
)
# The model knows its data in every coordinate: quantile-like points, spread over three standard deviations.
START = torch.stack([torch.linspace(-2.5, 2.5, 9), torch.linspace(-2.5, 2.5, 9).roll(4)], 1).double()


def times_of(nu: Tensor) -> Tensor:
    """Our times at these nu, in float64; 0 where nu is 0."""
    inside = SDE.time(-2 * nu.double().clamp_min(1e-30).log())
    return torch.where(nu.double() == 0, torch.zeros_like(inside), inside)


def alpha_of(nu: Tensor) -> Tensor:
    """The variance-preserving alpha at these nu."""
    return (1 + nu.double().square()).rsqrt()


def by_peer(
    scheduler: object,
    x: Tensor,
    *,
    view: str = "noise",
    nu: Tensor | None = None,
    steps: int | None = None,
    **options: object,
) -> Tensor:
    """Run the scheduler's own loop on the exact model, from its state x, for ``steps`` of its steps (all by default).

    ``view`` is the prediction that it asks for, ``nu`` its knots where they are not its ``sigmas``; ``options`` go to
    each of its steps, a list there giving one value to each.
    """
    times = times_of(scheduler.sigmas if nu is None else nu)
    for i, t in enumerate(scheduler.timesteps[:steps]):
        seen = scheduler.scale_model_input(x, t)
        given = {key: value[i] if isinstance(value, list) else value for key, value in options.items()}
        x = scheduler.step(getattr(MODEL(seen, times[i]), view), t, x, **given).prev_sample
    return x


def by_us(solver: Solver, nu: Tensor, x: Tensor, noise: Sequence[Tensor] = ()) -> Tensor:
    """Run our solver through the real sampler on the same knots, from the variance-preserving state x."""
    table: Tableau = solver(SDE, times_of(nu))
    out = sample(MODEL, x_init=x, solver=table, noise=list(noise), final="sample")
    assert isinstance(out, Tensor)
    return out
