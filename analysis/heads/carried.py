"""What the strongest heads carry to the label's logit: features, from which rows.

What a head carries from a feature is the part of the feature's direct effect whose last attention
step is this head (`vit_clt.hooks.passes.carried`); over all sources it sums to the head's direct
term. The row of a feature is the row on which it is active; the key row is the one that the head
reads, to which other heads may have brought it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from vit_clt.analysis.graphs.sources import SourceEffects, Sources
from vit_clt.analysis.stats.intervals import mean_intervals
from vit_clt.analysis.stats.sparse_rows import SparseRows
from vit_clt.hooks.passes.carried import head_readers, key_terms
from vit_clt.hooks.passes.readout import Reader

TOP_FEATURES = 5
"""Features of a head that are named."""
TOP_KEYS, TOP_READ = 2, 3
"""Key rows of a head that are named on an image, and features that are named of each of them."""
FEATURE_COLUMNS = (
    *("layer", "head", "source", "feature", "carried", "floor"),
    *("beyond", "beyond_low", "beyond_high", "images", "of_term"),
)
PARTS = ("features", "errors", "patches", "biases")


@dataclass(frozen=True)
class CarriedParts:
    """What some heads carry to the label's logit on some images, in logits."""

    heads: list[tuple[int, int]]
    """Layer and number of each head."""
    features: list[csr_array]
    """Of each head, "image feature" for its own label: summed over rows; features are numbered
    layer by layer."""
    floor: list[csr_array]
    """The same for another label."""
    parts: Float[np.ndarray, "image head part"]
    """Sums over all features, errors, patches and biases (`PARTS`)."""
    keys: Float[np.ndarray, "image head token"]
    """Direct term of the head by the key row that it reads."""
    rows: Float[np.ndarray, "head token"]
    """Mean over images of what features carry, in absolute value, by the row they are active on."""
    n_features: int
    """Features of a layer."""

    def top_features(self, seed: int = 0) -> pd.DataFrame:
        """The features that each head carries most of for the image's own label.

        They are those of largest absolute `beyond`. Columns: layer and head; source, feature;
        carried, its mean over images; floor, the mean for other labels; beyond, the one
        less the other, paired, with its interval (_low, _high); images, the share of images on
        which the head carries anything of it; of_term, carried as a share of the mean over images
        of what the head carries in all.
        """
        rows: list[dict[str, Any]] = []
        for i, (layer, head) in enumerate(self.heads):
            own, other = self.features[i], self.floor[i]
            n = own.shape[0]
            means = np.asarray((own - other).sum(0)).ravel() / n
            top = np.argsort(-np.abs(means), kind="stable")[:TOP_FEATURES]
            top = top[means[top] != 0]
            if not len(top):
                continue
            values = own[:, top].toarray().astype(float)
            floors = other[:, top].toarray().astype(float)
            term = float(self.parts[:, i].sum(-1).mean())
            beyond = mean_intervals(values - floors, seed)
            for j, c in enumerate(top.tolist()):
                source, feature = divmod(c, self.n_features)
                carried = float(values[:, j].mean())
                rows.append(
                    {
                        "layer": layer,
                        "head": head,
                        "source": source,
                        "feature": feature,
                        "carried": carried,
                        "floor": float(floors[:, j].mean()),
                        **beyond[j].columns("beyond"),
                        "images": float((values[:, j] != 0).mean()),
                        "of_term": carried / term if term else float("nan"),
                    }
                )
        return pd.DataFrame(rows, columns=list(FEATURE_COLUMNS))


