"""YAML holds what JSON can hold, or is refused in one sentence."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from assertions import one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_clt.errors import InputError
from vit_clt.inputs import MAX_DIGITS
from vit_clt.interchange.plain_yaml import read_yaml

finite = st.floats(allow_nan=False, allow_infinity=False)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9)


@settings(deadline=None)
@given(st.dictionaries(ASCII, st.integers() | finite | ASCII | st.lists(ASCII | st.booleans())))
def test_plain_yaml_is_read_as_it_was_written(tmp_path_factory: Any, values: Any) -> None:
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert read_yaml(path) == values


YAML_REFUSED = {
    "no YAML": ("a: [", "not readable YAML"),
    "a list": ("- 1", "holds a list; expected a mapping"),
    "an object": ("a: !!python/object/apply:os.system ['true']", "not readable YAML"),
    "a wrong tag": ("a: !!int abc", "invalid literal"),
    "a date": (f"a: {date.today()}", "timestamp"),
    "a set": ("a: !!set {b}", "set"),
    "bytes": ("a: !!binary aGVsbG8=", "binary"),
    "pairs": ("a: !!omap [b: 1]", "omap"),
    "not finite": ("a: .inf", "not finite"),
    "no number": ("a: [.nan]", "not finite"),
    "long": (f"a: {'9' * (MAX_DIGITS + 1)}", "too many digits"),
    "too long to convert": (f"a: {'9' * 5000}", "not readable YAML"),
    "aliases": ("a: &a [x, x]\nb: [*a, *a]", "alias"),
    "itself": ("&a {b: *a}", "alias"),
    "a name twice": ("a: 1\nb: 2\na: 3", "a name twice"),
    "a number as a name": ("a: {1: 2}", "a name that is no text"),
    "a list as a name": ("a: {[1]: 2}", "not readable YAML"),
    "nested too deeply": ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
    "nested beyond the stack": ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "other bytes": (b"a: \xff", "utf-8"),
}


@pytest.mark.parametrize(("content", "found"), YAML_REFUSED.values(), ids=YAML_REFUSED)
def test_what_is_no_plain_yaml_is_refused(content: bytes | str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=found) as error:
        read_yaml(path)
    assert one_sentence(error).startswith(str(path))


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a folder; expected a file"):
        read_yaml(tmp_path)
    (tmp_path / "config.yaml").write_text("a: b")
    with pytest.raises(InputError, match="it has 4 bytes, and at most 3 are read"):
        read_yaml(tmp_path / "config.yaml", max_bytes=3)
