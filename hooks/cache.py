"""TransformerLens' `ActivationCache` for a ViT: what a ViT has, and a sentence for the rest."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import scaled
from vit_clt.hooks.points import ATTN_IN, HOOK_IN, HOOK_OUT, RESID_PRE, SITE_OUT


class ViTActivationCache(ActivationCache):
    """The activations of a forward of a `HookedViT`.

    `accumulated_resid`, `decompose_resid` and `stack_activation` are as in TransformerLens. What
    needs a vocabulary, single heads, neurons or recorded scales of LayerNorm is refused in one
    sentence, because no hook point of a `HookedViT` records them.
    """

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What each block adds to the residual stream, "component batch token d_model".

        With every component they sum to the stream: "embed" is what enters block 0, positions
        included, and outputs are scaled as the block scales them (LayerScale).

        Args:
            layer: the stream that enters this block; None and -1 stand for that after the last.
            mlp_input: go on to the stream that the block's MLP reads.
            mode: all components, or those of MLPs or attention layers alone.
            apply_ln: refused.
            pos_slice: TransformerLens' slice of token rows.
            incl_embeds: begin with "embed".
            return_labels: also return the names of the components.

        Raises:
            InputError: `apply_ln`, an unknown layer, or an activation that the cache lacks.
        """
        if apply_ln:
            self.apply_ln_to_stack()
        blocks: Any = self.model.blocks
        n = len(blocks) if layer is None or layer == -1 else layer
        if not 0 <= n <= len(blocks) - int(mlp_input):
            raise InputError("layer", f"is {layer}; expected 0 to {len(blocks) - int(mlp_input)}.")
        parts: dict[str, Tensor] = {}
        if incl_embeds:
            parts["embed"] = self[RESID_PRE.format(l=0)]
        for l in range(n + int(mlp_input)):
            if mode != "mlp":
                parts[f"{l}_attn_out"] = scaled(
                    self[SITE_OUT["attn"].format(l=l)], blocks[l].gamma1
                )
            if mode != "attn" and l < n:
                parts[f"{l}_mlp_out"] = scaled(self[HOOK_OUT.format(l=l)], blocks[l].gamma2)
        rows = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)
        stack = torch.stack([rows.apply(part, dim=-2) for part in parts.values()])
        return (stack, list(parts)) if return_labels else stack

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> ViTActivationCache:
        """The activations of some images, by TransformerLens' slice."""
        some = super().apply_slice_to_batch_dim(batch_slice)
        return ViTActivationCache(some.cache_dict, self.model, some.has_batch_dim)

    def __getitem__(self, key: Any) -> Float[Tensor, "..."]:
        """An activation by name or by TransformerLens' shorthand.

        Raises:
            KeyError: the cache lacks it.
        """
        try:
            return super().__getitem__(key)
        except KeyError as error:
            raise KeyError(
                f"the cache has no activation {error}; vit.hook_dict has the names of those that "
                "a forward records"
            ) from None

    def apply_ln_to_stack(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a HookedViT records no scales of LayerNorm; expected the outputs of its norms, "
            f'"{ATTN_IN}" and "{HOOK_IN}", or vit.head for the last one.'
        )

    def logit_attrs(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a ViT has no vocabulary whose logits could be attributed; expected "
            "vit_clt.analysis.attribution_graph, for the logit of a class."
        )

    logit_lens = logit_attrs

    def compute_head_results(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a HookedViT has no hook points inside attention but hook_pattern, and so no results "
            'of single heads; expected decompose_resid(mode="attn"), for those of whole layers.'
        )

    stack_head_results = compute_head_results
    get_full_resid_decomposition = compute_head_results
    _ensure_head_results = compute_head_results

    def get_neuron_results(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a HookedViT has no hook points inside MLPs, and so no results of single neurons; "
            'expected decompose_resid(mode="mlp"), for those of whole layers.'
        )

    stack_neuron_results = get_neuron_results
