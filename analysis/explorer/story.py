"""What a first reader should see of an explorer: findings in words, features, one steered image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vit_clt.analysis.contributions.study import ScoreStudy
from vit_clt.analysis.explorer.steered_images import FACTORS, SteeredImage
from vit_clt.analysis.explorer.verdict import Verdict
from vit_clt.analysis.features.gallery import FeatureGallery
from vit_clt.analysis.fit.cascade_study import Cascade
from vit_clt.analysis.fit.gate import Fit
from vit_clt.analysis.reporting.style import ROW_NAMES

N_FEATURES = 6
"""Features that are shown, each of another layer where there are as many."""


@dataclass(frozen=True)
class SteeredCase:
    """One feature of one image at one factor, the change that it makes, and that of chance."""

    row: int
    layer: int
    feature: int
    factor: float
    label: int
    """The class whose probability changes most."""
    before: float
    after: float
    random: float
    """Mean |change| of that probability by random features of the same layer; NaN without any."""
    n_tried: int
    """Features of all images that were steered; the case is the largest change of them."""


def largest_case(steered: Sequence[SteeredImage]) -> SteeredCase | None:
    """The largest change of a probability that scaling one feature made; None without steering."""
    cases = []
    for image in steered:
        for each in image.features:
            change = np.abs(each.probabilities - image.clean)
            f, c = divmod(int(change.argmax()), change.shape[1])
            cases.append((float(change[f, c]), image, each, f, c))
    if not cases:
        return None
    _, image, each, f, c = max(cases, key=lambda case: case[0])
    return SteeredCase(
        image.row,
        each.layer,
        each.feature,
        FACTORS[f],
        c,
        float(image.clean[c]),
        float(each.probabilities[f, c]),
        float(each.random_change[f, c]),
        len(cases),
    )


def findings(
    scores: ScoreStudy,
    fit: Fit,
    replaced: Cascade | None,
    case: SteeredCase | None,
    verdict: Verdict | None,
    class_names: Sequence[str],
) -> list[str]:
    """Up to three findings in words: does the CLT stand in, from where is it read, what can one
    feature do.

    Args:
        scores: the contribution scores.
        fit: the fit of the CLT.
        replaced: all MLPs replaced, by token kind.
        case: the largest change by steering.
        verdict: that of an audit.
        class_names: names of the classes, in label order.
    """
    found = [_stands_in(fit, replaced), _read_from(scores, verdict)]
    if case is not None:
        chance = (
            "No other feature of its layer fires there to compare with."
            if np.isnan(case.random)
            else f"Random features of layer {case.layer} that fire there change it by "
            f"{100 * case.random:.1f} points on average."
        )
        found.append(
            f"One feature can move an answer: {case.layer}:{case.feature}, scaled by "
            f"{case.factor:g}, takes {class_names[case.label]} from {100 * case.before:.1f} % to "
            f"{100 * case.after:.1f} % on image {case.row}. {chance} It is the largest change of "
            f"the {case.n_tried} features tried."
        )
    return found


def chosen_features(gallery: FeatureGallery) -> list[tuple[int, int]]:
    """The feature with the purest top images of every shown layer; at most `N_FEATURES`, evenly
    spaced.

    Among equals the one that is active on more images; a feature that does not fill its top images
    only where none does.
    """
    frame = gallery.to_frame()
    pages = set(gallery.pages.features)
    shown = [pair in pages for pair in zip(frame["layer"], frame["feature"], strict=True)]
    frame = frame[shown].assign(fills=frame["active_images"] >= gallery.n_top)
    ranked = frame.sort_values(
        ["fills", "purity", "active_images", "feature"], ascending=[False, False, False, True]
    )
    best = ranked.groupby("layer", sort=True).head(1).sort_values("layer")
    places = np.linspace(0, len(best) - 1, min(N_FEATURES, len(best))).round().astype(int)
    chosen = best.iloc[places]
    return [(int(s), int(i)) for s, i in zip(chosen["layer"], chosen["feature"], strict=True)]


def _stands_in(fit: Fit, replaced: Cascade | None) -> str:
    if replaced is None:
        return fit.line()
    r = replaced.to_frame().iloc[-1]
    worth = r["loss_floor_mean"] - r["loss_baseline"]
    kept = 1 - (r["loss"] - r["loss_baseline"]) / worth if worth > 0 else float("nan")
    share = "" if np.isnan(kept) else f", {100 * kept:.0f} % of what its MLPs are worth"
    return (
        f"With the CLT in place of every MLP ({ROW_NAMES[r['tokens']]}) the model answers "
        f"{100 * r['top1']:.1f} % right at {r['loss']:.3f} nats{share}: unaltered "
        f"{100 * r['baseline']:.1f} % at {r['loss_baseline']:.3f}, MLPs at their mean "
        f"{100 * r['floor_mean']:.1f} % at {r['loss_floor_mean']:.3f}."
    )


def _read_from(scores: ScoreStudy, verdict: Verdict | None) -> str:
    tokens = scores.tokens[0]
    last = scores.drawn(scores.names[0], tokens, scores.kinds[0]).matrix[-1].numpy()
    order = np.argsort(-last, kind="stable")[:2]
    layers = " and then ".join(f"layer {s} ({last[s]:.2f})" for s in order)
    tested = (
        "No audit has tested here whether that holds."
        if verdict is None
        else f"The audit says: {verdict.short}."
    )
    return (
        f"The output of the last MLP on {ROW_NAMES[tokens]} is read from {layers}, by "
        f"{scores.kinds[0]} C(s→l). That is where it can be read, not which MLPs made it. {tested}"
    )
