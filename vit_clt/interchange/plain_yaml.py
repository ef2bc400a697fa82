"""Reads YAML files that hold nothing but what JSON can hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from vit_clt.inputs import MAX_DIGITS, check_depth, check_mapping, read_bytes, reading


def read_yaml(path: Path | str, max_bytes: int = 1_000_000) -> dict[str, Any]:
    """The YAML mapping in a file that holds nothing but what JSON can hold.

    Raises:
        InputError: as of `read_bytes`; no readable YAML; an alias, which a few lines of text could
            expand to gigabytes; a name twice; or a value or name of another type, such as a date.
    """
    content = read_bytes(path, max_bytes)
    with reading(path, "plain values", problem="is not readable YAML"):
        values = yaml.load(content.decode("utf-8-sig"), Loader=_PlainLoader)
        check_depth(values)
    return check_mapping(values, path, "a mapping")


_PLAIN_TYPES = ("map", "seq", "str", "int", "float", "bool", "null")


class _PlainLoader(yaml.SafeLoader):
    """Makes no Python objects (`yaml.SafeLoader`), and of the plain ones those of JSON alone."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name), and none are read")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _PLAIN_TYPES:
            raise ValueError(f"it has a value of type {node.tag[:80]}")
        value = super().construct_object(node, deep)
        is_long = isinstance(value, int) and abs(value) >= 10**MAX_DIGITS
        if is_long or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"the number {node.value[:20]} is not finite, or has too many digits")
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) != len(node.value):
            raise ValueError("a mapping has a name twice")
        if not all(isinstance(name, str) for name in values):
            raise ValueError("a mapping has a name that is no text")
        return values
