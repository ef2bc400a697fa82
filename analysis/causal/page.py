"""The page of causal effects: what was ablated, the figure, and every set of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_clt.analysis.causal.figure import FILL_NAMES, SITE_NAMES, causal_figure, causal_title
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.analysis.stats.names import layers_text

if TYPE_CHECKING:
    from vit_clt.analysis.causal.effects import CausalEffects

HOW_TO_READ = (
    "Effects are the unaltered model's own: no CLT takes part. A total effect lets everything "
    "downstream recompute; a direct one changes only what one reader sees. Layers stand in for one "
    "another: a layer that costs nothing alone may be missed in a range. Accuracy saturates, so "
    "read the loss beside it."
)


def causal_page(effects: CausalEffects, more: Sequence[Section] = ()) -> str:
    """The page of causal effects as self-contained HTML; sections of `more` follow at its end."""
    facts = {
        "Ablated": f"{SITE_NAMES[effects.site]}, {ROW_NAMES[effects.ablated]}, set to "
        f"{FILL_NAMES[effects.fill]}",
        "Scored": f"{ROW_NAMES[effects.tokens]} of MLP outputs y_l; 1 = as far as y_l varies over "
        "images",
        "Images": f"{effects.data}, N = {effects.n}",
        "Trajectory": "the unaltered model (teacher)",
        "Seed": str(effects.seed),
    }
    sections = [
        Section("What was changed", [HOW_TO_READ], facts=facts),
        Section("Effects", figures=[causal_figure(effects)]),
    ]
    if effects.readings is not None:
        note = (
            "Top-1 in percent / cross-entropy in nats; differences are paired with the unaltered "
            "model, with 95 % bootstrap intervals over images. The floor is every layer at once, "
            f"{layers_text(range(effects.n_layers))}."
        )
        sections.append(Section("Sets of layers", [note], [effects.shown()]))
    lead = "What changes in a Vision Transformer when a layer's own output is ablated?"
    return render_report(causal_title(effects), lead, [*sections, *more])
