"""What every layer retrieves for some query images, and how often it is of their class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.pictures import data_uri, pixels
from vit_clt.analysis.reporting.style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    ROW_NAMES,
    error_bars,
    finish,
    span,
)
from vit_clt.analysis.retrieval.consistency import ClassConsistency
from vit_clt.analysis.retrieval.index import RetrievalIndex
from vit_clt.analysis.retrieval.neighbours import Neighbours
from vit_clt.analysis.stats.names import short_names
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData

# pixels between images, and below each of them for two lines of text
_GAP, _TEXT = 10, 38
_TOP, _BOTTOM, _LEFT = 126, 20, 70
_LETTER = 6.2  # mean width of a letter of the labels


def retrieval_figure(
    index: RetrievalIndex,
    neighbours: dict[int, Neighbours],
    queries: ImageData,
    corpus: ImageData,
    *,
    rows: Sequence[int],
    tokens: TokenKind = "cls",
    size: int = 74,
) -> go.Figure:
    """Query images, each left of its nearest images by layer, one block a query, side by side.

    Images of the query's class have a thick blue frame and a check mark before their similarity.
    Row number, class and similarity show on hover.

    Args:
        index: the corpus' index.
        neighbours: what `index.search` found for the queries.
        queries: the query images, in the order they were searched for.
        corpus: the images of the index (`index.check_corpus`).
        rows: the queries' row numbers in their data, for the captions.
        tokens: the token kind searched by.
        size: of an image, in pixels.

    Raises:
        InputError: the model came without its preprocessing, or an image cannot be read.
    """
    layers = list(neighbours)
    k = next(iter(neighbours.values())).rows.shape[1]
    width, height = size + _GAP, size + _TEXT  # pixels of a column and a row
    half_x, half_y = size / 2 / width, size / 2 / height
    top = half_y + 6 / height
    most = int(width / _LETTER)
    block = k + 1.5  # columns: the query, its neighbours, half a column of air
    names = short_names(index.facts.class_names)
    thumbnails = _thumbnails(index, neighbours, corpus)
    images, labels = queries.batch(range(len(rows)))
    layout: dict[str, list[Any]] = {"images": [], "shapes": [], "annotations": []}
    hover: list[tuple[float, float, str]] = []

    def draw(
        x: float | int, y: float | int, uri: str, lines: Sequence[str], same: bool | None
    ) -> None:
        layout["images"].append(
            {
                "source": uri,
                "x": x - half_x,
                "y": y + half_y,
                "sizex": 2 * half_x,
                "sizey": 2 * half_y,
                "xref": "x",
                "yref": "y",
                "sizing": "contain",
                "layer": "below",
            }
        )
        colour, thickness = {True: (BLUE, 4), False: (FAINT, 1), None: (INK, 1)}[same]
        layout["shapes"].append(
            {
                "type": "rect",
                "x0": x - half_x,
                "x1": x + half_x,
                "y0": y - half_y,
                "y1": y + half_y,
                "line": {"color": colour, "width": thickness},
            }
        )
        layout["annotations"].append(
            {
                "x": x,
                "y": y - half_y,
                "text": "<br>".join(lines),
                "showarrow": False,
                "yanchor": "top",
                "yshift": -1,
                "font": {"size": 11, "color": BLUE if same else INK},
            }
        )

    for i, row in enumerate(rows):
        left = i * block
        label = int(labels[i])
        uri = data_uri(pixels(index.vit, images[i : i + 1])[0])
        draw(left, 0, uri, ["<b>query</b>", _fit(names.get(label, "?"), most), f"row {row}"], None)
        for y, (s, found) in enumerate(neighbours.items()):
            for rank in range(k):
                there, other = int(found.rows[i, rank]), int(found.labels[i, rank])
                similarity = float(found.similarities[i, rank])
                same = label >= 0 and label == other
                x = left + 1 + rank
                name = names.get(other, "?")
                lines = [_fit(name, most), f"{'✓ ' if same else ''}{_number(similarity)}"]
                draw(x, -y, thumbnails[there], lines, same)
                text = f"layer {s}, rank {rank + 1}<br>corpus row {there}: {name}<br>"
                hover.append((x, -y, text + f"similarity {similarity:.4f}"))
    places_x, places_y, texts = zip(*hover, strict=True)
    figure = go.Figure(
        go.Scatter(
            x=places_x,
            y=places_y,
            mode="markers",
            marker={"size": size / 2, "opacity": 0},
            text=texts,
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    )
    facts = index.facts
    n_columns = len(rows) * block - 0.5
    figure.update_layout(
        **layout,
        title={
            "text": f"Nearest images by layer, {ROW_NAMES[tokens]}"
            f"<br><sup>{facts.similarity} similarity of z_s"
            f"{'' if tokens == 'cls' else ' averaged over the rows'}; teacher trajectory"
            f", L0 {span(index.corpus.l0[tokens][s] for s in layers)}"
            f"<br>queries: {queries.name}<br>corpus: {facts.data}, N = {facts.n_images}"
            f"<br>blue frame and ✓: the query's class</sup>"
        },
        width=int(_LEFT + n_columns * width + 20),
        height=int(_TOP + len(layers) * height + _BOTTOM),
        plot_bgcolor="white",
    )
    figure.update_xaxes(range=[-0.5, n_columns - 0.5], visible=False, fixedrange=True)
    figure.update_yaxes(
        range=[top - len(layers), top],
        tickvals=[-y for y in range(len(layers))],
        ticktext=[f"layer {s}" for s in layers],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    finish(figure)
    return figure.update_layout(margin={"l": _LEFT, "r": 20, "t": _TOP, "b": _BOTTOM})


def _thumbnails(
    index: RetrievalIndex, neighbours: dict[int, Neighbours], corpus: ImageData
) -> dict[int, str]:
    wanted = sorted({int(row) for found in neighbours.values() for row in found.rows.ravel()})
    found: dict[int, str] = {}
    for start in range(0, len(wanted), corpus.batch_size):
        batch = wanted[start : start + corpus.batch_size]
        shown = pixels(index.vit, corpus.batch(batch)[0])
        found |= {row: data_uri(image) for row, image in zip(batch, shown, strict=True)}
    return found


def _number(similarity: float) -> str:
    # dot products have any size
    return f"{similarity:.3f}" if abs(similarity) < 10 else f"{similarity:.4g}"


def _fit(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


_LINES = (
    ("codes", "codes z_s", BLUE, "solid", "circle"),
    ("inputs", "baseline: plain x_s", ORANGE, "dash", "square"),
    ("untrained", "codes of an untrained CLT", PURPLE, "dashdot", "diamond"),
)


def consistency_figure(result: ClassConsistency) -> go.Figure:
    """Share of the k nearest images with the query's class against the layer; a panel a kind."""
    frame = result.to_frame()
    kinds = frame["tokens"].unique().tolist()
    figure = make_subplots(
        rows=1,
        cols=len(kinds),
        shared_yaxes=True,
        subplot_titles=[ROW_NAMES[kind] for kind in kinds],
        horizontal_spacing=0.06,
    )
    for column, kind in enumerate(kinds, start=1):
        rows = frame[frame["tokens"] == kind]
        layers = rows["layer"].tolist()
        for name, label, colour, dash, symbol in _LINES:
            if name not in rows:
                continue
            y, low, high = (100 * rows[name + end] for end in ("", "_low", "_high"))
            figure.add_trace(
                go.Scatter(
                    x=layers,
                    y=y.tolist(),
                    error_y=error_bars(y, low, high),
                    mode="lines+markers",
                    name=label,
                    legendgroup=name,
                    showlegend=column == 1,
                    line={"color": colour, "dash": dash},
                    marker={"symbol": symbol, "size": 7},
                    hovertemplate=label + ", layer %{x}: %{y:.1f} %<extra></extra>",
                ),
                row=1,
                col=column,
            )
        figure.add_trace(
            go.Scatter(
                x=layers,
                y=(100 * rows["chance"]).tolist(),
                mode="lines+markers" if len(layers) == 1 else "lines",
                name="chance",
                legendgroup="chance",
                showlegend=column == 1,
                line={"color": GREY, "dash": "dot", "width": 1.5},
                hovertemplate="chance: %{y:.1f} %<extra></extra>",
            ),
            row=1,
            col=column,
        )
    figure.update_xaxes(dtick=1, title_text="layer s")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=f"of the {result.k} nearest, same class (%)", col=1)
    figure.update_layout(
        title={
            "text": "Do retrieved images have the query's class?<br><sup>"
            f"{result.similarity} similarity; {result.n} queries of {result.data}, corpus: "
            f"{result.corpus}, N = {result.n_corpus}<br>teacher trajectory, L0 {span(frame['l0'])} "
            "a token row; bars: 95 % bootstrap over queries</sup>",
        },
        width=140 + 440 * len(kinds),
        height=460,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
    )
    return finish(figure)
