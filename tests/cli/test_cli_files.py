"""Tables and tensors on the command line: what becomes of their columns, labels and names, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from cli_helpers import QUICK, contents, main, refused
from safetensors.torch import save_file

from scoresde import ScoreModel
from scoresde.cli.files import is_name, open_data
from scoresde.noise import normal, stream


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(*shape: int) -> torch.Tensor:
    return normal(shape, stream(4, "cli files"))


def write_flowers(file: str) -> torch.Tensor:
    """Write three columns of numbers around one of words; row k is of class k modulo 3."""
    x = draw(30, 3) * torch.tensor([1.0, 100.0, 0.01])
    words = [("rose", "tulip", "aster")[k % 3] for k in range(30)]
    frame = polars.DataFrame({"a": x[:, 0].numpy(), "species": words, "b": x[:, 1].numpy(), "c": x[:, 2].numpy()})
    if file.lower().endswith(".csv"):
        frame.write_csv(file)
    else:
        frame.write_parquet(file)
    return x


@pytest.mark.parametrize("file", ["flowers.csv", "flowers.CSV", "flowers.parquet", "flowers.Parquet"])
def test_a_table_is_split_by_the_labels_that_its_column_names(file: str, here: Path) -> None:
    x = write_flowers(file)
    data = open_data(f"{file}:species")
    (train, labels), (test, held_out) = data.load(), data.test()
    train, test = train[:], test[:]
    assert (data.kind, data.classes, data.path) == ("vectors", ("aster", "rose", "tulip"), Path(file))
    assert labels is not None
    assert held_out is not None
    assert (labels.bincount().tolist(), held_out.bincount().tolist()) == ([8, 8, 8], [2, 2, 2])
    for part, own in ((train, labels), (test, held_out)):
        rows = [int((x - one).norm(dim=1).argmin()) for one in part]
        assert torch.allclose(part, x[rows].double(), rtol=1e-6)
        assert own.tolist() == [(1, 2, 0)[row % 3] for row in rows]


def test_a_table_goes_through_training_sampling_and_comparing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_flowers("flowers.csv")
    assert main(["train", "--data", "flowers.csv:species", "--conditional", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "flowers.csv:species: 24 vectors of shape (3,), 6 held out" in out
    assert "classes      3: aster, rose, tulip\n" in out
    assert "layout       ND: vectors of 3" in out
    assert err.count("\n") >= 1
    assert ScoreModel.load("runs/flowers/checkpoint").net.classes == 3
    assert main(["sample", "--checkpoint", "runs/flowers", "--n", "4", "--label", "rose", "--out", "x.npy"]) == 0
    assert np.load("x.npy", allow_pickle=False).shape == (4, 3)
    assert main(["compare", "--checkpoint", "runs/flowers", "--n", "6", "--samplers", "ddim:2"]) == 0
    assert "note: " not in capsys.readouterr().err
    assert json.loads(Path("runs/flowers/comparison/table.json").read_text())["data"] == "flowers.csv:species"
    text = Path("flowers.csv").read_text().splitlines()
    Path("flowers.csv").write_text("\n".join(text[:-1]))
    said = refused(capsys, ["train", "--resume", "runs/flowers"])
    assert "flowers.csv:species has changed since runs/flowers began" in said
    assert "go on with what is new: --resume runs/flowers --change" in said
    assert main(["train", "--resume", "runs/flowers", "--change", "--steps", "6"]) == 0
    out = capsys.readouterr().out
    assert "flowers.csv:species: 23 vectors of shape (3,), 6 held out" in out
    assert "after 6 steps" in out


@pytest.mark.parametrize("ending", [".pt", ".PTH", ".safetensors", ".npz"])
def test_tensors_are_read_as_arrays_are(ending: str, here: Path) -> None:
    x, labels = draw(15, 2, 8), torch.arange(15) % 3
    tensors = {"samples": x, "labels": labels, "others": draw(9, 2)}
    file = f"x{ending}"
    if ending == ".safetensors":
        save_file(tensors, file)
    elif ending == ".npz":
        np.savez(file, **{name: value.numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, file)
    data = open_data(file)
    (train, own), (test, _) = data.load(), data.test()
    train, test = train[:], test[:]
    assert (data.kind, data.classes, len(train), len(test)) == ("series", ("0", "1", "2"), 12, 3)
    assert own is not None
    assert own.bincount().tolist() == [4, 4, 4]
    # In the order of the labels, 0, 3, 6, ..., 1, 4, ..., 2, 5, ..., every fifth is held out.
    assert torch.equal(test, x[[0, 1, 2]])
    other = open_data(f"{file}:others")
    assert (other.kind, other.classes, other.load()[0].shape) == ("points", (), (7, 2))


def test_a_single_tensor_needs_no_name(here: Path) -> None:
    torch.save(draw(10, 3), "x.pt")
    data = open_data("x.pt")
    assert torch.equal(data.test()[0][:], draw(10, 3)[::5])


def test_faults_of_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_flowers("flowers.csv")
    Path("gap.csv").write_text("a,b\n1,2\n3,\n4,5\n")
    Path("few.csv").write_text("a,b\n1,2\n3,4\n")
    Path("x.xlsx").write_bytes(b"PK")
    Path("cat.png").write_bytes(b"")
    torch.save(torch.nn.ReLU(), "net.pt")
    save_file({"a": draw(4, 2), "b": draw(4, 2)}, "two.safetensors")
    kinds = "a folder of images, or a file of numbers (.npy, .npz, .pt, .pth, .safetensors, .csv, .parquet)"
    words = (
        "flowers.csv has columns that hold no numbers: 'species'; take them out, or write them as numbers; or, if one"
    )
    cases = {
        "flowers.csv": f"{words} holds the labels, name it: flowers.csv:species",
        "flowers.csv:specie": "unknown column of flowers.csv 'specie'; did you mean 'species'?",
        "flowers.csv:a": "column 'a' of flowers.csv holds Float64, which are no labels; name a column of words",
        "gap.csv": "gap.csv holds no value in row 2 of column 'b' (such places: 1); fill them in, or take",
        "few.csv": "few.csv holds 2 samples; a fifth of them is held out",
        "absent.Parquet": "absent.Parquet cannot be read: No such file or directory",
        "net.pt": "net.pt is damaged or no .pt file of tensors alone",
        "two.safetensors": "two.safetensors holds 2 arrays; name the samples behind a colon: two.safetensors:a or ",
        "two.safetensors:c": "unknown array in two.safetensors 'c'; choices: a, b",
        "x.xlsx": f"x.xlsx is a file of a kind that is not read; give {kinds}",
        "cat.png": f"cat.png is a single picture; give {kinds}",
        "sub/absent": f"sub/absent does not exist; give {kinds}",
        "flower": f"or {kinds}",
    }
    before = contents(here)
    for name, message in cases.items():
        said = refused(capsys, ["train", "--data", name, *QUICK])
        assert message in said, name
        assert "image folder" not in said
    assert contents(here) == before


def test_size_is_for_folders_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_flowers("flowers.csv")
    message = refused(capsys, ["train", "--data", "flowers.csv:species", "--size", "8"])
    assert "--size is for folders of images, flowers.csv:species has its own; leave it out" in message


def test_files_are_told_from_names_in_any_case(here: Path) -> None:
    assert not any(map(is_name, ["x.csv", "x.CSV:kind", "x.Parquet", "x.PT", "x.safetensors:a", "x.NPZ"]))
    assert is_name("x.xlsx"), "where no such file is there, it may be a misspelt name"
