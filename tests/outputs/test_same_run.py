"""Whether two runs are the same."""

from __future__ import annotations

from typing import Any

import pytest
from assertions import one_sentence
from hypothesis import given
from hypothesis import strategies as st

from vit_clt.errors import InputError
from vit_clt.outputs import check_same

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON), JSON)
def test_the_same_is_the_same_whatever_else_was_recorded(values: dict[str, Any], more: Any) -> None:
    check_same(values, {"something else": more} | values, "the run in out")


@pytest.mark.parametrize(
    ("found", "expected", "sentence"),
    [
        ({"lr": 0.1, "k": 5}, {"lr": 0.1, "k": 4}, "k is 5; expected 4, as in the run in out."),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2, "d": 3}}}, "a.b.c is 1; expected 2, as in"),
        ({"new": True}, {}, "new is True; expected None, as in the run in out."),
        ({"a": {"b": 1}}, {"a": 1}, "a is {'b': 1}; expected 1, as in the run in out."),
        ({"a": (1, 2), "b": 1}, {"a": [1, 2], "b": 2}, "b is 1; expected 2, as in the run in out."),
        ({"hash": "x"}, {"hash": "y"}, "hash is 'x' (of the images); expected 'y', as in the run"),
        ({"a": "x" * 200}, {"a": 1}, f"a is '{'x' * 79}...; expected 1, as in the run in out."),
    ],
)
def test_the_first_difference_is_named(found, expected, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        check_same(found, expected, "the run in out", {"hash": "of the images"})
    assert one_sentence(error).startswith(sentence)
