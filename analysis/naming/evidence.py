"""What each feature writes and what it fires on, as points of the embedding, and texts near them.

Three kinds of evidence, each a point in the space of the embedding. Each proposes the texts w that
lie furthest along it, by <point, contrast of w> / ||contrast of w|| (`Vocabulary.contrasts`):

    write    its mean direct effect on the unit embedding, by all layers it writes to, norms
             differentiated (`features.effects`)
    images   the mean u of its most active images, less that of all
    patches  the mean u of patch rows weighted by |z|, less that of all patch rows

The u of a patch row is what the head reads from it where the last attention layer looks at each row
alone: out_proj(v) without residual stream and MLP, as in MaskCLIP (arXiv 2112.01071). Only a model
whose head reads the class row alone, and whose attention shows its pattern, has such points. Writes
are measured on few images, so that a feature that fires on none of them has no write. Signs are
mixed: z of either sign fires, and what a feature writes is summed over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from vit_clt.analysis.features.active import ActiveCodes, active_codes
from vit_clt.analysis.features.effects import direction_effects
from vit_clt.analysis.features.tally import KeptImages
from vit_clt.analysis.naming.vocabulary import Vocabulary
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import ATTN_IN, HOOK_IN
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder

TOP = 12
"""Most active images of each feature."""
PROPOSED = 3
"""Texts that each kind of evidence proposes."""
_CHUNK = 4096  # features whose products with all texts are in memory at once


@dataclass(frozen=True)
class Evidence:
    """Of every feature of some layers, on the images that names are chosen on and held out."""

    points: Float[np.ndarray, "image d_embed"]
    """u of every image, chosen on or held out."""
    fired: dict[int, Bool[np.ndarray, "feature image"]]
    """By layer, whether each feature is active on each image, on any row."""
    proposals: dict[int, dict[str, Int[np.ndarray, "feature place"]]]
    """By layer and kind ("write", "images", "patches"), the texts proposed, best first; -1 where
    there is no such evidence."""
    l0: float
    """Active features a token row and layer."""


@torch.no_grad()
def gather_evidence(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    chosen: Bool[np.ndarray, " image"],
    vocabulary: Vocabulary,
    layers: Sequence[int],
    effect_images: int,
    progress: bool,
) -> Evidence:
    """One pass over the images; evidence is of those that names are chosen on alone.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        data: the images.
        chosen: which of them names are chosen on; the others are held out.
        vocabulary: the texts.
        layers: source layers.
        effect_images: number of images that the write is measured on.
        progress: show progress bars.
    """
    n_features, n = clt.config.n_features, len(data)
    has_patches = vit.cfg.pools_cls and _shows_attention(vit)
    fired = {s: np.zeros((n_features, n), bool) for s in layers}
    top = {s: KeptImages(n_features, TOP) for s in layers}
    patches = {s: _WeightedMean(n_features, vit.cfg.d_embed) for s in layers}
    points, entries, done = [], 0, 0
    with Progress(total=n, desc="naming", unit=" images", disable=not progress) as bar:
        for images, _ in data:
            clean = CleanPass(
                vit,
                images.to(clt.b_enc.device),
                {HOOK_IN: layers, ATTN_IN: [vit.cfg.n_layers - 1] if has_patches else []},
            )
            points.append(vocabulary.points(clean.embeddings).float().cpu())
            taken = torch.from_numpy(chosen[done : done + len(images)])
            rows = _patch_points(vit, clean, vocabulary)[taken] if has_patches else None
            for s in layers:
                active = active_codes(clt.encode(clean.at(HOOK_IN, s), layer=s))
                entries += len(active.rows)
                values = active.of_images().float().cpu().T
                fired[s][:, done : done + len(images)] = (values != 0).numpy()
                kept = values * taken
                top[s].add(kept.abs(), kept, done)
                if rows is not None:
                    patches[s].add(active, taken, rows, vit.cfg.rows.first_patch)
            done += len(images)
            bar.update(len(images))
    of_images = torch.cat(points).double()
    mean = of_images[torch.from_numpy(chosen)].mean(0).numpy()
    units = _units(vocabulary)
    writes = _writes(
        vit, clt, data, chosen, layers, units, vocabulary.unit, effect_images, progress
    )
    proposals: dict[int, dict[str, Int[np.ndarray, "feature place"]]] = {}
    for s in layers:
        proposals[s] = {"images": _furthest(_top_means(top[s].rows, of_images) - mean, units)}
        if has_patches:
            proposals[s]["patches"] = _furthest(patches[s].less_the_mean(), units)
        if s in writes:
            proposals[s]["write"] = writes[s]
    l0 = entries / (n * vit.cfg.n_tokens * len(layers))
    return Evidence(of_images.numpy(), fired, proposals, l0)


def _shows_attention(vit: HookedViT) -> bool:
    """Whether the last attention layer can be made to look at each row alone."""
    rows = torch.zeros(1, vit.cfg.n_tokens, vit.cfg.d_model, device=vit.device)
    try:
        vit.blocks[-1].pattern_and_values(rows.to(vit.tower.dtype))
    except InputError:
        return False
    return True


def _patch_points(
    vit: HookedViT, clean: CleanPass, vocabulary: Vocabulary
) -> Float[Tensor, "image patch d_embed"]:
    block, last = vit.blocks[-1], vit.cfg.n_layers - 1
    alone = block.unfused_attention(
        clean.at(ATTN_IN, last),
        lambda pattern: torch.eye(pattern.shape[-1]).to(pattern).expand_as(pattern),
    )
    rows = scaled(alone, block.gamma1)[:, vit.cfg.rows.first_patch :]
    embeddings = vit.head(rows.flatten(0, 1)[:, None])
    return vocabulary.points(embeddings).view(*rows.shape[:2], -1).float().cpu()


class _WeightedMean:
    """The mean u of patch rows weighted by each feature's |z|, and that of all patch rows."""

    def __init__(self, n_features: int, d_embed: int):
        self.sums = np.zeros((n_features, d_embed))
        self.weights = np.zeros(n_features)
        self.all_rows, self.n_rows = np.zeros(d_embed), 0

    def add(
        self,
        active: ActiveCodes,
        taken: Bool[Tensor, " image"],
        rows: Float[Tensor, "taken patch d_embed"],
        first_patch: int,
    ) -> None:
        flat = rows.flatten(0, 1).double().numpy()
        place = (taken.cumsum(0) - 1) * rows.shape[1]
        image, token = active.images.cpu(), active.tokens.cpu()
        there = taken[image] & (token >= first_patch)
        at = place[image[there]] + token[there] - first_patch
        size = active.values.abs().double().cpu()[there]
        weights = csr_matrix(
            (size.numpy(), (active.features.cpu()[there].numpy(), at.numpy())),
            shape=(len(self.sums), len(flat)),
        )
        self.sums += weights @ flat
        self.weights += np.asarray(weights.sum(1))[:, 0]
        self.all_rows += flat.sum(0)
        self.n_rows += len(flat)

    def less_the_mean(self) -> Float[np.ndarray, "feature d_embed"]:
        """NaN for a feature that fires on no patch row."""
        weights = np.where(self.weights, self.weights, np.nan)[:, None]
        return self.sums / weights - self.all_rows / self.n_rows


