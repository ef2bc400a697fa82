"""Hashes of preprocessed images: one for a whole data set, and one for each image."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.data.images import ImageData

SAMPLED_IMAGES = 64


def data_fingerprint(data: ImageData) -> str:
    """Hex SHA-256 of the number of images and the preprocessed pixels of up to 64 of them.

    The sampled images are evenly spaced, first and last included, so that the data, their order and
    the preprocessing all count; names, paths, splits and labels do not. An unreadable image counts
    as unreadable. The hash is the same in every process with the same image libraries; another
    version of a library may decode or resize to other pixels, and then it differs.

    It does not see a change that leaves all sampled images unchanged: of more than 64 images, one
    between them may be altered, or two swapped.
    """
    rows = _evenly_spaced(len(data))
    images, positions = data.readable(rows)
    digest = hashlib.sha256(f"{len(data)} rows".encode())
    pixels = dict(zip(positions, () if images is None else images.cpu(), strict=True))
    for position in range(len(rows)):
        if position not in pixels:
            digest.update(b"\nunreadable")
            continue
        image = pixels[position].contiguous()
        digest.update(f"\n{image.dtype} {tuple(image.shape)} ".encode())
        digest.update(image.view(torch.uint8).numpy().tobytes())
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


def _evenly_spaced(n: int) -> list[int]:
    count = min(n, SAMPLED_IMAGES)
    return [i * (n - 1) // max(count - 1, 1) for i in range(count)]
