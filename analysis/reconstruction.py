"""How well y^ stands for y: cosine, MSE, R^2, FVU, L0, dead features, per layer and token kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from vit_clt.activations import capture
from vit_clt.data import ImageData, as_image_data
from vit_clt.hooks import HookedViT, TokenKind, check_fits, token_rows
from vit_clt.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class Reconstruction:
    """Per layer and token kind; `frame` has one row for each."""

    frame: pd.DataFrame
    """Columns: layer, tokens, cosine, mse (raw units, per dimension), r2 (mean over all evaluated
    tokens), r2_position (mean per token position), fvu (1 - r2), l0, dead (share of features silent
    on all evaluated rows of every kind), n_images."""
    data: str

    def mean(self, tokens: TokenKind, column: str = "r2") -> float:
        """Mean of a column over layers."""
        return float(self.frame.loc[self.frame["tokens"] == tokens, column].mean())


@torch.no_grad()
def reconstruction(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    progress: bool = False,
) -> Reconstruction:
    """Measure y^ against y on the teacher trajectory, streaming, sums in float64.

    R^2 = 1 - sum ||y - y^||^2 / sum ||y - mean||^2, the mean over all evaluated tokens (column
    `r2`) or over images at the same position (`r2_position`).

    Raises:
        InputError: the CLT does not fit the model, or there are no images.
    """
    check_fits(vit, clt)
    data = as_image_data(images)
    device = clt.b_dec.device
    n, t, d = vit.cfg.n_layers, vit.cfg.n_tokens, vit.cfg.d_model

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(n, t, *shape, dtype=torch.float64, device=device)

    n_batches = -(-len(data) // data.batch_size)
    cosine, error, power, active, total = zeros(), zeros(), zeros(), zeros(), zeros(d)
    fired = torch.zeros(n, clt.config.n_features, dtype=torch.long, device=device)
    for batch, _ in tqdm(data, "reconstruct", n_batches, disable=not progress):
        found = capture(vit, batch.to(device))
        codes = clt.encode(found.x)
        y, y_hat = found.y.double(), clt.decode(codes).double()
        cosine += torch.cosine_similarity(y, y_hat, dim=-1).sum(1)
        error += (y - y_hat).square().sum((1, 3))
        power += y.square().sum((1, 3))
        total += y.sum(1)
        active += codes.l0().sum(1)
        fired += codes.fired()

    count = len(data)
    dead = (fired == 0).double().mean(1)
    rows = []
    for tokens in get_args(TokenKind):
        chosen = token_rows(tokens, vit.cfg.has_cls)
        n_rows = count * total[0, chosen].shape[0]
        sse, square = error[:, chosen].sum(1), power[:, chosen].sum(1)
        spread = square - total[:, chosen].sum(1).square().sum(-1) / n_rows
        spread_position = square - total[:, chosen].square().sum((1, 2)) / count
        for l in range(n):
            r2 = 1 - float(sse[l] / spread[l])
            rows.append(
                {
                    "layer": l,
                    "tokens": tokens,
                    "cosine": float(cosine[l, chosen].sum() / n_rows),
                    "mse": float(sse[l] / n_rows / d),
                    "r2": r2,
                    "r2_position": 1 - float(sse[l] / spread_position[l]),
                    "fvu": 1 - r2,
                    "l0": float(active[l, chosen].sum() / n_rows),
                    "dead": float(dead[l]),
                    "n_images": count,
                }
            )
    return Reconstruction(pd.DataFrame(rows), data.name)