def _top_means(
    rows: Int[Tensor, "feature place"], points: Float[Tensor, "image d_embed"]
) -> Float[np.ndarray, "feature d_embed"]:
    there = rows >= 0
    sums = torch.zeros(len(rows), points.shape[1], dtype=points.dtype)
    for place in range(rows.shape[1]):
        at = there[:, place].nonzero()[:, 0]
        sums[at] += points[rows[at, place]]
    counts = there.sum(1)[:, None].double()
    return (sums / torch.where(counts > 0, counts, torch.nan)).numpy()


def _writes(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    chosen: Bool[np.ndarray, " image"],
    layers: Sequence[int],
    units: Float[np.ndarray, "text d_embed"],
    of_unit_embeddings: bool,
    effect_images: int,
    progress: bool,
) -> dict[int, Int[np.ndarray, "feature place"]]:
    """The texts that writes propose, by layer; nothing where direct effects cannot be taken."""
    if vit.cfg.family != "open_clip" or not vit.cfg.pools_cls or not of_unit_embeddings:
        return {}
    on = np.flatnonzero(chosen)
    taken = on[:: max(1, len(on) // effect_images)][:effect_images]
    few = len(units) <= vit.cfg.d_embed  # texts are read themselves, or dimensions in their place
    directions = torch.from_numpy(units) if few else torch.eye(vit.cfg.d_embed)
    effects = direction_effects(
        vit,
        clt,
        ImageSubset(data, taken.tolist()),
        directions.float().to(vit.device),
        layers,
        title="writes",
        progress=progress,
    )
    return {s: _furthest(sums, None if few else units) for s, sums in effects.sums.items()}


def _units(vocabulary: Vocabulary) -> Float[np.ndarray, "text d_embed"]:
    contrasts = vocabulary.contrasts.double().cpu().numpy()
    tiny = np.finfo(contrasts.dtype).tiny
    return contrasts / np.linalg.norm(contrasts, axis=1, keepdims=True).clip(tiny)


def _furthest(
    points: Float[np.ndarray, "feature place"], units: Float[np.ndarray, "text place"] | None
) -> Int[np.ndarray, "feature proposed"]:
    """The texts that lie furthest along each point; -1 of a point that is 0 or not there.

    Without `units`, points are products with them already.
    """
    n = min(PROPOSED, points.shape[1] if units is None else len(units))
    found = np.full((len(points), n), -1)
    for first in range(0, len(points), _CHUNK):
        part = points[first : first + _CHUNK]
        there = np.flatnonzero(np.isfinite(part).all(1) & part.any(1))
        products = part[there] if units is None else part[there] @ units.T
        found[first + there] = np.argsort(-products, axis=1, kind="stable")[:, :n]
    return found
