"""Images of other depths, palettes and colour models, as files, through load_data."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit_clt import InputError, load_data
from vit_clt.data.images import eight_bit
from vit_clt.hooks import HookedViT

pytestmark = pytest.mark.usefixtures("offline_datasets")
SIZE = (8, 8)  # the digits model's own: what is tested here is colour, not resizing
GREY = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def load(vit: HookedViT, folder: Path) -> torch.Tensor:
    data = load_data(f"imagefolder:{folder}", vit=vit, split="train")
    return data.batch(range(len(data)))[0]


def seen(vit: HookedViT, pixels: np.ndarray) -> torch.Tensor:
    return vit.preprocess(Image.fromarray(pixels).convert("RGB"))


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def png(colour_type: int, values: np.ndarray) -> bytes:
    """A 16-bit PNG, which PIL writes in grey only."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", *SIZE, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def test_sixteen_bit_grey_is_scaled_not_clipped(digits_vit: HookedViT, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0, GREY.astype(np.uint16) * 257))
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "b.tif")
    assert opened(tmp_path / "a.png").mode.startswith("I")
    images = load(digits_vit, tmp_path)
    expected = seen(digits_vit, GREY)
    assert torch.equal(images[0], expected)
    assert torch.equal(images[1], expected)


def test_sixteen_bit_colour(digits_vit: HookedViT, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, COLOUR.astype(np.uint16) * 257))
    assert torch.equal(load(digits_vit, tmp_path)[0], seen(digits_vit, COLOUR))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_round_to_the_nearest_of_256(mode: str) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]])
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    image = Image.frombytes(mode, (6, 1), values.astype(kinds[mode]).tobytes())
    assert np.asarray(eight_bit(image)).tolist() == [[0, 0, 1, 1, 128, 255]]
    assert eight_bit(image).mode == "L"


@pytest.mark.parametrize("values", [np.float32([[0.5, 2]]), np.int32([[0, 70000]])])
def test_other_ranges_are_refused(
    digits_vit: HookedViT, tmp_path: Path, values: np.ndarray
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    message = r"row 0 holds an image that cannot be read: its values run from .* expected 8 or 16"
    with pytest.raises(InputError, match=message):
        load(digits_vit, tmp_path)


def test_palette_is_interpolated_in_colour(digits_vit: HookedViT, tmp_path: Path) -> None:
    large = Image.fromarray(COLOUR).resize((31, 31)).quantize(16)
    large.save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png").mode == "P"
    images = load(digits_vit, tmp_path)
    assert torch.equal(images[0], digits_vit.preprocess(large.convert("RGB")))
    assert not torch.equal(images[0], digits_vit.preprocess(large))  # nearest neighbour


def test_transparent_palette_is_treated_as_rgba(digits_vit: HookedViT, tmp_path: Path) -> None:
    large = Image.fromarray(COLOUR).resize((31, 31)).quantize(16)
    large.save(tmp_path / "a.png", transparency=3)
    stored = opened(tmp_path / "a.png")
    assert eight_bit(stored).mode == "RGBA"
    expected = digits_vit.preprocess(stored.convert("RGBA"))
    assert torch.equal(load(digits_vit, tmp_path)[0], expected)


def test_one_bit_images_become_grey(digits_vit: HookedViT, tmp_path: Path) -> None:
    large = Image.fromarray(GREY).resize((31, 31)).convert("1")
    large.save(tmp_path / "a.png")
    expected = digits_vit.preprocess(large.convert("L"))
    assert torch.equal(load(digits_vit, tmp_path)[0], expected)


def test_grey_and_rgba_and_cmyk(digits_vit: HookedViT, tmp_path: Path) -> None:
    rgba = np.dstack([COLOUR, GREY])
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(rgba).save(tmp_path / "b.png")
    cmyk.save(tmp_path / "c.tif")
    cmyk.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "d.jpg", quality=100)
    images = load(digits_vit, tmp_path)
    assert torch.equal(images[0], seen(digits_vit, GREY))
    assert torch.equal(images[1], seen(digits_vit, COLOUR))  # alpha is dropped, nothing blended
    assert torch.equal(images[2], seen(digits_vit, COLOUR))
    jpeg = opened(tmp_path / "d.jpg")
    assert jpeg.mode == "CMYK"
    torch.testing.assert_close(
        images[3], digits_vit.preprocess(jpeg.convert("RGB")), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_animation_gives_its_first_frame(
    digits_vit: HookedViT, tmp_path: Path, suffix: str
) -> None:
    frames = [Image.fromarray(np.full((*SIZE, 3), v, np.uint8)) for v in (40, 200, 90)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        assert stored.n_frames == 3
    assert torch.equal(load(digits_vit, tmp_path)[0], digits_vit.preprocess(frames[0]))
