"""A refusal says which argument it is about, in the words of whoever reads it."""

from __future__ import annotations

import copy
import pickle

import pytest

from vit_clt.data.images import UnreadableImage
from vit_clt.errors import InputError, renamed


def as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_a_sentence_begins_with_its_field():
    error = InputError("max_nodes", "is 0; expected at least 1.")
    assert error.field == "max_nodes"
    assert str(error) == "max_nodes is 0; expected at least 1."
    assert error.spelled(as_flag) == "--max-nodes is 0; expected at least 1."


def test_a_sentence_without_a_field_stays_as_it_is():
    error = InputError("max_nodes.json cannot be read.")
    assert error.field is None
    assert str(error) == error.spelled(as_flag) == "max_nodes.json cannot be read."


@pytest.mark.parametrize(
    ("parts", "plain"), [(("out", "is full."), "out is full"), (("out is full.",), "out is full")]
)
def test_a_remedy_ends_the_sentence(parts: tuple[str, ...], plain: str):
    error = InputError(*parts, remedy="any_teacher")
    assert str(error) == f"{plain}, or any_teacher."
    assert error.spelled(as_flag).endswith("is full, or --any-teacher.")
    assert error.without_remedy() == f"{plain}."
    assert error.remedy == "any_teacher"


@pytest.mark.parametrize("kind", [InputError, UnreadableImage])
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_workers_hand_it_over_whole(kind: type[InputError], copied):
    error = copied(kind("out", "is full.", remedy="overwrite"))
    assert type(error) is kind
    assert (error.field, error.remedy) == ("out", "overwrite")
    assert str(error) == "out is full, or overwrite."


def test_an_error_around_it_has_its_own_field():
    inner = InputError("k", "is 0; expected at least 1.", remedy="any_teacher")
    text = f'holds "a": {inner.without_remedy()}'
    outer = InputError("compare", text, remedy=inner.remedy)
    expected = '--compare holds "a": k is 0; expected at least 1, or --any-teacher.'
    assert outer.spelled(as_flag) == expected


def test_an_argument_is_called_as_the_one_further_out_was():
    with pytest.raises(InputError) as error, renamed(data="corpus", limit="corpus_limit"):
        raise InputError("data", "is x; expected a form.", remedy="hf")
    assert str(error.value) == "corpus is x; expected a form, or hf."
    with pytest.raises(UnreadableImage) as unreadable, renamed(data="corpus"):
        raise UnreadableImage("data", "holds no image.")
    assert str(unreadable.value) == "corpus holds no image."
    with pytest.raises(InputError) as other, renamed(data="corpus"):
        raise InputError("k", "is 0.")
    assert str(other.value) == "k is 0."
