"""One feature in one figure: its most active images, activations, writes and class effects."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, UInt8
from PIL import ImageColor
from plotly.subplots import make_subplots

from vit_clt.analysis.features.page import Example, FeaturePage
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.reporting.pictures import data_uri, pixels
from vit_clt.analysis.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, finish
from vit_clt.analysis.stats.names import short_names

_COLUMNS = 6
_SIDE = 100  # pixels of an image in the figure
_CHARTS = 240  # height of the charts in pixels
_MOST_CLASSES = 16
_KINDS = (("CLS rows", BLUE), ("patch rows", ORANGE))


def feature_figure(stats: FeatureStatistics, page: FeaturePage) -> go.Figure:
    """Top images with the patches the feature is active on, then histogram, writes and effects.

    Frames mark active patches (orange positive, blue negative), full colour the page's strongest
    patch; below each image stand z of its strongest row and of the class token.

    Raises:
        InputError: the model came without its preprocessing, or an image cannot be read.
    """
    down = -(-len(page.top) // _COLUMNS)
    figure = make_subplots(
        rows=2,
        cols=3,
        specs=[[{"colspan": 3}, None, None], [{}, {}, {}]],
        row_heights=[down * (_SIDE + 50), _CHARTS],
        vertical_spacing=0.12,
        horizontal_spacing=0.09,
        subplot_titles=["", "Activations", "Write strength", "Direct effect on class logits"],
    )
    _add_images(figure, stats, page, down)
    for kind, (name, colour) in enumerate(_KINDS):
        counts = page.counts[kind]
        figure.add_bar(
            x=(page.edges[:-1] + page.edges[1:]) / 2,
            y=100 * counts / max(1, counts.sum()),
            width=np.diff(page.edges),
            name=f"{name} ({counts.sum()} active)",
            marker={"color": colour},
            opacity=0.65,
            row=2,
            col=1,
        )
        figure.add_bar(
            x=[str(l) for l in page.writes],
            y=[100 * strengths[kind] for strengths in page.writes.values()],
            marker={"color": colour},
            showlegend=False,
            offsetgroup=kind,
            row=2,
            col=2,
        )
    _add_effects(figure, stats, page)
    figure.update_xaxes(title="z where active", row=2, col=1)
    figure.update_yaxes(title="% of the active rows", row=2, col=1)
    figure.update_xaxes(title="target layer", type="category", row=2, col=2)
    figure.update_yaxes(title="% of sqrt(E‖y‖²)", rangemode="tozero", row=2, col=2)
    figure.update_xaxes(title="logits", row=2, col=3)
    names = short_names(stats.data.class_names)
    purity = ""
    if page.label >= 0:
        name = names.get(page.label, f"class {page.label}")
        purity = (
            f"; top images {100 * page.purity:.0f} % {name} "
            f"(of all {100 * page.base:.0f} %, by chance {100 * page.purity_by_chance:.0f} %)"
        )
    finish(figure)
    figure.update_layout(
        title={
            "text": f"Feature {page.layer}:{page.feature}<br><sup>active on "
            f"{100 * page.image_rate:.1f} % of images, {100 * page.cls_rate:.1f} % of CLS rows, "
            f"{100 * page.patch_rate:.1f} % of patch rows{purity}<br>{stats.caption()}</sup>"
        },
        # bars of two kinds over each other in the histogram; elsewhere one a place and group
        barmode="overlay",
        width=960,
        height=_CHARTS + 290 + down * (_SIDE + 50),
        margin={"t": 96, "b": 130},
        legend={"orientation": "h", "x": 0, "y": -0.13, "yanchor": "top"},
    )
    return figure


def _add_images(figure: go.Figure, stats: FeatureStatistics, page: FeaturePage, down: int) -> None:
    names = short_names(stats.data.class_names)
    shown = pixels(stats.vit, stats.data.batch([each.row for each in page.top])[0])
    for i, (each, image) in enumerate(zip(page.top, shown, strict=True)):
        x, y = i % _COLUMNS, -(i // _COLUMNS)
        picture = activation_picture(image, each.patches, page.map_scale)
        figure.add_layout_image(
            source=data_uri(picture, max(picture.shape)),
            x=x,
            y=y,
            sizex=0.8,
            sizey=0.66,
            xanchor="center",
            yanchor="middle",
            xref="x",
            yref="y",
        )
        figure.add_annotation(
            x=x,
            y=y - 0.34,
            text=_caption(each, names.get(each.label, "")),
            showarrow=False,
            yanchor="top",
            font={"size": 11, "color": INK},
            row=1,
            col=1,
        )
    # axes without a trace are not drawn, and images lie on them
    figure.add_scatter(
        x=[0], y=[0], mode="markers", opacity=0, showlegend=False, hoverinfo="skip", row=1, col=1
    )
    hidden = {"visible": False, "fixedrange": True}
    figure.update_xaxes(range=[-0.5, _COLUMNS - 0.5], **hidden, row=1, col=1)
    figure.update_yaxes(range=[0.36 - down, 0.36], **hidden, row=1, col=1)


def _caption(each: Example, name: str) -> str:
    cls = "" if each.cls is None else f", CLS {each.cls:.3g}"
    return f"z {each.value:.3g}{cls}<br>{name} (row {each.row})"


def _add_effects(figure: go.Figure, stats: FeatureStatistics, page: FeaturePage) -> None:
    where = {"row": 2, "col": 3}
    if page.effects is None or stats.effects is None or not page.effect_images:
        reason = "not measured"
        if stats.effects is not None:
            reason = f"active on none of the<br>first {stats.effects.n_images} images"
        figure.add_scatter(x=[0], y=[0], mode="text", text=[reason], showlegend=False, **where)
        figure.update_yaxes(visible=False, **where)
        return
    centred, raw = page.effects
    order = centred.argsort(kind="stable")
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
    names = short_names(stats.effects.class_names)
    classes = [names[c] for c in order.tolist()]
    figure.add_bar(
        x=centred[order],
        y=classes,
        orientation="h",
        marker={"color": [GREEN if value > 0 else GREY for value in centred[order]]},
        name=f"effect (norms differentiated) less its mean over classes ({page.effect_images} "
        f"active of the first {stats.effects.n_images} images)",
        showlegend=True,
        **where,
    )
    figure.add_scatter(
        x=raw[order],
        y=classes,
        mode="markers",
        marker={"symbol": "circle-open", "color": INK, "size": 8},
        name="as it is",
        **where,
    )


def activation_picture(
    image: UInt8[np.ndarray, "height width 3"],
    patches: Float[np.ndarray, "down across"],
    scale: float | int,
) -> UInt8[np.ndarray, "tall wide 3"]:
    """The image, enlarged pixel by pixel, with each active patch tinted and framed.

    Orange for z > 0, blue for z < 0, the stronger the larger |z| / scale; silent patches are bare.
    """
    factor = max(1, -(-2 * _SIDE // max(image.shape[:2])))
    large = image.repeat(factor, 0).repeat(factor, 1).astype(float)
    down, across = patches.shape
    edges_y = np.linspace(0, large.shape[0], down + 1).astype(int)
    edges_x = np.linspace(0, large.shape[1], across + 1).astype(int)
    width = max(1, large.shape[1] // 100)
    for i, j in zip(*patches.nonzero(), strict=True):
        colour = np.array(ImageColor.getrgb(ORANGE if patches[i, j] > 0 else BLUE))
        cell = large[edges_y[i] : edges_y[i + 1], edges_x[j] : edges_x[j + 1]]
        share = 0.1 + 0.6 * min(1.0, abs(float(patches[i, j])) / scale)
        inside = cell[width:-width, width:-width]
        inside += share * (colour - inside)
        frame = np.ones(cell.shape[:2], bool)
        frame[width:-width, width:-width] = False
        cell[frame] = colour
    return large.round().astype(np.uint8)
