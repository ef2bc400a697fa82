"""A printed table is no wider than the terminal, and complete."""

from __future__ import annotations

import pandas as pd
import pytest

from vit_clt.cli.printed_table import print_table

REASON = "Spearman of E with the rise of the loss 0.36, 97.5 % of permutations below 0.71, p 0.204"


def printed(
    table: pd.DataFrame, width: int, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> list[str]:
    patch.setenv("COLUMNS", str(width))
    print_table(table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_long_text_wraps_at_the_width_of_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"part": ["output"], "measured": [f"{REASON}; {REASON}"], "N": [180]})
    lines = printed(table, width, capsys, monkeypatch)
    assert max(map(len, lines)) <= width
    # nothing is lost, and the last column stands in the first line of its row
    words = " ".join(line.replace("output", "").replace("180", "").strip() for line in lines[1:])
    assert " ".join(words.split()) == f"{REASON}; {REASON}"
    assert lines[1].startswith("output")
    assert lines[1].endswith("180")


def test_a_table_that_fits_is_printed_in_one_line_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"part": ["output", "ranks"], "measured value": ["0.5", "0.25"]})
    expected = ["part      measured value", "output               0.5", "ranks               0.25"]
    assert printed(table, 24, capsys, monkeypatch) == expected


def test_a_word_that_is_wider_than_the_terminal_is_not_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/a/path/" + "that/goes/on/" * 5
    lines = printed(pd.DataFrame({"file": [path], "size": [1]}), 40, capsys, monkeypatch)
    assert path in lines[1]


def test_numbers_with_commas_and_what_is_missing_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "40")
    table = pd.DataFrame(
        {"kind": ["CLT", "x"], "parameters": ["90,880", None], "loss": [float("nan"), 0.5]}
    )
    print_table(table.assign(why="one word after the other until no more fit"))
    printed = capsys.readouterr().out
    assert "90,880" in printed
    assert "nan" in printed
    assert max(map(len, printed.splitlines())) <= 40
