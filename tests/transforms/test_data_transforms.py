"""Transforms: their inverses, their log-determinants against autograd, their laws, JSON, and what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import gaussian
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from scoresde import VPSDE, sample
from scoresde.errors import ConfigError, DomainError, DTypeError, ScoreSDEError, ShapeError
from scoresde.noise import integers, stream
from scoresde.transforms import (
    TRANSFORMS,
    Affine,
    Compose,
    Cosine,
    Dequantise,
    Haar,
    Logit,
    RelativePlaces,
    Transform,
    ZeroVelocity,
    pixels,
    transform_from_dict,
)

LATTICE = Dequantise(5, 0.0, 2.0)
PIXELS = Compose((LATTICE, Logit(1e-3, *LATTICE.range), Affine((0.5, -1.0), (2.0, 0.25))))
EVERY: list[Transform] = [
    Affine(0.3, 4.0),
    Affine((1.0, -2.0), (0.5, 3.0)),
    Affine.from_range(-1.0, 7.0),
    Logit(0.05, -1.0, 3.0),
    Logit(0.0, -0.5, 2.5),
    LATTICE,
    Compose(()),
    Compose((Affine((0.1, 0.2)), Logit(1e-6, -3.0, 3.0), Affine(0.0, 2.0))),
    PIXELS,
    Compose((PIXELS, Affine(1.0, 0.5))),
    Cosine(),
    Haar(1),
]


def lattice_points(n: int, *, dtype: torch.dtype = torch.float64, key: str = "points") -> Tensor:
    """Data (n, 2, 2) on LATTICE."""
    return (integers(5, (n, 2, 2), stream(3, key)) * LATTICE.width).to(dtype)


def draw() -> Generator:
    return stream(8, "dequantise")


# --- what all share


@pytest.mark.parametrize("transform", EVERY, ids=str)
def test_the_log_determinant_is_that_of_autograds_jacobian(transform: Transform) -> None:
    x = lattice_points(3)
    values = transform.log_abs_det(x, draw())
    assert values.shape == (3,)
    # One sample after the other from the same stream would draw other noise: the whole batch is differentiated.
    jacobian = torch.autograd.functional.jacobian(lambda z: transform.forward(z, draw()), x)
    whole = jacobian.reshape(12, 12)
    assert torch.equal(whole, torch.block_diag(*(whole[k : k + 4, k : k + 4] for k in (0, 4, 8))))
    expected = [float(torch.linalg.slogdet(whole[k : k + 4, k : k + 4]).logabsdet) for k in (0, 4, 8)]
    assert values.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("transform", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_inverse_undoes_and_leaves_the_arguments_alone(transform: Transform, dtype: torch.dtype) -> None:
    x = lattice_points(50, dtype=dtype).requires_grad_(True)
    before = x.detach().clone()
    y = transform.forward(x, draw())
    kept = y.detach().clone()
    back = transform.inverse(y)
    assert y.dtype == back.dtype == dtype
    assert torch.allclose(back, before, rtol=0.0, atol=1e-12 if dtype == torch.float64 else 4e-6)
    assert torch.equal(x.detach(), before)
    assert torch.equal(y.detach(), kept)
    assert x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("transform", EVERY, ids=str)
def test_the_same_stream_gives_the_same_bits_and_no_samples_give_none(transform: Transform) -> None:
    x = lattice_points(20, dtype=torch.float32)
    assert torch.equal(transform.forward(x, draw()), transform.forward(x.expand(20, 2, 2), draw()))
    swapped = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(transform.forward(x, draw()), transform.forward(swapped, draw()))
    assert transform.forward(x[:0], draw()).shape == (0, 2, 2)
    assert transform.log_abs_det(x[:0], draw()).shape == (0,)


@pytest.mark.parametrize("transform", EVERY, ids=str)
def test_json_brings_back_an_equal_transform(transform: Transform) -> None:
    text = json.dumps(transform.to_dict(), allow_nan=False)
    assert transform_from_dict(json.loads(text)) == transform
    assert TRANSFORMS[type(transform).__name__].from_dict(json.loads(text)) == transform


@pytest.mark.parametrize("transform", EVERY, ids=str)
def test_samples_come_back_in_the_datas_units(transform: Transform) -> None:
    model = gaussian(VPSDE())
    plain = sample(model, (40, 2, 2), solver="ddim", steps=5, seed=1)
    model.transform = transform  # type: ignore[assignment]
    assert isinstance(plain, Tensor)
    assert torch.equal(sample(model, (40, 2, 2), solver="ddim", steps=5, seed=1), transform.inverse(plain))


def test_every_transform_keeps_the_protocol() -> None:
    # What makes a state of data, or of clouds, keeps no shape; tests/transforms/test_relative.py has the clouds.
    assert {type(transform) for transform in EVERY} == set(TRANSFORMS.values()) - {ZeroVelocity, RelativePlaces}
    assert isinstance(RelativePlaces(), Transform)
    assert all(isinstance(transform, Transform) for transform in EVERY)


# --- each alone


def test_affine_takes_one_argument_and_is_what_it_says() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    assert Affine((1.0, 2.0), (2.0, 4.0)).forward(x).tolist() == [[0.0, 0.0], [1.0, 0.5]]
    assert Affine((1.0, 2.0), (2.0, 4.0)).log_abs_det(x).tolist() == pytest.approx([-math.log(8.0)] * 2, rel=1e-15)
    # events without coordinates of their own, and with three dimensions
    assert Affine(0.0, 3.0).log_abs_det(x[:, 0]).tolist() == pytest.approx([-math.log(3.0)] * 2, rel=1e-15)
    big = Affine((0.0, 0.0), (2.0, 8.0)).log_abs_det(torch.zeros(1, 2, 3, 4))
    assert big.tolist() == pytest.approx([-12 * math.log(16.0)], rel=1e-15)


@given(low=st.floats(-1e6, 1e6), size=st.floats(1e-3, 1e6))
def test_from_range_maps_the_ends_to_plus_and_minus_one(low: float, size: float) -> None:
    ends = torch.tensor([low, low + size], dtype=torch.float64)
    mapped = Affine.from_range(low, low + size).forward(ends)
    assert mapped.tolist() == pytest.approx([-1.0, 1.0], abs=2e-15 * max(1.0, abs(low) / size))


def test_standardised_data_have_mean_zero_and_variance_one() -> None:
    x = lattice_points(64) * torch.tensor([[3.0], [0.5]], dtype=torch.float64) + 7.0
    y = Affine.standardise(x).forward(x).transpose(0, 1).reshape(2, -1)
    assert y.mean(1).tolist() == pytest.approx([0.0, 0.0], abs=1e-13)
    assert y.std(1).tolist() == pytest.approx([1.0, 1.0], rel=1e-13)


def test_the_logit_of_uniform_data_is_logistic() -> None:
    x = (torch.arange(1, 200, dtype=torch.float64) / 200)[:, None]
    transform = Logit(0.0)
    y = transform.forward(x)
    # uniform data have log density 0: the logistic law's and the log-determinant cancel
    total = torch.as_tensor(scipy.stats.logistic.logpdf(y[:, 0].numpy())) + transform.log_abs_det(x)
    assert float(total.abs().max()) < 1e-13
    assert torch.allclose(y, torch.logit(x), rtol=1e-12)


def test_the_logit_is_as_precise_at_one_end_as_at_the_other() -> None:
    small = torch.tensor([[1e-7]], dtype=torch.float64)
    transform = Logit(0.0, -1.0, 0.0)
    # near the upper end 0, 1 - u = -x is exact
    assert float(transform.forward(-small)) == pytest.approx(-math.log(1e-7) + math.log1p(-1e-7), rel=1e-15)
    assert float(Logit(0.0, -1.0, 0.0).forward(-small.float())) == pytest.approx(-math.log(1e-7), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logit_ends_are_finite_and_samples_stay_in_the_range(dtype: torch.dtype) -> None:
    transform = Logit(1e-6, -2.0, 5.0)
    ends = torch.tensor([[-2.0, 5.0]], dtype=dtype)
    y = transform.forward(ends)
    assert y.dtype == dtype
    assert y[0].tolist() == pytest.approx([-math.log(1e6 - 1), math.log(1e6 - 1)], rel=4 * torch.finfo(dtype).eps)
    wild = torch.tensor([[-100.0, 100.0]], dtype=dtype)
    assert transform.inverse(wild).tolist() == [[-2.0, 5.0]]


@pytest.mark.parametrize("draw_of", [0.0, 2.0**-24, 0.5, 1.0 - 2.0**-24], ids=["0", "tiny", "half", "almost 1"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "lattice",
    [Dequantise(2), Dequantise(17), Dequantise(256), Dequantise(256, 0.0, 255.0), Dequantise(3001, 0.1, 300.1)],
)
def test_every_draw_comes_back_to_its_level(
    monkeypatch: pytest.MonkeyPatch, lattice: Dequantise, dtype: torch.dtype, draw_of: float
) -> None:
    def fixed(shape: torch.Size, generator: Generator) -> Tensor:
        return torch.full(shape, draw_of)

    monkeypatch.setattr(pixels, "uniform", fixed)
    x = torch.linspace(lattice.low, lattice.high, lattice.levels, dtype=torch.float64).to(dtype)[:, None]
    y = lattice.forward(x, draw())
    assert torch.equal(lattice.inverse(y), lattice.inverse(x))
    assert torch.allclose(lattice.inverse(y), x, rtol=1e-6, atol=1e-6)
    low, high = lattice.range
    assert low < float(y.min())
    assert float(y.max()) < high
    # and is at the place in the bin that was drawn, to rounding
    place = (y.double() - x.double()) / lattice.width + 0.5
    assert float((place - draw_of).abs().max()) < 40 * torch.finfo(dtype).eps * lattice.high / lattice.width
    assert torch.isfinite(Logit(0.0, low, high).forward(y)).all()


def test_dequantised_noise_is_uniform_in_the_bin_and_independent_of_the_level() -> None:
    def p_value(stage: int, size: int) -> float:
        x = integers(5, (size,), stream(stage, "levels")) * 0.5
        place = (LATTICE.forward(x, stream(stage, "noise")) - x).double().numpy() / LATTICE.width
        groups = [place[x.numpy() == level] for level in np.unique(x.numpy())]
        law = scipy.stats.kstest(place, "uniform", args=(-0.5, 1.0)).pvalue
        return float(min(law, scipy.stats.kruskal(*groups).pvalue) * 2)

    assert p_value(0, 10_000) > 1e-3 or p_value(1, 80_000) > 1e-5


def test_the_nearest_level_and_the_ends_of_the_lattice() -> None:
    y = torch.tensor([-9.0, 0.24, 0.26, 1.74, 1.76, 9.0])
    assert LATTICE.inverse(y).tolist() == [0.0, 0.0, 0.5, 1.5, 2.0, 2.0]
    assert LATTICE.width == 0.5
    assert LATTICE.range == (-0.25, 2.25)
    assert math.isnan(float(LATTICE.inverse(torch.tensor([math.nan]))))


def test_the_density_of_dequantised_data_bounds_the_probability_of_a_bin() -> None:
    # E_U log p(x + width (U - 1/2)) + log width <= log P(x), for a normal density by quadrature
    places = torch.linspace(-0.5, 0.5, 20_001, dtype=torch.float64) * LATTICE.width
    for level in (0.0, 0.5, 2.0):
        bound = scipy.stats.norm.logpdf(level + places.numpy()).mean() + math.log(LATTICE.width)
        ends = scipy.stats.norm.cdf([level - LATTICE.width / 2, level + LATTICE.width / 2])
        exact = math.log(ends[1] - ends[0])
        assert bound < exact
        assert exact - bound < LATTICE.width**2 * (1 + level**2) / 8


def test_compose_applies_in_order_and_inverts_backwards() -> None:
    first, second = Affine(1.0, 2.0), Affine(10.0, 5.0)
    x = torch.tensor([[3.0]], dtype=torch.float64)
    both = Compose((first, second))
    assert float(both.forward(x)) == ((3.0 - 1.0) / 2.0 - 10.0) / 5.0
    assert float(both.inverse(both.forward(x))) == 3.0
    assert float(both.log_abs_det(x)) == pytest.approx(-math.log(10.0), rel=1e-15)


def test_a_transform_of_your_own_can_be_composed() -> None:
    @dataclass(frozen=True)
    class Asinh:
        random: bool = False

        def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
            return x.asinh()

        def inverse(self, y: Tensor) -> Tensor:
            return y.sinh()

        def log_abs_det(self, x: Tensor, generator: Generator | None = None) -> Tensor:
            return -0.5 * torch.log1p(x**2).flatten(1).sum(1)

        def to_dict(self) -> dict[str, object]:
            return {"kind": "Asinh"}

    own = Compose((Affine(0.0, 2.0), Asinh()))
    x = lattice_points(4)
    assert torch.allclose(own.inverse(own.forward(x)), x)
    expected = [-0.5 * float(torch.log1p((one / 2) ** 2).sum()) - 4 * math.log(2) for one in x]
    assert own.log_abs_det(x).tolist() == pytest.approx(expected, rel=1e-13)
    with pytest.raises(
        ConfigError, match="unknown transform 'Asinh'; choices: Affine, Compose, Cosine, Dequantise, Haar, Logit"
    ):
        transform_from_dict(own.to_dict())


# --- what is refused


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: Affine(0.0, 0.0), DomainError, "scale must lie in"),
        (lambda: Affine(math.nan), DomainError, "shift must lie in"),
        (lambda: Affine("0"), DTypeError, "shift must be a number or a tuple of numbers, got '0'"),
        (lambda: Affine((0.0, True)), DTypeError, "shift must be a number or a tuple of numbers"),
        (lambda: Affine((0.0, 0.0), (1.0, 1.0, 1.0)), ShapeError, r"got \[2, 3\] numbers; give tuples of one length"),
        (lambda: Affine(()), ShapeError, "one number for each channel"),
        (lambda: Affine.from_range(1.0, 1.0), DomainError, "low must be below high, got low=1 and high=1"),
        (lambda: Affine.from_range(0.0, math.inf), DomainError, "high must lie in"),
        (lambda: Dequantise(1), DomainError, "levels must be at least 2, got 1"),
        (lambda: Dequantise(2.0), DTypeError, "levels must be an integer, got 2.0"),
        (lambda: Dequantise(4, 1.0, -1.0), DomainError, "low must be below high, got low=1 and high=-1"),
        (lambda: Logit(0.5), DomainError, r"epsilon must lie in \[0, 0.5\), got 0.5"),
        (lambda: Logit(-0.1), DomainError, r"epsilon must lie in \[0, 0.5\)"),
        (lambda: Logit(0.1, 2.0, 2.0), DomainError, "low must be below high"),
        (
            lambda: Compose([Affine()]),
            DTypeError,
            r"parts must be a tuple of transforms, got list; Compose\(\(a, b\)\)",
        ),
        (lambda: Compose((Affine(), "logit")), DTypeError, r"parts\[1\] must be a transform, got 'logit'"),
        (lambda: Compose((Affine,)), DTypeError, r"parts\[0\] must be a transform"),
    ],
)
def test_bad_options(build: object, kind: type[ScoreSDEError], message: str) -> None:
    assert callable(build)
    with pytest.raises(kind, match=message):
        build()


@pytest.mark.parametrize("transform", [t for t in EVERY if t != Compose(())], ids=str)
def test_integers_and_other_things_are_no_data(transform: Transform) -> None:
    with pytest.raises(DTypeError, match=r"data must have a real floating dtype, got torch.uint8; convert it"):
        transform.forward(torch.zeros(2, 2, dtype=torch.uint8), draw())
    with pytest.raises(DTypeError, match=r"data must be a torch.Tensor, got list"):
        transform.forward([0.0], draw())  # type: ignore[arg-type]


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"the transform serves 2 channels, got data of shape \(4, 3\)"):
        Affine((0.0, 1.0)).forward(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"the transform serves 2 channels, got data of shape \(4,\)"):
        Affine((0.0, 1.0)).log_abs_det(torch.zeros(4))


def test_noise_needs_a_generator() -> None:
    for transform in (LATTICE, PIXELS):
        with pytest.raises(ConfigError, match=r"Dequantise draws noise: pass generator=, e.g. scoresde.noise.stream"):
            transform.forward(lattice_points(2))


def test_data_off_the_lattice_or_outside_the_range_are_placed() -> None:
    x = lattice_points(3)
    x[1, 0, 1] = 0.7
    with pytest.raises(
        DomainError,
        match=r"on the 5 levels of Dequantise.*; 1 of 12 values do not, the first is 0.7 at index \(1, 0, 1\)",
    ):
        LATTICE.forward(x, draw())
    x[1, 0, 1], x[2, 0, 0] = 2.5, math.nan
    with pytest.raises(DomainError, match=r"2 of 12 values do not, the first is 2.5 at index \(1, 0, 1\)"):
        LATTICE.forward(x, draw())
    with pytest.raises(
        DomainError, match=r"data must lie in \[0, 2\], the range of Logit.*2 of 12.*the data's own range"
    ):
        Logit(0.1, 0.0, 2.0).forward(x)
    with pytest.raises(DomainError, match=r"data must lie in \(0, 1\)"):
        Logit(0.0).forward(torch.zeros(1, 1))


def test_a_type_that_is_too_coarse_for_the_bins() -> None:
    x = torch.linspace(-1, 1, 256).to(torch.bfloat16)
    with pytest.raises(DTypeError, match=r"data of torch.bfloat16 cannot tell places in a bin.*use x.float\(\)"):
        Dequantise(256).forward(x, draw())


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"kind": "Affin"}, ConfigError, "unknown transform 'Affin'; did you mean 'Affine'"),
        ({}, ConfigError, "unknown transform None"),
        ([], DTypeError, "a transform's description must be a dict, got list"),
        ({"kind": "Affine", "shift": 0.0}, ConfigError, "the description of Affine lacks 'scale'"),
        ({"kind": "Logit", "epsilom": 0.1}, ConfigError, "unknown option of Logit 'epsilom'; did you mean 'epsilon'"),
        ({"kind": "Affine", "shift": "a", "scale": 1.0}, DTypeError, "shift must be a number"),
        ({"kind": "Dequantise", "levels": None, "low": 0.0, "high": 1.0}, DTypeError, "levels must be an integer"),
        ({"kind": "Compose", "parts": 3}, DTypeError, "the parts of Compose must be a list of descriptions, got 3"),
        ({"kind": "Compose", "parts": [{"kind": "Logi"}]}, ConfigError, "unknown transform 'Logi'"),
    ],
)
def test_bad_descriptions(config: object, kind: type[ScoreSDEError], message: str) -> None:
    with pytest.raises(kind, match=message):
        transform_from_dict(config)  # type: ignore[arg-type]


def test_a_class_refuses_the_description_of_another() -> None:
    with pytest.raises(
        ConfigError, match="got the description of 'Logit' for Affine; read it with transform_from_dict"
    ):
        Affine.from_dict(Logit().to_dict())


def test_transforms_are_frozen_and_compare_by_value() -> None:
    assert replace(LATTICE, levels=9) == Dequantise(9, 0.0, 2.0)
    assert len({Logit(), Logit(1e-6), Logit(1e-5)}) == 2
    assert hash(PIXELS) == hash(transform_from_dict(PIXELS.to_dict()))


@pytest.mark.parametrize("transform", [Logit(1e-3, -9.0, 9.0), Compose((Affine(0.0, 2.0), Logit(1e-3, -9.0, 9.0)))])
def test_data_without_values_are_refused(transform: Logit | Compose) -> None:
    with pytest.raises(ConfigError, match="data is on the meta device, which holds no values"):
        transform.forward(torch.zeros(3, 2, device="meta"))
