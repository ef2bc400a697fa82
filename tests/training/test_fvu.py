"""The streamed fraction of variance unexplained, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_clt.training.step import VarianceSums

CPU = torch.device("cpu")


def rows(n: int = 50, offset: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    y = torch.randn(3, n, 5, generator=generator) + offset
    y_hat = y + 0.3 * torch.randn(3, n, 5, generator=generator)
    is_cls = torch.arange(n) % 7 == 0
    y[:, is_cls] *= 4  # another mean than that of patches
    return y, y_hat, is_cls


def by_hand(y: Tensor, y_hat: Tensor) -> list[float]:
    true, found = (v.double().numpy() for v in (y, y_hat))
    return [
        float(((t - f) ** 2).sum() / ((t - t.mean(0)) ** 2).sum())
        for t, f in zip(true, found, strict=True)
    ]


def expected(y: Tensor, y_hat: Tensor, is_cls: Tensor) -> dict[str, list[float]]:
    kinds = {"all": torch.ones_like(is_cls), "cls": is_cls, "patch": ~is_cls}
    return {name: by_hand(y[:, kind], y_hat[:, kind]) for name, kind in kinds.items()}


def counted(*pieces: tuple[Tensor, Tensor, Tensor]) -> VarianceSums:
    sums = VarianceSums(3, 5, CPU)
    for y, y_hat, is_cls in pieces:
        sums.add(y, y_hat, (~is_cls).long())
    return sums


def test_registers_count_as_rows_and_not_as_patches():
    y, y_hat, is_cls = rows()
    group = torch.where(is_cls, 2, 1)
    sums = VarianceSums(3, 5, CPU)
    sums.add(y, y_hat, group)
    found = sums.by_layer()
    assert found["cls"] is None
    np.testing.assert_allclose(found["patch"], by_hand(y[:, ~is_cls], y_hat[:, ~is_cls]))
    np.testing.assert_allclose(found["all"], by_hand(y, y_hat))


def assert_close(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys() == {"all", "cls", "patch"}
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9)


# a mean 10,000 times the spread: float32 sums would have lost it
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_it_is_the_unexplained_share_of_the_spread_around_each_kind_s_mean(offset):
    found = rows(offset=offset)
    values = counted(found).by_layer()
    for name, wanted in expected(*found).items():
        np.testing.assert_allclose(values[name], wanted, rtol=1e-6)
    assert values["cls"] != values["patch"] != values["all"]


def test_perfect_is_zero_and_the_mean_is_one():
    y, _, is_cls = rows()
    assert counted((y, y, is_cls)).by_layer()["all"] == [0.0] * 3
    mean = y.double().mean(1, keepdim=True).float().expand_as(y)
    assert counted((y, mean, is_cls)).by_layer()["all"] == pytest.approx([1.0] * 3, rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_pieces_add_up(size):
    y, y_hat, is_cls = rows()
    pieces = [
        (y[:, i : i + size], y_hat[:, i : i + size], is_cls[i : i + size])
        for i in range(0, 50, size)
    ]
    assert_close(counted(*pieces).by_layer(), expected(y, y_hat, is_cls))


def test_processes_add_up():
    one, other = rows(50), rows(33)
    mine, theirs = counted(one), counted(other)
    sent = iter([theirs.count, theirs.error, theirs.power, theirs.total])
    mine.reduce(lambda value: value + next(sent))
    together = [torch.cat([a, b], -2) for a, b in zip(one[:2], other[:2], strict=True)]
    assert_close(mine.by_layer(), expected(*together, torch.cat([one[2], other[2]])))


def test_inputs_are_left_alone_and_may_be_half_precision():
    y, y_hat, is_cls = rows()
    before = y.clone(), y_hat.clone()
    half = y.bfloat16(), y_hat.bfloat16()
    assert_close(counted((*half, is_cls)).by_layer(), expected(*(v.float() for v in half), is_cls))
    counted((y, y_hat, is_cls))
    assert torch.equal(y, before[0])
    assert torch.equal(y_hat, before[1])


@pytest.mark.parametrize("value", [0.0, 0.1, -1e3])
def test_rows_that_do_not_vary_have_none(value):
    y, y_hat, is_cls = rows()
    y[:, is_cls] = value
    found = counted((y, y_hat, is_cls)).by_layer()
    assert found["cls"] is None
    assert found["patch"] is not None
    assert found["all"] is not None


def test_one_constant_layer_makes_none_of_its_kind():
    y, y_hat, is_cls = rows()
    y[1] = 2.5
    assert counted((y, y_hat, is_cls)).by_layer() == {"all": None, "cls": None, "patch": None}


def test_fewer_than_two_rows_have_none():
    assert counted().by_layer() == {"all": None, "cls": None, "patch": None}
    y, y_hat, is_cls = rows(4)  # the first is CLS
    found = counted((y, y_hat, is_cls)).by_layer()
    assert found["cls"] is None
    np.testing.assert_allclose(found["patch"], by_hand(y[:, 1:], y_hat[:, 1:]), rtol=1e-6)
    np.testing.assert_allclose(found["all"], by_hand(y, y_hat), rtol=1e-6)
