"""open_clip's residual block with TransformerLens hook points, same arithmetic, same weights."""

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
    """Shared by all blocks of a model: while `values` is a dict, no hook fires and it is filled.

    Only the activations `names` are kept: those of a whole pass can be gigabytes.
    """

    values: dict[str, Tensor] | None = None
    names: Collection[str] = ()

    def __call__(self, point: HookPoint, tensor: Tensor) -> Tensor:
        """Fire the hook point, or record the tensor under its name, if that is asked for."""
        if self.values is None:
            return point(tensor)
        if point.name in self.names:
            self.values[str(point.name)] = tensor
        return tensor


class HookedBlock(ResidualAttentionBlock):
    """A block that was a `ResidualAttentionBlock`; made by `adopt`, never constructed.

    x_l is `ln2.hook_out`: the second LayerNorm's output, gain and bias included. It passes
    `mlp.hook_in` right after, where readers find it with every edit at `ln2.hook_out` applied.
    y_l is `hook_mlp_out`, before LayerScale where a model has one.
    """

    at: Recorder
    use_attn_pattern: bool
    # asked before each MLP: may its output be left out, because a hook overwrites every row?
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
        """The block's output "batch token d_model" where its MLP puts out `y`; fires no hook."""
        return resid_mid + self.ls_2(y)

    def _idle(self) -> bool:
        if self.mlp_is_overwritten is None or self.at.values is not None:
            return False
        # hooks inside the MLP want its values, and autocast decides its output's dtype
        watched = any(m._forward_hooks or m._forward_pre_hooks for m in self.mlp.modules())
        return not watched and not torch.is_autocast_enabled() and self.mlp_is_overwritten()

    def pattern_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What attention makes of its input "batch token d_model", written out.

        Returns:
            The pattern softmax(q k / sqrt(d_head)), "batch head query key", and the values v,
            "batch head key d_head". The fused kernel that a forward takes never forms the pattern;
            the products differ by about 1e-6.
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
    """Let blocks leave out an MLP whose every output row is overwritten unseen.

    The hook added last to each `hook_mlp_out` must overwrite all rows. A block computes its MLP
    all the same while any other hook comes first, or looks into the MLP.
    """
    chosen = list(blocks)
    try:
        for block in chosen:
            block.mlp_is_overwritten = _overwritten(block.hook_mlp_out)
        yield
    finally:
        for block in chosen:
            block.mlp_is_overwritten = None


def _overwritten(point: HookPoint) -> Callable[[], bool]:
    # is the hook added last to `point` still the first to see it?
    ours = point.fwd_hooks[-1].hook.id

    def first() -> bool:
        return next(iter(point._forward_hooks), None) == ours and not point.bwd_hooks

    return first
