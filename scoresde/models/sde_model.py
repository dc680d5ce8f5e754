r"""The model of a score under any SDE: one affine readout of a network, about the SDE's own equilibrium.

For dx_i = f_i dt + g_i dw_i (``diffusions.sde``) a law in equilibrium has the score s* = (2 f_i - d_i g_i^2)/g_i^2,
which is 2 f/g^2 where the noise does not depend on the state. The network gives what is missing from it, in units of
the noise that has come in since the data, at t_min:

    score(x, t) = s*(x, t) + F((x - m)/d, c_noise)/(g sqrt(tau)),
    tau = t - t_min,     c_noise = -log(tau/(t_max - t_min)),

with the mean m and the standard deviation d of each coordinate over data and simulated ends. The reverse drift then is

    f - d g^2 - g^2 score = -f - g F/sqrt(tau):

run backwards, a state follows the forward drift, and what holds the states together forwards holds them together then.
Without s* a network must give a force that grows as the drift does, far out where it has seen no data: the reverse of
dx = (x - x^3) dt + g dw has the drift x^3 outwards there, and states run away to infinity in a finite time whatever the
steps. ``baseline="none"`` leaves s* out, for a drift that brings nothing together.

A path is made by Euler-Maruyama steps, x + h f + sqrt(h) g z, on times that are uniform in the root of tau: short steps
at the data, where the law changes as fast as the noise comes in.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from scoresde.diffusions.fields import drift_of, noise_of
from scoresde.diffusions.gaussian import Gaussian, Moments
from scoresde.diffusions.sde import SDE, GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, SolverError, TrainingWarning, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_floating
from scoresde.models import checkpoint
from scoresde.models.networks import describe_network
from scoresde.models.prediction import Condition, check_output, describe_data
from scoresde.models.scored_sde import ScoredSDE, runs_away
from scoresde.noise import normal, stream
from scoresde.ops import expand, flat
from scoresde.transforms.base import Transform, check_transform

__all__ = ["Baseline", "Ends", "PriorName", "SDEModel", "equilibrium_score", "euler_step", "graded_times"]

Baseline = Literal["equilibrium", "none"]
PriorName = Literal["simulate", "gaussian"]
NEAREST = 1e-5  # of t_max - t_min: the least tau that the network is told
STEPS, PATHS, VALUES = 200, 16384, 1 << 20  # of the paths by which a training begins
APART, CHANCE = 0.05, 1.95  # distance of distributions that is worth a warning; of two samples of one law, at 1e-3
LOOKED_AT = 64  # coordinates


def graded_times(sde: SDE, steps: int, offset: float = 0.0) -> Tensor:
    """Return t_min and the times t_min + (t_max - t_min) ((k - offset)/steps)^2, k = 1 ... steps, in float64."""
    shares = (torch.arange(steps + 1, dtype=torch.float64, device="cpu") - offset).clamp_min(0.0) / steps
    times = sde.t_min + (sde.t_max - sde.t_min) * shares.square()
    return times.clamp_max(sde.t_max)


def euler_step(sde: SDE, x: Tensor, t: Tensor, h: float, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return h f + sqrt(h) g z, f and g at (x, t), each of x's shape (B, *)."""
    f, g = drift_of(sde, x, t), noise_of(sde, x, t)
    return h * f + math.sqrt(h) * g * z, f, g


