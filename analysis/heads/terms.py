"""Direct terms of the label's logit: every attention head, every MLP, and what enters the stream.

The logit is the label's less the mean over all classes, <e/||e||, d> with d the logit scale times
the label's column less the mean column. With attention and norms held it is exactly

    sum over (l, h) of the head's term + sum over l of (out_proj's bias + the MLP's term)
    + what enters the stream on the class row + the bias of ln_post

(Gandelsman et al., arXiv:2310.05916; `vit_clt.hooks.passes.carried`). The floor of a head's term is
the term of the same output for the label of an image drawn among those of other classes: what a
head writes on every image alike adds as much there, and counts in the mean where labels are not
equally frequent. The strongest heads are those of largest absolute mean term beyond this floor. The
term of a fill is that of what an ablation would write in the output's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.hooks import FrozenPass
from vit_clt.hooks.passes.carried import head_terms
from vit_clt.hooks.passes.heads import HeadValues
from vit_clt.hooks.passes.readout import Reader
from vit_clt.readouts.zero_shot import ZeroShot


@dataclass(frozen=True)
class DirectTerms:
    """The direct terms of the label's logit of some images, in logits."""

    heads: Float[np.ndarray, "image layer head"]
    """Of every head, norms held."""
    floor: Float[np.ndarray, "image layer head"]
    """The same heads' terms for another label."""
    fills: Float[np.ndarray, "image layer head"]
    """The terms of what an ablation writes, norms held."""
    small: Float[np.ndarray, "image layer head"]
    """The terms of output less fill with norms differentiated: the first order of an ablation that
    only the final norm sees, with the sign turned."""
    out_bias: Float[np.ndarray, "image layer"]
    """Of the bias of each attention layer."""
    mlps: Float[np.ndarray, "image layer"]
    """Of y_l on the class row."""
    stream: Float[np.ndarray, " image"]
    """Of what enters the stream on the class row: class token, position, ln_pre."""
    reader: Float[np.ndarray, " image"]
    """Of the bias of ln_post."""
    logit: Float[np.ndarray, " image"]
    """As the model computes it."""

    @classmethod
    def stacked(cls, images: Sequence[Mapping[str, Tensor]]) -> DirectTerms:
        """The terms of several images, each as `image_terms` gives them."""
        return cls(
            **{
                field.name: np.stack([each[field.name].double().cpu().numpy() for each in images])
                for field in fields(cls)
            }
        )

    @property
    def beyond(self) -> Float[np.ndarray, "image layer head"]:
        """The heads' terms beyond their floor."""
        return self.heads - self.floor

    def strongest(self, n: int) -> list[tuple[int, int]]:
        """Layer and number of the n heads of largest absolute mean term beyond the floor."""
        means = np.abs(self.beyond.mean(0))
        order = np.argsort(-means, axis=None, kind="stable")[:n]
        return [(int(i) // means.shape[1], int(i) % means.shape[1]) for i in order]

    @property
    def residue(self) -> float:
        """The largest difference between a logit and the sum of its terms: rounding alone."""
        layers = (self.heads.sum(-1) + self.out_bias + self.mlps).sum(-1)
        return float(np.abs(layers + self.stream + self.reader - self.logit).max())


def label_direction(zs: ZeroShot, label: int) -> Float[Tensor, " d_embed"]:
    """d for which <e/||e||, d> is the logit of `label` less the mean logit of all classes."""
    return zs.logit_scale * (zs.weights[:, label] - zs.weights.mean(1))


def image_terms(
    frozen: FrozenPass,
    directions: Float[Tensor, "two d_embed"],
    fill: HeadValues | None,
) -> dict[str, Tensor]:
    """The fields of `DirectTerms` for one image.

    Args:
        frozen: the pass of this image alone.
        directions: that of its own label, and that of another label.
        fill: by layer, what an ablation writes over every head; None for zeros.
    """
    reader = frozen.output_reader(directions)
    terms = head_terms(frozen, reader)[..., 0]
    alone = frozen.readout(reader, attention=False)
    unit = frozen.embeddings[0] / frozen.embeddings[0].norm()
    inputs, row = alone.inputs[0, 0, 0], frozen.class_token + frozen.positions[0]
    small = frozen.output_reader(directions[:1], "differentiated")
    return {
        "heads": terms[..., 0],
        "floor": terms[..., 1],
        "fills": _fill_terms(frozen, reader, fill),
        "small": head_terms(frozen, small)[..., 0, 0] - _fill_terms(frozen, small, fill),
        "out_bias": alone.attention_bias[0, :, 0],
        "mlps": (alone.y[0, :, 0] * frozen.y[:, 0]).sum((-2, -1)),
        "stream": inputs @ row + alone.ln_pre_bias[0, 0],
        "reader": alone.reader_bias[0, 0],
        "logit": unit @ directions[0].to(unit),
    }


def _fill_terms(
    frozen: FrozenPass, reader: Reader, fill: HeadValues | None
) -> Float[Tensor, "layer head"]:
    """The terms of a fill for the first direction of a reader."""
    n_heads = frozen.vit.cfg.n_heads
    if fill is None:
        return frozen.x.new_zeros(len(frozen.attention), n_heads)
    terms = []
    for l, attention in enumerate(frozen.attention):
        at_heads = attention.at_heads(reader.stream[0])[0]
        written = fill[l].to(at_heads)
        # a mean has no axis of images
        written = written[0] if written.ndim == 4 else written
        terms.append((at_heads * written).sum((-2, -1)))
    return torch.stack(terms)
