"""Named multistep methods, diffusions and a mixture, for the tests of multistep methods."""

from __future__ import annotations

import torch
from helpers import SDES

from scoresde import (
    EDMSDE,
    VPSDE,
    CosineVPSDE,
    GaussianMixtureModel,
    GaussianSDE,
    RectifiedFlow,
    solvers,
)

BUILT = solvers.multistep
NAMES = (
    *("deis", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "exponential_ab", "flow_ab"),
    *("flow_abm", "ipndm", "lms", "sa_solver", "unipc"),
)
DIFFUSIONS: dict[str, GaussianSDE] = {
    **SDES,
    "edm": EDMSDE(),
    "cosine": CosineVPSDE(),
    "rectified": RectifiedFlow(),
    "rectified, late start": RectifiedFlow(t_max=0.99),
}
MIXTURE = GaussianMixtureModel(
    sde=VPSDE(), weights=torch.tensor([0.3, 0.7]), means=torch.tensor([[-1.0, 0.2], [1.0, 0.5]]), std=0.4
)
