"""Which rows make up which batch: every one once, by seed, epoch and shard alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_clt.training.order import ShardPlan, in_groups, seeded

PLAN = ShardPlan(
    seed=0,
    epoch=0,
    shard=0,
    n_shards=1,
    images=range(30),
    n_tokens=5,
    batch_rows=16,
    buffer_rows=64,
)


def passes_of(n_images: int) -> AbstractContextManager[Any]:
    return patch("vit_clt.training.order.IMAGES_PER_PASS", n_images)


def rows_by_batch(plan: ShardPlan) -> list[list[int]]:
    return [f.rows[positions].tolist() for f in plan.loads() for positions in f.batches]


def images_of(plan: ShardPlan) -> list[int]:
    return [image for group in plan.groups() for image in group]


fields = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "epoch": st.integers(0, 9),
        "shard": st.integers(0, 2),
        "images": st.integers(3, 60).map(lambda n: range(100, 100 + n)),
        "n_tokens": st.integers(1, 7),
        "batch_rows": st.integers(1, 70),
        "buffer_rows": st.integers(1, 200),
    }
)


# ---- batches ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fields=fields, per_pass=st.integers(1, 9))
def test_every_row_of_the_shard_comes_once_in_batches_of_the_right_size(fields, per_pass):
    plan = ShardPlan(n_shards=3, **fields)
    with passes_of(per_pass):
        batches = rows_by_batch(plan)
        groups = plan.groups()
    n_rows = plan.images_per_shard * plan.n_tokens
    assert sorted(row for batch in batches for row in batch) == list(range(n_rows))
    whole, rest = divmod(n_rows, plan.batch_rows)
    assert [len(b) for b in batches] == [plan.batch_rows] * whole + [rest] * (rest > 0)
    assert plan.n_batches == len(batches)
    assert all(len(group) == per_pass for group in groups[:-1])
    assert 0 < len(groups[-1]) <= per_pass
    images = [image for group in groups for image in group]
    assert len(set(images)) == len(images) == plan.images_per_shard
    assert set(images) <= set(plan.images)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(fields=fields, per_pass=st.integers(1, 9))
def test_loads_follow_each_other_and_are_bounded(fields, per_pass):
    plan = ShardPlan(n_shards=3, **fields)
    group_rows = per_pass * plan.n_tokens
    n_rows = plan.images_per_shard * plan.n_tokens
    with passes_of(per_pass):
        loads, n_groups = list(plan.loads()), len(plan.groups())
    waiting: list[int] = []
    start = 0
    for load in loads:
        assert load.groups.start == start < load.groups.stop
        start = load.groups.stop
        new = range(load.groups.start * group_rows, min(start * group_rows, n_rows))
        assert load.rows.tolist() == [*waiting, *new]
        assert len(load.rows) <= plan.buffer_rows + group_rows + plan.batch_rows
        assert len(load.rows) >= plan.buffer_rows or load is loads[-1]
        emptied = [p for batch in load.batches for p in batch.tolist()]
        assert emptied + load.left.tolist() == load.order.tolist()
        assert sorted(load.order.tolist()) == list(range(len(load.rows)))
        assert len(load.left) < plan.batch_rows
        waiting = load.rows[load.left].tolist()
        with passes_of(per_pass):
            held = set(plan.group_of(load.rows).tolist())
        assert held.issuperset(load.groups)
        assert max(held) < start
    assert start == n_groups
    assert not waiting


def test_a_batch_mixes_the_images_of_the_buffer():
    with passes_of(4):
        first = next(PLAN.loads())
        images = {row // PLAN.n_tokens for row in first.rows[first.batches[0]].tolist()}
    assert len(first.groups) * 4 == 16  # 64 rows are 13 images: four groups
    assert len(images) > 8
    tokens = {row % PLAN.n_tokens for row in first.rows[first.batches[0]].tolist()}
    assert tokens == set(range(PLAN.n_tokens))


def test_a_batch_larger_than_buffer_and_epoch_waits_for_everything():
    plan = replace(PLAN, batch_rows=1000, buffer_rows=1)
    with passes_of(4):
        loads = list(plan.loads())
    assert [len(f.batches) for f in loads] == [0] * 7 + [1]
    assert len(loads[-1].batches[0]) == 150


def test_a_shard_without_images_has_no_batches():
    plan = replace(PLAN, images=range(2), n_shards=3)
    assert plan.n_batches == plan.images_per_shard == 0
    assert not list(plan.loads())
    assert not plan.groups()


# ---- what the order is a function of ------------------------------------------------------------


def test_the_order_repeats_whatever_was_drawn_elsewhere():
    with torch.random.fork_rng(), passes_of(4):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        rows, images = rows_by_batch(PLAN), images_of(PLAN)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        again = replace(PLAN)
        list(again.loads())  # and whatever was walked before
        assert rows_by_batch(again) == rows
        assert images_of(again) == images


@pytest.mark.parametrize("changed", ["seed", "epoch"])
def test_seed_and_epoch_change_images_and_rows(changed):
    with passes_of(4):
        for value in (1, 2):
            other = replace(PLAN, **{changed: value})
            assert images_of(other) != images_of(PLAN)
            assert sorted(images_of(other)) == sorted(images_of(PLAN))
            assert rows_by_batch(other) != rows_by_batch(PLAN)


def test_shards_shuffle_their_rows_differently_and_loads_too():
    one, two = (replace(PLAN, images=range(60), n_shards=2, shard=s) for s in range(2))
    with passes_of(4):
        assert rows_by_batch(one) != rows_by_batch(two)
        orders = [f.order.tolist() for f in replace(PLAN, batch_rows=20, buffer_rows=40).loads()]
    full = [order for order in orders if len(order) == len(orders[0])]
    assert len(full) > 1
    assert len({tuple(order) for order in full}) == len(full)


def test_the_order_of_images_does_not_depend_on_the_sizes_of_batches():
    with passes_of(4):
        other = replace(PLAN, batch_rows=7, buffer_rows=21, n_tokens=3)
        assert images_of(other) == images_of(PLAN)
    with passes_of(5):
        assert images_of(PLAN) == images_of(other)


def test_images_are_named_by_their_rows_in_the_data_set():
    chosen = [7 * i + 3 for i in range(30)]
    plan = replace(PLAN, images=chosen)
    assert sorted(images_of(plan)) == chosen
    assert images_of(plan) == [chosen[i] for i in images_of(PLAN)]


# ---- shards -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n_images=st.integers(1, 50),
    n_shards=st.integers(1, 6),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_shards_are_disjoint_equal_and_leave_out_less_than_one_each(
    n_images, n_shards, epoch, seed
):
    base = replace(PLAN, images=range(n_images), n_shards=n_shards, epoch=epoch, seed=seed)
    shards = [images_of(replace(base, shard=shard)) for shard in range(n_shards)]
    assert [len(shard) for shard in shards] == [n_images // n_shards] * n_shards
    seen = [image for shard in shards for image in shard]
    assert len(set(seen)) == len(seen) == n_images - n_images % n_shards
    assert len({replace(base, shard=shard).n_batches for shard in range(n_shards)}) == 1


def test_the_images_left_out_change_with_the_epoch():
    left_out = []
    for epoch in range(60):
        base = replace(PLAN, images=range(8), n_shards=3, epoch=epoch)
        seen = {image for shard in range(3) for image in images_of(replace(base, shard=shard))}
        left_out.append(set(range(8)) - seen)
    assert {len(images) for images in left_out} == {2}
    assert set.union(*left_out) == set(range(8))
    counts = [sum(image in images for images in left_out) for image in range(8)]
    assert max(counts) < 30  # 15 on average


# ---- parts --------------------------------------------------------------------------------------


def test_generators_of_different_purposes_share_nothing():
    def drawn(*parts: object) -> list[int]:
        return torch.randint(2**40, (4,), generator=seeded(*parts)).tolist()

    purposes = [(0, "images", 1), (0, "rows", 1), (1, "images", 0), (1, 23), (12, 3), (123,)]
    assert len({tuple(drawn(*parts)) for parts in purposes}) == len(purposes)
    assert drawn(0, "images", 1) == drawn(0, "images", 1)


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_groups_keep_the_order_and_only_the_last_is_short(n, sizes):
    images = [100 - i for i in range(n)]
    with passes_of(4):
        groups = in_groups(images)
    assert [len(group) for group in groups] == sizes
    assert [image for group in groups for image in group] == images
