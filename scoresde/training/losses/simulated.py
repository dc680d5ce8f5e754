r"""Score matching on simulated paths, for an SDE whose marginals have no closed form.

With the readout score = s* + F/rho, rho = g sqrt(tau) (``models.sde_model``), all losses below are on average the mean
over coordinates of |rho (score - grad log p)|^2 up to a constant, "reverse" times a weight of each time: they have the
same minimiser. Paths are made by Euler-Maruyama steps of length h,

    y = x + h f(x) + sqrt(h) g(x) z.

*"implicit", "sliced".* By parts, with the weight rho^2 (``losses.implicit`` has it without),

    E|rho (s - grad log p)|^2 = E[|F|^2 + 2 rho s* F] + 2 E div(rho F) + const,

and for random signs v, E[v^T d(rho F) v] = div(rho F).

*"reverse".* Given x, y is Gaussian, so that A = -z/(sqrt(h) g(x)) has E[A | y] = grad log p(y), the score of the law of
the simulated chain, whatever h (Vincent 2011). Matching the mean of the reversed step, E[x + h f(x) | y] - h f(y)
(De Bortoli et al. 2021, "Diffusion Schroedinger bridge", arXiv:2106.01357), is the same regression times h g^2. Its
noise is 1/(h g^2) in each coordinate: as the steps become short nothing is learned from one.

What is known before the step can be carried through it. For a fixed z the step is a map y = y(x) with the Jacobian
J = 1 + M, a law with the score s becomes one with the score J^{-T} (s - grad log det J), and where
E[W | x] = grad log p(x),

    B = J^{-T} (W - grad log det J),     E[B | y] = grad log p(y).

So W <- (1 - theta) B + theta A is an estimate of the score at y that is as right on average as A, for every theta that
does not look at the path. A is fresh noise, and theta = E|g B|^2/(E|g B|^2 + D/h) makes E|g W|^2 least: information
adds up, D/E|g W|^2 grows by h in each step and shrinks by what J stretches. For a linear drift W is the usual target of
denoising, -(x_t - mean)/variance of x_t | x_0. J^{-T} is taken as 1 - M^T + (M^T)^2, log det J as tr M - |M|^2/2 with
the traces read off one vector of signs: an error of order h in all, as that of the steps. Where g_i depends on other
coordinates than x_i this is not so, and ``carry=False`` keeps W = A.

theta is formed for each sample from the others of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from scoresde.diffusions.sde import SDE
from scoresde.errors.kinds import ConfigError, SolverError
from scoresde.errors.names import check_choice
from scoresde.errors.values import check_flag, keep_integer
from scoresde.models.prediction import Condition
from scoresde.models.sde_model import SDEModel, euler_step, graded_times
from scoresde.noise import integers, normal, stream, uniform
from scoresde.ops import divergence, expand, flat, jacobian_products, recording

__all__ = ["OBJECTIVES", "ObjectiveName", "SimulatedLoss"]

ObjectiveName = Literal["reverse", "implicit", "sliced"]


class Picked(NamedTuple):
    """States that were picked from paths, n of each of B paths.

    Args:
        x: (n B, *).
        t: their times, (n B,), in float64 on the CPU.
        equilibrium: s* there, (n B, *), 0 without a baseline.
        unit: rho = g sqrt(tau), (n B, *).
        target: W, (n B, *); zeros where none is asked for.
        weight: 1/E|rho W|^2, (n B,); 1 where none is asked for.
    """

    x: Tensor
    t: Tensor
    equilibrium: Tensor
    unit: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class SimulatedLoss:
    """The objective of an ``SDEModel``: score matching on paths that are simulated anew for every batch.

    Args:
        kind: "reverse", a regression, for any number of coordinates; "implicit" with the exact divergence, which costs
            a gradient of the network for each coordinate, or "sliced" with one random direction.
        steps: of a path from t_min to t_max, on times uniform in sqrt(t - t_min), another set for every batch. The
            score that is learned is that of the simulated chain, which is off by O(1/steps).
        picks: states that the loss takes from each path.
        carry: of "reverse", carry the target along the path; False takes each step's own noise.

    A call returns the losses (B,) of data x0 (B, *): of "reverse" the squared error of F over the mean square of its
    target, of the others |rho (score - grad log p)|^2 up to a constant, which may be below 0.

    Raises:
        ConfigError: an unknown kind, or a model that is no SDEModel. DomainError: fewer than 2 steps, or no pick.
        SolverError: a path that is not finite (looked at on the CPU alone, where nothing waits for it).
    """

    kind: ObjectiveName = "reverse"
    steps: int = 100
    picks: int = 4
    carry: bool = True

    def __post_init__(self) -> None:
        check_choice("objective", self.kind, get_args(ObjectiveName))
        keep_integer(self, "steps", 2)
        keep_integer(self, "picks", 1)
        check_flag(self.carry, "carry")

    def __call__(self, model: SDEModel, x0: Tensor, generator: torch.Generator, cond: Condition = None) -> Tensor:
        """Return the losses (B,); everything random comes from the generator, which is on the CPU."""
        if not isinstance(model, SDEModel):
            raise ConfigError(
                f"objective={self.kind!r} simulates paths of an SDEModel(net, sde), got {type(model).__name__}; the "
                "marginals of a ScoreModel are known, and the usual loss takes them: leave objective= out"
            )
        picked = self.pick(model, x0, generator)
        told = None if cond is None else {key: torch.cat([value] * self.picks) for key, value in cond.items()}
        tau = model.elapsed(picked.t)
        if self.kind == "reverse":
            error = model.outputs(picked.x, tau, told) - picked.unit * (picked.target - picked.equilibrium)
            losses = flat(error.square()).mean(1) * picked.weight.to(error)
            return losses.reshape(self.picks, -1).mean(0)
        root = expand(tau.sqrt(), picked.x)

        def field(x: Tensor) -> Tensor:
            unit = picked.unit if model.sde.is_additive else model.sde.diffusion_at(x, picked.t) * root
            return unit * model.outputs(x, tau, told)

        if self.kind == "implicit":
            value, trace = divergence(field, picked.x)
        else:
            signs = 2.0 * integers(2, picked.x.shape, _noise(generator, picked.x)).to(picked.x) - 1
            value, (trace,) = jacobian_products(field, picked.x, [signs])
        output = value / picked.unit
        losses = flat(output.square() + 2 * value * picked.equilibrium).mean(1) + 2 * trace / x0[:1].numel()
        return losses.reshape(self.picks, -1).mean(0)

    @torch.no_grad()
    def pick(self, model: SDEModel, x0: Tensor, generator: torch.Generator) -> Picked:
        """Simulate a path from each datum x0 (B, *) and return states of it."""
        sde, total = model.sde, self.picks * len(x0)
        offset, first = uniform((2,), generator, dtype=torch.float64).tolist()
        times = graded_times(sde, self.steps, 0.5 * offset)
        # Evenly over the times, in a batch and on each path.
        shares = torch.arange(total, dtype=torch.float64, device="cpu") / max(1, total) + first
        places = (shares % 1.0 * self.steps).long() + 1
        order, ends = places.argsort(), torch.bincount(places, minlength=self.steps + 1).cumsum(0).tolist()
        order_there = order.to(x0.device)
        like = x0.new_zeros((total, *x0.shape[1:]))
        found = Picked(like, times[places], like.clone(), like.clone(), like.clone(), like.new_ones(total))
        for k, (x, f, g, target, square) in enumerate(self._walk(sde, x0, times, _noise(generator, x0))):
            where = order_there[ends[k - 1] if k else 0 : ends[k]]
            if k == 0 or not len(where):
                continue
            rows, tau = where % len(x0), float(model.elapsed(times[k]))
            state = found.x[where] = x[rows]
            found.unit[where] = g[rows] * tau**0.5
            if model.baseline == "equilibrium":
                pull = 2 * f[rows] - sde.diffusion_divergence(state, times[k])
                found.equilibrium[where] = pull / g[rows].square()
            if self.kind == "reverse":
                found.target[where], found.weight[where] = target[rows], 1 / (tau * square)
        if found.x.device.type == "cpu" and not bool(torch.isfinite(found.x).all()):
            raise SolverError(
                f"paths from the data are not finite within {self.steps} steps; take more, "
                f"objective=losses.SimulatedLoss({self.kind!r}, steps={4 * self.steps}), or a smaller t_max"
            )
        return found

    def _walk(
        self, sde: SDE, x: Tensor, times: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Yield at each of the times x, f, g, W and the mean of |g W|^2 over samples and coordinates."""
        carried = self.kind == "reverse" and self.carry
        target, square = torch.zeros_like(x), x.new_ones(())
        lengths = [*times.diff().tolist(), 0.0]
        for k, (t, h) in enumerate(zip(times, lengths, strict=True)):
            z = normal(x.shape, generator, dtype=x.dtype)
            through = carried and 0 < k < len(lengths) - 1
            with recording() if through else torch.no_grad():
                point = x.detach().requires_grad_(through)
                shift, f, g = euler_step(sde, point, t, h, z)
                before = _carry(shift, point, target, generator) if through else target
            shift, f, g = shift.detach(), f.detach(), g.detach()
            yield x, f, g, target, square
            if k == len(lengths) - 1:
                return
            fresh = -z / (h**0.5 * g)
            if through:
                # Of each sample, the mean over the others; E|g A|^2 = 1/h.
                own = flat((g * before).square()).mean(1)
                others = (own.sum() - own) / max(1, len(own) - 1)
                theta = expand(others / (others + 1 / h), x) if len(own) > 1 else 1.0
                target = (1 - theta) * before + theta * fresh
            else:
                target = fresh
            square = flat((g * target).square()).mean()
            x = x + shift


def _carry(shift: Tensor, x: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Return J^{-T} (W - grad log det J) of the step x -> x + shift, with its graph from x."""
    if not shift.requires_grad:  # constant in x: J = 1
        return target
    signs = 2.0 * integers(2, x.shape, generator).to(x) - 1

    def back(v: Tensor, *, again: bool = False) -> Tensor:
        """Return M^T v."""
        (found,) = torch.autograd.grad(shift, x, v, create_graph=again, retain_graph=True, materialize_grads=True)
        return found

    row = back(signs, again=True)
    rest = target
    if row.requires_grad:
        log_det = (row * signs).sum() - 0.5 * row.square().sum()
        rest = target - torch.autograd.grad(log_det, x, retain_graph=True, materialize_grads=True)[0]
    once = back(rest)
    return rest - once + back(once)


def _noise(generator: torch.Generator, x: Tensor) -> torch.Generator:
    """Return the generator, or for a tensor elsewhere one on its device that is seeded from it."""
    if generator.device == x.device:
        return generator
    return stream(int(integers(2**62, (), generator)), "noise", device=x.device)


OBJECTIVES = {name: SimulatedLoss(name) for name in get_args(ObjectiveName)}
