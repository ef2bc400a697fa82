"""Every option that is a number has a range, which is checked before anything is loaded."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from vit_clt.cli import main
from vit_clt.cli.commands import COMMANDS, command_class, flag
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.ranges import RANGES
from vit_clt.errors import InputError

# a number of layers for audit, a share for graph: both are checked by the library
ELSEWHERE = {("audit", "keep"), ("claims", "keep")}


def whole_numbers() -> list[tuple[str, str]]:
    """Every command with each of its options that is one integer, or several."""
    found = []
    for name in COMMANDS:
        hints = get_type_hints(command_class(name))
        for field in fields(command_class(name)):
            kinds = {hints[field.name], *get_args(hints[field.name])}
            if int in kinds and bool not in kinds and (name, field.name) not in ELSEWHERE:
                found.append((name, field.name))
    return found


def test_every_count_and_seed_has_its_range() -> None:
    assert {option for _, option in whole_numbers()} == RANGES.keys()


def required(name: str) -> list[str]:
    needed = {"import": ["--from", "x"], "weights": ["--clt", "x"]}
    hints = {field.name for field in fields(command_class(name))}
    optional = {"causal": True, "high-norm": True}
    if name in needed:
        return needed[name]
    return ["--clt", "x"] if "clt" in hints and name not in optional else []


@pytest.mark.parametrize(("name", "option"), whole_numbers())
def test_a_number_out_of_range_is_refused_at_once(
    name: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = RANGES[option]
    for value, bound in ((low - 1, f"at least {low}"), (high + 1, f"at most {high}")):
        args = [name, *required(name), flag(name, option), str(value)]
        assert main([*args, "--out", str(tmp_path / "out")]) == 2
        sentence = capsys.readouterr().err
        assert sentence == f"{flag(name, option)} is {value}; expected {bound}.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["steer", "--values", "nan"], "--values is nan; expected a finite number."),
        (["graph", "--keep", "inf"], "--keep is inf; expected a finite number."),
        (["graph", "--query", "0", "-1"], "--query is -1; expected at least 0."),
        (["graph", "--device", "meta"], '--device is "meta", which is not usable: it holds shapes'),
        (["cascade", "--layers", "0-1000000000"], '--layers is "0-1000000000"; expected layers'),
        (["cascade", "--layers", "9" * 5000], '--layers is "999'),
        (["ablate", "--target", "-" + "9" * 5000], '--target is "-999'),
        (["features", "--feature", "0:" + "9" * 5000], '--feature is "0:999'),
        (["graph", "--data", "parquet:a\0b"], "--data is 'parquet:a\\x00b'; expected a text"),
        (["retrieve", "--index", "a\0b"], "--index is 'a\\x00b'; expected a text without"),
    ],
)
def test_values_that_nothing_can_have(
    args: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, "--clt", "/no/such", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("text", "numbers"), [("7-11", [7, 8, 9, 10, 11]), (" 0, 4,7-8", [0, 4, 7, 8]), ("999", [999])]
)
def test_layers_are_those_that_are_named(text: str, numbers: list[int]) -> None:
    assert layer_numbers(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "-1", "1-", "1000", "0-1000", "a", "٣", ",".join(["0-999"] * 500_000)]
)
def test_other_layers_are_refused_before_they_are_listed(text: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(InputError, match="expected layers below 1000") as error:
        layer_numbers(text)
    assert time.perf_counter() - began < 5
    assert len(str(error.value)) < 250
