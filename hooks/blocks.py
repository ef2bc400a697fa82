"""A block of a ViT with TransformerLens hook points, the same arithmetic and weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_clt.errors import InputError
from vit_clt.hooks.patterns import Edit, attend_unfused, same
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


class HookedBlock(nn.Module, ABC):
    """The forward of a pre-norm block with hook points, on the parts of the model's own block:

        mid_l      = pre_l + gamma1 * attention(ln1(pre_l))
        x_l        = ln2(mid_l)
        pre_{l+1}  = mid_l + gamma2 * mlp(x_l)

    A family of ViTs is a subclass that says where its blocks keep these parts (`hooks/towers/`).
    x_l is `ln2.hook_out`: the second LayerNorm's output, gain and bias included. It passes
    `mlp.hook_in` right after, where every edit at `ln2.hook_out` has been applied.
    y_l is `hook_mlp_out`, before LayerScale where a model has one.

    The model's own block stays as it is. If the model's own forward calls it while a hook is
    attached here, which that forward would pass by, it is refused.

    Args:
        native: the model's own block.
        recorder: of the clean passes of the model.
    """

    native: Any
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

    def __init__(self, native: nn.Module, recorder: Recorder):
        super().__init__()
        # not a submodule: the model alone owns its blocks, so that no parameter has two names
        self.__dict__["native"] = native
        self.at = recorder
        self.use_attn_pattern = False
        for attribute in BLOCK_POINTS:
            setattr(self, attribute, HookPoint())
        native.register_forward_pre_hook(self._refuse_hooks)

    @property
    @abstractmethod
    def ln1(self) -> nn.Module:
        """The norm before attention."""

    @property
    @abstractmethod
    def ln2(self) -> nn.Module:
        """The norm before the MLP."""

    @property
    @abstractmethod
    def mlp(self) -> nn.Module:
        """The MLP, which works row by row."""

    @property
    def gamma1(self) -> Tensor | None:
        """LayerScale of the attention output, "d_model"; None for a model without one."""
        return None

    @property
    def gamma2(self) -> Tensor | None:
        """LayerScale of the MLP output, "d_model"; None for a model without one."""
        return None

    @abstractmethod
    def attention(self, x: Tensor) -> Tensor:
        """The attention layer's output, for its input "batch token d_model"."""

    def forward(self, resid_pre: Tensor) -> Tensor:
        """Residual stream "batch token d_model" through attention and MLP."""
        resid_pre = self.at(self.hook_resid_pre, resid_pre)
        attn_in = self.at(self.hook_ln1, self.ln1(resid_pre))
        if self.use_attn_pattern:
            attn_out = self.unfused_attention(attn_in, edit=partial(self.at, self.hook_pattern))
        else:
            attn_out = self.attention(attn_in)
        attn_out = self.at(self.hook_attn_out, attn_out)
        resid_mid = self.at(self.hook_resid_mid, self.add_attn(resid_pre, attn_out))
        x = self.at(self.hook_mlp_in, self.at(self.hook_ln2, self.ln2(resid_mid)))
        y = self.at(
            self.hook_mlp_out, x.new_zeros(()).expand_as(x) if self._idle() else self.mlp(x)
        )
        return self.at(self.hook_resid_post, self.add_mlp(resid_mid, y))

    def add_attn(self, resid_pre: Tensor, out: Tensor) -> Tensor:
        """mid_l "batch token d_model" if the attention puts out `out`; no hook fires."""
        return resid_pre + scaled(out, self.gamma1)

    def add_mlp(self, resid_mid: Tensor, y: Tensor) -> Tensor:
        """The block's output "batch token d_model" if its MLP puts out `y`; no hook fires."""
        return resid_mid + scaled(y, self.gamma2)

    def pattern_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The attention pattern and the values, for an attention input "batch token d_model".

        Returns:
            The pattern softmax(q k / sqrt(d_head)), "batch head query key", and the values v,
            "batch head key d_head". A forward uses a fused kernel, which never forms the pattern;
            pattern times values differs from its output by about 1e-6.
        """
        seen: list[tuple[Tensor, Tensor]] = []
        attend_unfused(self.attention, x, seen=seen)
        return seen[0]

    def unfused_attention(self, x: Tensor, edit: Edit = same, edit_heads: Edit = same) -> Tensor:
        """`attention` with its pattern formed, edited as in `attend_unfused`."""
        return attend_unfused(self.attention, x, edit, edit_heads)

    def _idle(self) -> bool:
        if self.mlp_is_overwritten is None or self.at.values is not None:
            return False
        # hooks inside the MLP need its values, and autocast decides the dtype of its output
        watched = any(m._forward_hooks or m._forward_pre_hooks for m in self.mlp.modules())
        return not watched and not torch.is_autocast_enabled() and self.mlp_is_overwritten()

    def _refuse_hooks(self, native: nn.Module, inputs: object) -> None:
        hooked = [name for name in BLOCK_POINTS if getattr(self, name).has_hooks()]
        if hooked:
            name = getattr(self, hooked[0]).name
            raise InputError(
                f'the model\'s own forward would pass by the hook at "{name}"; call the HookedViT.'
            )


def scaled(out: Tensor, gamma: Tensor | None) -> Tensor:
    """`out` times a LayerScale, if there is one."""
    return out if gamma is None else out * gamma


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
