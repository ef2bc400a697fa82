"""Ticks of logarithmic axes: enough to read a value off, few enough to be legible."""

from itertools import pairwise

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import accuracy_axis, log_axis, log_ticks

POSITIVE = st.floats(1e-12, 1e12)


@given(POSITIVE, st.floats(1, 1e12))
def test_three_to_eight_ticks_within_the_range(low: float, ratio: float):
    high = low * ratio
    ticks = log_ticks([high, low])
    assert 3 <= len(ticks) <= 8
    # plotly draws a margin of a few percent around the data
    assert low / 1.03 <= ticks[0]
    assert ticks[-1] <= high * 1.03
    assert all(b > a for a, b in pairwise(ticks))


@given(POSITIVE, st.floats(1, 1e12))
def test_every_tick_has_a_text_of_its_own(low: float, ratio: float):
    figure = go.Figure()
    log_axis(figure, [low, low * ratio])
    axis = figure.layout.yaxis
    assert axis.type == "log"
    assert len(set(axis.ticktext)) == len(axis.ticktext)
    written = [float(text.replace(",", "")) for text in axis.ticktext]
    assert written == pytest.approx(list(axis.tickvals), rel=1e-11)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.9, 110], [1, 10, 100]),
        ([1e-7, 1e6], [1e-7, 1e-5, 1e-3, 0.1, 10, 1e3, 1e5]),
        ([2, 90], [3, 10, 30]),
        ([1, 5], [1, 2, 5]),
        ([0.011, 0.018], [0.012, 0.014, 0.016, 0.018]),
        ([0.7, 0.9, float("nan"), 0, -1], [0.7, 0.8, 0.9]),
        ([0, float("nan")], []),
    ],
)
def test_round_numbers(values: list[float], ticks: list[float]):
    assert log_ticks(values) == pytest.approx(ticks)


def test_texts_are_plain_numbers():
    figure = go.Figure()
    log_axis(figure, [1e-6, 1e-2])
    assert figure.layout.yaxis.ticktext == ("1e-6", "1e-5", "0.0001", "0.001", "0.01")
    log_axis(figure, [90_000, 2_000_000])
    assert figure.layout.yaxis.ticktext == ("100,000", "300,000", "1,000,000")


def test_only_the_axes_asked_for():
    figure = make_subplots(rows=1, cols=2)
    figure.add_scatter(y=[1, 2], row=1, col=1).add_scatter(y=[1, 2], row=1, col=2)
    log_axis(figure, [1, 2], row=1, col=2)
    assert figure.layout.yaxis.type is None
    assert figure.layout.yaxis2.type == "log"


def test_an_axis_of_accuracies_is_not_narrower_than_five_points() -> None:
    figure = make_subplots(rows=1, cols=2)
    few = {"array": [0.5, None], "arrayminus": [0.5, 0.0]}
    figure.add_trace(go.Scatter(x=[0, 1], y=[99.0, 99.5], error_y=few), row=1, col=1)
    figure.add_trace(go.Scatter(x=[0, 1], y=[90.0, 99.5]), row=1, col=2)
    for col in (1, 2):
        accuracy_axis(figure, row=1, col=col)
    assert figure.layout.yaxis.range == pytest.approx((95.1, 100.1))  # none above 100 %
    assert figure.layout.yaxis2.range is None
    accuracy_axis(figure, row=1, col=1, axis="x")
    assert figure.layout.xaxis.range == (-2, 3)
