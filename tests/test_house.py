"""The rules of the house that a reader could check by eye: imports, doors, names, packaging."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = ("vit_clt", "vit_clt.hooks", "vit_clt.analysis")
"""The packages whose names are the public ones; they import from every room below them."""

CORE = "training interchange zero_shot hooks.passes"
STUDY = f"{CORE} analysis.stats analysis.reporting"
MAY_IMPORT = {
    "": "",
    "kernels": "",
    "transcoder": "kernels",
    "hooks": "transcoder",
    "hooks.passes": "hooks",
    "data": "hooks",
    "zero_shot": "data",
    "training": "data",
    "interchange": "data",
    "analysis.stats": CORE,
    "analysis.reporting": CORE,
    "analysis.contributions": STUDY,
    "analysis.probing": STUDY,
    "analysis.features": STUDY,
    "analysis.retrieval": STUDY,
    "analysis.graphs": STUDY,
    "analysis.fit": "analysis.contributions",
    "analysis.ablations": "analysis.contributions",
    "analysis.causal": "analysis.contributions",
    "analysis.steering": "analysis.features",
    "analysis.factors": "analysis.probing analysis.causal",
    "analysis.auditing": "analysis.ablations analysis.causal analysis.fit",
    "analysis.reproduction": "analysis.fit",
    "analysis.demo": "analysis.auditing analysis.factors analysis.features analysis.graphs"
    " analysis.reproduction analysis.retrieval analysis.steering",
    "cli": "analysis.demo",
    "__main__": "cli",
}
"""Rooms, and those that each may import besides what those may import; "" is the root's files."""


def path_of(module: str) -> Path:
    """The file of a module of ours; its package's `__init__.py` if it is a package."""
    inside = module.removeprefix("vit_clt").removeprefix(".")
    top = "" if inside.split(".")[0] in ("hooks", "analysis") else "vit_clt"
    found = ROOT / top / inside.replace(".", "/")
    return found / "__init__.py" if found.is_dir() else found.with_suffix(".py")


def name_of(path: Path) -> str:
    """The module that a file of ours is imported as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "vit_clt" else ("vit_clt", *parts)
    return ".".join(inside[:-1] if inside[-1] == "__init__" else inside)


TREES = {
    name_of(path): ast.parse(path.read_text())
    for top in ("vit_clt", "hooks", "analysis")
    for path in sorted((ROOT / top).rglob("*.py"))
}
PACKAGES = {module for module in TREES if path_of(module).name == "__init__.py"}
DOORS = [
    module for module in sorted(PACKAGES) if "lazy_loader.attach" in path_of(module).read_text()
]
"""Packages that find their names when they are first used."""


def type_checked(module: str) -> dict[str, str]:
    """Name -> module, of the imports that only type checkers see at the top of a module."""
    return {
        alias.asname or alias.name: each.module
        for block in TREES[module].body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for each in block.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }


def imported(module: str) -> Iterator[tuple[int, str]]:
    """(line, module of ours that is imported there), also inside functions and for types alone."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                # a name of a door is where the door finds it
                door = type_checked(node.module) if node.module in DOORS else {}
                found = submodule if submodule in TREES else door.get(alias.name, node.module)
                yield node.lineno, found


def room_of(module: str) -> str:
    """The room of a module, from its path; "" for the root's files and for data packages."""
    inside = module.removeprefix("vit_clt").removeprefix(".")
    while inside and inside not in MAY_IMPORT:
        inside = inside.rpartition(".")[0]
    return inside


def test_every_room_is_in_the_table():
    known = {f"vit_clt.{room}" for room in MAY_IMPORT} | {
        *PUBLIC,
        "vit_clt.teachers",
        "vit_clt.paper",
        # a part of its room
        "vit_clt.transcoder.sparsifiers",
    }
    assert known >= PACKAGES


def test_imports_point_one_way():
    rooms = {room: set(others.split()) for room, others in MAY_IMPORT.items()}
    # fails on a circle; what a room may import comes before it
    for room in TopologicalSorter(rooms).static_order():
        rooms[room] |= {far for near in rooms[room] for far in rooms[near]} | {""}
    wrong = [
        f"{module}, line {line}: {target}"
        for module in TREES
        if module not in PUBLIC
        for line, target in imported(module)
        if target in TREES
        and room_of(target) != room_of(module)
        and room_of(target) not in rooms[room_of(module)]
    ]
    assert not wrong


DRAWS = re.compile(r"(figures?|style|page|report|demo)$")


def test_a_file_of_numbers_draws_nothing():
    """It may say that a result's figure is a `go.Figure`, and uses plotly for nothing else."""
    for module, tree in TREES.items():
        if DRAWS.search(module):
            continue
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        plotly = [text for node in imports if "plotly" in (text := ast.unparse(node))]
        assert plotly in ([], ["import plotly.graph_objects as go"]), module
        used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Call)}
        assert not [use for use in used if re.match(r"go\.(?!Figure$)", use)], module


@pytest.mark.parametrize("module", DOORS)
def test_a_door_finds_what_type_checkers_are_told(module: str):
    (listed,) = (
        ast.literal_eval(keyword.value)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "submod_attrs"
    )
    finds = {name: f"{module}.{place}" for place, names in listed.items() for name in names}
    assert finds == type_checked(module)
    package = importlib.import_module(module)
    assert set(package.__all__) == set(finds)
    assert all(hasattr(package, name) for name in finds)


@pytest.mark.parametrize("module", PUBLIC)
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
