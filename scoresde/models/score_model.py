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

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike

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
    check_device,
    check_floating,
    check_number,
    unknown,
)
from scoresde.models import checkpoint
from scoresde.models.parameterization import PARAMETERIZATIONS, Parameterization
from scoresde.models.prediction import Condition, Prediction, PreparedModel, Readout
from scoresde.ops import expand
from scoresde.transforms.base import Transform, check_transform
from scoresde.transforms.compose import transform_from_dict

__all__ = [
    "PARAMETERIZATIONS",
    "Condition",
    "Parameterization",
    "Prediction",
    "PreparedModel",
    "Readout",
    "ScoreModel",
    "check_condition",
    "in_mode",
]

C_NOISE_LIMIT = 40.0
VARIANCES = ("fixed", "learned")


class ScoreModel(nn.Module):
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
        super().__init__()
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
        self.net = net
        self.sde = sde
        self.trained_sde = sde
        self.parameterization = predicts
        self.condition_on = condition_on
        self.moments = moments
        self.transform = check_transform(transform)
        self.variance = variance
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
        trained = checkpoint.sde_to_document(self.trained_sde)
        current = None if self.sde is self.trained_sde else checkpoint.sde_to_document(self.sde)
        if current is not None and current["kind"] is None and trained["kind"] is None:
            raise ConfigError("the model carries two SDEs of your own; save the one it was trained under")
        document: dict[str, object] = {
            "network": checkpoint.network_to_dict(self.net),
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
            tensors["moments"] = checkpoint.moments_to_tensors(self.moments)
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
        trained, current = checkpoint.load_sdes(contents, sde)
        model = ScoreModel(
            checkpoint.load_network(contents, part, net),
            trained,
            predicts=replace(PARAMETERIZATIONS[config["predicts"]], sigma_data=config["sigma_data"]),
            condition_on=config["condition_on"],
            transform=None if config["transform"] is None else transform_from_dict(config["transform"]),
            # Checkpoints of the first versions do not name it.
            variance=config.get("variance", "fixed"),
        )
        if "moments" in contents.parts:
            model.moments = checkpoint.moments_from_tensors(contents.tensors("moments"))
        return model if current is None else model.with_sde(current)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the network's floating parameters; None where it has none and takes x's, at least float32."""
        if not isinstance(self.net, nn.Module):
            return None
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    @property
    def device(self) -> torch.device | None:
        """The device of the network's parameters; None where it has none."""
        return next((p.device for p in self.parameters()), None)

    def check_device(self, device: torch.device, name: str = "x") -> None:
        """Raise ConfigError where ``name`` is on another device than the network."""
        check_device(device, name, self.device or device, "the model")

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

    def raw(self, x: Tensor, c_noise: Tensor, cond: Condition) -> Tensor:
        """Call the network on its scaled input, check what comes back and return F."""
        return self.outputs(x, c_noise, cond)[0]

    def outputs(self, x: Tensor, c_noise: Tensor, cond: Condition) -> tuple[Tensor, Tensor | None]:
        """Return F as ``raw`` does, and v in at least float32, both of x's shape; v is None where it is not learned."""
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

    def call(self, x: Tensor, readout: Readout, cond: Condition = None) -> tuple[Tensor, Tensor | None]:
        """Return ``outputs`` at x (B, *) for a readout of shape () or (B,); no samples need no call."""
        if x.shape[0] == 0:
            return x, x if self.variance == "learned" else None
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = (expand(readout.c_in, wide) * wide).to(self.dtype or wide.dtype)
        c_noise = self.c_noise_for(readout.c_noise, x).expand(x.shape[0])
        return self.outputs(scaled, c_noise, cond)

    def forward(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Prediction:
        """Return the prediction at x of shape (B, *) and t of shape () or (B,).

        Raises:
            DTypeError, ShapeError, DomainError, ConfigError: x is no floating (B, *), t is not in the SDE's interval or
                of another shape, ``cond`` is of another batch, x, ``cond`` and the network are on different devices, or
                the network returns something else than x's shape.
        """
        check_floating(x)
        self.check_device(x.device)
        check_condition(cond, x.shape[0], x.device)
        return self.at(x, self.sde.at(self.sde.check_time(t, x)), cond)

    def at(self, x: Tensor, point: Point, cond: Condition = None) -> Prediction:
        """Return the prediction at a point of any SDE; x is that SDE's state."""
        readout = self.readout(point)
        output, fraction = self.call(x, readout, cond)
        return Prediction(x, output, readout, fraction)

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> PreparedModel:
        """Make everything ready for one call at each of n points, in a loop without schedule arithmetic."""
        return PreparedModel(self, point, x, cond)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a module into training or evaluation mode; restore every part's own mode, also after an exception."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def check_condition(cond: object, batch: int, device: torch.device | None = None) -> Condition:
    """Return ``cond`` if it is None or a mapping of tensors whose first dimension is the batch.

    Raises:
        ConfigError: no mapping of tensors, or of tensors elsewhere than on ``device``. ShapeError: another batch size.
    """
    if cond is None:
        return None
    if not isinstance(cond, Mapping) or not all(isinstance(v, Tensor) for v in cond.values()):
        raise ConfigError('cond must be a dict of tensors, e.g. {"label": labels}')
    for key, value in cond.items():
        if value.ndim == 0 or value.shape[0] != batch:
            raise ShapeError(f"cond[{key!r}] must have a first dimension of {batch}, got shape {tuple(value.shape)}")
        check_device(value.device, f"cond[{key!r}]", device or value.device, "x")
    return cond
