"""Names of a CLT's features: proposed on one half of some images, tested on the other half.

A feature fires on an image if z != 0 on any of its rows, on the teacher trajectory. Of the texts
that its write, its images and its patches propose (`naming.evidence`), the one whose match best
foretells where it fires on the first half is put to the test on the second (`naming.held_out`).
Two controls go through the same choice and the same test: as many random texts, and the proposals
of a feature of equal rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from vit_clt.analysis.features.names import FeatureNames
from vit_clt.analysis.naming.evidence import Evidence, gather_evidence
from vit_clt.analysis.naming.held_out import LEAST, HeldOut, auc_interval
from vit_clt.analysis.naming.vocabulary import Vocabulary
from vit_clt.analysis.stats.auc import auc, ranks
from vit_clt.analysis.stats.halves import random_images
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list
from vit_clt.progress import Progress
from vit_clt.transcoder.identity import weights_sha256
from vit_clt.transcoder.model import CrossLayerTranscoder

LEAST_IMAGES = 4 * LEAST
"""With fewer no feature can fire, and be silent, on enough images of both halves."""


@torch.no_grad()
def name_features(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    vocabulary: Vocabulary,
    *,
    layers: Sequence[int] | None = None,
    n_images: int = 2048,
    effect_images: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> FeatureNames:
    """The name of every feature of these layers, or why it has none.

    Memory grows with features times images (a byte each) and, one layer at a time, with features
    times texts (about 40 bytes each).

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: the images; they need no labels.
        vocabulary: the texts.
        layers: source layers; all by default.
        n_images: of more images, so many random ones are taken, half of them held out.
        effect_images: number of images that writes are measured on.
        seed: seed of both draws of images, and of the random texts and features.
        progress: show progress bars.

    Raises:
        InputError: too few images to test any feature, a layer or number out of range, or a CLT of
            another model.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    for name, number, least in (
        ("n_images", n_images, LEAST_IMAGES),
        ("effect_images", effect_images, 1),
    ):
        if number < least:
            raise InputError(name, f"is {number}; expected at least {least}.")
    sources = layer_list(range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers)
    some = random_images(data, n_images, seed)
    if len(some) < LEAST_IMAGES:
        raise InputError(
            "data",
            f"has {len(some)} images; expected at least {LEAST_IMAGES}, to choose and test names.",
        )
    chosen = np.random.default_rng(seed).permutation(len(some)) < len(some) // 2
    evidence = gather_evidence(vit, clt, some, chosen, vocabulary, sources, effect_images, progress)
    match = vocabulary.match(torch.from_numpy(evidence.points)).numpy()
    tests = _Tests(evidence, match, chosen, seed)
    bar = Progress(sources, "names", unit=" layers", disable=not progress)
    frames = [tests.layer(s, vocabulary.texts) for s in bar]
    return FeatureNames(
        frame=pd.concat(frames, ignore_index=True),
        vocabulary=vocabulary.source,
        n_texts=len(vocabulary.texts),
        n_features=clt.config.n_features,
        n_chosen_on=int(chosen.sum()),
        n_held_out=int((~chosen).sum()),
        l0=evidence.l0,
        model=vit.cfg.model,
        weights_sha256=weights_sha256(clt),
        data=data.name,
        split=data.split,
        seed=seed,
    )


