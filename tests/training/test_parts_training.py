"""Data that are read in parts: from memory or from a file, to the same bits, and never as a whole."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import VPSDE, DomainError, Moments, ScoreModel, fit, ops
from scoresde.data import arrays_from_file
from scoresde.errors import PART, TrainingWarning, check_samples
from scoresde.nn import MLP
from scoresde.noise import integers, normal, stream
from scoresde.ops import Rows, accept_rows, gather_moments, parts
from scoresde.training.losses import held_out_loss
from scoresde.transforms import Affine

OPTIONS = {"steps": 3, "batch_size": 16, "progress": False}


def small(width: int = 3) -> ScoreModel:
    return ScoreModel(MLP(width, width=8, depth=1), VPSDE())


@pytest.mark.parametrize("cut", [1, 7, 99, 100, 250])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moments_in_parts_are_those_of_the_whole(cut: int, mean: float) -> None:
    x = (normal((100, 3), stream(0, "parts")) + mean).double()
    centred = x - x.mean(0)
    for limit, expected in ((3, centred.T @ centred), (0, centred.square().sum(0))):
        count, found, scatter = gather_moments((part for part in x.split(cut)), limit)
        assert count == 100
        assert torch.allclose(found, x.mean(0), rtol=1e-15, atol=1e-15)
        assert torch.allclose(scatter, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_large_data_have_the_moments_of_a_whole_in_float64(kind: torch.dtype) -> None:
    shape = (PART // 300 * 2 + 5, 300)
    made = (
        normal(shape, stream(1, "parts")) + 1e4 if kind == torch.float32 else integers(256, shape, stream(1, "parts"))
    )
    rows = accept_rows(made.to(kind), "data")
    found = Moments.of_parts(parts(rows), rows.shape[1:])
    wide = made.to(kind).double()
    assert torch.allclose(found.mean, wide.mean(0), rtol=1e-14)
    assert torch.allclose(found.variance, wide.var(0, correction=0), rtol=1e-11)


def test_a_channel_of_one_value_keeps_its_scale() -> None:
    x = torch.full((PART // 2 + 3, 2), 0.1)
    x[:, 1] = torch.linspace(0, 1, len(x))
    scale = Affine.standardise(x).scale
    assert isinstance(scale, tuple)
    assert scale[0] == 1.0
    assert scale[1] == pytest.approx(float(x[:, 1].double().std()), rel=1e-12)


def test_a_bad_value_is_found_in_its_place_in_any_part() -> None:
    x = torch.zeros(PART // 2 + 10, 3)
    x[PART // 2 + 4, 2] = torch.nan
    x[PART // 2 + 6, 0] = torch.inf
    for check in (check_samples, accept_rows):
        with pytest.raises(DomainError, match=rf"2 non-finite values of {x.numel()}, .* index \({PART // 2 + 4}, 2\)"):
            check(x, "data")


def test_a_mapped_file_trains_to_the_bits_of_an_array(tmp_path: Path) -> None:
    x = normal((60, 3), stream(2, "parts")).numpy()
    np.save(tmp_path / "x.npy", x)
    expected = fit(small(), x, held_out=x[:9], **OPTIONS)
    sources = (
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        arrays_from_file(tmp_path / "x.npy", mapped=True),
        torch.from_file(str(tmp_path / "x.npy"), size=180 + 32, dtype=torch.float32)[32:].reshape(60, 3),
        Rows(torch.tensor(np.concatenate([x, x])), torch.float32, torch.arange(60, 120)),
    )
    for source in sources:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fit(small(), source, held_out=source[:9], **OPTIONS)
        assert torch.equal(found.losses, expected.losses)
        assert found.log[-1]["held_out_loss"] == expected.log[-1]["held_out_loss"]


def test_no_more_than_a_part_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "PART", 12)
    read: list[int] = []
    take = Rows.__getitem__

    def count(self: Rows, places: slice | torch.Tensor) -> torch.Tensor:
        x = take(self, places)
        read.append(len(x))
        return x

    monkeypatch.setattr(Rows, "__getitem__", count)
    fit(small(), normal((61, 3), stream(3, "parts")), transform=Affine(0.5, 2.0), **OPTIONS)
    # 4 of 3 values for the check and the moments, then the batches of 16.
    assert sorted(set(read)) == [1, 4, 16]


def test_bytes_train_as_the_numbers_that_they_are() -> None:
    pixels = integers(256, (40, 3), stream(4, "parts"))
    scaled = Affine.from_range(0, 255)
    found = fit(small(), pixels.to(torch.uint8).numpy(), transform=scaled, **OPTIONS)
    expected = fit(small(), pixels.float(), transform=scaled, **OPTIONS)
    assert torch.equal(found.losses, expected.losses)
    losses = [held_out_loss(found.model, x).mean for x in (pixels.to(torch.uint8), pixels.float())]
    assert losses[0] == losses[1]


def test_held_out_blocks_have_the_noise_of_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from scoresde.training.losses import held_out

    model, x = small(), normal((160, 3), stream(5, "parts"))
    whole = held_out_loss(model, x, repeats=2, chunk_size=16)
    monkeypatch.setattr(held_out, "PART", 100)
    cut = held_out_loss(model, x, repeats=2, chunk_size=16)
    assert cut.mean == pytest.approx(whole.mean, rel=1e-6)
    assert cut.standard_error == pytest.approx(whole.standard_error, rel=1e-6)


Z = normal((400, 3), stream(6, "parts"))
USUAL = {"normal": Z, "[0, 1]": Z.sigmoid(), "[-1, 1]": Z.tanh(), "narrow": 0.2 * Z, "wide": 5 * Z, "point": 0 * Z + 1}
ODD = {"far": 100 * Z + 300, "bytes": (255 * Z.sigmoid()).to(torch.uint8), "tiny": 1e-3 * Z, "offset": Z + 50}


@pytest.mark.parametrize("name", USUAL)
def test_usual_scales_are_trained_on_in_silence(name: str) -> None:
    fit(small(), USUAL[name], **OPTIONS)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_scale_is_named_with_its_cure(name: str) -> None:
    with pytest.warns(TrainingWarning, match=r"mean .* standard deviation .* transform=Affine\.standardise") as told:
        fit(small(), ODD[name], **OPTIONS)
    assert [one.filename for one in told] == [__file__]
    fit(small(), ODD[name], transform=Affine.standardise(ODD[name]), **OPTIONS)
