r"""Posteriors as models: the data prediction of x_0 given x_t and a measurement y = A x_0 + N(0, s^2).

With D = E[x_0 | x_t], J = dD/dx_t and nu = sigma/alpha, Tweedie's formulas are E[x_0 | x_t] = (x_t + sigma^2
score)/alpha and Cov[x_0 | x_t] = (sigma^2/alpha) J. For the posterior they read

    D_y = D + (sigma^2/alpha) grad_x log p(y | x_t).

Taking x_0 given x_t for Gaussian with a covariance C, log p(y | x_t) = log N(y; A D, S), S = s^2 + A C A^T, and

    D_y = D + (sigma^2/alpha) J^T A^T S^{-1} (y - A D).

* "mmps": C = (sigma^2/alpha) J, and S^{-1} by conjugate gradients, a product with the network an iteration (Rozet et
  al. 2024, arXiv:2405.13712).
* "pigdm": C = (1/v + 1/nu^2)^{-1}, v one number or the data's covariance; v = 1 is sigma^2/(alpha^2 + sigma^2) (Song et
  al. 2023, "Pseudoinverse-guided diffusion models for inverse problems"). One product.
* "tmpd": S diagonal, from the row sums of A (sigma^2/alpha) J A^T (Boys et al. 2023, arXiv:2310.06721). Two products.
* "dps": S^{-1} replaced by zeta/|y - A D| (Chung et al. 2023, arXiv:2209.14687). One product.
* "diffpir": nu^2/lambda in the place of (sigma^2/alpha) J too, so that D_y is a proximal step from D (Zhu et al. 2023,
  arXiv:2305.08995). No product.
* "ddnm": A^+ (y - A D) is added, less where nu < s (Wang et al. 2022, arXiv:2212.00490). No product.
* "ddrm": the same direction by direction in the singular basis of A (Kawar et al. 2022, arXiv:2201.11793). No product.

Where nu^2 exceeds five times the data's variance, (sigma^2/alpha) J is taken from the data's moments, (Sigma^{-1} +
1/nu^2)^{-1}: there it is that to the order of Sigma/nu^2, and a network's J carries its error times 1/alpha. In
conjugate gradients a direction whose curvature is not above s^2 ends them, since A C A^T is no less than 0.

For Gaussian data "mmps" is exact, and so is "pigdm" with the data's covariance. A is taken at D where it is not linear:
its Jacobian stands for A in the products. A transform of the model's is inside A, so that y is in the data's own units.
The measurement is one for all samples, or each sample's own as the condition "measurement".

A posterior is a *model*: every table, the flow and likelihoods run on it. (A likelihood score that is added outside a
table breaks its order; as a data prediction it does not.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.errors.kinds import ConfigError, ShapeError
from scoresde.errors.names import unknown
from scoresde.errors.values import check_number, check_sizes
from scoresde.models.guidance.measured import Measured
from scoresde.models.guidance.methods import METHODS, Asked, Method, MethodName, covary_gaussian
from scoresde.models.guidance.operators import Operator, as_operator, check_measurement
from scoresde.models.mapped import ChangedModel, PreparedChange
from scoresde.models.prediction import Condition, Prediction, Predictor, Prepared
from scoresde.ops import expand, plain_attention, recording, working_dtype

__all__ = ["MEASUREMENT", "PosteriorModel", "posterior"]

MEASUREMENT = "measurement"  # the condition with a measurement of each sample's own
LOWEST = -16.0  # log-SNR below which a state is taken for one of this level: where alpha is 0, J says nothing of C
LARGEST = 1e100  # noise of a measurement; its square is a number too
BLIND = 5.0  # nu^2 over the data's variance above which their covariance stands for (sigma^2/alpha) J


def posterior(
    model: Predictor,
    operator: Operator | Tensor | Callable[[Tensor], Tensor],
    y: Tensor | None,
    *,
    noise_std: float,
    method: MethodName | Method = "mmps",
    event: tuple[int, ...] | None = None,
) -> PosteriorModel:
    """Return the model of x_0 given a measurement: ``sample(posterior(model, Mask(keep), y, noise_std=0.05), 64)``.

    Args:
        model: any model; of data whose moments it knows, unless ``event`` is given.
        operator: A; a bool tensor is a mask, a floating (m, D) a matrix, a function is taken for nonlinear.
        y: the measurement of all samples, in the data's units; None where each sample's own comes as
            ``cond={"measurement": y}``.
        noise_std: s, in the unit of y, at most 1e100; 0 for an exact measurement.
        method: a key of ``METHODS``, or one with options, e.g. ``MMPS(iterations=20)``.
        event: the shape of one sample; of its codes for a model with a ``Latent`` transform.

    Raises:
        DTypeError, ShapeError: no model, operator or tensor, or shapes that do not fit. DomainError: y that is not
            finite, a negative deviation. ConfigError: an unknown method, one that cannot use this operator (with those
            that can), an operator said to be linear that is not, a device other than the model's.
    """
    return PosteriorModel(model, as_operator(operator), y, noise_std, method, event)


class PosteriorModel(ChangedModel):
    """A model of x_0 given a measurement; see ``posterior``.

    Args:
        model: the prior.
        operator: A.
        y: the measurement, or None.
        noise_std: s.
        method: how D_y is made.
        event: the shape of one sample; None for that of the moments.
    """

    def __init__(
        self,
        model: Predictor,
        operator: Operator,
        y: Tensor | None,
        noise_std: float,
        method: str | Method,
        event: tuple[int, ...] | None,
    ) -> None:
        super().__init__(model, "data")
        if event is None and self.moments is None:
            raise ConfigError("the model knows no moments, so no event; pass event=, the shape of one sample")
        own = () if self.moments is None else tuple(self.moments.mean.shape)
        self.event = own if event is None else check_sizes(event, "event", 1)
        if isinstance(method, str) and method not in METHODS:
            raise unknown("posterior method", method, METHODS)
        self.method = METHODS[method] if isinstance(method, str) else method
        self.noise_std = check_number(noise_std, "noise_std", 0.0, LARGEST)
        self.measured = Measured(operator, self.transform, self.event, self.noise_std)
        # Of data, where a transform of codes gives them another shape.
        seen = self.event
        if self.transform is not None:
            seen = tuple(
                self.transform.inverse(torch.zeros(1, *self.event, dtype=torch.float32, device="cpu")).shape[1:]
            )
        linear = operator.linear and self.measured.is_linear()
        if operator.linear and not linear:
            if self.transform is None or Measured(operator, None, seen, 0.0).is_linear() is False:
                raise ConfigError(f"{type(operator).__name__} is not linear; pass the function as Nonlinear(function)")
            operator = _Composed(operator)
            self.measured = Measured(operator, self.transform, self.event, self.noise_std)
        if not linear and not self.method.nonlinear:
            able = [name for name, one in METHODS.items() if one.nonlinear]
            raise ConfigError(
                f"{type(self.method).__name__} needs a linear operator (and a linear transform); use one of "
                f"{', '.join(able)}"
            )
        self.y = None
        if y is not None:
            self.y = check_measurement(operator, y, seen).detach()
            self.check_device(y.device, "y")

    def find_home(self, point: Point) -> Point:
        """Return the points of the model's own SDE, none below ``LOWEST``."""
        home = super().find_home(point)
        if float(home.log_snr.detach().min()) >= LOWEST:
            return home
        return self.model.sde.at(self.model.sde.time(home.log_snr.clamp_min(LOWEST)))

    def prepare(self, point: Point, x: Tensor, cond: Condition = None) -> Prepared:
        """Prepare the model inside at these points of its own SDE; see ``Predictor.prepare``."""
        held = dict(cond or {})
        own = held.pop(MEASUREMENT, None)
        if own is None:
            if self.y is None:
                raise ConfigError('no measurement is given; pass y=, or cond={"measurement": y}')
            own = self.y[None].expand(len(x), *self.y.shape)
        return _PreparedPosterior(self, point, x, held or None, own)

    def __repr__(self) -> str:
        return (
            f"PosteriorModel({self.model!r}, {type(self.measured.operator).__name__}, noise_std={self.noise_std:g}, "
            f"{self.method!r}{self._describe_sde()})"
        )


