"""First-order effects: what one backward pass of the ViT predicts an intervention to do.

Overwriting out_s changes the stream right behind it by d_s (after LayerScale). To first order the
loss changes by

    total     sum over s of <dLoss / d stream behind out_s, d_s>
    direct    sum over s of <dLoss / d stream behind the last block, d_s>

with the gradients of the unaltered model. For small d_s this is exact for a layer alone, and for
every direct effect. The total effect of several layers is approximated by the sum of their own: a
later layer that is overwritten too cuts paths from the earlier ones, which the sum still has. No
CLT takes part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.analysis.causal.targets import Path
from vit_clt.choices import Site
from vit_clt.hooks import HookedViT
from vit_clt.hooks.passes.overwritten import SitePass, Values
from vit_clt.hooks.points import RESID_MID, RESID_POST, FwdHooks
from vit_clt.readouts.base import Classifier

_BEHIND: dict[Site, str] = {"attn": RESID_MID, "mlp": RESID_POST}


class LossGradients:
    """Gradients of each image's loss at the stream behind every MLP and attention layer.

    Args:
        vit: the model, with no hooks attached.
        images: one batch of images.
        labels: their labels.
        classifier: the readout of the loss, in nats.
    """

    def __init__(
        self,
        vit: HookedViT,
        images: Float[Tensor, "batch 3 height width"],
        labels: Int[Tensor, " batch"],
        classifier: Classifier,
    ):
        layers = range(vit.cfg.n_layers)
        names = [point.format(l=l) for point in _BEHIND.values() for l in layers]
        shape = (len(images), vit.cfg.n_tokens, vit.cfg.d_model)
        zeros = {name: images.new_zeros(shape).requires_grad_() for name in names}

        def add(stream: Tensor, hook: HookPoint) -> Tensor:
            return stream + zeros[str(hook.name)]

        hooks: FwdHooks = [(name, add) for name in names]
        with torch.enable_grad(), vit.hooks(fwd_hooks=hooks):
            logits = classifier.logits(vit(images))
            loss = F.cross_entropy(logits.double(), labels.to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(zeros.values()))
        self._at = dict(zip(names, gradients, strict=True))

    def effects(
        self, clean: SitePass, values: Values | None, path: Path
    ) -> Float[Tensor, "batch layer"]:
        """The first-order effect on the loss, in nats, of overwriting each layer alone.

        Args:
            clean: the clean pass of the same images.
            values: by layer, the values to write on its ablated rows; None for zeros.
            path: "total" or "direct".
        """
        layers = range(clean.vit.cfg.n_layers)
        effects = []
        for l in layers:
            read = RESID_POST.format(l=layers[-1])
            gradient = self._at[read if path == "direct" else _BEHIND[clean.site].format(l=l)]
            change = clean.stream_change(l, values)
            effects.append((gradient.double() * change.double()).sum((1, 2)))
        return torch.stack(effects, dim=1)
