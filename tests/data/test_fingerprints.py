from __future__ import annotations

import hashlib
import io
import itertools

import pandas as pd
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from vit_clt import load_data
from vit_clt.data.fingerprints import data_fingerprint, fingerprint_as, sampled_fingerprint
from vit_clt.data.images import DecodedImages, ImageData, TensorImages


def pixels(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(3))


def decoded(values: list[int | None], transform=None, name: str = "decoded") -> ImageData:
    """One grey image per value; None is an image that cannot be read."""

    def fetch(rows: list[int]):
        if any(values[row] is None for row in rows):
            raise UnidentifiedImageError("not an image")
        return [Image.new("L", (2, 2), values[row]) for row in rows], [-1] * len(rows)

    def plain(image: Image.Image) -> torch.Tensor:
        return torch.full((3, *image.size), float(image.getpixel((0, 0))))

    return DecodedImages(fetch, len(values), transform or plain, [], name)


def test_it_is_the_hash_of_the_row_count_and_the_pixels():
    # written out, so that it cannot depend on the process
    images = torch.arange(24.0).reshape(2, 3, 2, 2)
    expected = hashlib.sha256(b"2 rows")
    for image in images:
        expected.update(b"\ntorch.float32 (3, 2, 2) " + image.numpy().tobytes())
    assert sampled_fingerprint(TensorImages(images)) == expected.hexdigest()
    expected = hashlib.sha256(b"2 rows\nunreadable\ntorch.float32 (3, 2, 2) ")
    expected.update(torch.full((3, 2, 2), 7.0).numpy().tobytes())
    assert sampled_fingerprint(decoded([None, 7])) == expected.hexdigest()


def test_names_labels_and_splits_do_not_count():
    images = pixels(5)
    other = TensorImages(images, torch.arange(5), ["a"], name="elsewhere")
    other.split = "train"
    assert sampled_fingerprint(other) == sampled_fingerprint(TensorImages(images))
    assert sampled_fingerprint(decoded([1, 2])) == sampled_fingerprint(
        TensorImages(torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 3, 2, 2))
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images[:-1],
        lambda images: images.flip(0),
        lambda images: images * 1.0001,
        lambda images: images.mT,
        lambda images: images.flatten(2).unsqueeze(-1),
        lambda images: images.double(),
        lambda images: torch.cat([images, images[:1]]),
    ],
    ids=["fewer", "order", "values", "transposed", "shape", "dtype", "more"],
)
def test_data_count(change):
    images = pixels(100)
    assert data_fingerprint(TensorImages(change(images))) != data_fingerprint(TensorImages(images))


@pytest.mark.parametrize("n", [1, 2, 64, 65, 130])
def test_every_image_counts(n):
    images = pixels(n)
    before = data_fingerprint(TensorImages(images))
    for row in range(n):
        altered = images.clone()
        altered[row, 2, 1, 1] += 1
        assert data_fingerprint(TensorImages(altered)) != before


def test_of_many_images_64_evenly_spaced_ones_are_read():
    asked: list[int] = []

    class Watched(TensorImages):
        def batch(self, rows):
            asked.extend(rows)
            return super().batch(rows)

    sampled_fingerprint(Watched(pixels(1000)))
    assert len(asked) == len(set(asked)) == 64
    assert (asked[0], asked[-1]) == (0, 999)
    assert {b - a for a, b in itertools.pairwise(asked)} == {15, 16}


def test_preprocessing_counts():
    def inverted(image: Image.Image) -> torch.Tensor:
        return torch.full((3, *image.size), 255.0 - image.getpixel((0, 0)))

    assert data_fingerprint(decoded([1, 2], inverted)) != data_fingerprint(decoded([1, 2]))


def test_unreadable_images_count_as_such():
    found = [sampled_fingerprint(decoded(v)) for v in ([1, 2], [None, 2], [1, None], [None, None])]
    assert len(set(found)) == 4
    assert sampled_fingerprint(decoded([None, 2], name="other")) == found[1]


def test_two_swapped_images_count():
    images = pixels(150)
    swapped = images.clone()
    swapped[[71, 72]] = images[[72, 71]]  # none of the 64
    before, after = TensorImages(images), TensorImages(swapped)
    assert sampled_fingerprint(before) == sampled_fingerprint(after)
    assert data_fingerprint(before) != data_fingerprint(after)


def test_an_earlier_fingerprint_is_compared_by_its_own_rule():
    data = TensorImages(pixels(100))
    earlier = sampled_fingerprint(data)
    assert fingerprint_as(earlier, data) == earlier
    assert fingerprint_as(data_fingerprint(data), data) == data_fingerprint(data)
    assert fingerprint_as(None, data) == data_fingerprint(data)


@pytest.mark.parametrize("form", ["imagefolder:{}", "parquet:{}"])
def test_one_replaced_file_is_seen(digits_vit, tmp_path, form):
    def write(replaced: int | None) -> str:
        rows = []
        for i in range(150):
            image = Image.new("L", (8, 8), 255 - i if i == replaced else i)
            buffer = io.BytesIO()
            image.save(buffer, "BMP")  # the same size whatever is in it
            rows.append(buffer.getvalue())
            path = tmp_path / "test" / f"{i:03}.bmp"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(rows[-1])
        pd.DataFrame({"image": rows}).to_parquet(tmp_path / "test.parquet")
        return data_fingerprint(load_data(form.format(tmp_path), vit=digits_vit))

    assert write(None) == write(None)
    assert write(None) != write(71)
