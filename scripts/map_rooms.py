"""The rooms of the house, read from the imports: their picture in CONTRIBUTING.md, and its rules.

    python scripts/map_rooms.py          # print the picture
    python scripts/map_rooms.py --write  # put it into CONTRIBUTING.md

An arrow points from a room to one it imports; those that follow from other arrows are left out.
`tests/test_house.py` holds the imports against `MAY_IMPORT`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PUBLIC = ("vit_clt", "vit_clt.hooks", "vit_clt.analysis")
"""The packages whose names are the public ones; they import from every room below them."""

_CORE = "training interchange readouts hooks.passes"
_STUDY = f"{_CORE} analysis.stats analysis.reporting"
MAY_IMPORT = {
    "": "",
    "outputs": "",
    "kernels": "",
    "transcoder": "kernels outputs",
    "hooks": "transcoder",
    "hooks.passes": "hooks",
    "data": "hooks",
    "readouts": "data",
    "forecast": "data",
    "training": "forecast",
    "interchange": "data",
    "analysis.stats": _CORE,
    "analysis.reporting": _CORE,
    "analysis.contributions": _STUDY,
    "analysis.probing": _STUDY,
    "analysis.viewer": "analysis.reporting",
    "analysis.features": f"{_STUDY} analysis.viewer",
    "analysis.naming": "analysis.features",
    "analysis.retrieval": _STUDY,
    "analysis.measures": "analysis.features analysis.retrieval",
    "analysis.graphs": _STUDY,
    "analysis.fit": "analysis.contributions",
    "analysis.high_norm": "analysis.fit",
    "analysis.causal": "analysis.contributions",
    "analysis.silencing": "analysis.causal",
    "analysis.ablations": "analysis.silencing",
    "analysis.heads": "analysis.graphs analysis.causal",
    "analysis.steering": "analysis.features",
    "analysis.factors": "analysis.probing analysis.causal",
    "analysis.auditing": "analysis.ablations analysis.causal analysis.fit analysis.measures",
    "analysis.explorer": "analysis.contributions analysis.features analysis.fit analysis.graphs"
    " analysis.retrieval analysis.naming",
    "analysis.reproduction": "analysis.fit",
    "analysis.demo": "analysis.auditing analysis.explorer analysis.factors analysis.reproduction"
    " analysis.steering",
    "cli": "analysis.demo analysis.heads analysis.high_norm",
    "__main__": "cli",
}
"""Rooms, and those that each may import besides what those may import; "" is the root's files."""
ROOT_FILES = (
    "errors, choices, metrics, inputs, places, progress, seeding, typed, tensor_files, "
    "layers_together"
)
START, END = "<!-- rooms: make map -->", "<!-- end of rooms -->"


def path_of(module: str) -> Path:
    """The file of a module of ours; its package's `__init__.py` if it is a package."""
    inside = module.removeprefix("vit_clt").removeprefix(".")
    top = "" if inside.split(".")[0] in ("hooks", "analysis") else "vit_clt"
    found = ROOT / top / inside.replace(".", "/")
    return found / "__init__.py" if found.is_dir() else found.with_suffix(".py")


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "vit_clt" else ("vit_clt", *parts)
    return ".".join(inside[:-1] if inside[-1] == "__init__" else inside)


TREES = {
    _name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for top in ("vit_clt", "hooks", "analysis")
    for path in sorted((ROOT / top).rglob("*.py"))
}
"""Every module of ours by the name it is imported as, parsed."""
LAZY = [
    module
    for module in sorted(TREES)
    if "lazy_loader.attach" in path_of(module).read_text(encoding="utf-8")
]
"""Packages that find their names when they are first used."""


def room_of(module: str) -> str:
    """The room of a module, from its path; "" for the root's files and for data packages."""
    inside = module.removeprefix("vit_clt").removeprefix(".")
    while inside and inside not in MAY_IMPORT:
        inside = inside.rpartition(".")[0]
    return inside


def lazy_names(module: str) -> dict[str, str]:
    """Name -> module, of the imports that only type checkers see at the top of a module."""
    return {
        alias.asname or alias.name: str(each.module)
        for block in TREES[module].body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for each in block.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }


def imported(module: str) -> Iterator[tuple[int, str]]:
    """(line, module of ours that is imported there), also inside functions and for types alone.

    A name of a lazy package counts as an import of the module in which the package finds it.
    """
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
            package = str(node.module)
            names = lazy_names(package) if package in LAZY else {}
            for alias in node.names:
                full = f"{package}.{alias.name}"
                yield node.lineno, full if full in TREES else names.get(alias.name, package)


def room_imports() -> dict[str, set[str]]:
    """By room, the other rooms that it imports."""
    found: dict[str, set[str]] = {}
    for module in TREES:
        if module not in PUBLIC:
            targets = {room_of(target) for _, target in imported(module) if target in TREES}
            found.setdefault(room_of(module), set()).update(targets - {room_of(module)})
    return found


def allowed() -> dict[str, set[str]]:
    """By room, all rooms that it may import.

    Raises:
        graphlib.CycleError: `MAY_IMPORT` goes round in a circle.
    """
    rooms = {room: set(others.split()) for room, others in MAY_IMPORT.items()}
    for room in TopologicalSorter(rooms).static_order():
        rooms[room] |= {far for near in rooms[room] for far in rooms[near]} | {""}
    return rooms


def mermaid() -> str:
    """The picture, as GitHub shows it: the fewest arrows that say who reaches whom."""
    edges: dict[str, set[str]] = {}
    for room, targets in room_imports().items():
        if room != "__main__":
            edges.setdefault(_label(room), set()).update({_label(to) for to in targets})
    edges = {room: targets - {room} for room, targets in edges.items()}
    reach: dict[str, set[str]] = {}
    for room in TopologicalSorter(edges).static_order():
        near = edges.get(room, set())
        reach[room] = near.union(*(reach[each] for each in near))
    lines = ["```mermaid", "flowchart TD", f'  root["{ROOT_FILES}"]']
    for room in sorted(edges):
        beyond = set().union(*(reach[each] for each in edges[room]))
        lines += [f"  {room} --> {to}" for to in sorted(edges[room] - beyond)]
    return "\n".join([*lines, "```"])


def _label(room: str) -> str:
    return room.removeprefix("analysis.").removesuffix(".passes") or "root"


def main() -> None:
    """Print the picture, or put it into its place."""
    if "--write" not in sys.argv:
        print(mermaid())
        return
    path = ROOT / "CONTRIBUTING.md"
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{mermaid()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
