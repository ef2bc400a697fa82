"""Batches come in order, each read while the one before is worked on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from PIL import Image

from vit_clt.data import DecodedImages, ImageSubset, UnreadableImage


class Counted:
    """Gives images whose pixels are their numbers; notes which are read, and in which thread."""

    def __init__(self, broken: int | None = None):
        self.broken = broken
        self.read: list[int] = []
        self.threads: set[int] = set()
        self.second = threading.Event()

    def __call__(self, indices: list[int]) -> tuple[list[Any], list[Any]]:
        self.threads.add(threading.get_ident())
        if self.broken in indices:
            raise OSError("it holds no image")
        self.read.append(indices[0])
        if len(self.read) > 1:
            self.second.set()
        return [Image.new("L", (2, 2), i) for i in indices], indices


def counted(n: int, fetch: Counted) -> DecodedImages:
    data = DecodedImages(fetch, n, lambda image: torch.tensor([[image.getpixel((0, 0))]]), (), "x")
    data.batch_size = 4
    return data


def test_all_come_in_order_from_a_thread_beside():
    fetch = Counted()
    data = counted(10, fetch)
    for images in (data, ImageSubset(data, range(10))):
        images.batch_size = 4
        labels = [labels.tolist() for _, labels in images]
        assert labels == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    given = [numbers.tolist() for _, numbers in data.batches([[7, 2], [5]])]
    assert given == [[7, 2], [5]]
    assert list(data.batches([])) == []
    assert threading.get_ident() not in fetch.threads
    data.batch([3])
    assert threading.get_ident() in fetch.threads


def test_the_next_is_read_before_it_is_asked_for():
    fetch = Counted()
    batches = iter(counted(100, fetch))
    next(batches)
    assert fetch.second.wait(10)
    batches.close()
    assert fetch.read == [0, 4]


def test_a_broken_image_stops_at_its_batch():
    batches = iter(counted(12, Counted(broken=5)))
    assert next(batches)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(UnreadableImage, match="row 5 holds an image that cannot be read"):
        next(batches)
