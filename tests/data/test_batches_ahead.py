"""Batches come in order, each read while the one before is worked on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vit_clt.data import ImageData, UnreadableImage


class Counted(ImageData):
    """Images whose pixels are their numbers; it notes which are read, and in which thread."""

    name, class_names, batch_size = "counted", (), 4

    def __init__(self, n: int, broken: int | None = None):
        self.n, self.broken = n, broken
        self.read: list[int] = []
        self.threads: set[int] = set()
        self.second = threading.Event()

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.threads.add(threading.get_ident())
        if self.broken in indices:
            raise UnreadableImage(f"row {self.broken} holds no image.")
        self.read.append(indices[0])
        if len(self.read) > 1:
            self.second.set()
        numbers = torch.tensor([*indices])
        return numbers.float()[:, None, None, None].expand(-1, 3, 2, 2), numbers


def test_all_come_in_order_from_a_thread_beside():
    data = Counted(10)
    labels = [labels.tolist() for _, labels in data]
    assert labels == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert threading.get_ident() not in data.threads
    given = data.batches([[7, 2], [5]])
    assert [numbers.tolist() for _, numbers in given] == [[7, 2], [5]]
    assert list(data.batches([])) == []


def test_the_next_is_read_before_it_is_asked_for():
    data = Counted(100)
    batches = iter(data)
    next(batches)
    assert data.second.wait(10)
    batches.close()
    assert data.read == [0, 4]


def test_a_broken_image_stops_at_its_batch():
    data = Counted(12, broken=5)
    batches = iter(data)
    assert next(batches)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(UnreadableImage, match="row 5 holds no image"):
        next(batches)
