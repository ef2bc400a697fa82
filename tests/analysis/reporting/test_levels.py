"""Reference levels and measured series: what is drawn, where, and that kinds can be told apart."""

import math

import pandas as pd
import pytest
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.levels import LEVELS, add_levels, add_points
from vit_clt.analysis.reporting.style import SERIES

# drawn together in some figure
TOGETHER = [
    ("original", "published", "floor_mean", "floor_zero"),
    ("original", "full", "bias_only", "floor_mean", "floor_zero"),
    ("additive", "chance"),
]


@pytest.mark.parametrize("kinds", TOGETHER)
def test_levels_of_one_figure_differ_without_colours(kinds: tuple[str, ...]):
    assert len({LEVELS[kind].dash for kind in kinds}) == len(kinds)
    assert len({LEVELS[kind].label for kind in kinds}) == len(kinds)


def test_no_measured_series_has_the_colour_of_a_level():
    assert not {level.colour for level in LEVELS.values()} & set(SERIES)


def test_a_level_is_one_height_or_one_for_each_place():
    figure = make_subplots(rows=1, cols=2)
    levels = {LEVELS["original"]: 2.5, LEVELS["floor_mean"]: [1.0, math.nan, 3.0]}
    add_levels(figure, [4, 5, 6], levels, row=1, col=2, legend=True, hover=", layer %{x}")
    model, floor = figure.data
    assert list(model.x) == list(floor.x) == [4, 5, 6]
    assert list(model.y) == [2.5] * 3
    assert floor.y[::2] == (1, 3)
    assert math.isnan(floor.y[1])
    assert (floor.line.color, floor.line.dash) == (
        LEVELS["floor_mean"].colour,
        LEVELS["floor_mean"].dash,
    )
    assert floor.name == floor.legendgroup == LEVELS["floor_mean"].label
    assert model.hovertemplate == "unaltered model, layer %{x}: %{y:.5g}<extra></extra>"
    assert all(line.yaxis == "y2" and line.showlegend and line.mode == "lines" for line in (model,))


def test_a_vertical_level_has_its_height_on_the_x_axis():
    figure = make_subplots(rows=1, cols=1)
    add_levels(figure, [0, 9], {LEVELS["chance"]: 0.1}, row=1, col=1, vertical=True)
    (line,) = figure.data
    assert list(line.x) == [0.1, 0.1]
    assert list(line.y) == [0, 9]
    assert "%{x" in line.hovertemplate
    assert not line.showlegend


def test_a_level_of_one_place_shows_and_an_undefined_one_is_left_out():
    figure = make_subplots(rows=1, cols=1)
    levels = {LEVELS["original"]: [0.5], LEVELS["published"]: math.nan}
    add_levels(figure, [3], levels, row=1, col=1)
    (line,) = figure.data
    assert line.mode == "lines+markers"


def test_a_name_of_its_own_leaves_the_look():
    level = LEVELS["chance"].named("best chance")
    assert level.label == "best chance"
    assert (level.colour, level.dash) == (LEVELS["chance"].colour, LEVELS["chance"].dash)


def test_bars_end_where_the_interval_ends():
    figure = make_subplots(rows=1, cols=1)
    value, low, high = (pd.Series(v) for v in ([1.0, math.nan], [0.5, math.nan], [3.0, math.nan]))
    style = {"name": "CLT", "colour": SERIES[0], "hover": "%{y}", "row": 1, "col": 1}
    add_points(figure, [1, 2], (value, low, high), **style)
    add_points(figure, [1, 2], (value,), legendgroup="other", **style)
    points, bare = figure.data
    assert points.y == (1.0, None)
    assert (points.error_y.array[0], points.error_y.arrayminus[0]) == (2.0, 0.5)
    assert (points.legendgroup, bare.legendgroup) == ("CLT", "other")
    assert bare.error_y.array is None
