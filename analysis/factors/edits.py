"""The model with features of its CLT held at given codes, row by row and image by image.

`vit_clt.hooks.steer` sets features to one number, or scales them; here each feature has a code of
its own on every row and image. Every MLP is replaced by the CLT with error nodes, so that codes as
they are give the unaltered model, bit for bit. What the edit changes reaches later layers through
the stream: through attention, and through their own codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.analysis.factors.sets import FeatureSet
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.hooked_vit import FwdHooks
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def with_codes(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: Float[Tensor, "batch 3 height width"],
    group: FeatureSet,
    rows: Int[Tensor, " row"],
    codes: Mapping[int, Float[Tensor, "*batch row _"]],
) -> Float[Tensor, "batch d_embed"]:
    """Embeddings with the group's features at `codes` on these token rows.

    Args:
        vit: the teacher.
        clt: its transcoder.
        images: one batch.
        group: features by source layer.
        rows: token rows.
        codes: per layer of the group, a column per feature in their order, with or without a batch
            axis.
    """
    with replace_mlps(vit, clt, layers=range(vit.cfg.n_layers), error_node=True):
        hooks: FwdHooks = []
        for s, features in group.items():
            at = (slice(None), rows[:, None], features)
            hooks.append((f"clt.{s}.hook_codes", partial(_write, at=at, values=codes[s])))
        return vit.run_with_hooks(images, fwd_hooks=hooks)


def _write(z: Tensor, hook: HookPoint, at: tuple[Any, ...], values: Tensor) -> Tensor:
    edited = z.clone()
    edited[at] = values.to(z)
    return edited
