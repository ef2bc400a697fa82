"""Some query images beside what every layer retrieves for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from vit_clt.analysis.reporting.pictures import data_uri
from vit_clt.analysis.reporting.style import (
    BLUE,
    FAINT,
    INK,
    ROW_NAMES,
    finish,
    span,
)
from vit_clt.analysis.retrieval.retrieved import Retrieved
from vit_clt.analysis.stats.names import short_names

# pixels between images, and below each of them for two lines of text
_GAP, _TEXT = 10, 38
_TOP, _BOTTOM, _LEFT = 126, 20, 70
_LETTER = 6.2  # mean width of a letter of the labels


def retrieved_figure(retrieved: Retrieved, size: int) -> go.Figure:
    """Query images, each left of its nearest images by layer, one block a query, side by side.

    Images of the query's class have a thick blue frame and a check mark before their similarity.
    Row number, class and similarity show on hover.

    Args:
        retrieved: the queries and what is retrieved for them.
        size: of an image, in pixels.
    """
    neighbours = retrieved.neighbours
    layers = list(neighbours)
    k = retrieved.k
    width, height = size + _GAP, size + _TEXT  # pixels of a column and a row
    half_x, half_y = size / 2 / width, size / 2 / height
    top = half_y + 6 / height
    most = int(width / _LETTER)
    block = k + 1.5  # columns: the query, its neighbours, half a column of air
    names = short_names(retrieved.class_names)
    thumbnails = {row: data_uri(image) for row, image in retrieved.corpus_pictures.items()}
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

    for i, row in enumerate(retrieved.query):
        left = i * block
        label = int(retrieved.labels[i])
        uri = data_uri(retrieved.pictures[i])
        draw(left, 0, uri, ["<b>query</b>", _fit(names.get(label, "?"), most), f"row {row}"], None)
        for y, (s, near) in enumerate(neighbours.items()):
            for rank in range(k):
                there, other = int(near.rows[i, rank]), int(near.labels[i, rank])
                similarity = float(near.similarities[i, rank])
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
    n_columns = len(retrieved.query) * block - 0.5
    figure.update_layout(
        **layout,
        title={
            "text": f"Nearest images by layer, {ROW_NAMES[retrieved.tokens]}"
            f"<br><sup>{retrieved.similarity} similarity of z_s"
            f"{'' if retrieved.tokens == 'cls' else ' averaged over the rows'}; teacher trajectory"
            f", L0 {span(retrieved.l0[s] for s in layers)}"
            f"<br>queries: {retrieved.data}<br>corpus: {retrieved.corpus}, N = {retrieved.n_corpus}"
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


def _number(similarity: float) -> str:
    # dot products have any size
    return f"{similarity:.3f}" if abs(similarity) < 10 else f"{similarity:.4g}"


def _fit(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
