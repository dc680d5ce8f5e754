r"""A model is one affine readout of a network.

The network computes F(c_in x, c_noise). What F *means* is its target: F* = p x_0 + q z with (p, q) from
``readout.TARGETS``, in coordinates normalised so that a network means the same under any SDE at equal log-SNR. From
x and F every view of the prediction is P = a x + b F (``readout.view``):

| predicts | p | q |
|---|---|---|
| "noise" | 0 | 1 |
| "data" | 1 | 0 |
| "v" | -sigma/r | alpha/r |
| "score" | 0 | -r/sigma (r times the score) |
| "velocity" | alpha' | sigma' (flow matching) |
| "edm" | sigma/(d w) | -d alpha/w, with d = sigma_data, w = sqrt(sigma^2 + d^2 alpha^2) |

c_in = 1/sqrt(alpha^2 d^2 + sigma^2), with d = 1 unless set (0.5 for "edm"); c_noise is log_snr clamped to [-40, 40].
The noise, data, score and v views are Ho et al. 2020 and Salimans and Ho 2022; "edm" is Karras et al. 2022, table 1;
"velocity" is Lipman et al. 2023.

*Learned variance.* The network gives twice the channels, F and u, and v = (u + 1)/2 places the variance of a reverse
step between its small (v = 0) and its large value (v = 1), for each coordinate on a logarithmic scale (Nichol and
Dhariwal 2021, eq. 15). All views are those of F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import TARGETS
from scoresde.errors import (
    ConfigError,
    DTypeError,
    ShapeError,
    SolverError,
    check_number,
    unknown,
)
from scoresde.models import checkpoint, saving
from scoresde.models.parameterization import PARAMETERIZATIONS, Parameterization
from scoresde.models.prediction import Condition, Predictor, Prepared, Readout
from scoresde.transforms.base import Transform, check_transform
from scoresde.transforms.compose import transform_from_dict

__all__ = ["Energetic", "PreparedNetwork", "ScoreModel"]

C_NOISE_LIMIT = 40.0
VARIANCES = ("fixed", "learned")


@runtime_checkable
class Energetic(Protocol):
    """A network that has an energy, as ``EnergyModel``'s has."""

    def energy(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """Return the energies (B,) in nats of scaled states x (B, *)."""


class ScoreModel(Predictor):
    """A network with its SDE and its readout.

    Args:
        net: ``net(x, c_noise, **cond)`` -> a tensor of x's shape; c_noise has shape (B,).
        sde: the diffusion on which it is, or was, trained.
        predicts: a key of ``PARAMETERIZATIONS``, or a ``Parameterization`` of your own.
        condition_on: "log_snr" (clamped to [-40, 40]), "time" (of the training SDE), or a function of t.
        sigma_data: replaces the parameterisation's own.
        moments: the data's moments, for priors.
        transform: from data to the model's coordinates.
        variance: "fixed", or "learned": the network returns (B, 2C, *) for x of (B, C, *), and a sampler with the
            learned variance, e.g. ``solvers.ancestral(variance="learned")``, reads the second half.

    Raises:
        DTypeError: a net, an SDE or moments that are none. ConfigError: an unknown parameterisation, conditioning or
            variance. DomainError: a prediction that says nothing of the data at t_max, where alpha is 0.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: GaussianSDE,
        *,
        predicts: str | Parameterization = "noise",
        condition_on: str | Callable[[Tensor], Tensor] = "log_snr",
        sigma_data: float | None = None,
        moments: Moments | None = None,
        transform: Transform | None = None,
        variance: str = "fixed",
    ) -> None:
        """Check the choices; the network is not called."""
        if not callable(net):
            raise DTypeError(f"net must be a network, net(x, c_noise) -> a tensor of x's shape, got {net!r}")
        if not isinstance(sde, GaussianSDE):
            raise DTypeError(f"sde must be a GaussianSDE, e.g. VPSDE(), got {sde!r}")
        if not (moments is None or isinstance(moments, Moments)):
            raise DTypeError(f"moments must be Moments, got {type(moments).__name__}; use Moments.of(data)")
        if not isinstance(predicts, Parameterization):
            if predicts not in PARAMETERIZATIONS:
                raise unknown("parameterisation", predicts, PARAMETERIZATIONS)
            predicts = PARAMETERIZATIONS[predicts]
        if not callable(condition_on) and condition_on not in ("log_snr", "time"):
            raise unknown("conditioning", condition_on, ("log_snr", "time"))
        if variance not in VARIANCES:
            raise unknown("variance of a model", variance, VARIANCES)
        if sigma_data is not None:
            predicts = replace(predicts, sigma_data=check_number(sigma_data, "sigma_data", 0.0, open_low=True))
        super().__init__(sde, moments=moments, transform=check_transform(transform), variance=variance)
        self.net = net
        self.trained_sde = sde
        self.parameterization = predicts
        self.condition_on = condition_on
        # Where alpha is 0 at t_max a noise or score prediction says nothing of the data: better said now than later.
        if float(sde.alpha(torch.tensor(sde.t_max, dtype=torch.float64))) == 0:
            self.readout(sde.at(sde.t_max)).weights("data")

    @classmethod
    def from_callable(
        cls,
        function: Callable[..., Tensor],
        sde: GaussianSDE,
        *,
        predicts: str = "score",
        moments: Moments | None = None,
    ) -> ScoreModel:
        """Wrap a function (x, t, **cond) -> prediction, read literally: t in the SDE's time, no input scaling.

        Args:
            function: t has shape (B,), in float32 or in x's wider type.
            sde: the SDE whose times it takes.
            predicts: a key of ``readout.TARGETS``: "score" is the score itself here.
            moments: the data's moments, for priors.
        """
        if predicts not in TARGETS:
            raise unknown("prediction", predicts, TARGETS)
        literal = Parameterization(predicts, lambda p, d: TARGETS[predicts](p), sigma_data=None, scale_free=False)
        return cls(function, sde, predicts=literal, condition_on="time", moments=moments)

    def with_sde(self, sde: GaussianSDE) -> ScoreModel:
        """Return a model that shares this network under another SDE: equal log-SNR means an equal call."""
        other = ScoreModel(
            self.net,
            sde,
            predicts=self.parameterization,
            condition_on=self.condition_on,
            moments=self.moments,
            transform=self.transform,
            variance=self.variance,
        )
        other.trained_sde = self.trained_sde
        # Of this wrapper only: the shared network keeps its modules' own modes.
        other.training = self.training
        return other

    def save(self, folder: str | PathLike[str], *, ema: Mapping[str, Tensor] | None = None) -> None:
        """Write the model to a folder, atomically: JSON, safetensors and a manifest of their digests.

        Args:
            folder: new, empty, or an older checkpoint, which is replaced.
            ema: averaged weights to keep beside the network's own, e.g. ``EMA.state_dict()``.

        Raises:
            CheckpointError: the folder holds other files or cannot be written. ConfigError: a parameterisation or a
                conditioning of your own, which JSON cannot hold.
        """
        checkpoint.write(folder, *self.contents(ema))

    def contents(self, ema: Mapping[str, Tensor] | None = None) -> tuple[checkpoint.Documents, checkpoint.Tensors]:
        """Return what ``save`` writes: the JSON documents and the groups of tensors."""
        how = self.parameterization
        if how.name not in PARAMETERIZATIONS or replace(PARAMETERIZATIONS[how.name], sigma_data=how.sigma_data) != how:
            raise ConfigError(f"the parameterisation {how.name!r} is your own: JSON cannot hold it; save the network")
        if not isinstance(self.condition_on, str):
            raise ConfigError("condition_on is a function: JSON cannot hold it; save the network")
        trained = saving.sde_to_document(self.trained_sde)
        current = None if self.sde is self.trained_sde else saving.sde_to_document(self.sde)
        if current is not None and current["kind"] is None and trained["kind"] is None:
            raise ConfigError("the model carries two SDEs of your own; save the one it was trained under")
        document: dict[str, object] = {
            "network": saving.network_to_dict(self.net),
            "trained_sde": trained,
            "sde": current,
            "predicts": how.name,
            "sigma_data": how.sigma_data,
            "condition_on": self.condition_on,
            "transform": None if self.transform is None else self.transform.to_dict(),
            "variance": self.variance,
        }
        tensors = {"weights": self.net.state_dict() if isinstance(self.net, nn.Module) else {}}
        if ema is not None:
            tensors["ema"] = dict(ema)
        if self.moments is not None:
            tensors["moments"] = saving.moments_to_tensors(self.moments)
        return {"model": document}, tensors

    @staticmethod
    def load(
        folder: str | PathLike[str],
        net: Callable[..., Tensor] | None = None,
        sde: GaussianSDE | None = None,
        *,
        weights: str | None = None,
    ) -> ScoreModel:
        """Read a model from a folder that ``save`` or ``fit`` wrote; everything is verified before it is used.

        Args:
            folder: the checkpoint.
            net: your own network, built with the options it was saved with; its weights are overwritten. None for one
                of ``scoresde.nn``.
            sde: your own SDE; None for a built-in one.
            weights: "ema", "raw", or None for the average where the checkpoint has one and the raw weights elsewhere.

        Raises:
            CheckpointError: damaged, foreign or newer files, a pickle, weights that do not fit (nothing is loaded
                then), or a net or sde of your own that is not passed. ConfigError: unknown ``weights``.
        """
        if weights not in (None, "ema", "raw"):
            raise unknown("weights", weights, ("ema", "raw"))
        contents = checkpoint.read(folder)
        config = contents.document("model")
        part = "weights" if weights == "raw" or (weights is None and "ema" not in contents.parts) else "ema"
        trained, current = saving.load_sdes(contents, sde)
        model = ScoreModel(
            saving.load_network(contents, part, net),
            trained,
            predicts=replace(PARAMETERIZATIONS[config["predicts"]], sigma_data=config["sigma_data"]),
            condition_on=config["condition_on"],
            transform=None if config["transform"] is None else transform_from_dict(config["transform"]),
            # Checkpoints of the first versions do not name it.
            variance=config.get("variance", "fixed"),
        )
        if "moments" in contents.parts:
            model.moments = saving.moments_from_tensors(contents.tensors("moments"))
        return model if current is None else model.with_sde(current)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the network's floating parameters; None where it has none and takes x's, at least float32."""
        if not isinstance(self.net, nn.Module):
            return None
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    def readout(self, point: Point) -> Readout:
        """Return the scalars of a call at ``point``, which may lie on any SDE, not only the model's own."""
        how = self.parameterization
        home = point
        if (not how.scale_free or self.condition_on != "log_snr") and point.owner is not self.trained_sde:
            home = self.trained_sde.at(self.trained_sde.time(point.log_snr))
        d = how.sigma_data
        pair = how.target(home, 1.0 if d is None else d)
        # At equal log-SNR the states of two SDEs differ by the factor r_home/r.
        c_in = home.r / point.r if d is None else 1 / torch.hypot(d * point.alpha, point.sigma)
        if self.condition_on == "log_snr":
            c_noise = point.log_snr.clamp(-C_NOISE_LIMIT, C_NOISE_LIMIT)
        else:
            c_noise = home.t if isinstance(self.condition_on, str) else self.condition_on(home.t)
        return Readout(point, pair, c_in, c_noise)

    def outputs(self, x: Tensor, c_noise: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """Call the network on its scaled input, check what comes back, and return F and v, of x's shape.

        v is in at least float32, and None where it is not learned.
        """
        learned = self.variance == "learned"
        if learned and x.ndim < 2:
            raise ShapeError(f"x must be (B, C, *) where the variance is learned, got {tuple(x.shape)}; use x[:, None]")
        if x.is_inference():
            # Inference tensors have no version to compare: the network works on a copy of its own.
            x = x.clone()
        version = None if x.is_inference() else x._version
        out = self.net(x, c_noise) if cond is None else self.net(x, c_noise, **cond)
        if not isinstance(out, Tensor):
            out = getattr(out, "sample", out)
            if not isinstance(out, Tensor):
                raise DTypeError(f"the network must return a tensor of x's shape, got {type(out).__name__}")
        if not out.is_floating_point() or out.device != x.device:
            raise DTypeError(
                f"the network must return a real floating tensor on {x.device}, as its input, "
                f"got {out.dtype} on {out.device}"
            )
        if out.shape != ((len(x), 2 * x.shape[1], *x.shape[2:]) if learned else x.shape):
            raise self._misshapen(x, out)
        if version is not None and x._version != version:
            raise SolverError("the network changed its input in place; clone x inside the network first")
        if not learned:
            return out, None
        out, u = out.chunk(2, dim=1)
        return out, 0.5 * (u.to(torch.promote_types(u.dtype, torch.float32)) + 1)

    def _misshapen(self, x: Tensor, out: Tensor) -> ShapeError:
        twice = (len(x), 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else None
        if self.variance == "learned":
            cure = 'twice x\'s channels for variance="learned"; nn.UNet and nn.MLP take out_channels='
            return ShapeError(f"the network must return shape {twice}, {cure}; got {tuple(out.shape)}")
        cure = '; pass variance="learned" if half of the channels are for it' if out.shape == twice else ""
        return ShapeError(f"the network must return x's shape {tuple(x.shape)}, got {tuple(out.shape)}{cure}")

    def c_noise_for(self, c_noise: Tensor, x: Tensor) -> Tensor:
        """Move c_noise to x's device, in the network's type but at least float32."""
        dtype = torch.promote_types(torch.float32, self.dtype or x.dtype)
        return c_noise.to(device=x.device, dtype=dtype)

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> PreparedNetwork:
        """Make everything ready for one call at each of n points; see ``Predictor.prepare``."""
        return PreparedNetwork(self, point, x, cond)


class PreparedNetwork(Prepared):
    """A ScoreModel at n points: scalars as Python floats (tensors where each sample has its own), c_noise in place."""

    def __init__(self, model: ScoreModel, point: Point, x: Tensor, cond: Condition) -> None:
        """Compute every readout at once."""
        super().__init__(model.readout(point), x, learned=model.variance == "learned")
        self.model, self.cond = model, cond
        c_in, shared = self.readout.c_in.expand(point.t.shape), point.t.ndim == 1
        # 1e-15 is rounding of alpha^2 + sigma^2 = 1; a factor that close to 1 costs a pass over x and changes nothing.
        near = (c_in - 1).abs() < 1e-15
        self.c_in: Sequence[float | Tensor | None]
        if shared:
            self.c_in = [None if skip else c for c, skip in zip(c_in.tolist(), near.tolist(), strict=True)]
        else:
            self.c_in = self._column(c_in)
        c_noise = model.c_noise_for(self.readout.c_noise.expand(point.t.shape), x)
        self.c_noise = (c_noise[:, None].expand(-1, len(x)) if shared else c_noise).unbind(0)
        self.cast = model.dtype if model.dtype not in (None, x.dtype) else None

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F at point i, and v where the variance is learned."""
        return self.model.outputs(self._scaled(i, x), self.c_noise[i], self.cond)

    def energies(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energies (B,) and the scores (B, *) at point i, from one evaluation."""
        net = self.model.net
        if not isinstance(net, Energetic):
            return super().energies(i, x)
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            energy = net.energy(self._scaled(i, point), self.c_noise[i], self.cond)
            (gradient,) = torch.autograd.grad(energy.sum(), point)
        return energy.detach().to(x), -gradient

    def _scaled(self, i: int, x: Tensor) -> Tensor:
        c_in = self.c_in[i]
        if c_in is not None:
            x = x * c_in
        return x if self.cast is None else x.to(self.cast)
