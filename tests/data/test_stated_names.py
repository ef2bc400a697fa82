"""What a table states of its columns."""

import pytest

from vit_clt.data.tables import stated_names


@pytest.mark.parametrize("names", [["cat", float("nan")], "cat", {"cat": 0}, None])
def test_class_names_that_are_no_texts_are_none(names: object):
    assert stated_names(names) is None
    assert stated_names(["cat", "dog"]) == ["cat", "dog"]
