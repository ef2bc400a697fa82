"""A notice: what a reader must know before the numbers of a page, as one sentence in its head."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

SLOT = "<!-- notices -->"
"""The place of the notices in a page."""


@dataclass(frozen=True)
class Notice:
    """One sentence, with the numbers it stands on."""

    text: str
    is_warning: bool = False
    """It is set off by a frame and by the word "Warning"."""
    table: pd.DataFrame | None = None
    """What it stands on, folded away below it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for metrics.json."""

    def to_html(self) -> str:
        """The paragraph, and below it the table."""
        kind, word = ("warning", "<strong>Warning:</strong> ") if self.is_warning else ("note", "")
        parts = [f'<p class="notice {kind}">{word}{html.escape(self.text)}</p>']
        if self.table is not None:
            body = self.table.to_html(index=False, border=0, na_rep="undefined")
            parts.append(
                '<details class="notice"><summary>layer by layer</summary>'
                f'<div class="scroll" tabindex="0" aria-label="layer by layer">{body}</div>'
                "</details>"
            )
        return "".join(parts)


def with_notices(page: str, notices: Sequence[Notice]) -> str:
    """A page with notices in its `SLOT`; one without a slot stays as it is."""
    return page.replace(SLOT, "".join(notice.to_html() for notice in notices), 1)
