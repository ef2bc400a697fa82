"""Values of files become dataclasses only where every field has its type."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_clt.transcoder.train_config import PRESETS, SparsifierTraining, TrainConfig
from vit_clt.typed import fits, made


@dataclass(frozen=True)
class Facts:
    n: int
    share: float
    kind: Literal["cls", "patch"]
    names: list[str]
    size: tuple[int, int] | int = 0
    note: str | None = None
    odd: dict = None  # as in open_clip


WHOLE: dict[str, Any] = {"n": 3, "share": 0.5, "kind": "cls", "names": ["a"]}


@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10, 10),
    st.sampled_from(["cls", "patch"]),
    st.lists(st.text()),
    st.integers() | st.lists(st.integers(), min_size=2, max_size=2),
)
def test_values_of_their_types_are_taken_unchanged(
    n: int, share: float, kind: str, names: list[str], size: Any
) -> None:
    values = {"n": n, "share": share, "kind": kind, "names": names, "size": size}
    found = made(Facts, values)
    if isinstance(size, list):
        assert found.size == tuple(size)
        found = replace(found, size=size)
    assert {name: getattr(found, name) for name in values} == values


REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([], "is no object"),
    "missing": ({**WHOLE, "n": ...}, '"n" is missing'),
    "unknown": (WHOLE | {"more": 1}, 'no field "more"'),
    "true": (WHOLE | {"n": True}, 'n is "True", which is no int'),
    "a fraction": (WHOLE | {"n": 3.0}, 'n is "3.0"'),
    "a text": (WHOLE | {"share": "0.5"}, 'share is "0.5", which is no float'),
    "no number": (WHOLE | {"share": float("nan")}, "share is"),
    "infinite": (WHOLE | {"share": float("-inf")}, "share is"),
    "another kind": (WHOLE | {"kind": "all"}, 'kind is "all"'),
    "a list of kinds": (WHOLE | {"kind": ["cls"]}, "kind is"),
    "other names": (WHOLE | {"names": ["a", 1]}, "names is"),
    "one text": (WHOLE | {"names": "ab"}, "names is"),
    "three sizes": (WHOLE | {"size": [1, 2, 3]}, "size is"),
    "half a size": (WHOLE | {"size": [1, 2.5]}, "size is"),
    "a number": (WHOLE | {"note": 1}, "note is"),
    "a long value": (WHOLE | {"n": "x" * 1000}, r"x\.\.\."),
}


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_other_values_are_named(values: Any, said: str) -> None:
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if value is not ...}
    with pytest.raises(ValueError, match=said) as error:
        made(Facts, values)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_survives(preset: str) -> None:
    values = asdict(PRESETS[preset])
    assert TrainConfig.from_json(values, SparsifierTraining) == PRESETS[preset]
    hints = {field.name for field in fields(TrainConfig)}
    assert values.keys() == hints


def test_none_stands_for_a_field_whose_default_it_is() -> None:
    assert made(Facts, {**WHOLE, "note": None, "odd": None}) == made(Facts, WHOLE)


def test_anything_fits_any() -> None:
    assert fits(object(), Any)
    assert not fits(object(), str)