class _Composed(Operator):
    """A linear operator behind a transform that is none."""

    linear = False

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(x)


class _PreparedPosterior(PreparedChange):
    def __init__(self, model: PosteriorModel, point: Point, x: Tensor, cond: Condition, y: Tensor) -> None:
        super().__init__(model, point, x, cond)
        self.posterior = model
        shape = point.t.shape
        columns = (1,) if len(shape) == 1 else shape[1:]
        self.nu2 = torch.exp(-self.home.log_snr).expand(shape).reshape(len(shape) and shape[0], *columns)
        self.alpha = self.home.alpha.expand(shape).reshape(self.nu2.shape)
        self.factor = (self.home.sigma.square() / self.home.alpha).expand(shape).reshape(self.nu2.shape)
        self.y = y.reshape(len(x), math.prod(y.shape[1:]))

    def outputs(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return D_y at point i, and the inner model's v where the variance is learned."""
        model, batch = self.posterior, len(x)
        keep = torch.is_grad_enabled()
        with recording(), plain_attention():
            state = self.state(i, x)
            state = state if keep and state.requires_grad else state.detach().requires_grad_(True)
            output, fraction = self.inner.outputs(i, state)
            data = Prediction(state, output, self.inner.reading(i)).data
        wide = (data if keep else data.detach()).to(working_dtype(x.device))
        nu2, alpha, factor = (c[i].to(wide).expand(batch) for c in (self.nu2, self.alpha, self.factor))

        # Where noise outweighs the data, (sigma^2/alpha) J is their covariance, and 1/alpha times a network's error.
        blind = torch.zeros(batch, dtype=torch.bool, device=wide.device)
        if model.moments is not None:
            blind = nu2 > BLIND * float(model.moments.variance.mean())

        some, every = bool(blind.any()), bool(blind.all())

        def covary(v: Tensor) -> Tensor:
            known = covary_gaussian(model.moments, nu2, v) if some and model.moments is not None else v
            if every:
                return known
            (back,) = torch.autograd.grad(data, state, v.to(data), retain_graph=True, create_graph=keep)
            tweedie = expand(factor, wide) * back.to(wide)
            return torch.where(expand(blind, wide).bool(), known, tweedie) if some else tweedie

        line = model.measured.at(wide, keep=keep)
        y = self.y.to(wide)
        if y.shape != line.value.shape:
            raise ShapeError(f"a measurement of {y.shape[1]} numbers does not fit the operator's {line.value.shape[1]}")
        asked = Asked(wide, y - line.value, line, nu2, alpha, model.noise_std**2, covary, model.moments)
        shifted = wide + model.method.shift(asked)
        return shifted.to(x), fraction if fraction is None or keep else fraction.detach()
