"""Hooked ViT, token rows, CLT replacement, steering, and interventions on the ViT's own parts."""

from vit_clt.hooks.frozen import FrozenPass, Reading
from vit_clt.hooks.hooked_vit import HookedViT, HookedViTConfig
from vit_clt.hooks.interventions import Site, overwrite_attn_hooks, overwrite_mlp_hooks
from vit_clt.hooks.ranges import ReplacedRange, SharedPrefix
from vit_clt.hooks.replacement import check_fits, replace_mlps, replacement_hooks
from vit_clt.hooks.rows import TokenKind, layer_list, token_rows
from vit_clt.hooks.steered_pass import SteeredPass
from vit_clt.hooks.steering import Edit, EditKind, Rows, steer, steering_hooks
from vit_clt.hooks.unaltered import UnalteredPass

__all__ = [
    "Edit",
    "EditKind",
    "FrozenPass",
    "HookedViT",
    "HookedViTConfig",
    "Reading",
    "ReplacedRange",
    "Rows",
    "SharedPrefix",
    "Site",
    "SteeredPass",
    "TokenKind",
    "UnalteredPass",
    "check_fits",
    "layer_list",
    "overwrite_attn_hooks",
    "overwrite_mlp_hooks",
    "replace_mlps",
    "replacement_hooks",
    "steer",
    "steering_hooks",
    "token_rows",
]
