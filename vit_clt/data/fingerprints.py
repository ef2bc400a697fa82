"""Hashes of preprocessed images: one for a whole data set, and one for each image."""

from __future__ import annotations

import hashlib

from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.data.images import ImageData, evenly_spaced, pixel_bytes

SAMPLED_IMAGES = 64
ROWS_AT_ONCE = 1024
WHOLE = "all-"
"""What a fingerprint of all images begins with; those of 64 images are bare hexadecimal."""


def data_fingerprint(data: ImageData) -> str:
    """A hash of the stored bytes of every image, in order, and of the pixels of up to 64.

    It tells whether data has changed since a run or a store was made of it. The stored bytes are
    those of the image files, of the encoded images in the rows of a table that are used, or of the
    pixels where there is nothing else (tensors); no image is decoded for them. The preprocessed
    pixels of up to 64 evenly spaced images (`sampled_fingerprint`) count too, so that another
    preprocessing is another fingerprint. Names, times, paths, splits and labels do not count. An
    unreadable image counts by its bytes, and a file that is gone as empty.

    The cost is one read of all files: 50,000 small images take about two seconds, and large ones as
    long as the disk needs.
    """
    digest = hashlib.sha256(sampled_fingerprint(data).encode())
    for start in range(0, len(data), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(data)))
        for content in data.contents(rows):
            digest.update(hashlib.blake2b(content, digest_size=16).digest())
    return WHOLE + digest.hexdigest()


def fingerprint_as(recorded: object, data: ImageData) -> str:
    """The fingerprint of `data` by the rule of a recorded one, with which it is compared.

    Runs and stores that were made before all images counted hold the `sampled_fingerprint`.
    """
    if isinstance(recorded, str) and not recorded.startswith(WHOLE):
        return sampled_fingerprint(data)
    return data_fingerprint(data)


def sampled_fingerprint(data: ImageData) -> str:
    """Hex SHA-256 of the number of images and the preprocessed pixels of up to 64 of them.

    It is the same for the same images in another form, such as a table and a tensor. The sampled
    images are evenly spaced, first and last included, so that the data, their order and the
    preprocessing all count; names, paths, splits and labels do not. An unreadable image counts as
    unreadable. The hash is the same in every process with the same image libraries; another version
    of a library may decode or resize to other pixels, and then it differs.

    It does not see a change that leaves all sampled images unchanged: of more than 64 images, one
    between them may be altered, or two swapped.
    """
    rows = evenly_spaced(len(data), SAMPLED_IMAGES)
    images, positions = data.readable(rows)
    digest = hashlib.sha256(f"{len(data)} rows".encode())
    pixels = dict(zip(positions, () if images is None else images.cpu(), strict=True))
    for position in range(len(rows)):
        if position not in pixels:
            digest.update(b"\nunreadable")
            continue
        digest.update(b"\n" + pixel_bytes(pixels[position]))
    return digest.hexdigest()


def image_keys(
    images: Float[Tensor, "image 3 height width"], labels: Int[Tensor, " image"], seed: int
) -> list[bytes]:
    """A hash of seed, label and pixels for each image.

    Sorted by it, images are in a random order that depends neither on their order in the data nor
    on batches, and the first n are a random sample.
    """
    return [
        hashlib.blake2b(
            image.contiguous().numpy().tobytes(), digest_size=16, key=f"{seed} {label}".encode()
        ).digest()
        for image, label in zip(images.cpu(), labels.tolist(), strict=True)
    ]
