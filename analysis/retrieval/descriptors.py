"""How a layer describes an image: its sparse codes pooled over token rows, and the plain x_s.

    codes   mean over the rows of z_s;  for "cls" that is z_s of the class token itself
    inputs  mean over the rows of x_s, what the encoder of layer s reads

The paper indexes pooled codes layer by layer (section 7, equation 12) and averages over space. The
inputs are ours: they show what the codes add to x_s, or lose from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import csr_array
from torch import Tensor

from vit_clt.analysis.stats.sparse_rows import SparseRows
from vit_clt.choices import TokenKind
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, layer_list, token_rows
from vit_clt.hooks.activations import capture
from vit_clt.kernels.codes import Codes
from vit_clt.progress import Progress
from vit_clt.seeding import seeded_globally
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import ReLUTopK


@dataclass(frozen=True)
class Descriptors:
    """Pooled codes and inputs of some images at every layer, on the teacher trajectory."""

    codes: dict[TokenKind, dict[int, csr_array]]
    """Pooled codes by token kind and source layer, "image feature" in float32."""
    inputs: dict[TokenKind, dict[int, np.ndarray]]
    """Pooled x_s by token kind and layer, "image d_model" in float32."""
    labels: Int[np.ndarray, " image"]
    """Label of each image; -1 where unknown."""
    l0: dict[TokenKind, dict[int, float]]
    """Active features per token row, before pooling, by token kind and source layer."""
    data: str
    """Name of the data."""
    split: str | None

    def take(self, rows: Sequence[int]) -> Descriptors:
        """The descriptors of some of the images, in the order given; `l0` stays that of all."""
        images = list(rows)
        codes, inputs = (
            {kind: {s: m[images] for s, m in by_layer.items()} for kind, by_layer in space.items()}
            for space in (self.codes, self.inputs)
        )
        return replace(self, codes=codes, inputs=inputs, labels=self.labels[images])


@torch.no_grad()
def describe(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    tokens: TokenKind | Sequence[TokenKind] = "cls",
    layers: Sequence[int] | None = None,
    progress: bool = False,
) -> Descriptors:
    """Descriptors of every image, computed batch by batch in one pass for all kinds and layers.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        images: ImageData, a tensor "image 3 height width", or batches.
        tokens: token rows that are pooled, one kind or several.
        layers: source layers; all by default.
        progress: show a progress bar.

    Raises:
        InputError: there are no images, a token kind or layer is unknown, or the CLT is of another
            model.
    """
    check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    kinds: list[TokenKind] = [tokens] if isinstance(tokens, str) else list(dict.fromkeys(tokens))
    if not kinds:
        raise InputError("tokens", 'is empty; expected "cls", "patch" or "all".')
    rows = {kind: token_rows(kind, vit.cfg.rows) for kind in kinds}
    sources = layer_list(range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers)
    n, device = len(data), clt.b_enc.device
    growing = {kind: {s: SparseRows(clt.config.n_features) for s in sources} for kind in kinds}
    inputs = {
        kind: {s: np.empty((n, vit.cfg.d_model), np.float32) for s in sources} for kind in kinds
    }
    l0 = {kind: dict.fromkeys(sources, 0.0) for kind in kinds}
    labels: list[Tensor] = []
    done = 0
    with Progress(total=n, desc="descriptors", unit=" images", disable=not progress) as bar:
        for batch, batch_labels in data:
            x = capture(vit, batch.to(device)).x
            here = slice(done, done + len(batch))
            for kind in kinds:
                for s in sources:
                    kind_x = x[s][:, rows[kind]]
                    codes = clt.encode(kind_x, layer=s)
                    growing[kind][s].append(pooled(codes))
                    inputs[kind][s][here] = kind_x.double().mean(1).float().cpu().numpy()
                    l0[kind][s] += float(codes.l0().double().mean()) * len(batch) / n
            labels.append(batch_labels.cpu())
            done += len(batch)
            bar.update(len(batch))
    return Descriptors(
        {kind: {s: growing[kind][s].matrix() for s in sources} for kind in kinds},
        inputs,
        torch.cat(labels).numpy(),
        l0,
        data.name,
        data.split,
    )


def pooled(codes: Codes) -> csr_array:
    """Mean of codes "image token feature" over the token axis: "image feature" in float32.

    The sum is taken in float64. Entries that are zero, or that cancel (Abs-TopK codes are signed),
    are not kept.
    """
    n_images, n_tokens = codes.tokens
    entries = codes.entries()
    values = entries.values.double().cpu().numpy()
    indices = entries.indices.cpu().numpy()
    offsets = entries.offsets[::n_tokens].cpu().numpy()
    # the tokens of an image follow each other, so that as one matrix row they only have to be
    # summed; that happens in place, so the codes are copied first
    parts = (values, indices, offsets)
    rows = csr_array(parts, shape=(n_images, codes.n_features), copy=True)
    rows.sum_duplicates()
    rows.data /= n_tokens
    rows = rows.astype(np.float32)
    rows.eliminate_zeros()
    return rows


def untrained(clt: CrossLayerTranscoder, seed: int = 0) -> CrossLayerTranscoder:
    """A CLT with as many features and the same sparsifier, its encoders at their initial weights.

    What its codes retrieve comes from sparseness and pooling, not from training. Decoders play no
    part, so only those from each layer to itself are made. With JumpReLU its L0 differs from that
    of the trained CLT.
    Where thresholds are fitted in training (BatchTopK) each row keeps its k largest
    pre-activations instead.
    """
    sparsifier = clt.config.sparsifier
    if sparsifier.whole_batch:
        sparsifier = ReLUTopK(k=int(sparsifier.expected_l0 or 1))
    config = replace(
        clt.config,
        sparsifier=sparsifier,
        cross_layer=False,
        zero_cross_init=False,
        skip=False,
        teacher=None,
    )
    with seeded_globally(seed):
        return CrossLayerTranscoder(config).to(clt.b_enc.device).eval().requires_grad_(False)
