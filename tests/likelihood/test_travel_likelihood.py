"""Bounds and densities of models in wrappers; what is printed of them."""

from __future__ import annotations

import pytest
import torch
from helpers import gaussian
from torch import nn

from scoresde import (
    DDPM,
    VPSDE,
    DTypeError,
    ScoreModel,
    continuous_elbo,
    forward_path,
    map_prediction,
    path_log_weight,
    variational_bound,
)
from scoresde.nn import MLP

CHAIN = DDPM.linear(30)
X = torch.linspace(-1.0, 1.0, 8).reshape(4, 2)


def model() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, depth=1), VPSDE())


def test_a_compiled_model_has_the_bounds_of_the_model() -> None:
    plain = model()
    for wrapped in (torch.compile(plain, backend="eager"), nn.DataParallel(plain)):
        one, two = (variational_bound(m, CHAIN, X, indices=3) for m in (plain, wrapped))
        torch.testing.assert_close(one.per_sample, two.per_sample)
        one, two = (continuous_elbo(m, VPSDE(), X, samples=2) for m in (plain, wrapped))
        torch.testing.assert_close(one.per_sample, two.per_sample)
        path = forward_path(CHAIN, X)
        torch.testing.assert_close(path_log_weight(plain, path, CHAIN), path_log_weight(wrapped, path, CHAIN))


def test_a_model_that_changes_another_has_no_bound() -> None:
    changed = map_prediction(model(), lambda prediction: prediction.data)
    for bound in (
        lambda: variational_bound(changed, CHAIN, X),
        lambda: continuous_elbo(changed, VPSDE(), X),
        lambda: path_log_weight(changed, forward_path(CHAIN, X), CHAIN),
    ):
        with pytest.raises(DTypeError, match="this needs the network itself, and MappedModel changes a model"):
            bound()


def test_a_bound_says_its_figures() -> None:
    bound = variational_bound(gaussian(), CHAIN, torch.linspace(-1, 1, 5, dtype=torch.float64))
    text = repr(bound)
    assert f"total {bound.total:.6g} +- {bound.standard_error:.2g} nats" in text
    assert f"bits per dim {bound.bits_per_dim:.4g}" in text
    assert f"<th>prior</th><td>{bound.prior:.4g}</td>" in bound._repr_html_()
    empty = variational_bound(gaussian(), CHAIN, torch.zeros(0, dtype=torch.float64))
    assert repr(empty) == "<Bound of no samples>"
