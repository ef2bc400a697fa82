"""What a study was measured on, in words."""

from __future__ import annotations

from vit_clt.analysis.reporting.facts_text import facts_text


def test_no_value_shows_brackets_or_quotes_of_python() -> None:
    context = {
        "n": 360,
        "split": None,
        "l0": {"cls": 15.99964, "patch": 16.0},
        "excluded_rows": 0,
        "clts": ["one_clt", "two"],
        "loss": 0.012345,
        "claims": ["reads: no (a, b)", "acts: yes"],
        "compared": {"one_clt": {"l0": 8.04}, "two": {"l0": 9.0}},
        "n_by_part": {"C": 180, "its tests": 180},
        "shared": True,
        "layers": [],
    }
    assert facts_text(context) == {
        "N": "360",
        "L0": "CLS 16.0, patch 16.0",
        "excluded rows": "0",
        "CLTs": "one_clt, two",
        "loss": "0.0123",
        "claims": "reads: no (a, b); acts: yes",
        "compared": "one_clt: L0 8.0; two: L0 9.0",
        "N by part": "C 180, its tests 180",
        "shared": "yes",
        "layers": "none",
    }
