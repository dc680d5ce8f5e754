"""Labels of files: the classes are the distinct values, and keep their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from scoresde import ConfigError, DataError
from scoresde.data import labels_from_file
from scoresde.data.images import split_by_label
from scoresde.data.labels import number_classes


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1) | st.lists(st.text(max_size=3), min_size=1))
def test_every_class_has_data_and_every_label_its_class(values: list) -> None:
    labels, classes = number_classes(values)
    assert len(classes) == len(set(values)) == int(labels.max()) + 1
    assert [classes[label] for label in labels.tolist()] == [str(value) for value in values]
    assert bool((torch.bincount(labels) > 0).all())


def test_integers_truths_and_words_of_every_kind_of_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([30, 4, 30], dtype=np.uint16))
    np.savez(tmp_path / "b.npz", y=np.array(["dog", "cat", "dog"]), z=np.array([b"x", b"y", b"x"]))
    torch.save({"y": torch.tensor([True, False, True])}, tmp_path / "c.pt")
    save_file({"y": torch.tensor([-1, -2, -1], dtype=torch.int8)}, tmp_path / "d.safetensors")
    for name, key, classes in (
        ("a.npy", None, ("4", "30")),
        ("b.npz", "y", ("cat", "dog")),
        ("b.npz", "z", ("x", "y")),
        ("c.pt", None, ("0", "1")),
        ("d.safetensors", "y", ("-2", "-1")),
    ):
        labels, found = labels_from_file(tmp_path / name, key)
        assert found == classes
        assert sorted(labels.tolist()) in ([0, 0, 1], [0, 1, 1])
        assert labels.dtype == torch.int64


def test_what_is_no_label_is_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz", half=np.array([0.5, 1.0]), square=np.zeros((2, 2), int), words=np.array([["a"], ["b"]])
    )
    for key in ("half", "square", "words"):
        with pytest.raises(DataError, match=r"x.npz holds labels of "):
            labels_from_file(tmp_path / "x.npz", key)
    with pytest.raises(ConfigError, match="holds 3 arrays; choose one with key="):
        labels_from_file(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="unknown array"):
        labels_from_file(tmp_path / "x.npz", "none")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cut.npz is damaged"):
        labels_from_file(tmp_path / "cut.npz")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_no_class_is_held_out_whole(values: list[int]) -> None:
    labels, classes = number_classes(values)
    kept = labels[split_by_label(labels, "train")]
    assert len(set(kept.tolist())) == len(classes)
    both = split_by_label(labels, "train") ^ split_by_label(labels, "test")
    assert bool(both.all())
