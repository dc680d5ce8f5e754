r"""A model is one affine readout of a network.

The network computes F(c_in x, c_noise). What F *means* is its target: F* = p x_0 + q z with (p, q) from
``targets.TARGETS``, in coordinates normalised so that a network means the same under any SDE at equal log-SNR. From
x and F every view of the prediction is P = a x + b F (``targets.view``):

| predicts | p | q |
|---|---|---|
| "noise" | 0 | 1 |
| "data" | 1 | 0 |
| "v" | -sigma/r | alpha/r |
| "score" | 0 | -r/sigma (r times the score) |
| "velocity" | alpha' | sigma' (flow matching) |
| "edm" | sigma/(d w) | -d alpha/w, with d = sigma_data, w = sqrt(sigma^2 + d^2 alpha^2) |

c_in = 1/sqrt(alpha^2 d^2 + sigma^2), with d = 1 unless set (0.5 for "edm"); c_noise is log_snr clamped to [-40, 40].
The noise, data, score and v views are Ho et al. 2020 (arXiv:2006.11239) and Salimans and Ho 2022 (arXiv:2202.00512);
"edm" is Karras et al. 2022 (arXiv:2206.00364), table 1; "velocity" is Lipman et al. 2023 (arXiv:2210.02747).

*Learned variance.* The network gives twice the channels, F and u, and v = (u + 1)/2 places the variance of a reverse
step between its small (v = 0) and its large value (v = 1), for each coordinate on a logarithmic scale (Nichol and
Dhariwal 2021, arXiv:2102.09672, eq. 15). All views are those of F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.named import check_sde
from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import Kind
from scoresde.errors.kinds import DomainError, DTypeError, ShapeError, SolverError, show
from scoresde.errors.names import check_choice
from scoresde.models import checkpoint
from scoresde.models.latent import Coder
from scoresde.models.networks import (
    Conditional,
    Energetic,
    bare_network,
    check_conditions,
    describe_network,
    warn_of_timesteps,
)
from scoresde.models.parameterization import (
    Parameterization,
    Predicts,
    find_parameterization,
    literal_parameterization,
)
from scoresde.models.prediction import (
    Condition,
    Predictor,
    Prepared,
    Readout,
    check_output,
    count_writes,
    describe_data,
)
from scoresde.ops import recording
from scoresde.transforms.base import Transform, check_transform

__all__ = ["ConditionOn", "PreparedNetwork", "ScoreModel", "Variance"]

C_NOISE_LIMIT = 40.0
TO_THE_END = ("data", "v", "velocity")  # what says something of the data where alpha is 0
ConditionOn = Literal["log_snr", "time"]
Variance = Literal["fixed", "learned"]


class ScoreModel(Predictor):
    """A network with its SDE and its readout.

    Args:
        net: ``net(x, c_noise, **cond)`` -> a tensor of x's shape; c_noise has shape (B,).
        sde: the diffusion on which it is, or was, trained.
        predicts: "noise", "data", "v", "score", "velocity" or "edm", or a ``Parameterization`` of your own.
        condition_on: "log_snr" (clamped to [-40, 40]), "time" (of the training SDE), or a function of t.
        sigma_data: replaces the parameterisation's own.
        moments: the data's moments, for priors.
        transform: from data to the model's coordinates.
        variance: "fixed", or "learned": the network returns (B, 2C, *) for x of (B, C, *), and a sampler with the
            learned variance, e.g. ``solvers.ancestral(variance="learned")``, reads the second half.

    ``dropout`` holds the share of each condition that training replaced by its null, where it is known;
    ``class_names`` what the classes of a condition are called, ``{"label": ("cat", "dog")}``. Both are saved.

    Raises:
        DTypeError: a net, an SDE or moments that are none. ConfigError: an unknown parameterisation, conditioning or
            variance. DomainError: a prediction that says nothing of the data at t_max, where alpha is 0.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: GaussianSDE,
        *,
        predicts: Predicts | Parameterization = "noise",
        condition_on: ConditionOn | Callable[[Tensor], Tensor] = "log_snr",
        sigma_data: float | None = None,
        moments: Moments | None = None,
        transform: Transform | None = None,
        variance: Variance = "fixed",
    ) -> None:
        if not callable(net):
            raise DTypeError(f"net must be a network, net(x, c_noise) -> a tensor of x's shape, got {show(net)}")
        if not (moments is None or isinstance(moments, Moments)):
            raise DTypeError(f"moments must be Moments, got {type(moments).__name__}; use Moments.of(data)")
        if not callable(condition_on) or isinstance(condition_on, type):
            check_choice("conditioning", condition_on, get_args(ConditionOn))
        check_choice("variance of a model", variance, get_args(Variance))
        super().__init__(
            self.check_own_sde(sde), moments=moments, transform=check_transform(transform), variance=variance
        )
        self.net = net
        self.trained_sde = sde
        self.parameterization = find_parameterization(predicts, sigma_data)
        self.condition_on = condition_on
        self.dropout: Mapping[str, float] | None = None
        self.class_names: Mapping[str, Sequence[str]] | None = None
        self._check_start()
        if condition_on == "log_snr":
            warn_of_timesteps(net)

    @staticmethod
    def check_own_sde(sde: object) -> GaussianSDE:
        """Return an SDE that a model of this class lives on; DTypeError for any other."""
        return check_sde(sde)

    def _check_start(self) -> None:
        """Raise DomainError where alpha is 0 at t_max and the prediction says nothing of the data there."""
        end = self.sde.at(self.sde.t_max)
        if float(end.alpha) != 0:
            return
        try:
            self.readout(end).weights("data")
        except DomainError as error:
            raise DomainError(
                f"predicts={self.parameterization.name!r} says nothing of the data at t_max = {self.sde.t_max:g}, "
                "where alpha = 0",
                parameter="predicts",
                got=self.parameterization.name,
                allowed=TO_THE_END,
                cure=f"train another prediction ({', '.join(TO_THE_END)}), or {self.sde.how_to_end_earlier}",
            ) from error

    @classmethod
    def from_callable(
        cls,
        function: Callable[..., Tensor],
        sde: GaussianSDE,
        *,
        predicts: Kind = "score",
        moments: Moments | None = None,
        transform: Transform | None = None,
    ) -> ScoreModel:
        """Wrap a function (x, t, **cond) -> prediction, read literally: t in the SDE's time, no input scaling.

        Args:
            function: t has shape (B,), in float32 or in x's wider type.
            sde: the SDE whose times it takes.
            predicts: a key of ``targets.TARGETS``: "score" is the score itself here.
            moments: the data's moments, for priors.
            transform: from data to the function's coordinates.
        """
        literal = literal_parameterization(predicts)
        return cls(function, sde, predicts=literal, condition_on="time", moments=moments, transform=transform)

    def with_sde(self, sde: GaussianSDE) -> Self:
        """Return a model that shares this network under another SDE: equal log-SNR means an equal call."""
        other = self._share()
        other.sde = check_sde(sde)
        other._check_start()
        return other

    def save(self, folder: str | PathLike[str], *, ema: Mapping[str, Tensor] | None = None) -> None:
        """Write the model to a folder, atomically: JSON, safetensors and a manifest of their digests.

        Args:
            folder: new, empty, or an older checkpoint, which is replaced.
            ema: averaged weights to keep beside the network's own, e.g. ``EMA.state_dict()``.

        Raises:
            CheckpointError: the folder holds other files or cannot be written. ConfigError: a model that JSON cannot
                hold: of a function, of a parameterisation or a conditioning of your own, or an exact one.
        """
        checkpoint.write(folder, *self.contents(ema))

    def contents(self, ema: Mapping[str, Tensor] | None = None) -> tuple[checkpoint.Documents, checkpoint.Tensors]:
        """Return what ``save`` writes: the JSON documents and the groups of tensors."""
        # What is saved is made of models, and so stands above them.
        from scoresde.models import saving

        return saving.take_apart(self, ema)

    @staticmethod
    def load(
        folder: str | PathLike[str],
        net: Callable[..., Tensor] | None = None,
        sde: GaussianSDE | None = None,
        *,
        weights: Literal["ema", "raw"] | None = None,
        autoencoder: Coder | None = None,
    ) -> ScoreModel:
        """Read a model from a folder that ``save`` or ``fit`` wrote; everything is verified before it is used.

        It comes in evaluation mode, ``net`` included; training puts it into its own. What is built here is on the CPU,
        whatever torch's default device: ``.to(device)`` moves it.

        Args:
            folder: the checkpoint, or the folder of a run that has one.
            net: your own network, built with the options it was saved with; its weights are overwritten. None for one
                of ``scoresde.nn``.
            sde: your own SDE; None for a built-in one.
            weights: "ema", "raw", or None for the average where the checkpoint has one and the raw weights elsewhere.
            autoencoder: your own, of a model with a ``Latent`` transform, likewise; None for an ``nn.Autoencoder``.

        Raises:
            CheckpointError: damaged, altered, foreign or newer files, a pickle, weights that do not fit or are not
                finite (nothing is loaded then), or a net, sde or autoencoder of your own that is not passed.
                ConfigError: unknown ``weights``, an autoencoder for a model that has none.
        """
        from scoresde.models import saving

        return saving.load(folder, net, sde, weights, autoencoder)

    @staticmethod
    def from_pretrained(
        name: str | PathLike[str],
        net: Callable[..., Tensor] | None = None,
        sde: GaussianSDE | None = None,
        *,
        weights: Literal["ema", "raw"] | None = None,
        autoencoder: Coder | None = None,
        revision: str | None = None,
        update: bool = False,
    ) -> ScoreModel:
        """Read a model from a folder, as ``load``, or from the hub of Hugging Face: "user/name".

        What the local cache holds is read without asking the network, and what is not there is fetched into it.

        Args:
            name: a folder, or a repository of the hub; a folder is taken first.
            net, sde, weights, autoencoder: as for ``load``.
            revision: a branch, a tag or a commit of the repository.
            update: ask the hub for a newer one first.

        Raises:
            CheckpointError: nothing there, or what ``load`` raises. ConfigError: huggingface_hub is missing.
        """
        from scoresde.models import hub

        return ScoreModel.load(
            hub.fetch(name, revision, update=update), net, sde, weights=weights, autoencoder=autoencoder
        )

    def push_to_hub(
        self,
        name: str,
        *,
        ema: Mapping[str, Tensor] | None = None,
        private: bool = False,
        message: str = "A model of scoresde",
    ) -> str:
        """Upload what ``save`` writes to a repository of the hub of Hugging Face, and return its address.

        A README beside it says what the model is. The repository is made where there is none, and a model that it holds
        is replaced.

        Args:
            name: "user/name".
            ema: as for ``save``.
            private: of a repository that is made.
            message: of the commit.

        Raises:
            ConfigError: what ``save`` raises, or huggingface_hub is missing. CheckpointError: no access.
        """
        from scoresde.models import hub

        return hub.push(self, name, ema=ema, private=private, message=message)

    def __repr__(self) -> str:
        parts = [describe_network(self.net), repr(self.sde), f"predicts={self.parameterization.name!r}"]
        parts += [] if self.sde is self.trained_sde else [f"trained under {self.trained_sde!r}"]
        parts += ['variance="learned"'] if self.variance == "learned" else []
        return f"{type(self).__name__}({', '.join([*parts, *describe_data(self.moments, self.transform)])})"

    def readout(self, point: Point) -> Readout:
        """Return the scalars of a call at ``point``, which may lie on any SDE, not only the model's own."""
        how = self.parameterization
        # Where no time is needed, the point itself serves as that of the training.
        home = point if how.scale_free and self.condition_on == "log_snr" else self.trained_sde.match(point)
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
        version = count_writes(x)
        if version is None and not torch.compiler.is_compiling():
            # Nobody counts what is written to an inference tensor: the network works on a copy of its own.
            x = x.clone()
        answer: object = self.net(x, c_noise) if cond is None else self.net(x, c_noise, **cond)
        # Networks of other libraries put their answer into a record.
        answer = answer if isinstance(answer, Tensor) else getattr(answer, "sample", answer)
        out = check_output(answer, x, "the network")
        if out.shape != ((len(x), 2 * x.shape[1], *x.shape[2:]) if learned else x.shape):
            raise self._describe_shape(x, out)
        if version is not None and count_writes(x) != version:
            raise SolverError("the network changed its input in place; clone x inside the network first")
        if not learned:
            return out, None
        out, u = out.chunk(2, dim=1)
        return out, 0.5 * (u.to(torch.promote_types(u.dtype, torch.float32)) + 1)

    def _describe_shape(self, x: Tensor, out: Tensor) -> ShapeError:
        twice = (len(x), 2 * x.shape[1], *x.shape[2:]) if x.ndim > 1 else None
        if self.variance == "learned":
            cure = (
                'twice x\'s channels for variance="learned"; nn.UNet and nn.MLP take out_channels=, nn.EGNN '
                "learned_variance=True"
            )
            return ShapeError(f"the network must return shape {twice}, {cure}; got {tuple(out.shape)}")
        cure = '; pass variance="learned" if half of the channels are for it' if out.shape == twice else ""
        return ShapeError(f"the network must return x's shape {tuple(x.shape)}, got {tuple(out.shape)}{cure}")

    def null_condition(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the network takes for no conditions; ConfigError where it does not say."""
        inner: object = bare_network(self.net)
        return inner.null_conditions(cond) if isinstance(inner, Conditional) else super().null_condition(cond)

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
        super().__init__(model.readout(point), x, learned=model.variance == "learned")
        check_conditions(model.net, cond, x)
        self.model, self.cond = model, cond
        self.c_in = self._factors(self.readout.c_in)
        c_noise = model.c_noise_for(self.readout.c_noise.expand(point.t.shape), x)
        self.c_noise = (c_noise[:, None].expand(-1, len(x)) if c_noise.ndim == 1 else c_noise).unbind(0)
        self.cast = model.dtype if model.dtype not in (None, x.dtype) else None

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return F at point i, and v where the variance is learned."""
        return self.model.outputs(self._scale(i, x), self.c_noise[i], self.cond)

    def energies(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energies (B,) and the scores (B, *) at point i, from one evaluation."""
        net = self.model.net
        if not isinstance(net, Energetic):
            return super().energies(i, x)
        with recording():
            point = x.detach().requires_grad_(True)
            energy = net.energy(self._scale(i, point), self.c_noise[i], self.cond)
            (gradient,) = torch.autograd.grad(energy.sum(), point)
        return energy.detach().to(x), -gradient

    def _scale(self, i: int, x: Tensor) -> Tensor:
        c_in = self.c_in[i]
        if c_in is not None:
            x = x * c_in
        return x if self.cast is None else x.to(self.cast)
