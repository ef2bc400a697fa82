"""Text of strangers stays text, on a terminal and in a spreadsheet."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_clt.text import plain_cell, printable


@given(st.text())
def test_no_control_character_is_printable(text: str):
    shown = printable(text)
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["cat", "naïve café", "犬", "👩‍🔬", "a\tb\n", ""])
def test_other_text_is_printable_as_it_is(text: str):
    assert printable(text) == text


def test_the_direction_of_text_cannot_be_turned():
    assert printable("cat\u202egnp.exe") == "catgnp.exe"


@given(st.text(), st.sampled_from(["", "=", "+", "-", "@", "\t"]))
def test_no_cell_is_a_formula(text: str, start: str):
    cell = plain_cell(start + text)
    assert not cell.startswith(("=", "+", "-", "@", "\t")) or cell == "-" or float(cell) < 1e400


@pytest.mark.parametrize("text", ["-1.21", "+3", "-.5", "-1e-07", "-", "cat"])
def test_numbers_and_dashes_stay_as_they_are(text: str):
    assert plain_cell(text) == text
