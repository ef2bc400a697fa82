"""What a first reader should see of an explorer: findings in words, features, one steered image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vit_clt.analysis.contributions.study import ScoreStudy
from vit_clt.analysis.explorer.steered_images import ALWAYS_ON, FACTORS, SteeredImage
from vit_clt.analysis.explorer.verdict import Verdict
from vit_clt.analysis.features.gallery import FeatureGallery
from vit_clt.analysis.fit.cascade_study import Cascade
from vit_clt.analysis.fit.gate import Fit
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.choices import ContributionKind

N_FEATURES = 6
"""Features that are shown, each of another layer where there are as many."""


@dataclass(frozen=True)
class SteeredCase:
    """One feature of one image at one factor, what it changes, and what its controls change."""

    row: int
    layer: int
    feature: int
    factor: float
    label: int
    """The class whose probability changes most."""
    before: float
    after: float
    answers: tuple[int, int]
    """The class of largest probability before and after."""
    control: float
    """Mean |change| of that probability by the controls; NaN without any."""
    n_controls: int
    n_images: int
    """Images that were steered; the case is the largest change over all of these, all their
    features, all factors and all classes."""
    n_features: int
    """Features that were steered, over all images."""

    @property
    def changes_the_answer(self) -> bool:
        """Whether another class has the largest probability afterwards."""
        return self.answers[0] != self.answers[1]


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
        row=image.row,
        layer=each.layer,
        feature=each.feature,
        factor=FACTORS[f],
        label=c,
        before=float(image.clean[c]),
        after=float(each.probabilities[f, c]),
        answers=(int(image.clean.argmax()), int(each.probabilities[f].argmax())),
        control=float(each.control_change[f, c]),
        n_controls=len(each.controls),
        n_images=len(steered),
        n_features=len(cases),
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
    return found if case is None else [*found, _moves(case, class_names)]


def chosen_features(gallery: FeatureGallery) -> list[tuple[int, int]]:
    """The feature with the purest top images of every shown layer; at most `N_FEATURES`, evenly
    spaced.

    Among equals, and where no label is known, the one that is active on more images; a feature that
    does not fill its top images, or fires on nearly all images, only where there is no other.
    """
    frame = gallery.to_frame()
    pages = set(gallery.pages.features)
    shown = [pair in pages for pair in zip(frame["layer"], frame["feature"], strict=True)]
    selective = frame["image_rate"] <= ALWAYS_ON
    frame = frame[shown].assign(fills=selective & (frame["active_images"] >= gallery.n_top))
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
    clt, floor = (f"{r['tokens']}_{name}_0" for name in ("stream", "mean"))
    loss = {name: replaced.readings.draws(name, "loss") for name in ("original", clt, floor)}
    worth = loss[floor] - loss["original"]
    share = ""
    # without a cost of taking the MLPs away there is nothing to recover
    if len(worth) and np.quantile(worth, 0.025) > 0:
        kept = 1 - (r["loss"] - r["loss_baseline"]) / (r["loss_floor_mean"] - r["loss_baseline"])
        share = f", {100 * kept:.0f} % of what its MLPs are worth"
    return (
        f"With the CLT in place of every MLP ({ROW_NAMES[r['tokens']]}, stream inputs, L0 "
        f"{r['l0']:.1f}, N = {r['n']}) the model answers {100 * r['top1']:.1f} % right at "
        f"{r['loss']:.3f} nats{share}: unaltered {100 * r['baseline']:.1f} % at "
        f"{r['loss_baseline']:.3f}, MLPs at their mean {100 * r['floor_mean']:.1f} % at "
        f"{r['loss_floor_mean']:.3f}."
    )


def _read_from(scores: ScoreStudy, verdict: Verdict | None) -> str:
    tokens = scores.tokens[0]
    # centred scores leave out the bias and whatever is the same in every image; they sum to 1
    kind: ContributionKind = "centred" if "centred" in scores.kinds else "projection"
    last = scores.drawn(scores.names[0], tokens, kind).matrix[-1].numpy()
    order = np.argsort(-last, kind="stable")[:2]
    layers = " and then ".join(f"layer {s} ({last[s]:.2f})" for s in order)
    if verdict is None:
        tested = "No audit was given that tests whether this holds."
    elif (verdict.tokens, verdict.target) == (tokens, len(last) - 1):
        tested = f"The audit says: {verdict.short}."
    else:
        tested = f"The audit is of {verdict.place}, and says nothing of this."
    return (
        f"The output of the last MLP on {ROW_NAMES[tokens]} is read from {layers}, by {kind} "
        f"C(s→l). That is where it can be read, not which MLPs made it. {tested}"
    )


def _moves(case: SteeredCase, class_names: Sequence[str]) -> str:
    """What scaling one feature does at most, beside features that write about as much there."""
    before, after = (class_names[answer] for answer in case.answers)
    moved = (
        f"takes {class_names[case.label]} from {100 * case.before:.1f} % to "
        f"{100 * case.after:.1f} % on image {case.row}"
    )
    name = f"{case.layer}:{case.feature}, scaled by {case.factor:g},"
    text = (
        f"One feature can change an answer, from {before} to {after}: {name} {moved}."
        if case.changes_the_answer
        else f"The most that one feature changes: {name} {moved}; the answer stays {after}."
    )
    control = (
        "No other feature of its layer fires there to compare with."
        if np.isnan(case.control)
        else f"The {case.n_controls} features of layer {case.layer} that write about as much there "
        f"change it by {100 * case.control:.1f} points on average."
    )
    return (
        f"{text} {control} It is the largest change over {case.n_images} images that the model is "
        f"unsure of, {case.n_features} features, {len(FACTORS)} factors and all classes."
    )
