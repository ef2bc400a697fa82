"""The interface of every result: `Study`, and `write_study`, which writes it to files.

A study states what it was measured on (`facts`, `caption`), lists its numbers (`to_frame`,
`metrics`) and draws them (`figure`, `page`). As the last line of a notebook cell it shows caption,
figure and table. Every command prints and writes its results through this interface.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vit_clt.analysis.reporting.notice import Notice, with_notices
from vit_clt.errors import InputError
from vit_clt.metrics import Metric, metrics_json
from vit_clt.outputs.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vit_clt.outputs import OutputFolder


@dataclass(frozen=True)
class Facts:
    """What the numbers of a study were measured on, and how."""

    data: str | None
    """Name of the data; None where no images took part."""
    n: int
    """Number of images."""
    tokens: str | None
    """Token rows: "cls", "patch", "all", or several."""
    trajectory: str | None
    """Where codes come from: "teacher", "stream", or both."""
    l0: float | Mapping[str, Any] | None
    """Measured number of active features a token row and layer; None where no CLT took part."""
    split: str | None = None
    fill: str | None = None
    """What stood in for dropped terms or ablated outputs: "zero", "mean", "resample"."""
    seed: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of this study for metrics.json."""

    def context(self) -> dict[str, Any]:
        """The facts by name, as metrics.json has them; n stands beside each number instead."""
        names = ("data", "split", "tokens", "trajectory", "l0", "fill", "seed")
        return {name: getattr(self, name) for name in names} | dict(self.more)


class Study(ABC):
    """A result of the `analysis` package; subclasses are frozen dataclasses."""

    name: ClassVar[str]
    """Stem of its files."""
    endings: ClassVar[tuple[str, ...]] = ("html", "json", "png", "csv", "md", "tex")
    """Which of the files of `write_study` it has, beside metrics.json."""
    extra_files: ClassVar[tuple[str, ...]] = ()
    """Names of files it writes beside these."""

    @abstractmethod
    def facts(self) -> Facts:
        """What the study was measured on."""

    @abstractmethod
    def caption(self) -> str:
        """One sentence that says all a reader of the table alone must know."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Every number, at full precision."""

    @abstractmethod
    def metrics(self) -> list[Metric]:
        """The numbers of metrics.json, each beside its floor and baseline."""

    @abstractmethod
    def figure(self) -> go.Figure:
        """The figure of the study."""

    def shown(self) -> pd.DataFrame:
        """The table made for reading; `to_frame` where a study makes no other."""
        return self.to_frame()

    def printed(self) -> pd.DataFrame:
        """The table for a terminal and a notebook cell: `shown`, or a shorter one."""
        return self.shown()

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """Further tables made for reading, by heading; they stand below the first one."""
        return {}

    def warnings(self) -> Sequence[str]:
        """Sentences without which the numbers mislead; they stand in the head of the page."""
        return ()

    def notes(self) -> Sequence[str]:
        """Sentences on how to read the numbers; they stand below the tables."""
        return ()

    def page(self) -> str:
        """A whole HTML page: the figure, the tables for reading, and the facts."""
        from vit_clt.analysis.reporting.facts_text import facts_text
        from vit_clt.analysis.reporting.page import Section, render_report

        figure = self.figure()
        title = str(figure.layout.title.text or self.name).split("<br>")[0]
        facts = facts_text({"n": self.facts().n, **self.facts().context()})
        sections = [
            Section("Figure", figures=[figure]),
            Section("Table", self.notes(), [self.shown()]),
            *(Section(heading, tables=[table]) for heading, table in self.further_tables().items()),
            Section("Measured on", facts=facts),
        ]
        return render_report(title, self.caption(), sections)

    def extras(self) -> Iterable[tuple[str, str | bytes]]:
        """Names and contents of `extra_files`, each written before the next one is made."""
        return ()

    def companions(self) -> Sequence[Study]:
        """Studies that are written together with this one, in files of their own."""
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
        warnings = [f"Warning: {text}" for text in self.warnings()]
        parts += [f"<p>{html.escape(note)}</p>" for note in (*warnings, *self.notes())]
        return "".join(parts)


