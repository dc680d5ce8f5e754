"""Array files, NumPy's, torch's and safetensors': what they hold, and every fault of FAULTS.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scoresde.data import arrays_from_file
from scoresde.errors import ConfigError, DataError, DomainError, ScoreSDEError
from scoresde.noise import integers, stream

# ---------------------------------------------------------------------------------------------------------------------
# NumPy's files


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("float16", torch.float16),
        (">f4", torch.float32),
        ("uint8", torch.uint8),
        ("int64", torch.int64),
        (">i2", torch.int16),
        ("bool", torch.bool),
        ("uint16", torch.int32),
        ("uint32", torch.int64),
    ],
)
def test_an_array_keeps_its_values_and_its_type(tmp_path: Path, dtype: str, becomes: torch.dtype) -> None:
    array = np.array([[0, 1], [1, 0], [np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1, 0]]).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    tensor = arrays_from_file(tmp_path / "a.npy")
    assert tensor.dtype == becomes
    assert tensor.tolist() == array.tolist()
    np.savez_compressed(tmp_path / "a.npz", only=np.asfortranarray(array))
    assert torch.equal(arrays_from_file(str(tmp_path / "a.npz")), tensor)
    assert arrays_from_file(tmp_path / "a.npz", "only").is_contiguous()


def test_an_array_is_chosen_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, images=np.zeros((2, 3)), labels=np.arange(2), names=np.array([{}, None], dtype=object))
    assert arrays_from_file(file, key="labels").tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"a.npz holds 3 arrays; choose one with key=: 'images', 'labels', 'names'"):
        arrays_from_file(file)
    with pytest.raises(ConfigError, match=r"unknown array in .*a.npz 'label'; did you mean 'labels'"):
        arrays_from_file(file, key="label")
    with pytest.raises(DataError, match=r"a.npz holds Python objects: .*refused; save numbers"):
        arrays_from_file(file, key="names")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"key='x' names an array of an .npz file, .*a.npy holds a single one"):
        arrays_from_file(tmp_path / "a.npy", key="x")
    np.savez(file)
    with pytest.raises(DataError, match=r"a.npz holds no arrays; write it with numpy.savez"):
        arrays_from_file(file)


class _Bomb:
    """Unpickling this writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    np.save(tmp_path / "a.npy", np.array([_Bomb(trace)], dtype=object), allow_pickle=True)
    with pytest.raises(
        DataError, match=r"a.npy holds Python objects: they are stored as a pickle.*refused; save numbers"
    ):
        arrays_from_file(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[128:])
    with pytest.raises(DataError, match=r"b.npy is damaged or no .npy or .npz file \(ValueError\)"):
        arrays_from_file(tmp_path / "b.npy")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_cut_or_changed_files_are_refused(tmp_path: Path, name: str) -> None:
    file, values = tmp_path / name, integers(2**16, (400,), stream(1, "values")).numpy()
    if name == "a.npy":
        np.save(file, values)
    else:
        np.savez_compressed(file, x=values)
    whole = file.read_bytes()
    for length in [0, 3, *range(8, len(whole) - 1, 64), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"{name} is damaged or no .npy or .npz file \(\w+\); write it with"):
            arrays_from_file(file)
    if name == "a.npz":  # an .npy file holds no checksum
        for place in range(60, len(whole) - 200, 97):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(DataError, match="is damaged"):
                arrays_from_file(file)
    file.write_bytes(whole)
    assert arrays_from_file(file).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (np.array(["a", "b"]), DataError, r"has dtype <U1, for which torch has no tensor; save one of float32"),
        (np.zeros(2, dtype=complex), DataError, "has dtype complex128"),
        (np.zeros(2, dtype=np.uint64), DataError, "has dtype uint64"),
        (np.zeros(2, dtype=[("x", "f4"), ("y", "f4")]), DataError, "for which torch has no tensor"),
        (np.zeros(2, dtype="datetime64[s]"), DataError, "has dtype datetime64"),
        (np.float32(3.0), DataError, r"has shape \(\) and holds no samples; save an array of shape \(N, \*\)"),
        (np.zeros((0, 3)), DataError, r"has shape \(0, 3\) and holds no samples"),
        (
            np.array([[0.0, np.nan], [np.inf, 1.0]]),
            DomainError,
            r"a.npy has 2 non-finite values of 4, the first at index \(0, 1\)",
        ),
    ],
)
def test_arrays_that_are_no_data(tmp_path: Path, array: np.ndarray, kind: type[ScoreSDEError], message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(kind, match=message):
        arrays_from_file(tmp_path / "a.npy")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.npy cannot be read: No such file or directory; check the path"):
        arrays_from_file(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        arrays_from_file(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Files of tensors


def write(file: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if file.suffix.lower() == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


ENDINGS = (".pt", ".pth", ".safetensors", ".PT", ".SafeTensors")


@pytest.mark.parametrize("ending", ENDINGS)
def test_tensors_keep_their_values_and_their_types(tmp_path: Path, ending: str) -> None:
    x = torch.arange(12.0).reshape(4, 3)
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool)
    file = write(tmp_path / f"x{ending}", {"only": x})
    assert torch.equal(arrays_from_file(file), x)
    file = write(tmp_path / f"x{ending}", {str(kind): x.to(kind) for kind in kinds} | {"small": x.to(torch.uint16)})
    for kind in kinds:
        read = arrays_from_file(str(file), str(kind))
        assert read.dtype == kind
        assert torch.equal(read, x.to(kind))
    assert arrays_from_file(file, "small").dtype == torch.int32
    with pytest.raises(ConfigError, match=r"holds 8 arrays; choose one with key=: .*'small'") as caught:
        arrays_from_file(file)
    assert set(caught.value.allowed or ()) == {*map(str, kinds), "small"}
    with pytest.raises(ConfigError, match=r"unknown array in .* 'smal'; did you mean 'small'"):
        arrays_from_file(file, "smal")


def test_a_single_tensor_is_one_s_own_without_a_gradient(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    whole = torch.nn.Parameter(torch.arange(40.0).reshape(2, 20))
    torch.save(whole[:, ::4], file)
    read = arrays_from_file(file)
    assert read.tolist() == whole[:, ::4].tolist()
    assert not read.requires_grad
    assert read.is_contiguous()
    assert read.untyped_storage().nbytes() == 4 * read.numel()
    with pytest.raises(ConfigError, match=r"x.pt holds a single one: leave it out"):
        arrays_from_file(file, "x")
    # Beside a tensor, numbers that describe it are left alone.
    torch.save({"x": torch.ones(2, 2), "epoch": 3}, file)
    assert arrays_from_file(file).shape == (2, 2)


def test_objects_in_a_file_of_tensors_are_refused_and_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    for content in (_Bomb(trace), {"x": torch.ones(2), "bomb": _Bomb(trace)}, torch.nn.ReLU()):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(
            DataError, match=r"x.pt is damaged or no .pt file of tensors alone \(\w+\); write it with torch"
        ):
            arrays_from_file(tmp_path / "x.pt")
    assert not trace.exists()


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_files_of_tensors_that_are_no_data(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x{ending}"
    with pytest.raises(DataError, match="cannot be read: No such file or directory; check the path"):
        arrays_from_file(file)
    cases = {
        "x has dtype complex64": torch.ones(2, dtype=torch.cfloat),
        "for which torch has no tensor; save one of float32": torch.ones(2, dtype=torch.float8_e4m3fn),
        r"has shape \(\) and holds no samples": torch.tensor(3.0),
        r"has shape \(0, 2\) and holds no samples": torch.ones(0, 2),
        r"x has 1 non-finite values of 2, the first at index \(1,\)": torch.tensor([0.0, float("nan")]),
    }
    for message, x in cases.items():
        with pytest.raises((DataError, DomainError), match=message.replace("x has", rf"x{ending}\['x'\] has")):
            arrays_from_file(write(file, {"x": x}))
    with pytest.raises(DataError, match="holds no arrays; write it with"):
        arrays_from_file(write(file, {}))
    whole = write(file, {"x": torch.ones(50, 2)}).read_bytes()
    for length in (0, 7, 40, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"is damaged or no {ending} file of tensors alone"):
            arrays_from_file(file)


def test_a_sparse_tensor_is_no_data(tmp_path: Path) -> None:
    torch.save(torch.eye(3).to_sparse(), tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x.pt has dtype torch.sparse_coo, for which"):
        arrays_from_file(tmp_path / "x.pt")
    torch.save([torch.ones(2)], tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x.pt holds no arrays; write it with torch.save"):
        arrays_from_file(tmp_path / "x.pt")
