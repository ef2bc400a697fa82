"""What may stand in a file of others, and what is refused in one sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from assertions import one_sentence
from hypothesis import given
from hypothesis import strategies as st

from vit_clt.errors import InputError, Stopped
from vit_clt.inputs import (
    MAX_DEPTH,
    MAX_DIGITS,
    file_size,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    reading,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**90), 10**90) | finite | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=9,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.booleans(), st.sampled_from(["", "\ufeff"]))
def test_plain_values_are_read_as_they_were_written(values: Any, ascii: bool, mark: str) -> None:
    text = mark + json.dumps(values, ensure_ascii=ascii)
    assert parse_json(text.encode(), "a file") == values
    # digits in a string are no number, and a number may be long after its point
    more = values | {"longest": "9" * 200, "exponent": "1e999", "pi": 3.14159265358979}
    assert parse_json(json.dumps(more), "a file") == more


def nested(depth: int) -> str:
    return '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


REFUSED = {
    "no JSON": ("{", "Expecting"),
    "a list": ("[1]", "holds a list; expected a JSON object"),
    "other bytes": (b"\xff", "utf-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "nested too deeply": (nested(MAX_DEPTH + 2), "nested too deeply"),
    "nested beyond the stack": ('{"a": ' + "[" * 100_000, "nested too deeply"),
    "a long integer": ('{"a": ' + "1" * 5000 + "}", "5000 digits"),
    "a long fraction": ('{"a": ' + "1" * 5000 + ".5}", "too many digits"),
    "NaN": ('{"a": NaN}', "NaN is not finite"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is not finite"),
    "infinite when converted": ('{"a": 1e400}', "1e400 is not finite"),
    "a name twice": ('{"x": {"k": 1, "k": 2}}', 'the name "k" twice'),
    "half a pair": ('{"a": "\\ud800"}', "surrogates"),
}


@pytest.mark.parametrize(("content", "found"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_json_is_refused(content: bytes | str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=found) as error:
        read_json(path)
    assert one_sentence(error).startswith(str(path))
    assert len(str(error.value)) < 300 + len(str(path))


def test_as_deep_and_as_long_as_allowed() -> None:
    assert parse_json(nested(MAX_DEPTH + 1), "a file")["a"]
    digits = "1" * MAX_DIGITS
    assert parse_json(f'{{"a": {digits}}}', "a file") == {"a": int(digits)}


def special_files(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        # a socket's path must be short
        here = Path.cwd()
        os.chdir(folder)
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    return {
        "a folder": folder,
        "a pipe": folder / "pipe",
        "a socket": folder / "socket",
        "a device": Path("/dev/zero"),
    }


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, file_size])
def test_only_regular_files_are_opened(read: Any, tmp_path: Path) -> None:
    for kind, path in special_files(tmp_path).items():
        with pytest.raises(InputError, match=f"it is {kind}; expected a file") as error:
            read(path)
        one_sentence(error)
    for path in (tmp_path / "absent", "nul\0in it", "x" * 5000, tmp_path / "pipe" / "inside"):
        with pytest.raises(InputError, match="cannot be read: ") as error:
            read(path)
        one_sentence(error)


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json])
def test_a_file_may_not_be_larger_than_its_reader_says(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text('{"a": "bc"}')
    read(path, max_bytes=11)
    with pytest.raises(InputError, match="it has 11 bytes, and at most 10 are read"):
        read(path, max_bytes=10)
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(InputError, match=r"1,099,511,627,776 bytes"):
        read(path)


def test_text_is_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes("\ufeffÄpfel\n".encode())
    assert read_text(tmp_path / "names") == "Äpfel\n"
    (tmp_path / "names").write_bytes("Äpfel".encode("latin-1"))
    with pytest.raises(InputError, match="expected text in UTF-8") as error:
        read_text(tmp_path / "names")
    one_sentence(error)


ERRORS = [
    (OSError(28, "No space left on device"), "No space left on device"),
    (KeyError("layers"), "'layers' is missing"),
    (ValueError(), "ValueError"),
    (TypeError("two\nlines.\x1b[31m red"), "two lines. red"),
    (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
    (MemoryError(), "it needs more memory than there is"),
    (OverflowError("int too large to convert to float"), "int too large to convert to float"),
    (type("PanicException", (BaseException,), {})("index out of bounds"), "index out of bounds"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=lambda e: type(e).__name__)
def test_whatever_a_library_raises_becomes_one_sentence(error: BaseException, said: str) -> None:
    with pytest.raises(InputError) as caught, reading("a.json", "a run"):
        raise error
    assert one_sentence(caught) == f"a.json cannot be read: {said}; expected a run."
    assert caught.value.__cause__ is error
    with pytest.raises(InputError) as caught, reading("a.json", "a run", field="config"):
        raise error
    assert str(caught.value) == (f"config is a.json, which cannot be read: {said}; expected a run.")
    assert caught.value.field == "config"


@pytest.mark.parametrize("error", [InputError("k", "is 0; expected 1."), Stopped(), SystemExit()])
def test_what_is_no_error_of_reading_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading("a.json", "a run"):
        raise error
    assert caught.value is error


def test_reading_needs_no_torch() -> None:
    program = "import sys, vit_clt.inputs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
