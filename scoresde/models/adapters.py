r"""Networks that were made for other libraries, as models: what they are told of the time, and what they answer.

| ``time=`` | the network is called as | diffusion | predicts |
|---|---|---|---|
| "index" | net(x_i, i), i = 0 ... n - 1 of a chain with ``betas`` | through its knots | noise (eps), data (x0), v |
| "time" | net(x_t, t), t in [0, 1] | ``VPSDE()`` | noise, data, v, score, velocity |
| "sigma" | net(x_0 + sigma z, sigma) | ``EDMSDE()`` | data (the denoiser D), noise, score |
| "edm" | net(c_in x, log(sigma)/4), the network F within EDM's preconditioning | ``EDMSDE()`` | edm |
| "flow_matching" | net(x, t), t = 0 noise and t = 1 data, answering data - noise | ``RectifiedFlow()`` | velocity |

Between the knots of a chain i is a real number, unless ``whole`` rounds it for networks that look i up in a table. A
record with a ``sample``, or a tuple, is taken for the first that it holds.

Source: Ho et al. 2020, arXiv:2006.11239; Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1; Lipman et al. 2023,
"Flow matching for generative modeling", arXiv:2210.02747.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from scoresde.diffusions.levels import EDMSDE, RectifiedFlow
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.tabulated import TabulatedSDE
from scoresde.diffusions.vp import VPSDE
from scoresde.errors.kinds import ConfigError, DomainError, DTypeError, ShapeError, show
from scoresde.errors.names import check_choice
from scoresde.errors.tensors import check_numbers
from scoresde.models.networks import Around, Conditional, bare_network, condition_names, describe_network
from scoresde.models.parameterization import Predicts
from scoresde.models.score_model import ScoreModel

__all__ = ["Adapted", "Index", "NetworkTime", "Scale", "Sigma", "adapt", "sde_of_betas"]

NetworkTime = Literal["index", "time", "sigma", "edm", "flow_matching"]
Network = Callable[..., Any]
NEAR = 1e-3  # of a knot: times come in float32


class Adapted(Around):
    """A network that is told t of a diffusion, and asks another in its own words.

    Args:
        net: the other.
        convert: t (B,) -> what it is told.
        sign: of its answer.
        names: of its conditions, where they are called otherwise here.
        nulls: what stands for no condition, by the names here.
    """

    def __init__(
        self,
        net: Network,
        convert: Callable[[Tensor], Tensor],
        *,
        sign: float = 1.0,
        names: Mapping[str, str] | None = None,
        nulls: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(net)
        self.convert, self.sign = convert, sign
        self.names, self.nulls = dict(names or {}), dict(nulls or {})

    @property
    def condition_names(self) -> frozenset[str] | None:
        """The conditions that the network takes, as they are called here; None for any."""
        known = condition_names(self.net)
        here = {there: name for name, there in self.names.items()}
        return None if known is None else frozenset(here.get(name, name) for name in known)

    def null_conditions(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what stands for no conditions; ConfigError where it is not known."""
        inner = bare_network(self.net)
        if isinstance(inner, Conditional):
            return inner.null_conditions(cond)
        for name in cond:
            if name not in self.nulls:
                raise ConfigError(
                    f"what {describe_network(self.net)} takes for no {name} is not known; pass negative= with the "
                    f'value that stands for none, e.g. negative={{"{name}": 1000}}'
                )
        return {name: torch.full_like(value, self.nulls[name]) for name, value in cond.items()}

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """Return the answer, a tensor."""
        told = {self.names.get(name, name): value for name, value in cond.items()}
        answer = self.net(x, self.convert(t), **told)
        if not isinstance(answer, Tensor):
            answer = answer[0] if isinstance(answer, tuple) else getattr(answer, "sample", answer)
        return answer if self.sign == 1.0 or not isinstance(answer, Tensor) else self.sign * answer


class Index:
    """t of a chain's SDE -> the index i = n t - 1, whole where it is near a knot, or everywhere."""

    def __init__(self, n: int, *, whole: bool) -> None:
        self.n, self.whole = n, whole

    def __call__(self, t: Tensor) -> Tensor:
        index = self.n * t - 1
        nearest = index.round().clamp(0, self.n - 1)
        if self.whole:
            return nearest.long()
        return torch.where((index - nearest).abs() < NEAR, nearest, index)


class Sigma:
    """t -> sigma(t) of an SDE, in the type of t and on its device."""

    def __init__(self, sde: GaussianSDE) -> None:
        self.sde = sde

    def __call__(self, t: Tensor) -> Tensor:
        return self.sde.at(t.detach().to("cpu", torch.float64)).sigma.to(t)


