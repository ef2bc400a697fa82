"""Which features raise one class, by a linear prediction: direct effects on its logit contrast."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.analysis.features.active import active_codes
from vit_clt.analysis.features.activity import ActivitySums, FeatureActivity, sums_by_feature
from vit_clt.data.images import ImageData
from vit_clt.hooks import FrozenPass, HookedViT, Rows
from vit_clt.hooks.steering import row_index
from vit_clt.kernels.bags import entry_dots, feature_order
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.zero_shot import ZeroShot


@torch.no_grad()
def contrast_effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    label: int,
    tokens: Rows,
    progress: bool,
) -> tuple[Float[np.ndarray, "layer feature"], dict[int, FeatureActivity]]:
    """Every feature's direct effect on the contrast, mean over images, and activity on the way.

    effect(s, i) = mean over images of sum over rows of z_{s,i} * sum over l of <W_dec[s->l]_i, G_l>

    0 on an image where the feature is silent. G_l is the contrast's gradient at y_l with attention
    held and all norms differentiated (`FrozenPass`): the first order of a small change of z.
    """
    config = clt.config
    layers, rows = range(config.n_layers), row_index(tokens)
    sums = ActivitySums(layers, config.n_features, tokens)
    effects = np.zeros((config.n_layers, config.n_features))
    direction = contrast_weights(zs, label)
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in tqdm(data, "direct effects", n_batches, disable=not progress):
        frozen = FrozenPass(vit, images.to(clt.b_dec.device))
        gradients = frozen.gradients(direction, norms="differentiated")
        gradients = gradients[:, :, rows].flatten(1, 2)
        for s in layers:
            active = active_codes(clt.encode(frozen.x[s][:, rows], layer=s))
            sums.add(s, active)
            order = feature_order(active.features, active.offsets(), config.n_features)
            targets = config.targets(s)
            at_targets = gradients[targets.start : targets.stop]
            each = order.sort(active.values) * entry_dots(at_targets, clt.W_dec[s], order)
            effects[s] += sums_by_feature(each, active.features[order.entries], config.n_features)
    return effects / len(data), sums.found()


def contrast_weights(zs: ZeroShot, label: int) -> Float[Tensor, " d_embed"]:
    """The direction of a class' logit minus the mean of the other classes' logits."""
    others = torch.ones_like(zs.weights[0]) / (1 - len(zs.class_names))
    others[label] = 1
    return zs.logit_scale * zs.weights @ others
