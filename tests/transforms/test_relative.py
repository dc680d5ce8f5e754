"""Clouds relative to their mean place: an isometry, and densities of the dimensions that there are."""

from __future__ import annotations

import json
import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from scoresde import (
    VPSDE,
    Affine,
    ConfigError,
    DomainError,
    GaussianModel,
    RelativePlaces,
    ShapeError,
    colour,
    continuous_elbo,
    decode,
    encode,
    log_likelihood,
)
from scoresde.noise import normal, stream
from scoresde.transforms import Compose, transform_from_dict

DOUBLE = torch.float64
POINTS = 4
CENTRE = torch.eye(POINTS, dtype=DOUBLE) - 1 / POINTS
# A graph of springs between points: the precision of places in each direction, whose null space is the mean place.
LAPLACE = torch.tensor([[3, -1, -1, -1], [-1, 1, 0, 0], [-1, 0, 1, 0], [-1, 0, 0, 1]], dtype=DOUBLE)


def clouds(shape: tuple[int, ...] = (3, POINTS, 5), dtype: torch.dtype = DOUBLE) -> Tensor:
    return normal(shape, stream(0, "clouds"), dtype=DOUBLE).to(dtype)


def springs() -> tuple[GaussianModel, Tensor]:
    """Return the exact model of clouds that springs hold together, and the covariance of one direction."""
    place = torch.linalg.pinv(LAPLACE)
    transform = RelativePlaces(2)
    # y of each unit vector of the places: the columns of the map.
    units = torch.eye(2 * POINTS, dtype=DOUBLE).reshape(-1, POINTS, 2)
    to_y = transform.forward(units).T
    covariance = to_y @ torch.kron(place, torch.eye(2, dtype=DOUBLE)) @ to_y.T
    model = GaussianModel(sde=VPSDE(), mean=torch.zeros(6, dtype=DOUBLE), covariance=covariance)
    model.transform = transform
    return model, place


def test_it_is_helmerts_isometry_of_the_places_and_leaves_features() -> None:
    x, transform = clouds(), RelativePlaces(3, 2)
    y = transform.forward(x)
    assert y.shape == (3, 3 * 3 + 2 * 4)
    for k in range(1, POINTS):
        row = (x[:, :k, :3].sum(1) - k * x[:, k, :3]) / (k * (k + 1)) ** 0.5
        torch.testing.assert_close(y[:, 3 * k - 3 : 3 * k], row, rtol=0, atol=1e-14)
    assert torch.equal(y[:, 9:], x[..., 3:].flatten(1))
    back = transform.inverse(y)
    torch.testing.assert_close(back[..., :3], x[..., :3] - x[..., :3].mean(1, keepdim=True), rtol=0, atol=1e-14)
    assert torch.equal(back[..., 3:], x[..., 3:])
    torch.testing.assert_close(transform.forward(back), y, rtol=0, atol=1e-14)
    # Inner products are kept, so log |det| is 0.
    torch.testing.assert_close(y[:, :9].square().sum(1), back[..., :3].square().sum((1, 2)), rtol=1e-14, atol=0)
    assert torch.equal(transform.log_abs_det(x), torch.zeros(3, dtype=DOUBLE))
    for dtype, room in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        small = transform.forward(x.to(dtype))
        assert small.dtype == dtype
        torch.testing.assert_close(small.double(), y, rtol=room, atol=room)
        assert transform.inverse(small).dtype == dtype


def test_points_that_are_none_add_nothing_to_a_centred_cloud() -> None:
    """Rows of 0 after the others: the first coordinates are those of the smaller cloud, the rest are 0."""
    x = clouds((3, 4, 3))
    x = x - x.mean(1, keepdim=True)
    y = RelativePlaces().forward(torch.cat([x, torch.zeros(3, 2, 3, dtype=DOUBLE)], 1))
    torch.testing.assert_close(y[:, :9], RelativePlaces().forward(x), rtol=0, atol=1e-14)
    assert float(y[:, 9:].abs().max()) < 1e-14


