"""All sets of k source layers of one target: how many are better than the set a score chooses?

For every set S the target's rows become y^_S = b_dec + sum_{s in S} c_s (+ fills), as in
`keep_top_k`. A score that says which sources matter should choose one of the best sets. The k
deepest sources and the k lowest scores show how good a set is without such a score. The measure is
ours, not the paper's.
"""

from __future__ import annotations

from functools import partial
from itertools import combinations
from math import comb

import numpy as np
from typing_extensions import Unpack

from vit_clt.analysis.ablations.all_sets_result import KeepSets, MarkedSet, Set
from vit_clt.analysis.ablations.keep_drop import AblationOptions, term_sets
from vit_clt.analysis.ablations.rankings import source_orders
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.stats.readings import Measure
from vit_clt.choices import Ranking, ScoreKind
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, layer_list
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder

MAX_SETS = 10_000
"""The most sets that are read; where there are more, a seeded sample stands for all."""


def keep_sets(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    *,
    k: int = 4,
    scores: SourceScores | ScoreKind = "projection",
    **options: Unpack[AblationOptions],
) -> KeepSets:
    """Read the model with every set of k sources of one target kept; terms are computed once.

    On CLS rows of the last layer of a model that pools CLS a set costs a LayerNorm and two small
    products an image; at other targets and rows the blocks above run again for every set.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        classifier: the readout.
        k: number of sources of a set, at least 1 and fewer than the target has. Where there are
            more than 10,000 sets, that many are drawn by `seed`.
        scores: the ranking whose first k sources are the chosen set, or the kind of scores of the
            same images and rows.
        **options: as in `keep_top_k`, with one target alone; the seed is that of the sample of sets
            too.

    Raises:
        InputError: an argument is out of range, labels have no names, `vit` has a hook, or the CLT
            belongs to another model.
    """
    study = term_sets(vit, clt, data, classifier, **options)
    if len(study.targets) > 1:
        raise InputError("target", f"is {len(study.targets)} layers; expected one.")
    [target], seed = study.targets, study.seed
    n_sources = check_k(k, target, vit.cfg.n_layers)
    scores = study.scores(scores)
    rankings: list[Ranking] = [scores.kind, "centred", "norm", "last", "bottom"]
    orders = source_orders(
        scores, [target], rankings, rescored=partial(study.rescored, scores), seed=seed
    )
    first_k = {o.ranking: tuple(sorted(o.sources[target][:k])) for o in orders}
    sets = _sets(n_sources, k, seed)
    # A marked set that was not drawn is read too, but does not count as part of the sample.
    outside = [sources for sources in dict.fromkeys(first_k.values()) if sources not in set(sets)]
    top1, loss = study.read_means([{target: sources} for sources in (*sets, *outside)])
    place = {sources: i for i, sources in enumerate((*sets, *outside))}
    n = len(sets)
    marked = []
    for name, sources in first_k.items():
        i = place[sources]
        better: dict[Measure, int] = {
            "top1": int((top1[:n] > top1[i]).sum()),
            "loss": int((loss[:n] < loss[i]).sum()),
        }
        marked.append(
            MarkedSet(
                name,
                sources,
                top1=float(top1[i]),
                loss=float(loss[i]),
                better={measure: count / n for measure, count in better.items()},
                rank={measure: count + 1 for measure, count in better.items()},
            )
        )
    return KeepSets(
        sets=sets,
        top1=top1[:n],
        loss=loss[:n],
        marked=marked,
        readings=study.read({name: {target: sources} for name, sources in first_k.items()}),
        n_possible=comb(n_sources, k),
        scores=scores.matrix[target, :n_sources].tolist(),
        ranked_by=scores.label,
        k=k,
        **study.measured(),
    )


def check_k(k: int, target: int, n_layers: int) -> int:
    """Check that sets of k sources of a target can differ; returns its number of sources.

    Raises:
        InputError: k or the target is out of range.
    """
    [target] = layer_list(target, n_layers)
    if not 0 < k <= target:
        raise InputError(
            "k",
            f"is {k}; layer {target} has {target + 1} sources, expected at least 1 and fewer "
            "than that.",
        )
    return target + 1


def _sets(n_sources: int, k: int, seed: int) -> list[Set]:
    if comb(n_sources, k) <= MAX_SETS:
        return list(combinations(range(n_sources), k))
    rng = np.random.default_rng(seed)
    drawn: dict[Set, None] = {}
    while len(drawn) < MAX_SETS:
        orders = rng.permuted(np.tile(np.arange(n_sources), (MAX_SETS, 1)), axis=1)
        drawn |= dict.fromkeys(map(tuple, np.sort(orders[:, :k]).tolist()))
    return list(drawn)[:MAX_SETS]
