"""Norms of the decoders W_dec[s->l]: which source writes to which target, without any image.

With e_i = ||W_dec[s->l]_i||^2, the squared norm of feature i's row, in raw units of y_l:

    norm         sqrt(sum_i e_i)                     Frobenius norm of the connection
    rms          sqrt(mean_i e_i)                    root mean square norm of one feature
    source_share sum_i e_i / the same summed over the targets of s
    effective    (sum_i e_i)^2 / (F sum_i e_i^2)     share of the features that carry the norm: 1
                                                     where all are equal, 1/F where one carries all
    top_1_percent  share of sum_i e_i that the largest 1 % of features have (at least one feature)
    cross_layer    per source: 1 - source_share[s, s]; per target: the share of sum e that comes
                   from s < l

Norms say nothing about how often or how strongly a feature fires. They are not comparable between
sources: multiplying the codes of s by a and dividing its decoders by a gives the same CLT, so that
comparisons between sources (norm along a row, cross_layer per target) hold only as far as their
codes are of one size. Between the targets of one source they are comparable up to the size of y_l,
which tends to grow with depth and does not follow from the weights. The definitions are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.metrics import Metric
from vit_clt.transcoder.model import CrossLayerTranscoder

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOP_SHARE = 0.01


@dataclass(frozen=True)
class DecoderNorms(Study):
    """Decoder norms of one CLT, in float64 matrices that are NaN where the source is deeper."""

    name = "weights"

    norm: Float[Tensor, "target source"]
    effective: Float[Tensor, "target source"]
    """Share of the features that carry the norm; like `top_1_percent` NaN for a zero connection."""
    top_1_percent: Float[Tensor, "target source"]
    n_features: int
    clt: str
    """Name of the CLT."""

    @property
    def rms(self) -> Float[Tensor, "target source"]:
        """Root mean square norm of one feature."""
        return self.norm / sqrt(self.n_features)

    @property
    def source_share(self) -> Float[Tensor, "target source"]:
        """Share of a source's squared norm that each target gets; columns sum to 1."""
        energy = self.norm.square()
        return energy / energy.nansum(0)

    @property
    def cross_layer_of_source(self) -> Float[Tensor, " source"]:
        """Share of each source's squared norm written to later layers."""
        return 1 - self.source_share.diagonal()

    @property
    def cross_layer_of_target(self) -> Float[Tensor, " target"]:
        """Share of each target's squared norm that earlier layers write."""
        energy = self.norm.square()
        return 1 - energy.diagonal() / energy.nansum(1)

    def to_frame(self) -> pd.DataFrame:
        """One row per connection; the cross-layer shares repeat with their source and target."""
        return pd.DataFrame(
            {
                "target": l,
                "source": s,
                "norm": float(self.norm[l, s]),
                "rms": float(self.rms[l, s]),
                "source_share": float(self.source_share[l, s]),
                "effective": float(self.effective[l, s]),
                "top_1_percent": float(self.top_1_percent[l, s]),
                "cross_layer_of_source": float(self.cross_layer_of_source[s]),
                "cross_layer_of_target": float(self.cross_layer_of_target[l]),
            }
            for l in range(len(self.norm))
            for s in range(l + 1)
        )

    def facts(self) -> Facts:
        """The name of the CLT; no images take part."""
        return Facts(None, 0, None, None, None, more={"clt": self.clt})

    def caption(self) -> str:
        """One sentence on the columns of `shown`."""
        return (
            f"{self.clt}: decoder norms, raw units, no images; norm of a feature, effective share "
            "of features and share held by the top 1 % on the diagonal; written later and from "
            "earlier: shares of squared norm that cross layers"
        )

    def shown(self) -> pd.DataFrame:
        """One row per layer: its own connection, and what crosses layers."""
        return pd.DataFrame(
            {
                "layer": l,
                "norm of a feature": f"{self.rms[l, l]:.4g}",
                "written later": f"{self.cross_layer_of_source[l]:.3f}",
                "from earlier": f"{self.cross_layer_of_target[l]:.3f}",
                "effective features": f"{self.effective[l, l]:.3f}",
                "in the top 1 %": f"{self.top_1_percent[l, l]:.3f}",
            }
            for l in range(len(self.norm))
        )

    def notes(self) -> Sequence[str]:
        """Which norms cannot be compared, and what is not measured."""
        return [
            "Between sources norms compare only as far as their codes are of one size.",
            "How well the CLT fits the ViT is not measured here, as no images take part: "
            "vit-clt reconstruct measures it.",
        ]

    def metrics(self) -> list[Metric]:
        """The shares of squared norm that cross layers."""
        return [
            Metric(f"cross_layer_of_{side}_{l}", float(share), "fraction", 0)
            for side, shares in (
                ("source", self.cross_layer_of_source),
                ("target", self.cross_layer_of_target),
            )
            for l, share in enumerate(shares)
        ]

    def figure(self) -> go.Figure:
        """Heatmaps of norms, shares and concentration, and bars of the cross-layer shares."""
        from vit_clt.analysis.contributions.decoder_weights_figure import decoder_norms_figure

        return decoder_norms_figure(self)


@torch.no_grad()
def decoder_norms(clt: CrossLayerTranscoder, clt_name: str = "CLT") -> DecoderNorms:
    """Norm of every connection of a CLT, and how it is spread over features.

    Args:
        clt: the transcoder.
        clt_name: its name in tables and captions.
    """
    n, n_features = clt.config.n_layers, clt.config.n_features
    n_top = ceil(TOP_SHARE * n_features)
    norm, effective, top = (torch.full((n, n), torch.nan, dtype=torch.float64) for _ in range(3))
    for s, decoder in enumerate(clt.W_dec):
        for l, connection in enumerate(decoder, start=s):
            energy = torch.linalg.vector_norm(connection, dim=-1).double().square().cpu()
            total = energy.sum()
            norm[l, s] = total.sqrt()
            effective[l, s] = total.square() / (n_features * energy.square().sum())
            top[l, s] = energy.topk(n_top).values.sum() / total
    return DecoderNorms(norm, effective, top, n_features, clt_name)
