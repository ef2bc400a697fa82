"""One self-contained HTML page: prose, tables and figures, no network, light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go

from vit_clt.analysis.reporting.notice import SLOT

_FRONT = files("vit_clt.analysis.reporting") / "front"
_LONG = 30  # characters of text, above which a column wraps
_TITLE_LINE, _NOTE_LINE, _LEAST_TOP = 24, 15, 44  # pixels


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, then paragraphs, facts, tables and figures."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[pd.DataFrame] = ()
    figures: Sequence[go.Figure] = ()
    facts: dict[str, str] = field(default_factory=dict)
    """A list of names and values."""


def render_report(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML page as a string; it embeds plotly's script once, and its figure ids are stable.

    Args:
        title: heading of the page.
        lead: paragraph below the heading.
        sections: sections in reading order; a link to each stands at the top.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_front('page.css')}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{SLOT}</header>",
        '<nav aria-label="Sections">',
        *(f'<a href="#{_slug(s.title)}">{html.escape(s.title)}</a>' for s in sections),
        "</nav><main>",
    ]
    n_figures = 0
    for section in sections:
        parts.append(f'<section id="{_slug(section.title)}"><h2>{html.escape(section.title)}</h2>')
        parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
        if section.facts:
            pairs = (
                f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
                for name, value in section.facts.items()
            )
            parts.append(f"<dl>{''.join(pairs)}</dl>")
        for table in section.tables:
            label, body = html.escape(section.title), _table(table)
            parts.append(f'<div class="scroll" tabindex="0" aria-label="{label}">{body}</div>')
        for figure in section.figures:
            caption, untitled = _titled_in_text(figure)
            drawing = untitled.to_html(
                full_html=False,
                include_plotlyjs=n_figures == 0,
                div_id=f"figure-{n_figures}",
                config={"displaylogo": False},
            )
            parts.append(f'<figure class="scroll" tabindex="0">{caption}{drawing}</figure>')
            n_figures += 1
        parts.append("</section>")
    script = f"<script>{_front('page.js')}</script>" if n_figures else ""
    parts.append(f"</main>{script}</body></html>")
    return "\n".join(parts)


def _table(table: pd.DataFrame) -> str:
    """The table as HTML; columns of long text are marked, for they wrap and are aligned left."""
    body = table.to_html(index=False, border=0, na_rep="undefined")
    longest = [table.iloc[:, i].astype(str).str.len().max() for i in range(table.shape[1])]
    marks = cycle(' class="long"' if length > _LONG else "" for length in longest)
    return re.sub(r"<(t[hd])>", lambda cell: f"<{cell[1]}{next(marks)}>", body)


def _titled_in_text(figure: go.Figure) -> tuple[str, go.Figure]:
    """The title of a figure as a caption that wraps, and the figure without it.

    The toolbar then stands where the title was.
    """
    text = figure.layout.title.text
    if not text:
        return "", figure
    first, *notes = (_plain(line) for line in re.split(r"<br ?/?>", text))
    lines = "<br>".join(html.escape(note) for note in notes if note)
    caption = f"<figcaption><strong>{html.escape(first)}</strong><br>{lines}</figcaption>"
    top = figure.layout.margin.t
    untitled = go.Figure(figure).update_layout(title_text=None)
    if top is not None and figure.layout.height is not None:
        saved = min(_TITLE_LINE + _NOTE_LINE * len(notes), max(0, top - _LEAST_TOP))
        untitled.update_layout(margin_t=top - saved, height=figure.layout.height - saved)
    return caption, untitled


def _plain(text: str) -> str:
    """A line of plotly's text without its tags."""
    return html.unescape(re.sub(r"</?(sup|sub|b|i|span)\b[^>]*>", "", text)).strip()


def _front(name: str) -> str:
    return (_FRONT / name).read_text("utf-8")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
