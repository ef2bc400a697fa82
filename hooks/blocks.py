"""open_clip's residual block with TransformerLens hook points, the same arithmetic and weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_clt.errors import InputError
from vit_clt.hooks.points import BLOCK_POINTS


class Recorder:
    """Records the activations of a clean pass; all blocks of a model share one.

    While `values` is a dict, no hook fires, and the activations at the hook points `names` are put
    into it. All activations of a pass may take gigabytes.
    """

    values: dict[str, Tensor] | None = None
    names: Collection[str] = ()

    def __call__(self, point: HookPoint, tensor: Tensor) -> Tensor:
        """Fire the hook point, or, in a clean pass, record the tensor if its name is in `names`."""
        if self.values is None:
            return point(tensor)
        if point.name in self.names:
            self.values[str(point.name)] = tensor
        return tensor


class HookedBlock(ResidualAttentionBlock):
    """A `ResidualAttentionBlock` with hook points. `adopt` makes it; it is never constructed.

    x_l is `ln2.hook_out`: the second LayerNorm's output, gain and bias included. It passes
    `mlp.hook_in` right after, where every edit at `ln2.hook_out` has been applied.
    y_l is `hook_mlp_out`, before LayerScale where a model has one.
    """

    at: Recorder
    use_attn_pattern: bool
    # called before each MLP; true if its output need not be computed, as a hook overwrites all rows
    mlp_is_overwritten: Callable[[], bool] | None = None
    hook_resid_pre: HookPoint
    hook_ln1: HookPoint
    hook_pattern: HookPoint
    hook_attn_out: HookPoint
    hook_resid_mid: HookPoint
    hook_ln2: HookPoint
    hook_mlp_in: HookPoint
    hook_mlp_out: HookPoint
    hook_resid_post: HookPoint

    @staticmethod
    def adopt(block: nn.Module, recorder: Recorder) -> HookedBlock:
        """Turn `block` into a HookedBlock in place; its parameters and their names stay.

        Raises:
            InputError: the block is of another class, whose arithmetic would silently differ.
        """
        if type(block) is not ResidualAttentionBlock:
            raise InputError(
                "model",
                f"has blocks of class {type(block).__name__}; expected open_clip's "
                "ResidualAttentionBlock (timm and SigLIP towers are not supported).",
            )
        block.__class__ = HookedBlock
        assert isinstance(block, HookedBlock)
        for attribute in BLOCK_POINTS:
            setattr(block, attribute, HookPoint())
        block.at = recorder
        block.use_attn_pattern = False
        return block

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Residual stream "batch token d_model" through attention and MLP."""
        resid_pre = self.at(self.hook_resid_pre, q_x)
        attn_in = self.at(self.hook_ln1, self.ln_1(resid_pre))
        if self.use_attn_pattern:
            attn_out = self._unfused_attention(attn_in)
        else:
            attn_out = self.attention(attn_in, attn_mask=attn_mask)
        attn_out = self.at(self.hook_attn_out, attn_out)
        resid_mid = self.at(self.hook_resid_mid, resid_pre + self.ls_1(attn_out))
        x = self.at(self.hook_mlp_in, self.at(self.hook_ln2, self.ln_2(resid_mid)))
        y = self.at(
            self.hook_mlp_out, x.new_zeros(()).expand_as(x) if self._idle() else self.mlp(x)
        )
        return self.at(self.hook_resid_post, self.add_mlp(resid_mid, y))

    def add_mlp(self, resid_mid: Tensor, y: Tensor) -> Tensor:
        """The block's output "batch token d_model" if its MLP puts out `y`; no hook fires."""
        return resid_mid + self.ls_2(y)

    def _idle(self) -> bool:
        if self.mlp_is_overwritten is None or self.at.values is not None:
            return False
        # hooks inside the MLP need its values, and autocast decides the dtype of its output
        watched = any(m._forward_hooks or m._forward_pre_hooks for m in self.mlp.modules())
        return not watched and not torch.is_autocast_enabled() and self.mlp_is_overwritten()

    def pattern_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The attention pattern and the values, for an attention input "batch token d_model".

        Returns:
            The pattern softmax(q k / sqrt(d_head)), "batch head query key", and the values v,
            "batch head key d_head". A forward uses a fused kernel, which never forms the pattern;
            pattern times values differs from its output by about 1e-6.
        """
        attn: Any = self.attn
        qkv = nn.functional.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = rearrange(
            qkv, "batch token (qkv head d) -> qkv batch head token d", qkv=3, head=attn.num_heads
        )
        return torch.softmax(q @ k.mT / attn.head_dim**0.5, dim=-1), v

    def _unfused_attention(self, x: Tensor) -> Tensor:
        attn: Any = self.attn
        pattern, v = self.pattern_and_values(x)
        pattern = self.at(self.hook_pattern, pattern)
        z = rearrange(pattern @ v, "batch head query d -> batch query (head d)")
        return attn.out_proj(z)


@contextmanager
def idle_mlps(blocks: Iterable[HookedBlock]) -> Iterator[None]:
    """A context in which these blocks do not compute their MLPs.

    The hook added last to each `hook_mlp_out` must overwrite all rows. A block still computes its
    MLP while any other hook fires before that one, or is inside the MLP.
    """
    blocks = list(blocks)
    try:
        for block in blocks:
            block.mlp_is_overwritten = _overwritten(block.hook_mlp_out)
        yield
    finally:
        for block in blocks:
            block.mlp_is_overwritten = None


def _overwritten(point: HookPoint) -> Callable[[], bool]:
    # the hook added last to `point` must still be the first that fires
    last_added = point.fwd_hooks[-1].hook.id

    def fires_first() -> bool:
        return next(iter(point._forward_hooks), None) == last_added and not point.bwd_hooks

    return fires_first
