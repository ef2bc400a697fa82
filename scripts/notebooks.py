"""Run the notebooks and store them with what they show: `make notebooks`.

    python scripts/notebooks.py                              # all of them, about six minutes
    python scripts/notebooks.py notebooks/01_first_look.ipynb

GitHub and nbconvert run no script of a notebook. So every figure of plotly is stored with a
picture in the same output, of which a viewer shows the one it can; and a frame of pages is followed
by a picture of its own. The pictures are drawn afterwards, from what was stored: a kernel draws
none. The hash of the code that ran is stored too, so that a notebook edited since is known.
docs/notebooks.md shows one picture of each, that of the cell with the tag "picture".
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from vit_clt.analysis.reporting.study import check_png

ROOT = Path(__file__).parents[1]
PLOTLY, PNG = "application/vnd.plotly.v1+json", "image/png"
HTML, TEXT = "text/html", "text/plain"
CODE_HASH = "code_sha256"
"""Key of the notebook's metadata that holds the hash of the code that ran."""
KERNEL = {"PLOTLY_RENDERER": "plotly_mimetype"}
"""Environment of a kernel: figures are data alone, without scripts or pictures."""
WIDTH, HEIGHT = 900, 450
"""Size of the picture of a figure that names none."""
FRAME_SIZE = (1000, 780)
"""Width and height of the window that a frame is pictured in."""


def main() -> None:
    """Run and store the notebooks named, or all."""
    check_png()
    named = [Path(name) for name in sys.argv[1:]]
    for path in named or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        run(notebook)
        tidy(notebook)
        add_pictures(notebook)
        nbformat.write(notebook, path)
        page_picture(path).write_bytes(tagged_picture(notebook))
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def run(notebook: NotebookNode) -> None:
    """Run all cells in a new kernel and an empty folder.

    Raises:
        CellExecutionError: a cell raised an error.
        RuntimeError: a cell wrote to standard error; warnings and bars have no place in a notebook.
    """
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=1200,
            record_timing=False,
            extra_arguments=["--log-level=40"],
            resources={"metadata": {"path": folder}},
        ).execute(env=os.environ | KERNEL)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise RuntimeError(f"{cell.id} wrote to standard error: {output.text}")


def tidy(notebook: NotebookNode) -> None:
    """Leave out what differs from run to run, and store the hash of the code."""
    notebook.metadata.language_info = NotebookNode(name="python")
    notebook.metadata[CODE_HASH] = code_hash(notebook)
    number = 0
    for cell in code_cells(notebook):
        for output in cell.outputs:
            shown = output.get("data", {})
            if found := re.search(r"T_[0-9a-f]{5}(?=_row|_level| |\")", shown.get(HTML, "")):
                number += 1  # pandas draws the name of a styled table at random
                shown[HTML] = shown[HTML].replace(found[0], f"T_{number:05d}")
            if TEXT in shown:
                shown[TEXT] = re.sub(r" at 0x[0-9a-f]+", "", shown[TEXT])


def add_pictures(notebook: NotebookNode) -> None:
    """Store a picture in every output that holds a figure, and after every one that is a frame."""
    import kaleido

    # one browser for all figures, which asks no other machine for scripts
    kaleido.start_sync_server(mathjax=False)
    try:
        for cell in code_cells(notebook):
            outputs = []
            for output in cell.outputs:
                outputs.append(output)
                shown = output.get("data", {})
                if PLOTLY in shown:
                    shown[PNG] = base64.b64encode(figure_picture(shown[PLOTLY])).decode()
                elif "<iframe" in shown.get(HTML, ""):
                    picture = base64.b64encode(frame_picture(shown[HTML])).decode()
                    outputs.append(nbformat.v4.new_output("display_data", {PNG: picture}))
            cell.outputs = outputs
    finally:
        kaleido.stop_sync_server()


def figure_picture(figure: dict[str, Any]) -> bytes:
    """A figure as PNG, in its own size: JupyterLab shows it until the pointer touches it."""
    import kaleido

    parts, layout = {name: figure[name] for name in ("data", "layout")}, figure["layout"]
    width, height = layout.get("width", WIDTH), layout.get("height", HEIGHT)
    options = {"format": "png", "width": width, "height": height}
    return small(kaleido.calc_fig_sync(parts, opts=options))


def frame_picture(frame: str) -> bytes:
    """A window of a browser that shows a piece of HTML, as PNG."""
    from choreographer.browsers.chromium import Chromium

    browser = Chromium.find_browser(skip_local=False)
    width, height = FRAME_SIZE
    with TemporaryDirectory() as folder:
        page, picture = Path(folder, "page.html"), Path(folder, "picture.png")
        page.write_text(f'<meta charset="utf-8"><body style="margin:8px">{frame}</body>')
        command = [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"),
            *("--virtual-time-budget=5000", f"--screenshot={picture}", page.as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return small(picture.read_bytes())


def tagged_picture(notebook: NotebookNode) -> bytes:
    """The first picture of the cell that is tagged."""
    (cell,) = (c for c in code_cells(notebook) if "picture" in c.metadata.get("tags", ()))
    return base64.b64decode(next(o.data[PNG] for o in cell.outputs if PNG in o.get("data", {})))


def page_picture(path: Path) -> Path:
    """The file of that picture, for docs/notebooks.md."""
    return ROOT / "docs" / "images" / f"notebook_{path.stem[:2]}.png"


def small(picture: bytes) -> bytes:
    """A PNG in at most 256 colours, a third of the bytes."""
    written = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the sources of all code cells, in order."""
    sources = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(sources.encode()).hexdigest()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


if __name__ == "__main__":
    main()