def equilibrium_score(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """Return (2 f_i - d_i g_i^2)/g_i^2, of x's shape (B, *); t has shape () or (B,)."""
    square = noise_of(sde, x, t).square()
    return (2 * drift_of(sde, x, t) - sde.diffusion_divergence(x, t)) / square


@dataclass(frozen=True, eq=False)
class Ends:
    """The law of simulated states at one time, each as likely as any other.

    Args:
        states: (N, *).
        t: when.
    """

    states: Tensor
    t: float

    def __repr__(self) -> str:
        return f"Ends({len(self.states)} simulated states at t = {self.t:g}, event {tuple(self.states.shape[1:])})"

    def from_noise(self, z: Tensor) -> Tensor:
        """Map standard normal ``z`` (B, *) to states: number floor(N Phi(first coordinate)), in z's type."""
        if z.shape[1:] != self.states.shape[1:]:
            raise ShapeError(f"z must have shape (B, *{tuple(self.states.shape[1:])}), got {tuple(z.shape)}")
        u = torch.special.ndtr(flat(z)[:, 0].to("cpu", torch.float64))
        return self.states[(u * len(self.states)).long().clamp_max(len(self.states) - 1)].to(z)


class SDEModel(ScoredSDE):
    """A network with its SDE, of which a drift and a diffusion are known and no closed marginals are needed.

    ``fit(model, data, objective=...)`` trains it on simulated paths, ``sample(model, (n, *), solver=bridge.TorchSDE(),
    final="sample")`` and the adaptive flow sample it. Data have the law at t_min.

    Args:
        net: ``net(x, c_noise, **cond)`` -> a tensor of x's shape; c_noise has shape (B,), from 0 at t_max to 11.5.
        sde: an SDE of one's own, without alpha and sigma.
        baseline: "equilibrium": the score is (2 f - d g^2/dx)/g^2 + F/(g sqrt(tau)); "none": without the first part.
        prior: the law at t_max that sampling starts from: "simulate", the ends of paths from the data, made when a
            training begins; "gaussian", the Gaussian with their mean and covariance; a ``Gaussian``; or None, the SDE's
            own ``prior()`` where its class has one, and "simulate" elsewhere.
        moments: the data's moments.
        transform: from data to the coordinates in which the SDE is written.

    Raises:
        DTypeError: a net or an SDE that is none. ConfigError: an unknown baseline or prior, a Gaussian SDE.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: SDE,
        *,
        baseline: Baseline = "equilibrium",
        prior: PriorName | Gaussian | None = None,
        moments: Moments | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not callable(net):
            raise DTypeError(f"net must be a network, net(x, c_noise) -> a tensor of x's shape, got {show(net)}")
        if not isinstance(sde, SDE):
            raise DTypeError(f"sde must be an SDE of your own, with drift and diffusion, got {show(sde)}")
        if isinstance(sde, GaussianSDE):
            raise ConfigError(
                f"{type(sde).__name__} has closed marginals, of which a ScoreModel makes use; take ScoreModel(net, sde)"
            )
        check_choice("baseline", baseline, get_args(Baseline))
        if not isinstance(prior, Gaussian | None):
            check_choice("prior of an SDEModel", prior, get_args(PriorName))
        super().__init__(net, sde)
        self.baseline = baseline
        self.moments, self.transform = moments, check_transform(transform)
        named = sde.prior() if prior is None and type(sde).prior is not SDE.prior else prior
        self.prior_name: PriorName | None = None if isinstance(named, Gaussian) else named or "simulate"
        self.law: Gaussian | Ends | None = named if isinstance(named, Gaussian) else None
        self.shift = torch.zeros((), dtype=torch.float32, device="cpu")
        self.scale = torch.ones((), dtype=torch.float32, device="cpu")
        self.dropout: Mapping[str, float] | None = None
        self.class_names: Mapping[str, Sequence[str]] | None = None
        # Tables need alpha and sigma; a training clears those of any model.
        self.tables: dict[int, str] = {}
        self.calibration: str | None = None

    def __repr__(self) -> str:
        parts = [describe_network(self.net), repr(self.sde), f"baseline={self.baseline!r}"]
        parts += [f"prior={self.law or self.prior_name!r}"]
        return f"{type(self).__name__}({', '.join([*parts, *describe_data(self.moments, self.transform)])})"

    def forward(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """Return the score at x (B, *) and t of shape () or (B,)."""
        time = self.sde.check_time(t, check_floating(x))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        tau = self.elapsed(time)
        unit = noise_of(self.sde, wide, time) * expand(tau.sqrt(), wide)
        score = self.outputs(wide, tau, cond) / unit
        return (score if self.baseline == "none" else score + equilibrium_score(self.sde, wide, time)).to(x.dtype)

    def elapsed(self, t: Tensor) -> Tensor:
        """Return tau, at least 1e-5 of the whole, of t's shape, in float64 on the CPU."""
        return (t.to("cpu", torch.float64) - self.sde.t_min).clamp_min(NEAREST * (self.sde.t_max - self.sde.t_min))

    def outputs(self, x: Tensor, tau: Tensor, cond: Condition) -> Tensor:
        """Return the network's output F at states x (B, *) and tau of shape () or (B,), of x's shape and type."""
        dtype = (
            next((p.dtype for p in self.net.parameters()), x.dtype)
            if isinstance(self.net, torch.nn.Module)
            else x.dtype
        )
        c_noise = -(tau / (self.sde.t_max - self.sde.t_min)).log()
        c_noise = c_noise.to(x.device, torch.promote_types(torch.float32, dtype)).expand(len(x))
        y = ((x - self.shift.to(x)) / self.scale.to(x)).to(dtype)
        answer: object = self.net(y, c_noise) if cond is None else self.net(y, c_noise, **cond)
        out = check_output(answer, x, "the network")
        if out.shape != x.shape:
            raise ShapeError(f"the network must return the shape {tuple(x.shape)} of x, got {tuple(out.shape)}")
        return out.to(x.dtype)

    def prior(self, t: float) -> Gaussian | Ends:  # type: ignore[override]
        """Return the law that sampling starts from at t.

        Raises:
            ConfigError: it is not known before a training, or is that of t_max and another time is asked for.
        """
        if self.law is None:
            raise ConfigError(
                "the law at t_max is simulated from the data when fit begins, and this model is not trained; pass "
                "prior= or x_init="
            )
        if t < self.sde.t_max * (1 - 1e-9):
            raise ConfigError(
                f"the model knows the law at t_max = {self.sde.t_max:g}, and the run starts at t = {t:g}; start at "
                "t_max, or pass prior= or x_init="
            )
        return self.law

    @torch.no_grad()
    def measure(self, x0: Tensor, seed: int) -> None:
        """Simulate paths from data x0 (N, *) to t_max; take from them the states' scale, and their law at the end.

        Raises:
            SolverError: a path that is not finite. DomainError: noise of size 0 under the equilibrium baseline.

        Warns:
            TrainingWarning: a prior that was named and is not the law of the ends.
        """
        sde, event = self.sde, math.prod(x0.shape[1:])
        count = max(1, min(PATHS, VALUES // max(1, event)))
        x = x0[:: max(1, len(x0) // count)][:count]
        x = x.repeat(-(-count // len(x)), *(1,) * (x.ndim - 1))[:count]
        start, generator = x, stream(seed, "paths", device=x.device)
        times = graded_times(sde, STEPS)
        for t, h in zip(times[:-1], times.diff().tolist(), strict=True):
            before = x
            x = x + euler_step(sde, x, t, h, normal(x.shape, generator, dtype=x.dtype))[0]
            if not bool(torch.isfinite(x).all()):
                cure = (
                    "the drift carries states away from there, so that no step is small enough; check its sign, or "
                    "lower t_max"
                    if runs_away(sde, before, float(t))
                    else f"the drift is too stiff for {STEPS} steps; lower t_max, or bound the drift far out"
                )
                raise SolverError(f"paths from the data are not finite after t = {float(t):g}: {cure}", partial=before)
        if self.baseline == "equilibrium" and not bool(torch.isfinite(equilibrium_score(sde, x, times[-1])).all()):
            raise DomainError(
                "the diffusion is 0, or not finite, at states that paths reach, and 2 f/g^2 has no value there; keep "
                "it above 0, or pass baseline='none'"
            )
        both = torch.cat([start, x]).double()
        self.shift, std = both.mean(0).float().cpu(), both.std(0, correction=0).float().cpu()
        self.scale = torch.where(std > 0, std, 1.0)
        if self.prior_name == "simulate":
            self.law = Ends(x.cpu(), sde.t_max)
        elif self.prior_name == "gaussian":
            self.law = Moments.of(x.cpu()).at(1.0, 0.0)
        if isinstance(self.law, Gaussian):
            _warn_of_prior(self.law, x.cpu(), seed)

    def with_sde(self, sde: SDE) -> Self:
        """Return a model that shares this network; ConfigError for another SDE, whose score this is not."""
        if sde is not self.sde:
            raise ConfigError("the score of an SDEModel is that of its own SDE; train another model for another SDE")
        other = copy.copy(self)
        vars(other).update({name: value.copy() for name, value in vars(self).items() if isinstance(value, dict)})
        return other

    def save(self, folder: str | PathLike[str], *, ema: Mapping[str, Tensor] | None = None) -> None:
        """Write the model to a folder, atomically, as ``ScoreModel.save`` does; the SDE by its name.

        Raises:
            CheckpointError: the folder holds other files or cannot be written.
        """
        checkpoint.write(folder, *self.contents(ema))

    def contents(self, ema: Mapping[str, Tensor] | None = None) -> tuple[checkpoint.Documents, checkpoint.Tensors]:
        """Return what ``save`` writes: the JSON documents and the groups of tensors."""
        from scoresde.models import saving_sde

        return saving_sde.take_apart(self, ema)

    @staticmethod
    def load(
        folder: str | PathLike[str],
        net: Callable[..., Tensor] | None = None,
        sde: SDE | None = None,
        *,
        weights: Literal["ema", "raw"] | None = None,
    ) -> SDEModel:
        """Read a model from a folder that ``save`` or ``fit`` wrote.

        Args:
            folder: the checkpoint, or the folder of a run that has one.
            net: your own network, whose weights are overwritten; None for one of ``scoresde.nn``.
            sde: your own SDE, with the options that it had.
            weights: "ema", "raw", or None for the average where there is one.

        Raises:
            CheckpointError: damaged or foreign files, weights that do not fit, a net or an SDE that is not passed.
        """
        from scoresde.models import saving_sde

        return saving_sde.load(folder, net, sde, weights)


def _warn_of_prior(law: Gaussian, ends: Tensor, seed: int) -> None:
    """Warn where the ends of paths have another law than the prior that was named, coordinate by coordinate."""
    drawn = law.from_noise(normal(ends.shape, stream(seed, "prior")).to(ends.dtype))
    apart = max(_distances(flat(ends)[:, :LOOKED_AT], flat(drawn)[:, :LOOKED_AT]), default=0.0)
    if apart > APART + CHANCE * math.sqrt(2 / len(ends)):
        warnings.warn(
            f"at t_max the distribution of a simulated coordinate is {apart:.2f} from the prior's (the largest "
            "difference of the two distribution functions), and samples start from the wrong law; pass "
            "prior='simulate', or raise t_max",
            TrainingWarning,
            stacklevel=4,
        )


def _distances(a: Tensor, b: Tensor) -> Iterator[float]:
    """Yield the largest difference of the distribution functions of each column of two samples (N, D)."""
    for x, y in zip(a.double().T.contiguous(), b.double().T.contiguous(), strict=True):
        x, y = x.sort().values, y.sort().values
        both = torch.cat([x, y])
        share = [torch.searchsorted(one, both, right=True).double() / len(one) for one in (x, y)]
        yield float((share[0] - share[1]).abs().max())