class CarriedSums:
    """What some heads carry, gathered image by image.

    Args:
        heads: layer and number of each head.
        n_features: features of a layer.
        n_layers: layers of the CLT.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], n_features: int, n_layers: int):
        self.heads = list(heads)
        self._size = n_features, n_layers
        self._own = [SparseRows(n_features * n_layers) for _ in self.heads]
        self._other = [SparseRows(n_features * n_layers) for _ in self.heads]
        self._parts: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._rows: np.ndarray | None = None

    def add(self, sources: Sources, directions: Float[Tensor, "two d_embed"]) -> None:
        """Add an image.

        Args:
            sources: its sources.
            directions: that of its own label, and that of another label.
        """
        reader = sources.frozen.output_reader(directions)
        n_tokens = sources.errors.shape[1]
        parts, keys = [], []
        rows = np.zeros((len(self.heads), n_tokens))
        where = (sources.layer * self._size[0] + sources.feature).cpu().numpy()
        for i, (layer, head) in enumerate(self.heads):
            at_head = one_head(head_readers(sources.frozen, reader, layer), head)
            effects = sources.effects(sources.frozen.readout(at_head))
            carried = effects.features.double().cpu().numpy()
            for into, values in zip((self._own[i], self._other[i]), carried, strict=True):
                into.append(self._by_feature(where, values))
            parts.append(part_sums(effects)[0])
            keys.append(key_terms(sources.frozen, reader, layer)[head, 0, 0])
            tokens = sources.token.cpu().numpy()
            rows[i] = np.bincount(tokens, np.abs(carried[0]), minlength=n_tokens)
        self._parts.append(torch.stack(parts).double().cpu().numpy())
        self._keys.append(torch.stack(keys).double().cpu().numpy())
        self._rows = rows if self._rows is None else self._rows + rows

    @property
    def last_keys(self) -> Float[np.ndarray, "head token"]:
        """The direct terms by key row of the image added last."""
        return self._keys[-1]

    def parts(self) -> CarriedParts:
        """What was gathered, over at least one image."""
        assert self._rows is not None, "no image was added"
        return CarriedParts(
            heads=self.heads,
            features=[rows.matrix() for rows in self._own],
            floor=[rows.matrix() for rows in self._other],
            parts=np.stack(self._parts),
            keys=np.stack(self._keys),
            rows=self._rows / len(self._parts),
            n_features=self._size[0],
        )

    def _by_feature(self, where: np.ndarray, values: np.ndarray) -> csr_array:
        n_features, n_layers = self._size
        carried = values != 0
        at, summed = np.unique(where[carried], return_inverse=True)
        sums = np.bincount(summed, values[carried], minlength=len(at))
        return csr_array((sums, at, np.array([0, len(at)])), shape=(1, n_features * n_layers))


def one_head(readers: Reader, head: int) -> Reader:
    """The reader of one head out of those of its layer (`head_readers`)."""
    return replace(readers, stream=readers.stream[head], bias=readers.bias[head])


def part_sums(effects: SourceEffects) -> Float[Tensor, "*direction part"]:
    """The sums over all features, errors, patches and biases."""
    return torch.stack(
        [
            effects.features.sum(-1).to(effects.errors),
            effects.errors.sum((-2, -1)),
            effects.patches.sum(-1),
            effects.bias,
        ],
        dim=-1,
    )


@torch.no_grad()
def read_rows(
    sources: Sources, direction: Float[Tensor, " d_embed"], heads: Sequence[tuple[int, int]]
) -> pd.DataFrame:
    """Where each head reads on one image, and the features that it carries from there.

    The term of a head is split exactly by the key row; what is carried from the largest key rows is
    split by source. Columns: layer, head, key (token row), term (of the key row), share (of the sum
    of absolute terms of all key rows); source, feature, token (on which the feature is active),
    carried. Where the head carries no feature from a key row, one row has these missing and 0.
    """
    frozen = sources.frozen
    reader = frozen.output_reader(direction[None])
    found: list[dict[str, Any]] = []
    for layer, head in heads:
        by_key = key_terms(frozen, reader, layer)[head, 0, 0]
        keys = by_key.abs().topk(min(TOP_KEYS, len(by_key))).indices
        at_head = one_head(head_readers(frozen, reader, layer), head)
        # one direction a key row, at which alone the head reads
        at_keys = torch.zeros_like(at_head.stream).repeat(len(keys), 1, 1, 1)
        places = torch.arange(len(keys), device=keys.device)
        at_keys[places, :, keys] = at_head.stream[0, :, keys].transpose(0, 1)
        bias = at_head.bias.new_zeros(len(keys), 1)
        effects = sources.effects(frozen.readout(replace(at_head, stream=at_keys, bias=bias)))
        for j, key in enumerate(keys.tolist()):
            of_features = effects.features[j]
            top = of_features.abs().topk(min(TOP_READ, len(of_features))).indices
            of_key = {
                "layer": layer,
                "head": head,
                "key": key,
                "term": float(by_key[key]),
                "share": float(by_key[key].abs() / by_key.abs().sum()),
            }
            carried = [
                {
                    "source": int(sources.layer[c]),
                    "feature": int(sources.feature[c]),
                    "token": int(sources.token[c]),
                    "carried": float(of_features[c]),
                }
                for c in top[of_features[top] != 0].tolist()
            ]
            none = {"source": pd.NA, "feature": pd.NA, "token": pd.NA, "carried": 0.0}
            found += [of_key | each for each in carried or [none]]
    return pd.DataFrame(found).astype(dict.fromkeys(("source", "feature", "token"), "Int64"))