def test_the_density_is_the_singular_gaussians() -> None:
    """scipy takes the pseudo-determinant and the rank: the density on the subspace, of 2 (N - 1) dimensions."""
    model, place = springs()
    x = clouds((5, POINTS, 2))
    x = x - x.mean(1, keepdim=True)
    law = scipy.stats.multivariate_normal(torch.zeros(4), place.numpy(), allow_singular=True)
    assert law.cov_object.rank == POINTS - 1
    right = torch.tensor(law.logpdf(x.mT.numpy())).sum(1)
    values = log_likelihood(model, x, solver="heun", steps=60).values
    torch.testing.assert_close(values, right, rtol=0, atol=2e-2)
    # Where a cloud stands says nothing.
    found, moved = (log_likelihood(model, x + step, solver="heun", steps=4) for step in torch.tensor([[0.0], [-2.0]]))
    torch.testing.assert_close(moved.values, found.values, rtol=0, atol=1e-10)
    bound = continuous_elbo(model, VPSDE(), x, samples=4, seed=0)
    bare = continuous_elbo(model.in_its_own_coordinates(), VPSDE(), model.transform.forward(x), samples=4, seed=0)
    torch.testing.assert_close(bound.per_sample, bare.per_sample, rtol=0, atol=1e-10)
    assert bound.bits_per_dim == pytest.approx(bare.bits_per_dim, abs=1e-10)


def test_encoding_and_groups_know_the_events_of_both_sides() -> None:
    model, _ = springs()
    x = clouds((3, POINTS, 2))
    z = encode(model, x, solver="heun", steps=40)
    assert z.shape == (3, 6)
    back = decode(model, z, solver="heun", steps=40)
    torch.testing.assert_close(back, x - x.mean(1, keepdim=True), rtol=0, atol=5e-3)
    groups = colour(model, x, 2, intervals=2)
    assert groups.shape == (6,)
    assert log_likelihood(model, x, groups=groups, divergence="probes", solver="heun", steps=4).values.shape == (3,)
    for call in (encode, log_likelihood):
        with pytest.raises(ShapeError, match=r"event \(6,\) of the model's data"):
            call(model, clouds((3, POINTS + 1, 2)))
        with pytest.raises(ShapeError, match=r"takes clouds \(B, N, 2\) of one point or more, 2 coordinates and 0"):
            call(model, clouds((3, POINTS, 3)))


def test_it_is_read_back_and_goes_with_others() -> None:
    whole = Compose((RelativePlaces(3, 2), Affine(0.0, 2.0)))
    assert transform_from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    x = clouds()
    y = whole.forward(x)
    torch.testing.assert_close(2 * y, RelativePlaces(3, 2).forward(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(whole.log_abs_det(x), torch.full((3,), -17 * math.log(2.0), dtype=DOUBLE))


def test_what_is_no_cloud_is_refused() -> None:
    for bad in ({"coordinates": 0}, {"features": -1}):
        with pytest.raises(DomainError, match="must be at least"):
            RelativePlaces(**bad)
    with pytest.raises(ConfigError, match="unknown option of RelativePlaces"):
        transform_from_dict({"kind": "RelativePlaces", "coordinates": 3, "features": 0, "axes": 1})
    for shape in ((2, 4), (2, 0, 3), (2, 4, 4), (2, 1, 4, 3)):
        with pytest.raises(ShapeError, match=r"takes clouds \(B, N, 3\)|hold no number"):
            RelativePlaces().forward(torch.zeros(shape))
    for shape in ((2, 4), (2, 0), (2, 3, 3)):
        with pytest.raises(ShapeError, match=r"relative coordinates have shape \(B, 5 N - 3\) for N|hold no number"):
            RelativePlaces(3, 2).inverse(torch.zeros(shape))
