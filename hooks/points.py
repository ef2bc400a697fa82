"""The names of hook points, as TransformerLens 4 has them; "{l}" stands for the layer.

`ln2.hook_out` is the LayerNorm's output, gain and bias included: what the MLP reads.
TransformerLens keeps `hook_normalized` for the value before them, which is none of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vit_clt.choices import Site

FwdHook = tuple[str | Callable[[str], bool], Callable[..., Any]]
"""A hook of the forward: where (a point's name, or a choice among names), and a function of the
activation there and the hook point, which returns what takes its place, or None."""
FwdHooks = list[FwdHook]

RESID_PRE = "blocks.{l}.hook_resid_pre"
ATTN_IN = "blocks.{l}.ln1.hook_out"
RESID_MID = "blocks.{l}.hook_resid_mid"
HOOK_IN = "blocks.{l}.ln2.hook_out"
"""x_l, the MLP's input."""
READ_IN = "blocks.{l}.mlp.hook_in"
"""x_l as the MLP and the CLT read it, after every hook at `HOOK_IN`."""
HOOK_OUT = "blocks.{l}.hook_mlp_out"
"""y_l, the MLP's output, before LayerScale where a model has one."""
RESID_POST = "blocks.{l}.hook_resid_post"

SITE_OUT: dict[Site, str] = {"mlp": HOOK_OUT, "attn": "blocks.{l}.hook_attn_out"}
"""Where a block's MLP and its attention layer put out, before LayerScale."""

# attribute on a hooked block -> name below `blocks.{l}.`
BLOCK_POINTS = {
    "hook_resid_pre": "hook_resid_pre",
    "hook_ln1": "ln1.hook_out",
    "hook_pattern": "attn.hook_pattern",
    "hook_attn_out": "hook_attn_out",
    "hook_resid_mid": "hook_resid_mid",
    "hook_ln2": "ln2.hook_out",
    "hook_mlp_in": "mlp.hook_in",
    "hook_mlp_out": "hook_mlp_out",
    "hook_resid_post": "hook_resid_post",
}
