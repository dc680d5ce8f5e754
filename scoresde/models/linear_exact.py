r"""The exact model of Gaussian and mixture data under a linear SDE: the ground truth of its tables and bounds.

For a mixture with weights w_k, means m_k and covariances C_k, x = M x_0 + L z has components N(M m_k, V_k) with
V_k = M C_k M^T + Sigma, and with their responsibilities r_k at x

    E[x_0 | x] = sum_k r_k [m_k + C_k M^T V_k^{-1} (x - M m_k)],

in full matrices and in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Never

import torch
from torch import Tensor, nn

from scoresde.diffusions.gaussian import Moments
from scoresde.diffusions.linear import LinearSDE
from scoresde.diffusions.matrix import MatrixSDE
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError
from scoresde.errors.tensors import check_floating, check_numbers, check_samples
from scoresde.models.exact import vectors
from scoresde.models.linear_model import LinearModel
from scoresde.models.parameterization import literal_parameterization
from scoresde.noise import normal, uniform
from scoresde.ops import flat

__all__ = ["LinearMixtureModel"]

LARGEST = 256  # numbers of a state


class _MixtureNet(nn.Module):
    """The data prediction at (x, t)."""

    def __init__(self, sde: LinearSDE, weights: Tensor, means: Tensor, covariances: Tensor, event: torch.Size) -> None:
        super().__init__()
        self.sde, self.weights, self.means, self.covariances, self.event = sde, weights, means, covariances, event

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log(w_k N(x; M m_k, V_k)), (B, k), V_k^{-1} (x - M m_k), (B, k, D), and C_k M^T, (B, k, D, D)."""
        times, where = torch.unique(t.detach().to("cpu", torch.float64), return_inverse=True)
        point, blocks = self.sde.at(times), self.sde.blocks
        mean, noise = (blocks.dense(maps, self.event) for maps in (point.mean, point.covariance))
        across = self.covariances @ mean.mT[:, None]  # (times, k, D, D)
        lower = torch.linalg.cholesky(mean[:, None] @ across + noise[:, None])
        centres = (mean[:, None] @ self.means[..., None])[..., 0]
        across, lower, centres = (part[where].to(x.device) for part in (across, lower, centres))
        off = vectors(x, centres.shape[-1]).double()[:, None] - centres
        solved = torch.cholesky_solve(off[..., None], lower)[..., 0]
        log_det = torch.diagonal(lower, dim1=-2, dim2=-1).log().sum(-1)
        logits = self.weights.log().to(x.device) - 0.5 * (off * solved).sum(-1) - log_det
        return logits - 0.5 * off.shape[-1] * math.log(2 * math.pi), solved, across

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        logits, solved, across = self.parts(x, t)
        each = self.means.to(x.device) + (across @ solved[..., None])[..., 0]
        return (torch.softmax(logits, -1)[..., None] * each).sum(1).to(x.dtype).reshape(x.shape)


class LinearMixtureModel(LinearModel):
    """The exact model of a mixture of Gaussians under a linear SDE; one component is Gaussian data.

    Args:
        sde: a GroupedSDE or a MatrixSDE. Where it has parts that start as noise, the data are its first parts.
        weights: (k,), positive; they are normalised.
        means: (k, *event).
        covariances: (D, D) or (k, D, D) on flat events, positive semi-definite.

    Raises:
        DTypeError, ShapeError, DomainError: what is no tensor of finite numbers, shapes that do not fit, weights that
            are not positive, a covariance that is none.
    """

    def __init__(self, *, sde: LinearSDE, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.check_own_sde(sde)
        centres = check_samples(check_numbers(means, "means"), "means")
        share, spread = check_numbers(weights, "weights"), check_numbers(covariances, "covariances")
        count, size = len(centres), math.prod(centres.shape[1:])
        if count == 0 or centres.ndim < 2 or share.shape != (count,):
            raise ShapeError(
                f"means must be (k, *event) and weights (k,), got {tuple(centres.shape)} and {tuple(share.shape)}"
            )
        if spread.shape not in ((size, size), (count, size, size)):
            raise ShapeError(
                f"covariances must have shape ({size}, {size}) or ({count}, {size}, {size}), got {tuple(spread.shape)}"
            )
        if not bool((share > 0).all()) or not bool(torch.isfinite(share).all()):
            raise DomainError(f"weights must be positive and finite, got {share.tolist()}")
        spread, share = spread.expand(count, size, size), share / share.sum()
        for one in spread:
            Moments.exact(torch.zeros(size, dtype=torch.float64, device="cpu"), one)
        self.data_event = centres.shape[1:]
        event, flat_means = self.data_event, flat(centres)
        if isinstance(sde, MatrixSDE) and sde.hidden:
            event = torch.Size((2 * event[0], *event[1:]))
            zero = torch.zeros_like(flat_means)
            flat_means = torch.cat([flat_means, zero], 1)
            still = torch.zeros_like(spread)
            spread = torch.cat([torch.cat([spread, still], 2), torch.cat([still, still], 2)], 1)
        sde.blocks.check(event, "means")
        if math.prod(event) > LARGEST:
            raise ShapeError(f"the exact model has full matrices, of at most {LARGEST} numbers of a state, got {event}")
        mean = share @ flat_means
        off = flat_means - mean
        total = (off.T * share) @ off + (share[:, None, None] * spread).sum(0)
        net = _MixtureNet(sde, share, flat_means, spread, event)
        super().__init__(
            net,
            sde,
            predicts=literal_parameterization("data"),
            condition_on="time",
            moments=Moments.exact(mean.reshape(event), 0.5 * (total + total.T)),
            drop=False,
        )

    @property
    def _mixture(self) -> _MixtureNet:
        assert isinstance(self.net, _MixtureNet)
        return self.net

    def sample_data(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n clean states (n, *event), in float32; parts without data are 0."""
        net = self._mixture
        pick = torch.searchsorted(net.weights.cumsum(0).float(), uniform((n,), generator)).clamp_max(
            len(net.weights) - 1
        )
        values, vectors = torch.linalg.eigh(net.covariances)
        roots = vectors * values.clamp_min(0.0).sqrt()[:, None, :]
        z = normal((n, roots.shape[-1]), generator, dtype=torch.float64)
        x = net.means[pick] + (roots[pick] @ z[..., None])[..., 0]
        drawn: Tensor = x.float().reshape(n, *net.event)
        return drawn

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Return the log density of the state x_t in nats, (B,), in float64."""
        time = self.linear.check_time(t, check_floating(x))
        logits, _, _ = self._mixture.parts(x, time.expand(len(x)))
        total: Tensor = torch.logsumexp(logits, -1)
        return total

    def contents(self, ema: Mapping[str, Tensor] | None = None) -> Never:
        """Raise ConfigError: a formula has no weights that a checkpoint could hold."""
        raise ConfigError(f"{type(self).__name__} is a formula and has no weights to save; keep what it was made from")
