"""What every result is: numbers that say what they were measured on, and show themselves.

A study's result names its facts, tells itself in a caption, lists its numbers (`to_frame`), draws
them (`figure`), and is a page. As the last line of a notebook's cell it shows caption, figure and
table; `write_study` makes files of it, and every command prints and writes through the same two.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vit_clt.errors import InputError
from vit_clt.metrics import Metric, metrics_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_clt.outputs import OutputFolder


@dataclass(frozen=True)
class Facts:
    """What a reader must know of any number: what it was measured on, and how."""

    data: str | None
    """Name of the images; None where none took part."""
    n: int
    """Images."""
    tokens: str | None
    """Token rows: "cls", "patch", "all", or several."""
    trajectory: str | None
    """Where codes come from: "teacher", "stream", or both."""
    l0: float | Mapping[str, Any] | None
    """Active features a token and layer, as measured; None where no CLT took part."""
    split: str | None = None
    fill: str | None = None
    """What stood in for what was dropped or ablated."""
    seed: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else metrics.json is to say of this study."""

    def context(self) -> dict[str, Any]:
        """The context of metrics.json."""
        named = ("data", "split", "tokens", "trajectory", "l0", "fill", "seed")
        return {name: getattr(self, name) for name in named} | dict(self.more)


class Study(ABC):
    """A result of the `analysis` package; subclasses are frozen dataclasses."""

    name: ClassVar[str]
    """Stem of its files."""
    extra_files: ClassVar[tuple[str, ...]] = ()
    """Further files it writes, beside those of every study."""

    @abstractmethod
    def facts(self) -> Facts:
        """What it was measured on."""

    @abstractmethod
    def caption(self) -> str:
        """What a reader of the table alone must know, in a sentence."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Every number, at full precision."""

    @abstractmethod
    def metrics(self) -> list[Metric]:
        """Every number as metrics.json has it, beside floor and baseline."""

    @abstractmethod
    def figure(self) -> go.Figure:
        """The numbers drawn."""

    def shown(self) -> pd.DataFrame:
        """The table made for reading; `to_frame` where that is as good."""
        return self.to_frame()

    def printed(self) -> pd.DataFrame:
        """The table of a terminal and of a notebook's cell: `shown`, or what is short of it."""
        return self.shown()

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """Tables made for reading that stand below the first one, by heading."""
        return {}

    def notes(self) -> Sequence[str]:
        """How to read the numbers, in lines that stand below the tables."""
        return ()

    def page(self) -> str:
        """A whole HTML page: the figure, the table for reading, and the facts."""
        from vit_clt.analysis.reporting.page import Section, render_report

        figure = self.figure()
        title = str(figure.layout.title.text or self.name).split("<br>")[0]
        context = {"n": self.facts().n, **self.facts().context()}
        facts = {name: str(value) for name, value in context.items() if value is not None}
        sections = [
            Section("Figure", figures=[figure]),
            Section("Table", self.notes(), [self.shown()]),
            *(Section(heading, tables=[each]) for heading, each in self.further_tables().items()),
            Section("Measured on", facts=facts),
        ]
        return render_report(title, self.caption(), sections)

    def extras(self) -> Mapping[str, str | bytes]:
        """Contents of `extra_files`, by name."""
        return {}

    def companions(self) -> Sequence[Study]:
        """Further studies that are told with this one, in files of their own."""
        return ()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        # plotly's own way to show a figure loads its script once for a whole notebook
        display(HTML(f"<p>{html.escape(self.caption())}</p>"), self.figure(), HTML(self._tables()))

    def _repr_html_(self) -> str:
        """Caption, figure and tables in one piece of HTML that needs nothing else, script included.

        A notebook shows the same by way of plotly's own display, without a copy of the script.
        """
        drawing = self.figure().to_html(full_html=False, include_plotlyjs=True)
        return f"<p>{html.escape(self.caption())}</p>{drawing}{self._tables()}"

    def _tables(self) -> str:
        parts = [_html_table(self.printed())]
        for heading, table in self.further_tables().items():
            parts += [f"<p>{html.escape(heading)}</p>", _html_table(table)]
        parts += [f"<p>{html.escape(note)}</p>" for note in self.notes()]
        return "".join(parts)


def study_files(*studies: type[Study]) -> list[str]:
    """Every file `write_study` may write for results of these kinds, and metrics.json."""
    kinds = ("html", "json", "png", "csv", "md", "tex")
    found = [f"{study.name}.{kind}" for study in studies for kind in kinds]
    return [*found, *(name for study in studies for name in study.extra_files), "metrics.json"]


def write_study(folder: OutputFolder, study: Study, command: str, *, png: bool = False) -> None:
    """Write a study and its companions, and the metrics.json of the study, which speaks for all.

    NAME.html is the page and NAME.json the figure (`plotly.io.read_json` opens it); NAME.csv holds
    every number, NAME.md and NAME.tex the table made for reading; NAME.png, where asked for, is the
    figure as a picture (`check_png` first).

    Args:
        folder: where, already open.
        study: the result.
        command: what metrics.json calls the maker.
        png: draw pictures too.
    """
    from vit_clt.analysis.reporting.tables import latex_table, markdown_table

    for each in (study, *study.companions()):
        figure, shown, caption = each.figure(), each.shown(), each.caption()
        folder.write(f"{each.name}.html", each.page())
        folder.write(f"{each.name}.json", figure.to_json(pretty=False, engine="json") + "\n")
        folder.write(f"{each.name}.csv", each.to_frame().to_csv(index=False))
        folder.write(f"{each.name}.md", markdown_table(shown, caption))
        folder.write(f"{each.name}.tex", latex_table(shown, caption))
        if png:
            folder.write(f"{each.name}.png", figure.to_image(format="png", scale=2))
        for name, content in each.extras().items():
            folder.write(name, content)
    folder.write(
        "metrics.json", metrics_json(study.metrics(), command=command, **study.facts().context())
    )


def check_png() -> None:
    """Find what PNGs are drawn with, before any work is done.

    Raises:
        InputError: the extra `png` or a browser is missing.
    """
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError as error:
        raise InputError(
            "png", "is on, but kaleido is not installed; expected pip install 'vit-clt[png]'."
        ) from error
    if Chromium.find_browser(skip_local=False) is None:
        raise InputError(
            "png", "is on, but no browser was found; expected Chrome or Chromium on this machine."
        )


def _html_table(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0, na_rep="undefined")
