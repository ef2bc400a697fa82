import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks: importing torch and its company takes each several seconds."""
    manager = KernelManager()
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, kernel: KernelManager, tmp_path: Path):
    notebook = nbformat.read(path, as_version=4)
    # no name of an earlier notebook, and no file of its folder
    fresh = nbformat.v4.new_code_cell(f"import os\nos.chdir({str(tmp_path)!r})\n%reset -f")
    notebook.cells.insert(0, fresh)
    client = NotebookClient(notebook, km=kernel, timeout=120)
    try:
        client.execute()
    finally:
        # of a kernel that stays nbclient leaves them open
        client.kc.stop_channels()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    shown = [o.get("data", {}) for o in outputs]
    assert any("application/vnd.plotly.v1+json" in each for each in shown)
    said = [text for o in outputs if (text := o.get("data", {}).get("text/markdown"))]
    assert not [text for text in said if re.search(r"\b(nan|inf)\b", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


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
