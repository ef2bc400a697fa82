"""Hooked ViT, token rows, CLT replacement, and interventions on the ViT's own MLPs."""

from vit_clt.hooks.hooked_vit import HookedViT, HookedViTConfig
from vit_clt.hooks.interventions import overwrite_mlp_hooks
from vit_clt.hooks.ranges import ReplacedRange, SharedPrefix
from vit_clt.hooks.replacement import check_fits, replace_mlps, replacement_hooks
from vit_clt.hooks.rows import TokenKind, layer_list, token_rows

__all__ = [
    "HookedViT",
    "HookedViTConfig",
    "ReplacedRange",
    "SharedPrefix",
    "TokenKind",
    "check_fits",
    "layer_list",
    "overwrite_mlp_hooks",
    "replace_mlps",
    "replacement_hooks",
    "token_rows",
]
