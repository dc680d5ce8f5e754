r"""SMLD: a chain that only adds noise, to n levels.

    q(x_i | x_0) = N(x_0, sigma_i^2),     q(x_i | x_{i-1}) = N(x_{i-1}, sigma_i^2 - sigma_{i-1}^2),     sigma_{-1} = 0.

The levels increase with the index (the papers on NCSN count them the other way). Index i sits at the time (i + 1)/n, as
in every chain of the package, so that clean data keep the time 0 for themselves. The first transition, from the data to
sigma_0, is part of the chain and of no variance-exploding SDE, whose sigma(0) is above 0.

Song et al. 2021 (appendix B) count the times i/(n - 1) instead and let the first level sit at t = 0. Both are the same
curve: geometric levels sigma_min r^{i/(n - 1)}, r = sigma_max/sigma_min, are VESDE(sigma_min, sigma_max) at i/(n - 1)
and VESDE(sigma_min r^{-1/(n - 1)}, sigma_max) at (i + 1)/n. A model is asked at its log-SNR, so the label does not
matter to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.chains.base import Chain, rule_times
from scoresde.diffusions.sde import GaussianSDE
from scoresde.errors.kinds import ConfigError, DomainError, ShapeError
from scoresde.errors.tensors import check_numbers
from scoresde.errors.values import check_integer, check_number

__all__ = ["SMLD"]


@dataclass(frozen=True, eq=False, repr=False)
class SMLD(Chain):
    """Score matching with Langevin dynamics: noise levels as a chain.

    Source: Song and Ermon 2019, "Generative modeling by estimating gradients of the data distribution"; the chain's
    transitions are Song et al. 2021, appendix B and F.

    Args:
        sigmas: noise levels, (n,), positive, finite and increasing with the index; the unit of the data.

    Raises:
        ShapeError: no vector. DomainError: levels that are not positive, finite and increasing.
    """

    sigmas: Tensor

    def __post_init__(self) -> None:
        sigmas = check_numbers(self.sigmas, "sigmas")
        if sigmas.ndim != 1 or len(sigmas) == 0:
            raise ShapeError(f"sigmas must be a vector with one number for each index, got {tuple(sigmas.shape)}")
        bad = ~(torch.isfinite(sigmas) & (sigmas > 0))
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise DomainError(
                f"every sigma must lie in (0, inf); at index {first} it is {float(sigmas[first]):g}: clean data are no "
                "level of the chain, leave them out"
            )
        if bool((sigmas.diff() <= 0).any()):
            if len(sigmas) > 1 and bool((sigmas.diff() < 0).all()):
                raise DomainError("sigmas must increase with the index; these decrease: use sigmas.flip(0)")
            first = int((sigmas.diff() <= 0).nonzero()[0]) + 1
            raise DomainError(
                f"sigmas must increase with the index; at index {first} it is {float(sigmas[first]):g} after "
                f"{float(sigmas[first - 1]):g}: sort them and drop repeats"
            )
        object.__setattr__(self, "sigmas", sigmas)
        self._check_times()

    @classmethod
    def geometric(cls, n: int = 1000, *, sigma_min: float = 0.01, sigma_max: float = 50.0) -> SMLD:
        """Build the chain of geometric levels sigma_min (sigma_max/sigma_min)^(i/(n - 1)); sigma_max alone for n = 1.

        Source: Song and Ermon 2020, "Improved techniques for training score-based generative models", technique 2.

        Raises:
            DTypeError, DomainError: n below 1, or not 0 < sigma_min < sigma_max.
        """
        n = check_integer(n, "n", 1)
        low = check_number(sigma_min, "sigma_min", 0.0, open_low=True)
        high = check_number(sigma_max, "sigma_max", low, open_low=True)
        share = (
            torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")
            if n > 1
            else torch.ones(1, dtype=torch.float64, device="cpu")
        )
        return cls(torch.pow(low, 1 - share) * torch.pow(high, share))

    @classmethod
    def from_sde(cls, sde: GaussianSDE, n: int, *, rule: str = "exact") -> SMLD:
        """Build the chain of an SDE that only adds noise.

        Args:
            sde: the SDE; alpha = 1.
            n: number of indices.
            rule: "exact": sigma_i = sigma(t_max (i + 1)/n), so that the chain's own times are the SDE's up to t_max;
                "song": sigma_i = sigma(t_max i/(n - 1)), which for VESDE are the geometric levels from sigma_min on.

        Raises:
            ConfigError: an SDE with another alpha, or an unknown rule. DomainError: a level of 0, as under "song" where
                sigma(0) = 0.
        """
        times = rule_times(sde, n, rule)
        if float((sde.alpha(times) - 1).abs().max()) > 1e-12:
            raise ConfigError(f"an SMLD chain has alpha = 1, {sde!r} has not; use VESDE or EDMSDE, or a DDPM chain")
        return cls(sde.sigma(times))

    def __len__(self) -> int:
        """Return the number of indices n."""
        return len(self.sigmas)

    def __repr__(self) -> str:
        """Name the length and the range of levels."""
        return f"SMLD({len(self)} levels, sigma {float(self.sigmas[0]):g} to {float(self.sigmas[-1]):g})"

    @property
    def curves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit alpha, sigma and log_snr = -2 log sigma at the knots, (n,) each."""
        return torch.ones_like(self.sigmas), self.sigmas, -2 * self.sigmas.log()

    @property
    def prior_std(self) -> float:
        """sigma_{n-1}."""
        return float(self.sigmas[-1])

    @property
    def knot_log_alpha(self) -> Tensor:
        """0 at every knot."""
        return torch.zeros_like(self.sigmas)

    def take(self, kept: Tensor) -> SMLD:
        """Return the chain of the kept levels."""
        return SMLD(self.sigmas[kept], knot_times=self.times[kept])
