"""One pass over images: every moment the contribution scores, fills and floors are made of.

All sums are float64 and kept per target, source and token position, so that every score kind,
both reductions and every token kind come from the same pass. Teacher trajectory: codes come from
the unaltered model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.activations import capture
from vit_clt.data import ImageData, as_image_data
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.transcoder import CrossLayerTranscoder

# rows this far below the running mean of ||y^||^2 wait for the final mean before they are judged
_SUSPECT = 1e-6


@dataclass(frozen=True)
class SuspectRow:
    """A row whose ||y^||^2 is so small that ratios to it may mean nothing."""

    token: int
    yy: float
    ratio: Float[Tensor, " source"]
    bias_ratio: float
    norm_ratio: Float[Tensor, " source"]


class TargetMoments:
    """Sums over images at one target layer; first axis source where there is one, last token."""

    def __init__(self, n_sources: int, n_tokens: int, d_model: int, device: torch.device):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.ratio = zeros(n_sources, n_tokens)  # <c_s, y^> / <y^, y^>
        self.bias_ratio = zeros(n_tokens)  # <b, y^> / <y^, y^>
        self.norm_ratio = zeros(n_sources, n_tokens)  # ||c_s|| / sum_j ||c_j||
        self.ratio_rows = zeros(n_tokens)
        self.norm_rows = zeros(n_tokens)
        self.cy = zeros(n_sources, n_tokens)  # <c_s, y^>
        self.cc = zeros(n_sources, n_tokens)  # ||c_s||^2
        self.ce = zeros(n_sources, n_tokens)  # <c_s, y - y^>
        self.norm = zeros(n_sources, n_tokens)  # ||c_s||
        self.yy = zeros(n_tokens)  # ||y^||^2
        self.true_yy = zeros(n_tokens)  # ||y||^2
        self.c_sum = zeros(n_sources, n_tokens, d_model)
        self.y_sum = zeros(n_tokens, d_model)
        self.true_sum = zeros(n_tokens, d_model)
        self.suspects: list[SuspectRow] = []
        self.rows_seen = 0

    def add(
        self,
        terms: Float[Tensor, "source image token d_model"],
        bias: Float[Tensor, " d_model"],
        y: Float[Tensor, "image token d_model"],
    ) -> None:
        """Add a batch of images."""
        terms, bias, y = terms.double(), bias.double(), y.double()
        y_hat = terms.sum(0) + bias
        yy = y_hat.square().sum(-1)
        cy = torch.einsum("sitd,itd->sit", terms, y_hat)
        cc = terms.square().sum(-1)
        norm = cc.sqrt()
        self.cy += cy.sum(1)
        self.cc += cc.sum(1)
        self.norm += norm.sum(1)
        self.ce += torch.einsum("sitd,itd->st", terms, y - y_hat)
        self.yy += yy.sum(0)
        self.true_yy += y.square().sum((0, 2))
        self.c_sum += terms.sum(1)
        self.y_sum += y_hat.sum(0)
        self.true_sum += y.sum(0)
        self.rows_seen += yy.numel()

        ratio, bias_ratio = cy / yy, y_hat @ bias / yy
        norm_ratio = norm / norm.sum(0)
        # written so that a zero row is suspect also while the running mean is zero
        suspect = ~(yy > _SUSPECT * self.yy.sum() / self.rows_seen)
        for image, token in suspect.nonzero().tolist():
            row = (slice(None), image, token)
            bias_part = float(bias_ratio[image, token])
            self.suspects.append(
                SuspectRow(
                    token,
                    float(yy[image, token]),
                    ratio[row].clone(),
                    bias_part,
                    norm_ratio[row].clone(),
                )
            )
        sound = ~suspect
        self.ratio += torch.where(sound, ratio, 0).sum(1)
        self.bias_ratio += torch.where(sound, bias_ratio, 0).sum(0)
        self.ratio_rows += sound.sum(0)
        # no term at all (every feature silent) has no norm shares
        shared = sound & (norm.sum(0) > 0)
        self.norm_ratio += torch.where(shared, norm_ratio, 0).sum(1)
        self.norm_rows += shared.sum(0)


@dataclass(frozen=True)
class ContributionMoments:
    """Moments at every target, and what they were measured on."""

    targets: list[TargetMoments]
    b_dec: Float[Tensor, "layer d_model"]
    n_images: int
    l0: Float[Tensor, "layer token"]
    """Active features, mean over images."""
    data: str
    has_cls: bool


@torch.no_grad()
def contribution_moments(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    progress: bool = False,
) -> ContributionMoments:
    """Gather the moments of all targets, sources and token positions in one pass.

    Args:
        vit: the teacher.
        clt: its transcoder.
        images: ImageData, a tensor, or batches.
        progress: show a progress bar.

    Raises:
        InputError: the CLT does not fit the model, or there are no images.
    """
    check_fits(vit, clt)
    data = as_image_data(images)
    n, d, device = clt.config.n_layers, clt.config.d_model, clt.b_dec.device
    targets = [TargetMoments(l + 1, vit.cfg.n_tokens, d, device) for l in range(n)]
    active = torch.zeros(n, vit.cfg.n_tokens, dtype=torch.float64, device=device)
    for batch, _ in tqdm(data, "contributions", _n_batches(data), disable=not progress):
        found = capture(vit, batch.to(device))
        codes = clt.encode(found.x)
        active += codes.l0().sum(1)
        for l, target in enumerate(targets):
            target.add(clt.contributions(codes, target=l), clt.b_dec[l], found.y[l])
    return ContributionMoments(
        targets=targets,
        b_dec=clt.b_dec.detach().double(),
        n_images=len(data),
        l0=active / len(data),
        data=data.name,
        has_cls=vit.cfg.has_cls,
    )


def _n_batches(data: ImageData) -> int:
    return -(-len(data) // data.batch_size)
