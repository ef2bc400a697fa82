"""The reconstruction figure draws the frame's numbers, each panel those of its rows."""

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from builders import random_clt, tiny_clip

from vit_clt import AbsTopK, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import reconstruction, reconstructions
from vit_clt.analysis.fit.reconstruction_study import Reconstruction
from vit_clt.hooks import HookedViT

NAMES = ("relu", "abs", "jump")
PANELS = [
    *((tokens, column) for tokens in ("cls", "patch", "all") for column in ("cosine", "mse", "r2")),
    *(("all", column) for column in ("l0", "dead", "cross_layer")),
]


@pytest.fixture(scope="module")
def result() -> Reconstruction:
    vit = HookedViT(tiny_clip())
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    sparsifiers = (ReLUTopK(k=5), AbsTopK(k=4), JumpReLU(theta=0.2))
    clts = {name: random_clt(vit, each) for name, each in zip(NAMES, sparsifiers, strict=True)}
    return reconstructions(vit, clts, images)


def traces(figure: go.Figure, panel: int) -> list[go.Scatter]:
    axis = "y" if panel == 0 else f"y{panel + 1}"
    return [trace for trace in figure.data if (trace.yaxis or "y") == axis]


def of_kind(result: Reconstruction, tokens: str) -> pd.DataFrame:
    return result.frame[result.frame["tokens"] == tokens]


def test_every_panel_draws_its_column_of_every_clt(result: Reconstruction):
    figure = result.figure()
    for panel, (tokens, column) in enumerate(PANELS):
        drawn = {t.name.partition(":")[0]: t for t in traces(figure, panel) if "markers" in t.mode}
        assert list(drawn) == list(NAMES)
        for name, each in result.by_clt().items():
            rows = of_kind(each, tokens)
            factor = 100 if column in ("dead", "cross_layer") else 1
            assert list(drawn[name].x) == [0, 1, 2, 3]
            assert list(drawn[name].y) == pytest.approx((rows[column] * factor).tolist())
            if column in ("r2", "cosine"):
                bars = drawn[name].error_y
                top = [y + bar for y, bar in zip(drawn[name].y, bars.array, strict=True)]
                end = [y - bar for y, bar in zip(drawn[name].y, bars.arrayminus, strict=True)]
                assert top == pytest.approx(rows[f"{column}_high"].tolist())
                assert end == pytest.approx(rows[f"{column}_low"].tolist())


def test_floors_and_typical_rows(result: Reconstruction):
    figure = result.figure()
    for panel, (tokens, column) in enumerate(PANELS):
        lines = [t for t in traces(figure, panel) if t.mode == "lines"]
        rows = of_kind(result, tokens)
        if column in ("cosine", "mse"):
            (floor,) = lines
            assert list(floor.y) == pytest.approx(rows[f"{column}_floor"].tolist())
        elif column == "r2":
            assert list(lines[0].y) == pytest.approx(rows["r2_typical"].tolist())
            assert len(lines) == len(NAMES)
        else:
            assert lines == []


def test_clts_differ_in_colour_and_marker_and_stand_once_in_the_legend(result: Reconstruction):
    figure = result.figure()
    shown = [t for t in figure.data if t.showlegend and "markers" in t.mode]
    assert [t.name.partition(":")[0] for t in shown] == list(NAMES)
    assert len({t.line.color for t in shown}) == len({t.marker.symbol for t in shown}) == 3
    for trace, each in zip(shown, result.by_clt().values(), strict=True):
        assert f"L0 {each.mean('all', 'l0'):.1f} a row" in trace.name
        assert f"{each.mean('all', 'dead'):.0%} dead" in trace.name
    names = [t.name for t in figure.data if t.showlegend]
    assert len(names) == len(set(names))


def test_the_heading_says_what_was_measured(result: Reconstruction):
    figure = result.figure()
    assert "tensor, N = 12, teacher trajectory" in figure.layout.title.text
    assert "seed 0" in figure.layout.title.text


def test_mse_axes_are_logarithmic_with_ticks_of_their_own(result: Reconstruction):
    figure = result.figure()
    for axis, panel in ((figure.layout.yaxis2, 1), (figure.layout.yaxis5, 4)):
        assert axis.type == "log"
        heights = [y for trace in traces(figure, panel) for y in trace.y]
        inside = [t for t in axis.tickvals if min(heights) / 1.03 <= t <= max(heights) * 1.03]
        assert len(inside) == len(axis.tickvals) >= 3
    assert figure.layout.yaxis.type is None


def test_results_of_other_images_are_refused(result: Reconstruction):
    fewer = Reconstruction(result.frame.assign(n_images=5), result.data, 0)
    with pytest.raises(InputError, match="tensor with N = 12, teacher passes, tensor with N = 5"):
        replace(result, compared={"fewer": fewer})


def test_the_table_has_every_clt_and_layer(result: Reconstruction):
    table, frame = result.shown(), result.to_frame()
    assert table["clt"].tolist() == [name for name in NAMES for _ in range(4)]
    assert table["layer"].tolist() == [*range(4)] * 3
    assert frame["clt"].tolist() == [name for name in NAMES for _ in range(12)]
    rows = frame.query("clt == 'abs' and tokens == 'patch'")
    shown = table[table["clt"] == "abs"]["R2 patch by position"]
    assert shown.tolist() == [f"{value:.3f}" for value in rows["r2_position"]]
    assert table["cross-layer"].iloc[0] == "0.000"
    assert f"abs L0 {result.compared['abs'].mean('all', 'l0'):.1f}, jump L0" in result.caption()


def test_one_image_still_gives_a_figure():
    vit = HookedViT(tiny_clip())
    result = reconstruction(vit, random_clt(vit), torch.randn(1, 3, 12, 12))
    figure = result.figure()
    assert pd.Series(traces(figure, 2)[0].y).isna().all()  # one CLS row is its own mean
    assert "CLT: L0" in figure.to_html(include_plotlyjs=False)
