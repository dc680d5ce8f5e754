r"""Weights of the denoising loss, each a function w(t) of the data prediction's squared error.

The same loss reads w |x0_hat - x_0|^2 = w / SNR |noise error|^2 with SNR = (alpha/sigma)^2, and for
v = (alpha z - sigma x_0)/r it reads w / (1 + SNR) |v error|^2. With lambda = log SNR, -d lambda/dt = (g/sigma)^2.

| weight | w | on the noise's error | source |
|---|---|---|---|
| simple | SNR | 1 | Ho et al. 2020, arXiv:2006.11239 |
| bounded | 1 + min(alpha/sigma, 30) | w/SNR | the data's error, more where they are seen well |
| v | SNR + 1 | 1 + 1/SNR | Salimans and Ho 2022, arXiv:2202.00512 |
| velocity | alpha^2 (d lambda/dt)^2 / 4 | (sigma d lambda/dt)^2 / 4 | Lipman et al. 2023, arXiv:2210.02747 |
| likelihood | g^2 alpha^2 / (2 sigma^4) | (-d lambda/dt)/2 | Song, Durkan et al. 2021, arXiv:2101.09258 |
| min_snr | min(SNR, gamma) | min(1, gamma/SNR) | Hang et al. 2023 |
| edm | SNR + 1/sigma_data^2 | 1 + 1/(SNR sigma_data^2) | Karras et al. 2022 |
| sigmoid | likelihood times s(bias - lambda) | s(bias - lambda) (-d lambda/dt)/2 | Kingma and Gao 2023 |
| p2 | SNR/(k + SNR)^gamma | 1/(k + SNR)^gamma | Choi et al. 2022 |

"simple", "v", "velocity" and "edm" are the error of one prediction's own output each: for the target F = p x_0 + q z
(``diffusions.targets``) |x0_hat - x_0| = |sigma/Delta| |F error| with Delta = alpha q - sigma p, so that
w = (Delta/sigma)^2 counts the error of F the same at every time.

s is the logistic function. "likelihood" and "sigmoid" carry -d lambda/dt, so that with t uniform they are integrals
over lambda and mean the same under every SDE; the others are weights of the law of t that they are used with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from scoresde.diffusions.point import Point
from scoresde.diffusions.sde import GaussianSDE
from scoresde.diffusions.targets import target
from scoresde.errors.values import check_number

__all__ = ["WEIGHTS", "Weight", "WeightName", "carries_rate", "edm", "min_snr", "p2", "sigmoid"]

Weight = Callable[[Point, GaussianSDE], Tensor]
WeightName = Literal["simple", "bounded", "v", "velocity", "likelihood", "min_snr", "edm", "sigmoid", "p2"]


def _snr(point: Point) -> Tensor:
    return (point.alpha / point.sigma).square()


# A factory below binds its numbers to one of these: unlike a function made inside it, that can be pickled.


def _weigh_own(point: Point, sde: GaussianSDE, *, kind: str) -> Tensor:
    p, q = target(kind, point)
    return ((point.alpha * q - point.sigma * p) / point.sigma).square()


def _weigh_bounded(point: Point, sde: GaussianSDE) -> Tensor:
    return 1 + (point.alpha / point.sigma).clamp_max(30.0)


def _weigh_likelihood(point: Point, sde: GaussianSDE) -> Tensor:
    # g^2 alpha = 2 sigma (sigma' alpha - sigma alpha'), finite also where alpha = 0 and g is not.
    alpha_rate, sigma_rate = sde.alpha_rate(point.t), sde.sigma_rate(point.t)
    return point.alpha * (sigma_rate * point.alpha - point.sigma * alpha_rate) / point.sigma**3


def _weigh_min_snr(point: Point, sde: GaussianSDE, *, gamma: float) -> Tensor:
    return _snr(point).clamp_max(gamma)


def _weigh_edm(point: Point, sde: GaussianSDE, *, sigma_data: float) -> Tensor:
    return _snr(point) + sigma_data**-2


def _weigh_sigmoid(point: Point, sde: GaussianSDE, *, bias: float) -> Tensor:
    return _weigh_likelihood(point, sde) * torch.sigmoid(bias - point.log_snr)


def _weigh_p2(point: Point, sde: GaussianSDE, *, k: float, gamma: float) -> Tensor:
    return _snr(point) / (k + _snr(point)) ** gamma


def carries_rate(weight: Weight) -> bool:
    """Return whether a weight has the factor -d lambda/dt, which is the density of lambda for t uniform."""
    function = weight.func if isinstance(weight, partial) else weight
    return function in (_weigh_likelihood, _weigh_sigmoid)


def min_snr(gamma: float = 5.0) -> Weight:
    """Return w = min(SNR, gamma), gamma > 0: steps with little noise no longer rule the loss.

    Source: Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", arXiv:2303.09556.
    """
    gamma = check_number(gamma, "gamma", 0.0, open_low=True)
    return partial(_weigh_min_snr, gamma=gamma)


def edm(sigma_data: float = 0.5) -> Weight:
    """Return w = (nu^2 + sigma_data^2)/(nu sigma_data)^2 = SNR + 1/sigma_data^2, with nu = sigma/alpha.

    It makes the "edm" prediction's own error count the same at every noise level.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", arXiv:2206.00364,
    table 1.
    """
    sigma_data = check_number(sigma_data, "sigma_data", 0.0, open_low=True)
    return partial(_weigh_edm, sigma_data=sigma_data)


def sigmoid(bias: float = 2.0) -> Weight:
    """Return the likelihood weight times s(bias - lambda), lambda = log SNR: an integral of bounds over noise levels.

    Source: Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation",
    arXiv:2303.00848.
    """
    bias = check_number(bias, "bias")
    return partial(_weigh_sigmoid, bias=bias)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """Return w = SNR/(k + SNR)^gamma, k > 0, gamma >= 0: less weight where the noise is small; gamma = 0 is "simple".

    Source: Choi et al. 2022, "Perception prioritized training of diffusion models", arXiv:2204.00227.
    """
    k = check_number(k, "k", 0.0, open_low=True)
    gamma = check_number(gamma, "gamma", 0.0)
    return partial(_weigh_p2, k=k, gamma=gamma)


WEIGHTS: dict[str, Weight] = {
    "simple": partial(_weigh_own, kind="noise"),
    "bounded": _weigh_bounded,
    "v": partial(_weigh_own, kind="v"),
    "velocity": partial(_weigh_own, kind="velocity"),
    "likelihood": _weigh_likelihood,
    "min_snr": min_snr(),
    "edm": edm(),
    "sigmoid": sigmoid(),
    "p2": p2(),
}
