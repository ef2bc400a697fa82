"""One unaltered pass of the replaced stream, differentiable at every MLP output.

Every MLP is replaced, at all rows, by its reconstruction with the error node held, as in
`vit_clt.hooks.passes.live`, so that the pass is the ViT's own within rounding. Gradients do not run
through the MLPs, but through attention, norms, and the codes of the live stream: an active feature
answers with W_enc to a small change of x_l, and a silent one stays silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.interventions import check_unhooked
from vit_clt.hooks.points import HOOK_OUT, READ_IN, RESID_POST, FwdHooks
from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.model import CrossLayerTranscoder


class TangentPass:
    """The pass of one batch, and gradients of readings of it with respect to every y_l.

    A saved CLT should be checked against the model with `check_fits(vit, clt)` first.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        images: one batch of images.

    Raises:
        InputError: hooks are attached, or images of another shape.
    """

    embeddings: Float[Tensor, "batch d_embed"]
    """Image embeddings, not normalised, with their graph."""
    y: list[Float[Tensor, "batch token d_model"]]
    """y_l of every layer, with its graph."""
    codes: list[Codes]
    """The codes of every layer, on all rows."""

    def __init__(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        images: Float[Tensor, "batch 3 height width"],
    ):
        check_unhooked(vit)
        self.vit, self.clt = vit, clt
        self.y, self.codes = [], []
        # zeros that are added to every y_l; a gradient at y_l is that of its zeros
        self._added: list[Tensor] = []
        n = vit.cfg.n_layers
        hooks: FwdHooks = [(READ_IN.format(l=l), partial(self._read, layer=l)) for l in range(n)]
        hooks += [(HOOK_OUT.format(l=l), partial(self._write, layer=l)) for l in range(n)]
        hooks += [(RESID_POST.format(l=n - 1), self._end)]
        with torch.enable_grad(), _frozen(clt), vit.hooks(fwd_hooks=hooks):
            self.embeddings = vit(images)

    def gradients(self, reading: Float[Tensor, ""]) -> list[Float[Tensor, "batch token d_model"]]:
        """The gradient of a reading with respect to y_l, for every layer; its graph is kept.

        Args:
            reading: a sum over images of a function of `embeddings` or of `y`.
        """
        return list(
            torch.autograd.grad(
                reading, self._added, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )

    def direct_gradients(
        self, reading: Float[Tensor, ""]
    ) -> list[Float[Tensor, "batch token d_model"]]:
        """The same for a reading of `embeddings`, if only the final LayerNorm and pooling see y."""
        [at_stream] = torch.autograd.grad(reading, [self._resid], retain_graph=True)
        return [scaled(at_stream, block.gamma2) for block in self.vit.blocks]

    def _read(self, x: Tensor, hook: HookPoint, layer: int) -> None:
        self._x = x
        self.codes.append(self.clt.encode(x, layer=layer))

    def _write(self, y: Tensor, hook: HookPoint, layer: int) -> Tensor:
        recon = self.clt.decode(self.codes, target=layer, x=self._x)
        self._added.append(torch.zeros_like(y, requires_grad=True))
        self.y.append(y.detach() + (recon - recon.detach()) + self._added[-1])
        return self.y[-1]

    def _end(self, resid: Tensor, hook: HookPoint) -> None:
        self._resid = resid


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A context in which no parameter of a module asks for a gradient, which would cost much."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
