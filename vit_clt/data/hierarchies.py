"""Hierarchies of classes: parents, each with the classes that are its children.

Those of CIFAR-10 and CIFAR-100 are built in (the 20 superclasses are those that CIFAR-100 was
published with, Krizhevsky 2009), and one of handwritten digits by shape, which is ours: whether a
digit's usual form holds a closed loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vit_clt.data.digits import DIGITS_CLASSES
from vit_clt.data.prompts import CIFAR10_CLASSES
from vit_clt.errors import InputError
from vit_clt.inputs import read_json, reading

Hierarchy = dict[str, list[str]]
"""The names of the classes of every parent, by the parent's name."""

CIFAR100_SUPERCLASSES: Hierarchy = {
    "aquatic mammals": ["beaver", "dolphin", "otter", "seal", "whale"],
    "fish": ["aquarium fish", "flatfish", "ray", "shark", "trout"],
    "flowers": ["orchid", "poppy", "rose", "sunflower", "tulip"],
    "food containers": ["bottle", "bowl", "can", "cup", "plate"],
    "fruit and vegetables": ["apple", "mushroom", "orange", "pear", "sweet pepper"],
    "household electrical devices": ["clock", "keyboard", "lamp", "telephone", "television"],
    "household furniture": ["bed", "chair", "couch", "table", "wardrobe"],
    "insects": ["bee", "beetle", "butterfly", "caterpillar", "cockroach"],
    "large carnivores": ["bear", "leopard", "lion", "tiger", "wolf"],
    "large man-made outdoor things": ["bridge", "castle", "house", "road", "skyscraper"],
    "large natural outdoor scenes": ["cloud", "forest", "mountain", "plain", "sea"],
    "large omnivores and herbivores": ["camel", "cattle", "chimpanzee", "elephant", "kangaroo"],
    "medium-sized mammals": ["fox", "porcupine", "possum", "raccoon", "skunk"],
    "non-insect invertebrates": ["crab", "lobster", "snail", "spider", "worm"],
    "people": ["baby", "boy", "girl", "man", "woman"],
    "reptiles": ["crocodile", "dinosaur", "lizard", "snake", "turtle"],
    "small mammals": ["hamster", "mouse", "rabbit", "shrew", "squirrel"],
    "trees": ["maple tree", "oak tree", "palm tree", "pine tree", "willow tree"],
    "vehicles 1": ["bicycle", "bus", "motorcycle", "pickup truck", "train"],
    "vehicles 2": ["lawn mower", "rocket", "streetcar", "tank", "tractor"],
}
_VEHICLES = ["airplane", "automobile", "ship", "truck"]
CIFAR10_GROUPS: Hierarchy = {
    "animals": [name for name in CIFAR10_CLASSES if name not in _VEHICLES],
    "vehicles": _VEHICLES,
}
_LOOPS = [DIGITS_CLASSES[digit] for digit in (0, 6, 8, 9)]
DIGITS_GROUPS: Hierarchy = {
    "with a loop": _LOOPS,
    "without a loop": [name for name in DIGITS_CLASSES if name not in _LOOPS],
}


def listed(hierarchy: Hierarchy) -> list[str]:
    """The classes of all parents, in their order."""
    return [name for children in hierarchy.values() for name in children]


def known_hierarchy(class_names: Sequence[str]) -> Hierarchy | None:
    """The built-in hierarchy of these classes, in whatever order; None where there is none."""
    for hierarchy in (CIFAR100_SUPERCLASSES, CIFAR10_GROUPS, DIGITS_GROUPS):
        if sorted(class_names) == sorted(listed(hierarchy)):
            return hierarchy
    return None


def read_hierarchy(path: Path) -> Hierarchy:
    """The hierarchy in a JSON file, an object of parents with lists of their classes.

    Raises:
        InputError: the file holds anything else.
    """
    with reading(path, "an object {parent: [class, ...]}", field="hierarchy"):
        found = read_json(path)
        for parent, children in found.items():
            if not isinstance(children, list) or not all(type(c) is str for c in children):
                raise InputError(
                    "hierarchy",
                    f'is {path}, where parent "{parent[:80]}" holds {str(children)[:60]}; expected '
                    "a list of class names.",
                )
    return dict(found)


def check_hierarchy(hierarchy: Hierarchy, class_names: Sequence[str]) -> None:
    """Refuse a hierarchy that does not put every class below exactly one of several parents.

    Raises:
        InputError: it misses a class, names one twice or one that there is not, or has one parent.
    """
    names = listed(hierarchy)
    missing = [name for name in class_names if name not in names]
    unknown = [name for name in names if name not in class_names]
    twice = [name for name in names if names.count(name) > 1]
    problem = ""
    if missing:
        problem = f'misses {len(missing)} of {len(class_names)} classes, the first "{missing[0]}"'
    elif unknown:
        problem = f'names "{unknown[0][:80]}", which is no class of the data'
    elif twice:
        problem = f'names "{twice[0]}" more than once'
    elif len(hierarchy) < 2 or not all(hierarchy.values()):
        problem = f"has {sum(map(bool, hierarchy.values()))} parents with classes"
    if problem:
        raise InputError(
            "hierarchy", f"{problem}; expected every class below one of two parents or more."
        )
