"""Layers in groups of neighbours that fit in memory together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vit_clt.layers_together import layers_together


@given(st.dictionaries(st.integers(0, 40), st.integers(0, 100), max_size=20), st.integers(0, 300))
def test_groups_are_the_fewest_in_this_order_that_fit(sizes: dict[int, int], room: int) -> None:
    groups = layers_together(sizes, room)
    assert [layer for group in groups for layer in group] == list(sizes)
    for group in groups:
        assert len(group) == 1 or sum(sizes[layer] for layer in group) <= room
    for group, after in pairwise(groups):
        assert sum(sizes[layer] for layer in group) + sizes[after[0]] > room
