"""Hashes of images as a model sees them: is a set the same, and an order free of that of rows."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.data.images import ImageData

SAMPLED_IMAGES = 64


def data_fingerprint(data: ImageData) -> str:
    """Hex SHA-256 of the number of rows and the preprocessed pixels of up to 64 of them.

    The rows are evenly spaced, first and last included (all of them, up to 64), so data, row order
    and preprocessing all count; names, paths, splits and labels do not. An image that cannot be
    read counts as such. The same in every process with the same image libraries: another version
    of one may decode or resize to other pixels, and then the fingerprint differs too.

    It cannot see a change that leaves all sampled images as they were: above 64 rows, single
    images altered or rows swapped between the sampled ones.
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
    """What images are sorted by where neither their order nor their batches may matter.

    A hash of seed, label and pixels, so that the first of them are a random sample.
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
