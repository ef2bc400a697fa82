"""Pages of the front end in one frame that needs no file beside it, for a notebook's cell."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable

from vit_clt.analysis.viewer.encoding import json_text
from vit_clt.analysis.viewer.front_end import DATA, PAGE, SCRIPTS, STYLE

HEIGHT = 760
"""Height of the frame in pixels."""


def inline_page(files: Iterable[tuple[str, str | bytes]]) -> str:
    """One HTML page that holds its style, scripts, data and images.

    Args:
        files: names and contents of all files of the pages.
    """
    texts: dict[str, str] = {}
    images: dict[int, str] = {}
    for name, content in files:
        if isinstance(content, bytes):
            [number] = re.findall(r"\d+", name)
            images[int(number)] = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        else:
            texts[name] = content
    page = texts.pop(PAGE)
    style = texts.pop(STYLE)
    scripts = {name: texts.pop(name) for name in SCRIPTS}
    parts = [texts.pop(DATA), *texts.values(), f"EXPLORER.sheet_data = {json_text(images)};"]
    for name in SCRIPTS:
        page = page.replace(f'<script src="{name}"></script>\n', "")
    page = page.replace('<link rel="stylesheet" href="explorer.css">', f"<style>{style}</style>")
    whole = "".join(f"<script>{_closed(part)}</script>\n" for part in (*parts, *scripts.values()))
    return page.replace(f'<script src="{DATA}"></script>\n', whole)


def inline_frame(files: Iterable[tuple[str, str | bytes]], title: str) -> str:
    """The same page in a frame, as a piece of HTML."""
    source = html.escape(inline_page(files), quote=True)
    # within a div, as IPython warns of a bare frame, for which it has a class of its own
    return (
        f'<div><iframe title="{html.escape(title, quote=True)}" width="100%" height="{HEIGHT}" '
        f'style="border:1px solid #999;border-radius:6px" srcdoc="{source}"></iframe></div>'
    )


def _closed(script: str) -> str:
    """A script in which no text can end it."""
    return script.replace("</", "<\\/").replace("<!--", "<\\!--")
