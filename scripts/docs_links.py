"""The step of the site's build that keeps links to files outside of docs/ readable.

On GitHub such a link opens the file. The site holds docs/ alone and opens from disk, so that there
the link becomes the path of the file in the repository. `mkdocs.yml` names this module.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page, with links that leave docs/ as paths (an event of mkdocs)."""
    return without_outer_links(markdown, page.file.src_uri)


def without_outer_links(markdown: str, place: str) -> str:
    """`markdown` with every link to a file outside of docs/ as its text and the file's path.

    Args:
        markdown: the text of a page.
        place: path of the page below docs/, such as "results/acts.md".
    """

    def replaced(link: re.Match[str]) -> str:
        text, address = link.groups()
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(place), address))
        if path.startswith("docs/"):
            return link[0]
        return f"`{path}`" if text in path else f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)
