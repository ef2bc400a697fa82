"""The files of the front end, which are the same for every page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from vit_clt.analysis.reporting.style import AMBER, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from vit_clt.analysis.viewer.encoding import STEPS, json_text
from vit_clt.analysis.viewer.sheets import ACROSS

SCRIPTS = (
    "base.js",
    "pictures.js",
    "charts.js",
    "list.js",
    "feature.js",
    "heatmap.js",
    "overview.js",
    "image.js",
    "graph.js",
    "graph_panel.js",
    "steer.js",
    "start.js",
)
"""In the order in which the page loads them."""
STYLE = "explorer.css"
PAGE = "index.html"
DATA = "data.js"
FILES = (PAGE, STYLE, *SCRIPTS, DATA, "layers/layer-*.js", "pages/pages-*.js", "images/sheet-*.png")
"""Names of the files of a page with features alone."""
PALETTE = {
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "purple": PURPLE,
    "grey": GREY,
    "sky": SKY,
    "amber": AMBER,
}


def front_end(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and contents of the page, its style and scripts, and the data that it begins with.

    Args:
        document: what the page shows first, and where the rest is; its sizes and colours are added.
    """
    shared = {"sheet": ACROSS, "steps": STEPS, "palette": PALETTE}
    yield DATA, f"window.EXPLORER = {json_text(shared | document)};\n"
    for name in (PAGE, STYLE, *SCRIPTS):
        yield name, part(name)


def part(name: str) -> str:
    """The text of one of the files of the front end."""
    return (files("vit_clt.analysis.viewer") / "front" / name).read_text("utf-8")
