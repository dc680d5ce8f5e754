"""Clouds of points through whole samplers: what turns the noise turns the samples, and the mean place stays 0."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from network_cases import awake, distance, orthogonal, turn
from torch import Tensor

from scoresde import (
    VPSDE,
    Moments,
    ProbabilityFlow,
    RelativePlaces,
    ScoreModel,
    ShapeError,
    fit,
    log_likelihood,
    sample,
    solvers,
)
from scoresde.nn import EGNN
from scoresde.noise import normal, permutation, stream
from scoresde.solvers.named import SOLVERS

DOUBLE = torch.float64
POINTS, FEATURES, WIDTH = 5, 2, 5
TRANSFORM = RelativePlaces(3, FEATURES)
DRAWS = 40
# The adaptive flow chooses its steps by rounded errors, coordinate by coordinate.
ADAPTIVE = {name for name, make in SOLVERS.items() if isinstance(make(), ProbabilityFlow)}


def make(dtype: torch.dtype = DOUBLE, **options: bool) -> ScoreModel:
    net = awake(EGNN(3, features=FEATURES, width=8, depth=2, relative=True, **options)).to(dtype)
    kind = "learned" if options else "fixed"
    return ScoreModel(net, VPSDE(), predicts="v", transform=TRANSFORM, variance=kind)


def tape(change: object = None, dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    """Return noise of clouds, each changed, in relative coordinates: the start state first."""
    generator = stream(0, "tape")
    drawn = [normal((2, POINTS, WIDTH), generator, dtype=DOUBLE) for _ in range(DRAWS)]
    return [TRANSFORM.forward(z if change is None else change(z)).to(dtype) for z in drawn]


Q, ORDER = orthogonal(3, reflect=True), permutation(POINTS, stream(1))
CHANGES = {"turned and mirrored": lambda z: turn(z, Q), "permuted": lambda z: z[:, ORDER]}


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_turns_and_permutes_with_its_noise_and_keeps_the_mean_place(solver: str) -> None:
    model = make()
    how = {"solver": solver, "dtype": DOUBLE} if solver in ADAPTIVE else {"solver": solver, "steps": 3, "dtype": DOUBLE}
    x = sample(model, (2, 22), noise=tape(), **how)
    assert x.shape == (2, POINTS, WIDTH)
    size = float(x.abs().max())
    assert float(x[..., :3].mean(1).abs().max()) < 1e-14 * size
    for name, change in CHANGES.items():
        other = sample(model, (2, 22), noise=tape(change), **how)
        assert distance(other, change(x)) < (1e-2 if solver in ADAPTIVE else 1e-10) * size, name
        assert distance(change(x), x) > 0.1 * size


def test_in_single_precision_and_with_a_learned_variance() -> None:
    for solver, options in (("heun", {}), ("euler_maruyama", {}), (solvers.ancestral(variance="learned"), {"l": True})):
        for dtype, room in ((torch.float32, 1e-5), (DOUBLE, 1e-10)):
            model = make(dtype, **({"learned_variance": True} if options else {}))
            how = {"solver": solver, "steps": 4, "dtype": dtype}
            x = sample(model, (2, 22), noise=tape(dtype=dtype), **how)
            assert float(x[..., :3].mean(1).abs().max()) < room * float(x.abs().max())
            for change in CHANGES.values():
                other = sample(model, (2, 22), noise=tape(change, dtype), **how)
                assert distance(other, change(x)) < room * float(x.abs().max())


def test_the_likelihood_knows_neither_place_nor_direction_nor_order() -> None:
    model = make()
    x = normal((1, 3, WIDTH), stream(2), dtype=DOUBLE)
    step = torch.tensor([3.0, -1.0, 2.0, 0.0, 0.0])
    together = torch.cat([x, turn(x, Q), x[:, [2, 0, 1]], x + step, 0.5 * x])
    found = log_likelihood(model, together, solver="heun", steps=3, divergence="exact").values
    torch.testing.assert_close(found[1:4], found[:1].expand(3), rtol=1e-10, atol=1e-10)
    assert distance(found[4], found[0]) > 0.1


def test_one_network_draws_clouds_of_every_size_and_is_kept(tmp_path: Path) -> None:
    model = make(torch.float32)
    x = sample(model, (3, 22), steps=3, seed=0, solver="ddim")
    model.save(tmp_path / "model")
    again = ScoreModel.load(tmp_path / "model")
    assert again.transform == TRANSFORM
    assert torch.equal(sample(again, (3, 22), steps=3, seed=0, solver="ddim"), x)
    for points in (1, 2, 9):
        x = sample(again, (3, 5 * points - 3), steps=3, seed=0, solver="ddim")
        assert x.shape == (3, points, 5)
        assert float(x[..., :3].mean(1).abs().max()) < 1e-5 * float(x.abs().max())
    with pytest.raises(ShapeError, match=r"relative coordinates have shape \(B, 5 N - 3\)"):
        sample(again, (3, 21), steps=3)


def test_a_calibration_after_training_is_of_the_clouds_that_the_model_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of one number, which serve clouds of every size, do not say how large one is."""
    asked: list[object] = []
    module = sys.modules["scoresde.training.fit"]
    monkeypatch.setattr(module, "find_calibration", lambda model, *, event, cond, progress: asked.append(event))
    data = normal((8, POINTS, WIDTH), stream(3))
    ends = Moments.exact(torch.tensor(0.0), torch.tensor(1.0))
    how = {"transform": TRANSFORM, "steps": 2, "batch_size": 4, "calibrate": True, "progress": False}
    found = fit(make(torch.float32), data, moments=ends, **how).model
    fit(make(torch.float32), data, **how)
    assert asked == [(22,), None]
    assert sample(found, (2, 12), steps=2, seed=0, solver="ddim").shape == (2, 3, WIDTH)