class Scale:
    """t -> n t."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, t: Tensor) -> Tensor:
        return self.n * t


def adapt(
    net: Network,
    *,
    time: NetworkTime,
    predicts: Predicts | None = None,
    betas: Tensor | None = None,
    sde: GaussianSDE | None = None,
    whole: bool = False,
) -> ScoreModel:
    """Return a network of another library as a model: ``adapt(unet, time="index", betas=betas)``.

    The module's docstring has what each kind of time means. The model trains, samples, and is carried to other
    diffusions as any other; a trained network's weights are kept as they are.

    Args:
        net: ``net(x, time, **cond)`` -> a tensor, a tuple, or a record with a ``sample``.
        time: what it is told.
        predicts: what it answers; by default what the table names first.
        betas: of the chain, (n,), where the time is an index; the last may be 1.
        sde: another diffusion than the table's, for "time" and "sigma"; for "sigma" one of alpha = 1.
        whole: round indices, for a network that looks them up.

    Raises:
        DTypeError: a net that cannot be called. ConfigError: an unknown time, betas or an SDE that do not go with it.
            ShapeError, DomainError: betas that are no vector in (0, 1).
    """
    if not callable(net):
        raise DTypeError(f"net must be a network, net(x, time) -> a tensor of x's shape, got {show(net)}")
    check_choice("time", time, get_args(NetworkTime))
    if (betas is not None) != (time == "index"):
        raise ConfigError(f"betas= go with time='index', got time={time!r} and {'no ' * (betas is None)}betas")
    if sde is not None and not isinstance(sde, GaussianSDE):
        raise DTypeError(f"sde must be a diffusion, e.g. VPSDE(), got {show(sde)}")
    if sde is not None and time not in ("time", "sigma"):
        raise ConfigError(f"time={time!r} is of a diffusion of its own; leave out sde=")
    if time == "index":
        assert betas is not None
        chain = sde_of_betas(betas)
        told = Adapted(net, Index(len(chain.knots), whole=whole))
        return ScoreModel(told, chain, predicts="noise" if predicts is None else predicts, condition_on="time")
    if time == "edm":
        return ScoreModel(
            Adapted(net, _quarter_log), EDMSDE(), predicts="edm" if predicts is None else predicts, condition_on="time"
        )
    if time == "flow_matching":
        if predicts not in (None, "velocity"):
            raise ConfigError(f"a network of flow matching answers the velocity data - noise, not {show(predicts)}")
        return ScoreModel.from_callable(Adapted(net, _reverse, sign=-1.0), RectifiedFlow(), predicts="velocity")
    home = sde if sde is not None else EDMSDE() if time == "sigma" else VPSDE()
    if predicts is not None:
        check_choice("prediction", predicts, get_args(Predicts))
    kind = predicts if predicts is not None else "data" if time == "sigma" else "noise"
    if kind == "edm":
        raise ConfigError(f"time={time!r} reads a network literally, which predicts='edm' is not; take time='edm'")
    if time == "time" or type(home) is EDMSDE:  # whose t is sigma
        return ScoreModel.from_callable(Adapted(net, _keep), home, predicts=kind)
    if float(home.at(home.t_max).alpha) != 1:
        raise ConfigError(
            f"time='sigma' is of networks that see x_0 + sigma z, and {home} scales x_0; leave out sde=, and sample "
            "under it with model.with_sde(sde)"
        )
    return ScoreModel.from_callable(Adapted(net, Sigma(home)), home, predicts=kind)


def _quarter_log(t: Tensor) -> Tensor:
    return t.log() / 4


def _reverse(t: Tensor) -> Tensor:
    return 1 - t


def _keep(t: Tensor) -> Tensor:
    return t


def sde_of_betas(betas: object) -> TabulatedSDE:
    """Return the SDE through the knots of a chain, t = (i + 1)/n."""
    values = check_numbers(betas, "betas")
    if values.ndim != 1 or len(values) < 2:
        raise ShapeError(f"betas must be a vector of at least two, got shape {tuple(values.shape)}")
    good = (values > 0) & (values < 1)
    good[-1] |= values[-1] == 1
    if not bool(good.all()):
        bad = int((~good).nonzero()[0])
        raise DomainError(
            f"betas must lie in (0, 1), the last one in (0, 1]; at index {bad} it is {float(values[bad]):g}"
        )
    logs = torch.log1p(-values).cumsum(0)
    n = len(values)
    return TabulatedSDE(
        torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / n, logs - (-torch.expm1(logs)).log()
    )
