"""Features that write alike: nearest decoders, over all layers.

    cos(<W_dec[s->t..]_i>, <W_dec[s'->t..]_j>),  both written out over the targets t, t+1, ... that
                                                 both reach, t = max(s, s')

Two features of deep layers share few targets, and are near more easily: the number of targets
stands beside the cosine. It says what features write, not whether they fire together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange

from vit_clt.analysis.stats.nearest import nearest
from vit_clt.transcoder.model import CrossLayerTranscoder


class NearFeature(NamedTuple):
    """A feature near another."""

    layer: int
    feature: int
    cosine: float
    n_targets: int
    """Targets both write to, over which the cosine is taken."""


@torch.no_grad()
def nearest_features(
    clt: CrossLayerTranscoder, chosen: Sequence[tuple[int, int]], k: int = 5
) -> dict[tuple[int, int], list[NearFeature]]:
    """The k nearest of all features to each (layer, feature), nearest first.

    Ties go to the earlier layer, then to the lower number. Per-layer transcoders write to their own
    layer alone, so that features of other layers have no cosine with them.
    """
    found: dict[tuple[int, int], list[NearFeature]] = {each: [] for each in chosen}
    config = clt.config
    for s in sorted({layer for layer, _ in chosen}):
        own = [each for each in chosen if each[0] == s]
        features = [feature for _, feature in own]
        for other in range(config.n_layers):
            shared = sorted(set(config.targets(s)) & set(config.targets(other)))
            available = config.n_features - (other == s)
            if not shared or not available:
                continue
            queries = _written(clt, s, shared)[features]
            rows, cosines = nearest(
                queries,
                _written(clt, other, shared),
                min(k, available),
                own_rows=np.array(features) if other == s else None,
            )
            for each, near, cosine in zip(own, rows.tolist(), cosines.tolist(), strict=True):
                pairs = zip(near, cosine, strict=True)
                found[each] += [NearFeature(other, j, c, len(shared)) for j, c in pairs]
    return {
        each: sorted(near, key=lambda f: (-f.cosine, f.layer, f.feature))[:k]
        for each, near in found.items()
    }


def _written(clt: CrossLayerTranscoder, source: int, targets: Sequence[int]) -> np.ndarray:
    """Decoder rows of a source over some of its targets side by side, "feature column"."""
    places = [list(clt.config.targets(source)).index(l) for l in targets]
    blocks = clt.W_dec[source][places].detach().float().cpu()
    return rearrange(blocks, "target feature d -> feature (target d)").numpy()
