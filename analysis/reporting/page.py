"""One self-contained HTML page: prose, tables and figures, no network, light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import plotly.graph_objects as go

from vit_clt.analysis.reporting.notice import SLOT

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --page: #fafafa; --card: #ffffff;
        --line: #c9c9c9; --link: #0059a8; --alarm: #a13d00; --alarm-card: #fff1e6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --page: #16181b; --card: #22252a; --line: #4a4f57; --link: #8ec5ff;
          --alarm: #ffb27d; --alarm-card: #3a2417; } }
body { margin: 0 auto; max-width: 1080px; padding: 1.5rem 1rem 4rem; color: var(--ink);
       background: var(--page); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
a { color: var(--link); } a:focus, [tabindex]:focus, summary:focus { outline: 3px solid #d55e00; }
nav a { margin-right: 1rem; white-space: nowrap; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.figure { background: #ffffff; padding: .3rem; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
.notice { font-size: .95rem; } details.notice { margin: -.6rem 0 1rem; }
.warning { border-left: 6px solid var(--alarm); background: var(--alarm-card);
           padding: .5rem .8rem; }
.warning strong { color: var(--alarm); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
"""


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
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
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
            body = table.to_html(index=False, border=0, na_rep="undefined")
            label = html.escape(section.title)
            parts.append(f'<div class="scroll" tabindex="0" aria-label="{label}">{body}</div>')
        for figure in section.figures:
            drawing = figure.to_html(
                full_html=False,
                include_plotlyjs=n_figures == 0,
                div_id=f"figure-{n_figures}",
                config={"displaylogo": False},
            )
            parts.append(f'<div class="scroll figure" tabindex="0">{drawing}</div>')
            n_figures += 1
        parts.append("</section>")
    parts.append("</main></body></html>")
    return "\n".join(parts)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
