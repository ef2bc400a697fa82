"""Keep or drop source layers of one or several targets' reconstructions, and read the model.

At every target the MLP output rows are overwritten by b_dec + (kept terms) + (fills of dropped
terms), and accuracy and loss are read. Terms come from the teacher trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict, get_args

from torch import Tensor
from typing_extensions import Unpack

from vit_clt.analysis.ablations.ablation import Ablation
from vit_clt.analysis.ablations.rankings import rank_sources
from vit_clt.analysis.ablations.term_sets import Targets, TermSets, target_list
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.choices import KEPT_BYTES, MAX_GROUPS, Fill, ScoreKind, TokenKind, check_choice
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

Mode = Literal["keep", "drop"]


class AblationOptions(TypedDict, total=False):
    """Arguments by name that all ablations of this room share."""

    target: Targets
    """The layer whose MLP rows are overwritten, -1 (the last) by default; or several, or "all"."""
    tokens: TokenKind
    """Kind of rows overwritten, "cls" by default."""
    fill: Fill
    """What stands in for a dropped term: "zero" (the default), its "mean" over the images at the
    same row, or "resample": the same term of another of the images, one donor for all terms of an
    image, drawn by the seed."""
    seed: int
    """Seed of the resample fill, of the bootstrap and of all else that is drawn; 0 by default."""
    max_groups: int
    """The most groups that images are added up in, so that memory is bounded (`image_groups`);
    65,536 by default."""
    kept_bytes: int
    """The most bytes of terms or codes that are kept between passes over the images; those of
    further images are computed again. 2 GB by default."""
    progress: bool
    """Show a progress bar; not by default."""


def keep_top_k(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    k: int = 4,
    scores: SourceScores | ScoreKind = "projection",
    **options: Unpack[AblationOptions],
) -> Ablation:
    """Keep the k sources with the highest signed score, drop the others.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout.
        k: number of sources; each of several targets keeps its own top k, or all it has.
        scores: scores to rank by, or the kind of those of the same images and rows. Ties go to the
            later layer.
        **options: target, tokens, fill, seed, max_groups, kept_bytes and progress
            (`AblationOptions`).

    Raises:
        InputError: an argument is out of range, labels have no names, `vit` has a hook, or the CLT
            belongs to another model.
    """
    study = term_sets(vit, clt, data, classifier, **options)
    return _top_k(study, "keep", k, scores)


def drop_top_k(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    k: int = 4,
    scores: SourceScores | ScoreKind = "projection",
    **options: Unpack[AblationOptions],
) -> Ablation:
    """Drop the k sources with the highest signed score, keep the others; see `keep_top_k`."""
    study = term_sets(vit, clt, data, classifier, **options)
    return _top_k(study, "drop", k, scores)


def keep_sources(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    sources: Iterable[int],
    **options: Unpack[AblationOptions],
) -> Ablation:
    """Keep these source layers, drop the others.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout.
        sources: source layers, counted from 0, or none. A target keeps those up to itself.
        **options: as in `keep_top_k`.

    Raises:
        InputError: an argument is out of range, a source is deeper than every target, labels have
            no names, `vit` has a hook, or the CLT belongs to another model.
    """
    study = term_sets(vit, clt, data, classifier, **options)
    return _read(study, "keep", sources_at(study.targets, sources))


def drop_sources(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    sources: Iterable[int],
    **options: Unpack[AblationOptions],
) -> Ablation:
    """Drop these source layers, keep the others; see `keep_sources`."""
    study = term_sets(vit, clt, data, classifier, **options)
    return _read(study, "drop", sources_at(study.targets, sources))


def term_sets(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    classifier: Classifier,
    target: Targets = -1,
    tokens: TokenKind = "cls",
    fill: Fill = "zero",
    seed: int = 0,
    max_groups: int = MAX_GROUPS,
    kept_bytes: int = KEPT_BYTES,
    progress: bool = False,
) -> TermSets:
    """Check the arguments that all ablations have in common, and make their `TermSets`."""
    token_rows(tokens, vit.cfg.rows)
    check_choice("fill", fill, get_args(Fill))
    targets = target_list(target, vit.cfg.n_layers)
    images = as_image_data(data)
    return TermSets(
        vit,
        clt,
        images,
        classifier,
        targets,
        tokens,
        fill,
        seed,
        max_groups,
        kept_bytes,
        progress,
    )


def sources_at(targets: Iterable[int], sources: Iterable[int]) -> dict[int, list[int]]:
    """By target, those of `sources` that are not deeper than the target.

    Raises:
        InputError: a source is deeper than every target.
    """
    ordered, targets = sorted(set(sources)), list(targets)
    for source in ordered:
        if not 0 <= source <= max(targets):
            raise InputError(
                "sources",
                f"holds {source}; expected source layers from 0 to {max(targets)}, the "
                "deepest target.",
            )
    return {target: [s for s in ordered if s <= target] for target in targets}


def kept_sources(mode: Mode, sources_at: dict[int, list[int]]) -> dict[int, list[int]]:
    """By target, the sources that stay when those of `sources_at` are kept, or dropped."""
    return {
        target: [s for s in range(target + 1) if (s in sources) == (mode == "keep")]
        for target, sources in sources_at.items()
    }


def _top_k(study: TermSets, mode: Mode, k: int, scores: SourceScores | ScoreKind) -> Ablation:
    deepest = max(study.targets)
    if not 0 <= k <= deepest + 1:
        raise InputError(
            "k", f"is {k}; layer {deepest} has {deepest + 1} sources, expected 0 to that."
        )
    ranking = study.scores(scores)
    return _read(study, mode, {t: rank_sources(ranking, t)[:k] for t in study.targets})


def _read(study: TermSets, mode: Mode, sources: dict[int, list[int]]) -> Ablation:
    kept = kept_sources(mode, sources)
    readings = study.read({"kept": kept})
    return Ablation(kept_at=kept, readings=readings, **study.measured())
