"""Altered files of a checkpoint under a good manifest: what they are and how long, their headers and their tensors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from altered import full, image, read_parts, signed
from checkpoints import Own, filled, same_weights, small
from torch import Tensor

from scoresde import VPSDE, CheckpointError, Latent, Moments, ScoreModel
from scoresde.models import checkpoint
from scoresde.models.manifest import sign
from scoresde.nn import EGNN, MLP, Autoencoder, DiT, MagnitudeUNet

TEXTS = {
    "brackets": (b"[" * 200_000, "is damaged, it is no JSON: maximum recursion depth"),
    "nested": (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "nested more than 40 times"),
    "NaN": (b'{"predicts": NaN}', "NaN is no number of JSON"),
    "infinity": (b'{"predicts": -Infinity}', "-Infinity is no number of JSON"),
    "bytes": (b'{"predicts": "\xff\xfe"}', "is damaged, it is no JSON: 'utf-8' codec"),
    "twice": (b'{"predicts": "v", "predicts": "edm"}', "a key stands twice"),
    "list": (b"[1]", r"no object but '\[1\]'"),
    "empty": (b"", "is damaged, it is no JSON"),
    "digits": (b'{"sigma_data": 1' + b"0" * 5000 + b"}", "is damaged, it is no JSON"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_document_or_a_manifest_that_is_no_object_is_refused(kind: str, tmp_path: Path) -> None:
    text, message = TEXTS[kind]
    small(0).save(tmp_path)
    parts = read_parts(tmp_path)
    signed(tmp_path, {**parts, "model": ("json", text)})
    with pytest.raises(CheckpointError, match=rf"model-.*json .*{message}"):
        ScoreModel.load(tmp_path)
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        ScoreModel.load(tmp_path)


NONFINITE = {"nan": float("nan"), "inf": float("inf")}


def change_tensors(folder: Path, part: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    parts = read_parts(folder)
    tensors = safetensors.torch.load(parts[part][1])
    change(tensors)
    data = safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})
    signed(folder, {**parts, part: ("safetensors", data)})


def spoil(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[-1:].fill_(value)


def replace_with(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: make(tensors[name])})


TENSORS: dict[str, tuple[str, Callable[[dict[str, Tensor]], object], str]] = {
    **{
        f"{part} {kind}": (part, spoil("output.weight", value), f"{part}-.*output.weight has 1 values of 24 that are")
        for part in ("weights", "ema")
        for kind, value in NONFINITE.items()
    },
    **{
        f"{name} {kind}": ("moments", spoil(name, value), f"moments-.*{name} must be finite")
        for name in ("mean", "variance", "basis")
        for kind, value in NONFINITE.items()
    },
    "negative": ("moments", spoil("variance", -1.0), "moments-.*variance must be at least 0, got -1"),
    "not orthonormal": ("moments", spoil("basis", 5.0), "moments-.*basis must be orthonormal"),
    "skewed": ("moments", replace_with("basis", lambda u: torch.eye(3).double()[[0, 0, 1]].T), "basis must be ortho"),
    "integers": ("moments", replace_with("mean", lambda m: m.long()), "moments-.*mean must be finite real numbers"),
    "event": ("moments", replace_with("mean", lambda m: m.repeat(2)), r"variance must be of shape \(6,\)"),
    "column": ("moments", replace_with("variance", lambda v: v[:2]), r"variance must be of shape \(3,\)"),
    "flat basis": ("moments", replace_with("basis", lambda u: u[:2]), r"basis must be of shape \(3, 3\)"),
    "no mean": ("moments", lambda tensors: tensors.pop("mean"), "moments-.*mean must be there"),
    "no basis": ("moments", lambda tensors: tensors.update(mean=torch.zeros(2, 2)) or tensors.pop("basis"), "variance"),
    "another": ("moments", lambda tensors: tensors.update(more=torch.zeros(3)), "more must be none of"),
    "nothing": ("moments", lambda t: [t.pop("basis"), t.update(dict.fromkeys(t, torch.zeros(0)))], "numbers in it"),
    "other data": (
        "moments",
        lambda t: t.update(mean=torch.zeros(4), variance=torch.ones(4), basis=torch.eye(4)),
        r"transform: the transform serves 3 channels",
    ),
    "transposed": ("weights", replace_with("input.weight", lambda w: w.T), r"mismatched input.weight: \(3, 8\)"),
    "missing": ("weights", lambda tensors: tensors.pop("input.weight"), "missing input.weight"),
    "unexpected": ("weights", lambda tensors: tensors.update(more=torch.zeros(2)), "unexpected more"),
    "doubles": ("weights", replace_with("input.weight", lambda w: w.double()), "mismatched .* torch.float64 in"),
    "float8": (
        "weights",
        lambda t: t.update({k: v.to(torch.float8_e4m3fn) for k, v in t.items()}),
        "mismatched .*float8_e4m3fn in the file",
    ),
    "groups above": ("groups", spoil("2", 2), "groups-.*'2' must be a number of groups, and its values below it"),
    "groups below": ("groups", spoil("2", -1), "groups-.*'2' must be a number of groups, and its values below it"),
    "groups of floats": ("groups", replace_with("2", lambda g: g.float()), "groups-.*'2' must be a number of groups"),
    "groups' event": ("groups", replace_with("2", lambda g: g[:2]), r"groups-.*'2' must be of the event \(3,\)"),
    "groups' name": ("groups", lambda t: t.update(x=t.pop("2")), "groups-.*'x' must be a number of groups"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    folder = tmp_path_factory.mktemp("whole") / "m"
    full(folder)
    return read_parts(folder)


@pytest.mark.parametrize("kind", TENSORS)
def test_altered_tensors_are_refused_by_their_name(
    kind: str, whole: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    part, change, message = TENSORS[kind]
    signed(tmp_path, whole)
    change_tensors(tmp_path, part, change)
    with pytest.raises(CheckpointError, match=message):
        ScoreModel.load(tmp_path, weights="ema" if part == "ema" else "raw")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 10**7),
        ("depth", 10**15),
        ("width", 200_000),
        ("width", 10**18),
        ("event_shape", [200_000, 200_000]),
        ("classes", 10**9),
        ("depth", 2),
        ("width", 9),
    ],
)
def test_a_network_is_not_made_before_its_sizes_are_those_of_the_weights(
    field: str, value: object, whole: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    document = json.loads(whole["model"][1])
    document["network"]["config"][field] = value
    signed(tmp_path, {**whole, "model": ("json", json.dumps(document).encode())})
    with pytest.raises(CheckpointError, match=r"model-.*json: network.config(\.\w+ says| does not fit )"):
        ScoreModel.load(tmp_path)


def test_a_deep_u_net_is_not_made_either(tmp_path: Path) -> None:
    image(tmp_path)
    parts = read_parts(tmp_path)
    for field, value in (("blocks", 10**6), ("multipliers", [1] * 10**4), ("width", 2**18), ("heads", 3)):
        document = json.loads(parts["model"][1])
        document["network"]["config"][field] = value
        signed(tmp_path, {**parts, "model": ("json", json.dumps(document).encode())})
        with pytest.raises(CheckpointError, match=r"model-.*json: network.config"):
            ScoreModel.load(tmp_path)


def header(entries: object, size: int = 0) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header has 0 bytes of 0"),
        (b"\xff" * 8, "its header has 18446744073709551615 bytes of 8"),
        (header([1]), "no object but"),
        (header({"a": 3}), "a has no dtype, shape and data_offsets"),
        (header({"a": {**F32, "dtype": "F4"}}, 8), "a has the unknown dtype 'F4'"),
        (header({"a": {**F32, "dtype": []}}, 8), "a has the unknown dtype"),
        (header({"a": {**F32, "shape": [-2]}}, 8), "a has the shape"),
        (header({"a": {**F32, "shape": [2.0]}}, 8), "a has the shape"),
        (header({"a": {**F32, "shape": [10**12, 10**12]}}, 8), r"a of shape .* has the data_offsets"),
        (header({"a": {**F32, "data_offsets": [0]}}, 8), "a of shape"),
        (header({"a": {**F32, "data_offsets": [8, 16]}}, 16), "leave or share the bytes from 0 to 8"),
        (header({"a": F32, "b": F32}, 8), "leave or share the bytes from 0 to 8"),
        (header({"a": F32}, 7), "its tensors have 8 bytes, 7 are there"),
        (header({"a": F32}, 9), "its tensors have 8 bytes, 9 are there"),
        (header({"a": F32}, 8), "missing conditioning"),
    ],
)
def test_the_header_of_a_file_of_tensors_is_read_before_its_values(data: bytes, message: str, tmp_path: Path) -> None:
    small(0).save(tmp_path)
    signed(tmp_path, {**read_parts(tmp_path), "weights": ("safetensors", data)})
    with pytest.raises(CheckpointError, match=rf"weights-.*{message}"):
        ScoreModel.load(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes, devices and sparse files")
@pytest.mark.parametrize("part", ["model", "weights", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder", "sparse", "nothing"])
def test_a_part_that_is_no_regular_file_of_its_size_is_refused_at_once(part: str, kind: str, tmp_path: Path) -> None:
    small(0).save(tmp_path / "m")
    (file,) = (tmp_path / "m").glob(f"{part}*")
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        file.symlink_to(tmp_path / "pipe")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "sparse":
        file.touch()
        os.truncate(file, 20 << 30)
    with pytest.raises(CheckpointError, match=r"no regular file|has 21474836480 bytes|is missing|holds no manifest"):
        ScoreModel.load(tmp_path / "m")


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
@pytest.mark.parametrize(("part", "suffix"), [("weights", "safetensors"), ("model", "json")])
def test_a_large_file_that_the_manifest_vouches_for_is_not_read_whole(part: str, suffix: str, tmp_path: Path) -> None:
    small(0).save(tmp_path)
    file = f"{part}-{'0' * 16}.{suffix}"
    (tmp_path / file).touch()
    os.truncate(tmp_path / file, 20 << 30)
    body = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    del body["sha256"]
    body["files"][part] = {"file": file, "bytes": 20 << 30, "sha256": "0" * 64}
    (tmp_path / "manifest.json").write_bytes(sign(body))
    with pytest.raises(CheckpointError, match=f"{part}-0.*(no JSON|more than the 67108864 of any document)"):
        ScoreModel.load(tmp_path)


def test_parts_may_be_links_to_files(tmp_path: Path) -> None:
    """A store of files by their digests keeps folders of links."""
    small(0).save(tmp_path / "m")
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "m").iterdir():
        try:
            (tmp_path / "links" / file.name).symlink_to(file)
        except OSError:  # not everyone may make one on Windows
            pytest.skip("no links here")
    assert same_weights(ScoreModel.load(tmp_path / "links"), small(0))


def test_a_buffer_may_hold_infinities(tmp_path: Path) -> None:
    net = filled(Own())
    net.shift[0] = -torch.inf
    ScoreModel(net, VPSDE()).save(tmp_path)
    assert same_weights(ScoreModel.load(tmp_path, net=Own()).net, net)


def test_the_event_and_the_channels_are_those_of_the_network(tmp_path: Path) -> None:
    image(tmp_path)
    parts = read_parts(tmp_path)
    for shape in ((2, 4, 4), (1, 4), (4,)):
        signed(tmp_path, parts)
        change_tensors(
            tmp_path, "moments", lambda t, shape=shape: t.update(mean=torch.zeros(shape), variance=torch.ones(shape))
        )
        with pytest.raises(CheckpointError, match=r"the moments are of the event \(.*, the network's is \(1, "):
            ScoreModel.load(tmp_path)
    document = {**json.loads(parts["model"][1]), "variance": "fixed"}
    signed(tmp_path, {**parts, "model": ("json", json.dumps(document).encode())})
    with pytest.raises(CheckpointError, match="variance is fixed, and the network gives 2 channels for 1"):
        ScoreModel.load(tmp_path)


def test_a_shape_of_very_many_sizes_is_refused_at_once(tmp_path: Path) -> None:
    """The product of 200 000 sizes of 62 bits takes minutes."""
    small(0).save(tmp_path)
    parts = read_parts(tmp_path)
    for count, message in ((200_000, r"a has the shape \["), (65, r"a has the shape \["), (64, "has the data_offsets")):
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**62] * count, "data_offsets": [0, 0]}}).encode()
        signed(tmp_path, {**parts, "weights": ("safetensors", len(header).to_bytes(8, "little") + header)})
        with pytest.raises(CheckpointError, match=message):
            ScoreModel.load(tmp_path)


def test_a_number_of_a_manifest_that_is_infinite_is_damage(tmp_path: Path) -> None:
    small(0).save(tmp_path)
    text = '{"format": "scoresde checkpoint", "version": 1, "files": {"model": 1e999}, "sha256": "x"}'
    (tmp_path / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged; take another copy"):
        ScoreModel.load(tmp_path)


@pytest.mark.parametrize("name", ["moments", "groups", "ema", "autoencoder", "weights", "training_state", "a_moments"])
def test_a_document_in_the_place_of_tensors_is_not_taken_for_nothing(name: str, tmp_path: Path) -> None:
    full(tmp_path)
    signed(tmp_path, {**read_parts(tmp_path), name: ("json", b"{}")})
    with pytest.raises(CheckpointError, match=rf"{name}-\w+.json: {name} must be tensors"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["model", "tables", "calibration", "change", "combination", "training", "run", "b_model"]
)
def test_tensors_in_the_place_of_a_document_are_not_taken_for_nothing(name: str, tmp_path: Path) -> None:
    full(tmp_path)
    data = safetensors.torch.save({"a": torch.zeros(1)})
    signed(tmp_path, {**read_parts(tmp_path), name: ("safetensors", data)})
    with pytest.raises(CheckpointError, match=rf"{name}-\w+.safetensors: {name} must be a document"):
        checkpoint.read(tmp_path)


NEW: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "DiT": (lambda: DiT(1, width=8, depth=1, heads=2), (1, 4, 4), (2, 4, 4)),
    "MagnitudeUNet": (lambda: MagnitudeUNet(1, width=4, multipliers=(1,), heads=2), (1, 4, 4), (1, 4)),
    "EGNN": (lambda: EGNN(2, width=4, depth=1), (5, 2), (5, 3)),
}


@pytest.mark.parametrize("name", NEW)
def test_moments_and_variance_are_held_to_every_network(name: str, tmp_path: Path) -> None:
    make, event, other = NEW[name]
    ScoreModel(make(), VPSDE(), moments=Moments(torch.zeros(event), torch.ones(()))).save(tmp_path)
    assert ScoreModel.load(tmp_path).moments.mean.shape == event
    parts = read_parts(tmp_path)
    change_tensors(tmp_path, "moments", lambda tensors: tensors.update(mean=torch.zeros(other)))
    with pytest.raises(CheckpointError, match=rf"the moments are of the event \({other[0]}, .*the network's is"):
        ScoreModel.load(tmp_path)
    document = {**json.loads(parts["model"][1]), "variance": "learned"}
    signed(tmp_path, {**parts, "model": ("json", json.dumps(document).encode())})
    with pytest.raises(CheckpointError, match="variance is learned, and the network gives"):
        ScoreModel.load(tmp_path)


def test_an_autoencoder_is_the_one_that_the_document_names(tmp_path: Path) -> None:
    coder = Autoencoder(1, 2, width=4, multipliers=(1, 2))
    ScoreModel(filled(MLP((2, 2, 2), width=4)), VPSDE(), transform=Latent(coder)).save(tmp_path)
    change_tensors(tmp_path, "autoencoder", lambda tensors: tensors["scale"].add_(1.0))
    with pytest.raises(CheckpointError, match=r"transform.weights is not the digest of autoencoder-"):
        ScoreModel.load(tmp_path)
