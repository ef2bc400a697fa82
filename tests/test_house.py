"""The rules of the house that a reader could check by eye: imports, names, packaging, its map."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("map_rooms", ROOT / "scripts" / "map_rooms.py")
rooms = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rooms)
PACKAGES = {module for module in rooms.TREES if rooms.path_of(module).name == "__init__.py"}


def test_every_room_is_in_the_table():
    known = {f"vit_clt.{room}" for room in rooms.MAY_IMPORT}
    data_only = {"vit_clt.teachers", "vit_clt.paper"}
    inside = {"vit_clt.transcoder.sparsifiers", "vit_clt.hooks.towers"}
    assert known | {*rooms.PUBLIC} | data_only | inside >= PACKAGES


def test_imports_point_one_way():
    allowed = rooms.allowed()  # fails on a circle
    wrong = [
        f"{module}, line {line}: {target}"
        for module in rooms.TREES
        if module not in rooms.PUBLIC
        for line, target in rooms.imported(module)
        if target in rooms.TREES
        and rooms.room_of(target) != rooms.room_of(module)
        and rooms.room_of(target) not in allowed[rooms.room_of(module)]
    ]
    assert not wrong


def test_the_map_is_that_of_the_imports():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert rooms.mermaid() in contributing, "make map draws it anew"


DRAWS = re.compile(r"(figures?|style|levels|page|report|demo)$")


def test_a_file_of_numbers_imports_no_plotly():
    for module, tree in rooms.TREES.items():
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if not DRAWS.search(module):
            assert not [node for node in imports if "plotly" in ast.unparse(node)], module


@pytest.mark.parametrize("module", rooms.LAZY)
def test_a_lazy_package_finds_what_type_checkers_are_told(module: str):
    (listed,) = (
        ast.literal_eval(keyword.value)
        for node in ast.walk(rooms.TREES[module])
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "submod_attrs"
    )
    finds = {name: f"{module}.{place}" for place, names in listed.items() for name in names}
    assert finds == rooms.lazy_names(module)
    package = importlib.import_module(module)
    assert set(package.__all__) == set(finds)
    assert all(hasattr(package, name) for name in finds)


@pytest.mark.parametrize("module", rooms.PUBLIC)
def test_no_public_name_is_a_module_too(module: str):
    """`import vit_clt.analysis.NAME as m` would bind the function."""
    package = importlib.import_module(module)
    modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    assert modules
    assert not modules & set(package.__all__)


def test_every_package_is_installed():
    listed = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert set(ast.literal_eval(listed[1])) == PACKAGES


def test_no_test_imports_another():
    """What tests share is in `assertions`, `builders` and `oracles`; fixtures are in `conftest`."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith(("test_", "conftest")), path
