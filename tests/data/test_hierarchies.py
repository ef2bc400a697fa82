"""Hierarchies of classes: the built-in ones cover their classes, and others are checked."""

from pathlib import Path

import pytest
from assertions import one_sentence

from vit_clt.data.digits import DIGITS_CLASSES
from vit_clt.data.hierarchies import (
    check_hierarchy,
    known_hierarchy,
    listed,
    read_hierarchy,
)
from vit_clt.data.prompts import CIFAR10_CLASSES, CIFAR100_CLASSES, COCO_CLASSES
from vit_clt.errors import InputError


@pytest.mark.parametrize(
    ("classes", "parents"), [(CIFAR10_CLASSES, 2), (CIFAR100_CLASSES, 20), (DIGITS_CLASSES, 2)]
)
def test_the_built_in_ones_cover_every_class_once(classes: list[str], parents: int):
    hierarchy = known_hierarchy(classes[::-1])
    assert len(hierarchy) == parents
    check_hierarchy(hierarchy, classes)
    assert sorted(listed(hierarchy)) == sorted(classes)


def test_the_superclasses_of_cifar100_have_five_classes_each():
    assert {len(children) for children in known_hierarchy(CIFAR100_CLASSES).values()} == {5}


def test_other_classes_have_none():
    assert known_hierarchy(COCO_CLASSES) is None


def test_a_file_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "h.json").write_text('{"p": ["a", "b"], "q": ["c"]}')
    assert read_hierarchy(tmp_path / "h.json") == {"p": ["a", "b"], "q": ["c"]}


@pytest.mark.parametrize("content", ["[1]", '{"p": "a"}', '{"p": [1]}', "{"])
def test_another_file_is_refused(content: str, tmp_path: Path):
    (tmp_path / "h.json").write_text(content)
    with pytest.raises(InputError) as error:
        read_hierarchy(tmp_path / "h.json")
    one_sentence(error)


@pytest.mark.parametrize(
    ("hierarchy", "said"),
    [
        ({"p": ["a"], "q": ["b"]}, 'misses 1 of 3 classes, the first "c"'),
        ({"p": ["a", "b"], "q": ["c", "d"]}, 'names "d", which is no class of the data'),
        ({"p": ["a", "b"], "q": ["c", "a"]}, 'names "a" more than once'),
        ({"p": ["a", "b", "c"]}, "has 1 parents with classes"),
        ({"p": ["a", "b", "c"], "q": []}, "has 1 parents with classes"),
    ],
)
def test_a_hierarchy_that_does_not_fit_is_one_sentence(hierarchy: dict, said: str):
    with pytest.raises(InputError) as error:
        check_hierarchy(hierarchy, ["a", "b", "c"])
    assert said in one_sentence(error)
