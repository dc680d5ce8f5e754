"""Image folders: what they hold, and every fault of FAULTS.md."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import images_from_folder
from scoresde.errors import ConfigError, DataError, DomainError, DTypeError, ScoreSDEError
from scoresde.noise import integers, stream
from scoresde.transforms import Dequantise

LEVELS = Dequantise(256)


def picture(height: int = 4, width: int = 6, channels: int = 3, *, key: str = "p", high: int = 256) -> np.ndarray:
    return (
        integers(high, (height, width, channels), stream(2, key))
        .to(torch.uint8)
        .numpy()
        .squeeze(-1 if channels == 1 else ())
    )


def save(folder: Path, name: str, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(file, **options)
    return file


def png(width: int, height: int) -> bytes:
    """A PNG that says it is of this size and holds nothing more."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_images_come_in_the_order_of_their_paths_with_their_folders_as_labels(tmp_path: Path) -> None:
    arrays = {name: picture(key=name) for name in ("b/2.png", "a/1.PNG", "a/0.bmp", "top.png")}
    for name, array in arrays.items():
        save(tmp_path, name, array)
    save(tmp_path, ".hidden/x.png", picture())
    save(tmp_path, ".x.png", picture())
    (tmp_path / "notes.txt").write_text("not an image")
    data = images_from_folder(tmp_path)
    names = ["a/0.bmp", "a/1.PNG", "b/2.png", "top.png"]
    assert [file.relative_to(tmp_path).as_posix() for file in data.paths] == names
    assert data.classes == (".", "a", "b")
    assert data.labels.tolist() == [1, 1, 2, 0]
    assert data.skipped == ()
    assert data.images.dtype == torch.float32
    assert data.images.is_contiguous()
    expected = np.stack([arrays[name] for name in names]).transpose(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(data.images, torch.as_tensor(expected).float(), rtol=0, atol=1e-6)
    assert torch.equal(LEVELS.inverse(data.images), data.images)
    assert images_from_folder(str(tmp_path)).images.equal(data.images)


def test_grey_palette_and_bilevel_images_become_the_channels_that_are_asked_for(tmp_path: Path) -> None:
    grey = picture(channels=1)
    save(tmp_path, "0.png", grey)
    save(tmp_path, "1.png", np.repeat(grey[..., None], 3, 2))
    few = picture(key="few", high=2) * 255
    save(tmp_path, "2.png", few, "P")
    save(tmp_path, "3.png", (grey > 127) * np.uint8(255), "1")
    save(tmp_path, "4.png", np.dstack([few, np.full((4, 6), 255, np.uint8)]))  # opaque alpha
    images = images_from_folder(tmp_path).images
    assert images.shape == (5, 3, 4, 6)
    bytes_ = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (bytes_[0] == grey[..., None]).all()
    assert (bytes_[1] == grey[..., None]).all()
    assert (bytes_[2] == few).all()
    assert (bytes_[3] == np.where(grey > 127, 255, 0)[..., None]).all()
    assert (bytes_[4] == few).all()
    luma = images_from_folder(tmp_path, colour=False).images
    assert luma.shape == (5, 1, 4, 6)
    assert (((luma[0, 0] + 1) * 127.5).round().numpy() == grey).all()
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(((luma[2, 0] + 1) * 127.5).numpy() - few @ weights).max() <= 1.0


@pytest.mark.parametrize("size", [np.int64(4), torch.tensor(4), (np.int64(4), 4)])
def test_a_size_of_any_make(size: object, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert images_from_folder(tmp_path, size).images.shape == (1, 3, 4, 4)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    array = picture()
    save(tmp_path, "0.png", array, exif=exif)
    images = images_from_folder(tmp_path).images
    assert images.shape == (1, 3, 6, 4)
    turned = ((images[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert (turned == np.rot90(array, -1)).all()


def test_transparency_needs_a_background(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 4), np.uint8)
    array[..., 0], array[..., 3] = 200, [[255, 0], [128, 255]]
    save(tmp_path, "0.png", array)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    palette.save(tmp_path / "1.png", transparency=1)
    with pytest.raises(
        DataError, match=r"image 0 of 2, .*0.png, is transparent in places; flatten it, or pass background="
    ):
        images_from_folder(tmp_path)
    images = images_from_folder(tmp_path, background=(0, 255, 10)).images
    red, green, blue = ((images[0] + 1) * 127.5).round()
    assert red.flatten().tolist() == pytest.approx([200, 0, 100, 200], abs=1)
    assert green[0].tolist() == [0, 255]
    assert blue[0].tolist() == [0, 10]
    assert ((images[1, :, 0, 1] + 1) * 127.5).round().tolist() == [0, 255, 10]


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_images_are_resized(tmp_path: Path, resize: str) -> None:
    # left half dark, right half bright, a bright bar below that cropping to a square does not change
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 12:] = 240
    save(tmp_path, "0.png", wide)
    save(tmp_path, "1.png", np.full((4, 4, 3), 30, np.uint8))
    data = images_from_folder(tmp_path, size=4, resize=resize)  # type: ignore[arg-type]
    assert data.images.shape == (2, 3, 4, 4)
    bytes_ = ((data.images + 1) * 127.5).round()
    assert torch.equal(bytes_[1], torch.full((3, 4, 4), 30.0))
    assert float(bytes_[0, 0, :, 0].max()) < 30
    assert float(bytes_[0, 0, :, 3].min()) > 210
    tall = np.transpose(wide, (1, 0, 2)).copy()
    tall[:8], tall[16:] = 100, 100
    save(tmp_path, "2.png", tall)
    third = ((images_from_folder(tmp_path, size=(4, 4), resize=resize).images[2, 0] + 1) * 127.5).round()  # type: ignore[arg-type]
    # cropping keeps the middle third only; stretching keeps the grey ends
    assert (float((third - 100).abs()[0].max()) < 20) == (resize == "stretch")


def test_mixed_sizes_are_counted_and_the_cure_works(tmp_path: Path) -> None:
    for k, (height, width) in enumerate([(4, 6)] * 3 + [(6, 4)] * 2 + [(5, 5)]):
        save(tmp_path, f"{k}.png", picture(height, width))
    with pytest.raises(
        DataError,
        match=r"have 3 sizes \(height x width\): 3 of 4 x 6, 2 of 6 x 4, 1 of 5 x 5; pass size=, e.g. size=\(4, 6\), "
        r"with resize='crop' or 'stretch', or resize='refuse' with on_bad_image='skip'",
    ):
        images_from_folder(tmp_path)
    assert images_from_folder(tmp_path, size=(4, 6)).images.shape == (6, 3, 4, 6)
    kept = images_from_folder(tmp_path, size=(4, 6), resize="refuse", on_bad_image="skip")
    assert [file.name for file in kept.paths] == ["0.png", "1.png", "2.png"]
    assert kept.skipped[2][1] == "has 5 x 5 pixels, size asks for 4 x 6; resize='crop' or 'stretch' changes it"
    with pytest.raises(DataError, match=r"image 3 of 6, .*3.png, has 6 x 4 pixels, size asks for 4 x 6"):
        images_from_folder(tmp_path, size=(4, 6), resize="refuse")


def bad_file(folder: Path, kind: str) -> None:
    file = folder / "1.png"
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_bytes(b"this is no image")
    elif kind == "truncated":
        save(folder, "1.png", picture(40, 60))
        file.write_bytes(file.read_bytes()[:2000])
    elif kind == "flipped":
        save(folder, "1.png", picture(40, 60))
        data = bytearray(file.read_bytes())
        data[1500] ^= 16
        file.write_bytes(bytes(data))
    elif kind == "header only":
        file.write_bytes(png(4, 6))
    elif kind == "cmyk":
        save(folder, "1.jpg", picture(), "CMYK")
    elif kind == "grey 16":
        save(folder, "1.png", picture(channels=1).astype(np.uint16) * 257)
    elif kind == "rgb 16":
        rows = b"".join(b"\0" + bytes(range(36)) for _ in range(4))
        whole = png(6, 4).replace(struct.pack(">IIB", 6, 4, 8), struct.pack(">IIB", 6, 4, 16))
        chunk = b"IDAT" + zlib.compress(rows)
        head = b"IHDR" + struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
        parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, chunk, b"IEND")]
        file.write_bytes(whole[:8] + b"".join(parts))
    elif kind == "ppm 16":
        (folder / "1.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(range(12)))
    elif kind == "float":
        Image.fromarray(np.zeros((4, 6), np.float32)).save(folder / "1.tiff")
    elif kind == "animation":
        frames = [Image.fromarray(picture(channels=1, key=str(k))) for k in range(3)]
        frames[0].save(folder / "1.gif", save_all=True, append_images=frames[1:])
    elif kind == "huge":
        file.write_bytes(png(12_000, 12_000))
    elif kind == "bomb":
        file.write_bytes(png(60_000, 60_000))
    elif kind == "transparent":
        save(folder, "1.png", picture(channels=4))


BAD = {
    "empty": r"is empty \(0 bytes\)",
    "text": r"cannot be read \(UnidentifiedImageError",
    "truncated": r"cannot be read \(\w+",
    "flipped": r"cannot be read \(\w+",
    "header only": r"cannot be read \(\w+",
    "cmyk": "has colours of mode CMYK, which are not RGB; convert it to RGB",
    "grey 16": "has 16 or more bits a channel, which 8 would cut; save it with 8, or as a NumPy array",
    "rgb 16": "has 16 or more bits a channel",
    "ppm 16": "has 16 or more bits a channel",
    "float": "has 16 or more bits a channel",
    "animation": "has several frames; save each as a file of its own",
    "huge": "has 12000 x 12000 pixels, above max_pixels=67108864",
    "bomb": r"has more pixels than Pillow opens \(.*3600000000 pixels.*\); scale it down",
    "transparent": "is transparent in places",
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_image_among_many_is_named_or_skipped(tmp_path: Path, kind: str) -> None:
    good = [save(tmp_path, name, picture(key=name)) for name in ("0.png", "2.png")]
    bad_file(tmp_path, kind)
    with pytest.raises(
        DataError, match=rf"image 1 of 3, .*1\.\w+, {BAD[kind]}.*; repair or remove it, or pass on_bad_image"
    ):
        images_from_folder(tmp_path)
    data = images_from_folder(tmp_path, on_bad_image="skip")
    assert data.paths == tuple(good)
    assert len(data.skipped) == 1
    assert data.skipped[0][0].stem == "1"
    for file in good:
        file.unlink()
    with pytest.raises(DataError, match=rf"none of the 1 images in .* can be used; the first, .*, {BAD[kind]}"):
        images_from_folder(tmp_path, on_bad_image="skip")


def test_a_pixel_limit_of_ones_own(tmp_path: Path) -> None:
    save(tmp_path, "0.png", picture(4, 6))
    assert len(images_from_folder(tmp_path, max_pixels=24).paths) == 1
    with pytest.raises(DataError, match="has 6 x 4 pixels, above max_pixels=23"):
        images_from_folder(tmp_path, max_pixels=23)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "0.png", picture())

    def closed(file: Path) -> Image.Image:  # a superuser may read every file, so the mode bits cannot serve here
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Image, "open", closed)
    with pytest.raises(DataError, match=r"image 0 of 1, .*0.png, cannot be read \(PermissionError: .*denied"):
        images_from_folder(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the image folder .* holds no images; looked for .bmp, .* in it and below"):
        images_from_folder(tmp_path)
    with pytest.raises(DataError, match=r"the image folder .*nowhere does not exist"):
        images_from_folder(tmp_path / "nowhere")
    file = save(tmp_path, "0.png", picture())
    with pytest.raises(DataError, match=r"the image folder .*0.png is a single file; give a folder"):
        images_from_folder(file)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"size": 0}, DomainError, "size must be at least 1, got 0"),
        ({"size": (4, 4.0)}, DTypeError, "size must be an integer, got 4.0"),
        ({"size": (4, 4, 3)}, DTypeError, r"size must be an integer or \(height, width\), got \(4, 4, 3\)"),
        ({"size": "44"}, DTypeError, r"size must be an integer or \(height, width\), got '44'"),
        ({"resize": "strech"}, ConfigError, "unknown resize 'strech'; did you mean 'stretch'"),
        ({"on_bad_image": "ignore"}, ConfigError, "unknown on_bad_image 'ignore'; choices: raise, skip"),
        ({"background": 255}, DTypeError, "background must be three integers, got 255"),
        ({"background": (0, 0, 256)}, DomainError, r"background must be in \[0, 255\], got 256"),
        ({"max_pixels": 0}, DomainError, "max_pixels must be at least 1, got 0"),
    ],
)
def test_bad_options_of_a_folder(
    tmp_path: Path, options: dict[str, object], kind: type[ScoreSDEError], message: str
) -> None:
    save(tmp_path, "0.png", picture())
    with pytest.raises(kind, match=message):
        images_from_folder(tmp_path, **options)  # type: ignore[arg-type]


def test_a_folder_without_pillow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r'image folders need Pillow; in the repository run pip install "\.\[data\]"'):
        images_from_folder(tmp_path)
