"""Bad chains, indices and options; half types; devices."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import (
    DDPM,
    VESDE,
    VPSDE,
    ConfigError,
    DomainError,
    DTypeError,
    ShapeError,
    SubVPSDE,
    TabulatedSDE,
)
from scoresde.noise import normal, stream

# ---------------------------------------------------------------------------------------------------------------------
# Faults

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (0.5, DTypeError, r"index of a chain must be an integer in \[0, 10\); a real time belongs to its \.sde\(\)"),
        (torch.tensor([0.0, 1.0, 2.0]), DTypeError, "index of a chain must be an integer"),
        (True, DTypeError, "index of a chain must be an integer"),
        (torch.zeros(3, 1, dtype=torch.long), ShapeError, r"index must have shape \(\) or \(3,\), got \(3, 1\)"),
        (torch.zeros(2, dtype=torch.long), ShapeError, r"index must have shape \(\) or \(3,\), got \(2,\)"),
        (10, DomainError, r"index must lie in \[0, 10\), got 10 to 10"),
        (torch.tensor([0, -1, 12]), DomainError, r"index must lie in \[0, 10\), got -1 to 12"),
    ],
)
def test_bad_indices(index: object, error: type[Exception], message: str) -> None:
    chain = DDPM.cosine(10)
    for call in (
        lambda: chain.perturb(X, index, X),
        lambda: chain.posterior(X, X, index),
        lambda: chain.transition(X, index),
        lambda: chain.marginal(X, index),
        lambda: chain.reverse(X, X, index, variance="large"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_betas_in_the_place_of_logarithms_name_from_betas() -> None:
    betas = torch.linspace(1e-4, 0.02, 10)
    with pytest.raises(DomainError, match=r"for betas use DDPM\.from_betas\(betas\)"):
        DDPM(betas)
    assert len(DDPM.from_betas(betas)) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 0.1], r"every beta must lie in \(0, 1\), the last one in \(0, 1\]; at index 0 it is 1: use more steps"),
        ([0.1, 1.5], "at index 1 it is 1.5"),
        ([0.0, 0.1], "at index 0 it is 0"),
        ([-0.1], "at index 0 it is -0.1"),
        ([0.5, math.nan], "at index 1 it is nan"),
    ],
)
def test_bad_betas(values: list[float], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        DDPM.from_betas(torch.tensor(values))


def test_bad_chains() -> None:
    with pytest.raises(DomainError, match=r"at index 19 it is 1: use more steps or rule='exact'"):
        DDPM.linear(20)
    with pytest.raises(DomainError, match=r"at index 5 it is 1\.11556"):
        DDPM.linear(10)
    with pytest.raises(DomainError, match="at index 19 it is 1: use more steps"):
        DDPM.from_sde(VPSDE(), 20, rule="song")
    for sde in (VESDE(), SubVPSDE(), TabulatedSDE(*torch.tensor([[0.1, 0.5], [3.0, -3.0], [0.0, -0.1]]))):
        with pytest.raises(ConfigError, match=r"a DDPM chain preserves variance, .* does not; use VPSDE or another"):
            DDPM.from_sde(sde, 10)
    with pytest.raises(ConfigError, match=r"unknown rule 'sonng'; did you mean 'song'\? choices: exact, song"):
        DDPM.from_sde(VPSDE(), 10, rule="sonng")
    with pytest.raises(DomainError, match="n must be at least 1, got 0"):
        DDPM.cosine(0)
    with pytest.raises(DTypeError, match=r"n must be an integer, got 10\.0 of type float"):
        DDPM.linear(10.0)
    with pytest.raises(DomainError, match=r"max_beta must lie in \(0, 1\), got 1"):
        DDPM.cosine(10, max_beta=1)
    with pytest.raises(ShapeError, match=r"log_alphas must be a vector .* got \(2, 2\)"):
        DDPM(torch.full((2, 2), -0.1))
    with pytest.raises(ShapeError, match=r"noise must have the shape \(3, 2\) of x0, got \(2,\)"):
        DDPM.cosine(10).perturb(X, 0, torch.zeros(2))
    with pytest.raises(ShapeError, match=r"x0 and x_i must agree, got shapes \(1, 2\) and \(3, 2\)"):
        DDPM.cosine(10).posterior(X[:1], X, 0)


def test_bad_sub_chains_and_variances() -> None:
    chain = DDPM.cosine(10)
    with pytest.raises(DomainError, match=r"steps must be in \[1, 10\], got 11"):
        chain.strided(11)
    with pytest.raises(DTypeError, match=r"steps must be an integer, got 2\.5"):
        chain.strided(2.5)
    with pytest.raises(ConfigError, match="unknown variance 'learnt'; did you mean 'learned'"):
        chain.reverse(X, X, 1, variance="learnt")
    with pytest.raises(ConfigError, match="fraction= belongs to variance='learned', and it needs one; got variance='s"):
        chain.reverse(X, X, 1, fraction=X)
    with pytest.raises(ConfigError, match="it needs one; got variance='learned'"):
        chain.reverse(X, X, 1, variance="learned")
    with pytest.raises(ShapeError, match=r"fraction must have the shape \(3, 2\) of x_i, got \(3,\)"):
        chain.reverse(X, X, 1, variance="learned", fraction=X[:, 0])
    with pytest.raises(ShapeError, match=r"knot_times must have shape \(1,\), one for each index, got \(2,\)"):
        DDPM(torch.tensor([-0.1]), knot_times=torch.tensor([0.1, 0.2]))
    for times in ([0.5, 0.5], [0.0, 0.5], [0.2, math.inf]):
        with pytest.raises(DomainError, match="knot_times must be positive, finite and increase with the index"):
            DDPM(torch.tensor([-0.1, -0.1]), knot_times=torch.tensor(times))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, r"tau must lie in \(0, inf\), got 0"),
        ({"start": 3.0}, r"end must lie in \(3, inf\), got 3"),
        ({"clip": 1.0}, r"clip must lie in \(0, 1\), got 1"),
        (
            {"tau": 0.05},
            "alpha_bar stands still at index 68, at 1e-09: the sigmoid's end is too flat; use a",
        ),
    ],
)
def test_bad_sigmoids(options: dict[str, float], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        DDPM.sigmoid(100, **options)


def test_bad_tables() -> None:
    chain = DDPM.cosine(10)
    with pytest.raises(DomainError, match=r"steps must be in \[1, 10\], got 11"):
        chain.ancestral(steps=11)
    with pytest.raises(DomainError, match=r"steps must be in \[1, 10\], got 0"):
        chain.ddim(steps=0)
    with pytest.raises(ConfigError, match=r"unknown variance 'smal'; did you mean 'small'\? choices: large, learned"):
        chain.ancestral(variance="smal")
    with pytest.raises(DomainError, match=r"eta must lie in \[0, inf\), got -1"):
        chain.ddim(-1)
    with pytest.raises(DomainError, match="eta = 3 asks for more noise than a step of this grid can hold"):
        chain.ddim(3)


def test_half_types_are_rounded_once() -> None:
    chain, index = DDPM.cosine(12), torch.arange(12)
    x0, z = (normal((12, 5), stream(k), dtype=torch.bfloat16) for k in (11, 12))
    wide = x0.float(), z.float()
    expected = chain.perturb(wide[0], index, wide[1]).bfloat16()
    assert torch.equal(chain.perturb(x0, index, z), expected)
    assert torch.equal(chain.perturb(x0, index, wide[1]), expected)
    for law in (chain.marginal, chain.transition):
        assert torch.equal(law(x0, index)[0], law(wide[0], index)[0].bfloat16())
    assert torch.equal(chain.posterior(x0, z, index)[0], chain.posterior(*wide, index)[0].bfloat16())


def test_what_meets_on_a_chain_is_on_one_device() -> None:
    chain, x, away = DDPM.cosine(5), torch.zeros(3, 2), torch.zeros(3, 2, device="meta")
    with pytest.raises(ConfigError, match="noise is on meta, x0 on cpu"):
        chain.perturb(x, 1, away)
    with pytest.raises(ConfigError, match="x0 is on cpu, x_i on meta"):
        chain.posterior(x, away, 1)
    with pytest.raises(ConfigError, match="fraction is on meta, x_i on cpu"):
        chain.reverse(x, x, 1, variance="learned", fraction=away)
    with pytest.raises(DTypeError, match="noise must have a real floating dtype"):
        chain.perturb(x, 1, x.long())
