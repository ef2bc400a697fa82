"""The picture of the rooms in CONTRIBUTING.md, drawn from the imports as they are.

    python scripts/map_rooms.py          # print it
    python scripts/map_rooms.py --write  # put it into CONTRIBUTING.md

An arrow points from a room to one it imports; those that follow from other arrows are left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"vit_clt": "vit_clt", "hooks": "vit_clt.hooks", "analysis": "vit_clt.analysis"}
ROOT_FILES = "errors, choices, metrics, outputs"
"""Files of `vit_clt/` itself, drawn as one; `zero_shot` and `demo` stand where they import."""
START, END = "<!-- rooms: make map -->", "<!-- end of rooms -->"


def modules() -> dict[str, Path]:
    """Every module by its import name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [p for p in path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def room(module: str) -> str:
    """The room a module lies in; a package's own `__init__` lies in none ("")."""
    parts = module.split(".")[1:]
    if parts[:1] == ["analysis"]:
        parts = parts[1:]
    elif parts[:1] == ["hooks"]:
        return "hooks" if parts[1:] else ""
    if not parts or parts == ["__main__"]:
        return ""
    return "root" if parts[0] in [*ROOT_FILES.split(", "), "teachers"] else parts[0]


def imported(module: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a module imports, at its top or later, names of packages resolved."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vit_clt"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else str(node.module)


def room_imports() -> dict[str, set[str]]:
    """By room, the rooms it imports."""
    known = modules()
    # a name of `vit_clt.hooks` or `vit_clt.analysis` counts as an import of where it is defined
    homes = {
        package: {
            name.name: str(node.module)
            for node in ast.walk(ast.parse(known[package].read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vit_clt")
            for name in node.names
        }
        for package in ("vit_clt", *list(FOLDERS.values())[1:])
    }
    found: dict[str, set[str]] = {}
    for module, path in known.items():
        here = room(module)
        if not here:
            continue
        for target in imported(module, path, known):
            there = {room(target)} if room(target) else set()
            if target in homes:
                there = {room(home) for home in _used(path, target, homes[target])}
            found.setdefault(here, set()).update(there - {here, ""})
    return found


def _used(path: Path, package: str, homes: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (homes[alias.name] for alias in node.names if alias.name in homes)


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same reachability with the fewest arrows.

    Raises:
        ValueError: rooms that import each other in a circle.
    """

    def reach(start: str, seen: tuple[str, ...] = ()) -> set[str]:
        if start in seen:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join((*seen, start))}")
        direct = edges.get(start, set())
        return direct.union(*(reach(each, (*seen, start)) for each in direct))

    return {
        room: {to for to in targets if not any(to in reach(via) for via in targets - {to})}
        for room, targets in edges.items()
    }


def mermaid() -> str:
    """The drawing, as GitHub shows it."""
    lines = ["```mermaid", "flowchart TD", f'  root["{ROOT_FILES}"]']
    for here, targets in sorted(reduced(room_imports()).items()):
        lines += [f"  {here} --> {there}" for there in sorted(targets)]
    return "\n".join([*lines, "```"])


def main() -> None:
    """Print the drawing, or put it into its place."""
    if "--write" not in sys.argv:
        print(mermaid())
        return
    path = ROOT / "CONTRIBUTING.md"
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{mermaid()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
