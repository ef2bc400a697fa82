"""What a process does slowly once, done on import: for `run_train`, before it forks.

Nothing here computes with torch, whose threads would not outlive a fork.
"""

from __future__ import annotations

from plotly.subplots import make_subplots

from vit_clt.analysis.reporting.style import finish

_figure = make_subplots(rows=1, cols=2, subplot_titles=["", ""])
_figure.add_scatter(x=[0.0], y=[0.0], mode="lines", line={"color": "black"})
finish(_figure).to_html()
