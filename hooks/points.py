"""The names of hook points, as TransformerLens 4 has them; "{l}" stands for the layer.

`ln2.hook_out` is the output of the LayerNorm, gain and bias included, which the MLP reads.
TransformerLens calls the value before gain and bias `hook_normalized`; it has no hook point here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vit_clt.choices import Site

FwdHook = tuple[str | Callable[[str], bool], Callable[..., Any]]
"""A forward hook: the name of a hook point (or a function that says for which names it is), and a
function of the activation and the hook point, which returns the new activation, or None."""
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
"""The hook points of the outputs of a block's MLP and attention layer, before LayerScale."""

# the name after `blocks.{l}.` of each attribute of a hooked block
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
