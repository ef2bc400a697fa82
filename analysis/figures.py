"""What all plotly figures share: row names, colour-blind-safe colours, font and margins."""

from __future__ import annotations

import plotly.graph_objects as go

ROW_NAMES = {"cls": "CLS rows", "patch": "patch rows", "all": "all rows"}
# Okabe and Ito's palette: distinguishable with every common form of colour blindness
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
_FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"}


def finish(figure: go.Figure) -> go.Figure:
    """The font, template and margins that all figures share."""
    figure.update_layout(
        font=_FONT,
        template="plotly_white",
        margin={"l": 60, "r": 30, "t": 110, "b": 60},
        title={"x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 22}},
    )
    return figure