class _Tests:
    """The choice on one half and the test on the other, a layer at a time."""

    def __init__(
        self,
        evidence: Evidence,
        match: Float[np.ndarray, "image text"],
        chosen: Bool[np.ndarray, " image"],
        seed: int,
    ):
        self.evidence, self.chosen, self.seed = evidence, chosen, seed
        self.match = match[~chosen]
        self.ranked_first, self.ranked = ranks(match[chosen]), ranks(self.match)

    def layer(self, s: int, texts: Sequence[str]) -> pd.DataFrame:
        """A row for every feature of a layer."""
        fired = self.evidence.fired[s]
        first, second = fired[:, self.chosen], fired[:, ~self.chosen]
        rng = np.random.default_rng([self.seed, s])
        held_out = HeldOut(second, self.ranked, rng)
        proposals, chosen_on = self.evidence.proposals[s], auc(first, self.ranked_first)
        best, kinds = best_proposals(proposals, chosen_on)
        there = np.minimum(first.sum(1), held_out.counts)
        silent = np.minimum((~first).sum(1), held_out.n - held_out.counts)
        names = np.array([*texts, ""], object)  # -1 is the last
        frame = pd.DataFrame(
            {
                "layer": s,
                "feature": np.arange(len(fired)),
                "name": "",
                "reason": np.select(
                    [there < LEAST, silent < LEAST, best < 0],
                    ["rare", "always on", "no evidence"],
                    "",
                ),
                "text": "",
                "evidence": "",
                "fires": held_out.counts,
                "n": held_out.n,
            }
        )
        tested = np.flatnonzero(frame["reason"] == "")
        verdicts = held_out.verdicts(tested, best[tested])
        at = frame.index[tested]
        frame.loc[at, "text"] = names[best[tested]]
        frame.loc[at, "name"] = np.where(verdicts.holds, names[best[tested]], "")
        frame.loc[at, "reason"] = np.select(
            [
                verdicts.holds,
                verdicts.auc <= verdicts.texts_high,
                verdicts.auc <= verdicts.features_high,
            ],
            ["", "not above other texts", "not above other features"],
            "not above 1/2 (p < 0.01)",
        )
        frame.loc[at, "evidence"] = [", ".join(kinds[i]) for i in tested]
        intervals = [auc_interval(self.match[:, best[i]], second[i]) for i in tested]
        ends = np.array(intervals).reshape(-1, 2).T
        columns = {"auc": verdicts.auc, "auc_low": ends[0], "auc_high": ends[1]}
        measured = ("texts_mean", "texts_high", "features_mean", "features_high", "p")
        columns |= {name: getattr(verdicts, name) for name in measured}
        for name, values in columns.items():
            frame.loc[at, name] = values
        controls: dict[str, dict[str, Int[np.ndarray, "feature place"]]] = {
            "random_texts": {"random": _random_texts(proposals, len(texts), rng)},
            "other_proposals": {
                kind: _of_others(rows, tested, held_out) for kind, rows in proposals.items()
            },
        }
        for name, proposed in controls.items():
            control, _ = best_proposals(proposed, chosen_on)
            at_all = tested[control[tested] >= 0]
            found = held_out.verdicts(at_all, control[at_all])
            frame[[f"{name}_auc", f"{name}_hold"]] = np.nan
            frame.loc[frame.index[at_all], f"{name}_auc"] = found.auc
            frame.loc[frame.index[at_all], f"{name}_hold"] = found.holds.astype(float)
        return frame


def _random_texts(
    proposals: Mapping[str, Int[np.ndarray, "feature place"]],
    n_texts: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "feature proposed"]:
    """For every feature as many random texts as were proposed, -1 for the rest."""
    together = np.concatenate(list(proposals.values()), axis=1)
    found = np.full(together.shape, -1)
    for row, of_feature in zip(found, together, strict=True):
        n = len({text for text in of_feature.tolist() if text >= 0})
        row[:n] = rng.choice(n_texts, n, replace=False)
    return found


def _of_others(
    rows: Int[np.ndarray, "feature place"],
    tested: Int[np.ndarray, " tested"],
    held_out: HeldOut,
) -> Int[np.ndarray, "feature place"]:
    """The proposals of one of the features nearest in rate in place of each feature's own."""
    found = np.full(rows.shape, -1)
    for i in tested.tolist():
        alike = held_out.alike(i)
        if alike:
            found[i] = rows[alike[0]]
    return found


def best_proposals(
    proposals: Mapping[str, Int[np.ndarray, "feature place"]],
    aucs: Float[np.ndarray, "feature text"],
) -> tuple[Int[np.ndarray, " feature"], list[list[str]]]:
    """Of all texts proposed for each feature the one of largest AUC, and who proposed it.

    -1 for a feature without a proposal, or whose AUC is undefined. Ties: the text that stands
    first in the vocabulary.
    """
    found = np.full(len(aucs), -1)
    kinds: list[list[str]] = []
    for i, of_feature in enumerate(aucs):
        proposed = {int(text) for rows in proposals.values() for text in rows[i] if text >= 0}
        defined = [text for text in sorted(proposed) if np.isfinite(of_feature[text])]
        if defined:
            found[i] = max(defined, key=lambda text: of_feature[text])
        kinds.append([kind for kind, rows in proposals.items() if found[i] in rows[i]])
    return found, kinds