def study_files(*studies: type[Study], png: bool = True) -> list[str]:
    """Names of all files that `write_study` may write for studies of these classes.

    Args:
        *studies: classes of the studies.
        png: figures are written as pictures too.
    """
    files = [
        f"{study.name}.{ending}"
        for study in studies
        for ending in study.endings
        if png or ending != "png"
    ]
    files += [name for study in studies for name in study.extra_files]
    return [*files, "metrics.json", MANIFEST_FILE]


def write_study(
    folder: OutputFolder,
    study: Study,
    command: str,
    *,
    fits: Sequence[Notice] = (),
    teacher: str = "",
    png: bool = False,
    finish: bool = True,
) -> None:
    """Write the files of a study and of its companions, and the study's metrics.json.

    NAME.html is the page and NAME.json the figure (`plotly.io.read_json` opens it); NAME.csv holds
    every number, NAME.md and NAME.tex the table made for reading, and NAME.png the figure as a
    picture.

    Args:
        folder: the open folder to write to.
        study: the result.
        command: name of the command, for metrics.json.
        fits: how well the CLTs of the study fit the ViT (`vit_clt.analysis.fit.gate`); they stand
            in the head of every page, and in metrics.json.
        teacher: a warning that a CLT is attached to a ViT that it was not trained on; it stands in
            the head of every page, in figures of their own, in captions and in metrics.json.
        png: write pictures too; call `check_png` before the work that makes the study.
        finish: finish the folder, to which nothing else is written then.
    """
    warnings = [teacher] if teacher else []
    notices = [*(Notice(text, True) for text in (*warnings, *study.warnings())), *fits]
    for part in (study, *study.companions()):
        for ending in part.endings:
            if png or ending != "png":
                content = _content(part, ending, teacher)
                folder.write(f"{part.name}.{ending}", _headed(content, ending, notices))
        for name, content in part.extras():
            folder.write(name, _headed(content, name, notices))
    context = study.facts().context()
    if fits:
        context["fit"] = [notice.facts for notice in fits]
    if teacher:
        context["teacher"] = teacher
    folder.write("metrics.json", metrics_json(study.metrics(), command=command, **context))
    if finish:
        folder.finish()


def _headed(content: str | bytes, name: str, notices: Sequence[Notice]) -> str | bytes:
    """The content of a file, with the notices in its head if it is a page."""
    if isinstance(content, bytes) or not name.endswith("html"):
        return content
    return with_notices(content, notices)


def _content(study: Study, ending: str, teacher: str) -> str | bytes:
    """The content of the file of a study with this ending."""
    from vit_clt.analysis.reporting.tables import csv_table, latex_table, markdown_table

    if ending == "html":
        return study.page()
    if ending == "json":
        return f"{_figure(study, teacher).to_json(pretty=False, engine='json')}\n"
    if ending == "png":
        return bytes(_figure(study, teacher).to_image(format="png", scale=2))
    if ending == "csv":
        return csv_table(study.to_frame())
    table = markdown_table if ending == "md" else latex_table
    return table(study.shown(), " ".join(filter(None, [study.caption(), teacher])))


def _figure(study: Study, teacher: str) -> go.Figure:
    """The figure of a study, with the beginning of the warning across its foot."""
    figure = study.figure()
    if teacher:
        place = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "yanchor": "bottom"}
        style = {"showarrow": False, "bgcolor": "white", "bordercolor": "black"}
        figure.add_annotation(text=teacher.partition(";")[0], **place, **style)
    return figure


def check_png() -> None:
    """Check that pictures can be written: kaleido and a browser draw them.

    Raises:
        InputError: kaleido (the extra `png`) or a browser is missing.
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
