"""An animation loops, is small, and shows its frames in order."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_cases import images
from PIL import Image, ImageSequence
from torch import Tensor

from scoresde import plots
from scoresde.data import swiss_roll
from scoresde.errors import ConfigError, DataError, DomainError, ShapeError
from scoresde.noise import normal, stream
from scoresde.plots import motion


def spiral(count: int, points: int = 200) -> list[Tensor]:
    z = normal((points, 2), stream(1, "z"))
    return [math.cos(a) * swiss_roll(points) + math.sin(a) * z for a in torch.linspace(0, math.pi / 2, count).tolist()]


@pytest.mark.parametrize("kind", ["points", "images"])
def test_an_animation_has_its_frames_loops_for_ever_and_is_small(kind: str, tmp_path: Path) -> None:
    frames = spiral(12) if kind == "points" else [images(9, 1, 8, 8) * (1 - k / 12) for k in range(12)]
    captions = [f"t = {k / 11:.2f}" for k in range(12)]
    kept = [frame.clone() for frame in frames]
    path = plots.animation(frames, tmp_path / "new" / "a.gif", kind=kind, captions=captions, fps=10, hold=0.5)  # type: ignore[arg-type]
    assert path == tmp_path / "new" / "a.gif"
    assert 1000 < path.stat().st_size < 2_000_000
    with Image.open(path) as gif:
        assert gif.n_frames == 12
        assert gif.info["loop"] == 0  # for ever
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        assert gif.size[0] == 400
        pixels = np.asarray(gif.convert("RGB"))
    assert durations == [100] * 11 + [600]
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # paper stays white in the shared palette
    assert all(torch.equal(a, b) for a, b in zip(frames, kept, strict=True))


def test_the_frames_are_drawn_in_order(tmp_path: Path) -> None:
    # one point that walks to the right across a fixed window
    frames = torch.stack([torch.tensor([[x, 0.0]]) for x in (-0.8, 0.0, 0.8)])
    path = plots.animation(frames, tmp_path / "a.gif", extent=(-1.0, 1.0, -1.0, 1.0))
    places = []
    with Image.open(path) as gif:
        for frame in ImageSequence.Iterator(gif):
            blue = np.asarray(frame.convert("RGB")).astype(int)
            columns = np.nonzero((blue[..., 2] - blue[..., 0] > 80).any(axis=0))[0]
            places.append(columns.mean() / gif.size[0])
    assert places == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


def test_the_window_of_points_holds_every_frame_but_not_its_outliers() -> None:
    frames = [frame.double().numpy() for frame in spiral(5, 1000)]
    left, right, bottom, top = motion._reach(frames)
    for points in frames:
        inside = (points > (left, bottom)).all(axis=1) & (points < (right, top)).all(axis=1)
        assert inside.mean() > 0.97
    assert right - left == pytest.approx(top - bottom)
    frames[2][0] = 1e6
    assert motion._reach(frames)[1] < 10


def test_an_animation_that_is_too_large_is_drawn_smaller_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [images(16, 1, 8, 8) * (1 - k / 6) for k in range(6)]
    full = plots.animation(frames, tmp_path / "full.gif", kind="images", smooth=True)
    monkeypatch.setattr(motion, "_LIMIT", full.stat().st_size // 2)
    smaller = plots.animation(frames, tmp_path / "smaller.gif", kind="images", smooth=True)
    assert smaller.stat().st_size < full.stat().st_size // 2
    with Image.open(smaller) as gif:
        assert gif.n_frames == 6
    monkeypatch.setattr(motion, "_LIMIT", 1000)
    with pytest.raises(DataError, match=r"6 frames need [0-9]+ bytes, the limit is 1000; give fewer frames"):
        plots.animation(frames, tmp_path / "none.gif", kind="images")
    assert not (tmp_path / "none.gif").exists()


def test_bad_animations_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    frames, path = spiral(3), tmp_path / "a.gif"
    with pytest.raises(ConfigError, match="unknown kind 'point'; did you mean 'points'"):
        plots.animation(frames, path, kind="point")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"path must end in \.gif, got 'a\.mp4'"):
        plots.animation(frames, "a.mp4")
    with pytest.raises(ConfigError, match="frames must hold at least two tensors, got 1"):
        plots.animation(frames[:1], path)
    with pytest.raises(ConfigError, match="captions must be one for each of 3 frames, got 2"):
        plots.animation(frames, path, captions=["a", "b"])
    with pytest.raises(DomainError, match=r"fps must be in \[1, 50\], got 60"):
        plots.animation(frames, path, fps=60)
    with pytest.raises(DomainError, match="hold must lie in"):
        plots.animation(frames, path, hold=-1.0)
    with pytest.raises(ShapeError, match=r"frames must have one shape, got \(200, 2\) and, at 1, \(100, 2\)"):
        plots.animation([frames[0], frames[1][:100]], path)
    with pytest.raises(ShapeError, match=r"frames\[0\] must have shape \(N, 1, H, W\)"):
        plots.animation(frames, path, kind="images")
    broken = frames[2].clone()
    broken[7, 1] = math.inf
    with pytest.raises(DomainError, match=r"frames\[2\] has 1 non-finite values"):
        plots.animation([*frames[:2], broken], path)
    assert list(tmp_path.iterdir()) == []
