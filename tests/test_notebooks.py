"""The notebooks run, and what is stored beside their code is what it shows."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts" / "notebooks.py")
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)
PLOTLY, PNG, HTML = script.PLOTLY, script.PNG, script.HTML


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks: importing torch and its company takes each several seconds."""
    manager = KernelManager()
    manager.start_kernel(env=os.environ | script.KERNEL)
    yield manager
    manager.shutdown_kernel(now=True)


def kinds(cell: NotebookNode) -> list[set[str]]:
    """The types of data of each output, apart from the pictures, which no kernel draws."""
    shown = [set(output.get("data", [output.output_type])) - {PNG} for output in cell.outputs]
    return [each for each in shown if each]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, kernel: KernelManager, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    stored = [kinds(cell) for cell in script.code_cells(notebook)]
    # no name of an earlier notebook, and no file of its folder
    fresh = nbformat.v4.new_code_cell(f"import os\nos.chdir({str(tmp_path)!r})\n%reset -f")
    notebook.cells.insert(0, fresh)
    client = NotebookClient(notebook, km=kernel, timeout=120)
    try:
        client.execute()
    finally:
        # of a kernel that stays nbclient leaves them open
        client.kc.stop_channels()
    cells = script.code_cells(notebook)[1:]
    assert [kinds(cell) for cell in cells] == stored
    outputs = [output for cell in cells for output in cell.outputs]
    said = [text for o in outputs if (text := o.get("data", {}).get("text/markdown"))]
    assert not [text for text in said if re.search(r"\b(nan|inf)\b", text)]
    # neither a warning nor a bar: the second kind is plain text, as no ipywidgets are here
    assert not [o for o in outputs if o.get("name") == "stderr"]


def shows(source: str) -> bool:
    """Whether a cell shows something: its last line is a value, or it calls what displays."""
    tree = ast.parse(source)
    inside = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    calls = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for statement in inside
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and not isinstance(statement, ast.Assign)
    }
    return isinstance(tree.body[-1], ast.Expr) or bool(calls & {"say", "display", "show", "print"})


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> NotebookNode:
    """A notebook as it is stored."""
    return nbformat.read(request.param, as_version=4)


def shown(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The data of all outputs, by their type; what was printed is text."""
    outputs = [output for cell in script.code_cells(notebook) for output in cell.outputs]
    return [dict(o.get("data", {"text/plain": o.get("text")})) for o in outputs]


def test_the_code_stored_is_the_code_that_ran(stored: NotebookNode):
    """Outputs of code that has changed since are not true; `make notebooks` runs it again."""
    assert stored.metadata[script.CODE_HASH] == script.code_hash(stored)


def test_every_cell_has_run_in_order_and_shows_what_it_says(stored: NotebookNode):
    cells = script.code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert bool(cell.outputs) == shows(cell.source), cell.id
        assert {o.output_type for o in cell.outputs} <= {"stream", "display_data", "execute_result"}
        assert all(o.get("name", "stdout") == "stdout" for o in cell.outputs), cell.id


def test_every_figure_and_frame_has_a_picture(stored: NotebookNode):
    outputs = shown(stored)
    figures = [o for o in outputs if PLOTLY in o]
    frames = [i for i, o in enumerate(outputs) if "<iframe" in o.get(HTML, "")]
    assert figures
    for output in figures + [outputs[i + 1] for i in frames]:
        with Image.open(io.BytesIO(b64decode(output[PNG]))) as picture:
            assert picture.format == "PNG"
            # a figure that failed to draw is of one colour
            assert len(picture.convert("L").getcolors()) > 10
    assert sum(PNG in o for o in outputs) == len(figures) + len(frames)


def test_what_is_stored_names_no_machine_and_is_small(stored: NotebookNode):
    text = nbformat.writes(stored)
    assert len(text) < 1_500_000
    parts = [
        str(value) for output in shown(stored) for name, value in output.items() if name != PNG
    ]
    words = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", "\n".join(parts))
    words = re.sub(r"'bdata': '[\w+/=]+'", "", words)
    assert not re.findall(r"(?<![\w.<])(?:/(?:home|tmp|root|Users|usr|var|work)/|[A-Z]:\\)", words)
    assert not re.findall(r" at 0x[0-9a-f]+|\bT_[0-9a-f]{5}(?<!T_\d{5})", words)  # drawn anew


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_picture_of_the_page_is_the_stored_one(path: Path):
    picture = script.tagged_picture(nbformat.read(path, as_version=4))
    assert script.page_picture(path).read_bytes() == picture
    page = (ROOT / "docs" / "notebooks.md").read_text()
    assert {path.name, f"images/{script.page_picture(path).name}"} <= set(
        re.findall(r"[\w./]*(?:\d\d_\w+\.ipynb(?=\])|images/\w+\.png)", page)
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\nx", True),
        ("x = 1", False),
        ("def say(text):\n    display(text)", False),
        ("for x in y:\n    x.figure().show()", True),
    ],
)
def test_what_shows_is_told_from_code(source: str, expected: bool):
    assert shows(source) is expected


def test_an_edit_of_code_changes_the_hash_and_one_of_prose_does_not():
    make = nbformat.v4
    notebook = make.new_notebook(cells=[make.new_markdown_cell("a"), make.new_code_cell("x = 1")])
    before = script.code_hash(notebook)
    notebook.cells[0].source = "b"
    assert script.code_hash(notebook) == before
    notebook.cells[1].source = "x = 2"
    assert script.code_hash(notebook) != before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_holds_no_measured_number(path: Path):
    """What was measured is written by the cells that measured it."""
    notebook = nbformat.read(path, as_version=4)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert prose
    assert not [found for text in prose for found in re.findall(r"\d+\.\d+", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_numbered_in_order(path: Path):
    """Ids that an editor draws anew would make every change look like a new notebook."""
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert ids == [f"cell-{i}" for i in range(len(ids))]
