"""What the quality race measures of a contestant, on held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from quality_task import outputs_file
from safetensors.torch import load_file
from torch import Tensor

from vit_clt import CrossLayerTranscoder
from vit_clt.analysis import cascade
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.readouts.base import Classifier
from vit_clt.training.step import VarianceSums

CHUNK = 1024
"""Rows that a CLT is applied to at a time."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out images, and the rows of their activations."""

    vit: HookedViT
    data: ImageData
    classifier: Classifier
    x: Float[Tensor, "layer row d_model"]
    y: Float[Tensor, "layer row d_model"]
    group: Int[Tensor, " row"]

    def fvu(self, y_hat: Float[Tensor, "layer row d_model"]) -> dict[str, float]:
        """FVU of CLS rows, of patch rows and of all, means over layers."""
        sums = VarianceSums(len(self.y), self.y.shape[-1], self.y.device)
        sums.add(self.y, y_hat, self.group)
        by_layer = sums.by_layer()
        return {f"fvu_{kind}": _mean(values) for kind, values in by_layer.items() if values}

    @torch.no_grad()
    def fit(self, clt: CrossLayerTranscoder) -> dict[str, float]:
        """`fvu` of a CLT, its L0 a row and layer, and the share of features that never fire."""
        parts, active = [], 0.0
        fired = torch.zeros(clt.b_enc.shape, dtype=torch.long)
        for x in self.x.split(CHUNK, 1):
            codes = clt.encode(x)
            active += float(codes.l0().sum())
            fired += codes.fired()
            parts.append(clt.decode(codes))
        l0 = active / self.x[..., 0].numel()
        return self.fvu(torch.cat(parts, 1)) | {
            "l0": l0,
            "dead": float((fired == 0).float().mean()),
        }

    def replaced(self, clt: CrossLayerTranscoder) -> dict[str, dict[str, float]]:
        """Accuracy and loss with every MLP at every row replaced, unaltered, and the floors."""
        study = cascade(self.vit, clt, self.data, self.classifier, tokens="all", first_layers=[0])
        versions = {
            "replaced": "all_stream_0",
            "unaltered": "original",
            "mean": "all_mean_0",
            "zero": "all_zero_0",
        }
        return {name: study.readings[version].columns() for name, version in versions.items()}

    def measured(self, clt: CrossLayerTranscoder) -> dict[str, Any]:
        """All of these."""
        return {**self.fit(clt), "readings": self.replaced(clt)}

    def curve(self, folder: Path, marks: list[dict[str, float]]) -> list[dict[str, float]]:
        """Steps, CPU seconds and `fvu` of the outputs that were recorded on the way."""
        return [
            mark | self.fvu(load_file(folder / outputs_file(int(mark["step"])))["y_hat"])
            for mark in marks
        ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
