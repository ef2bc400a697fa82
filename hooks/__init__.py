"""The hooked ViT, and everything that attaches to it through hooks.

`HookedViT` names the hook points; `replace_mlps` and `replacement_hooks` put a CLT in the place of
MLPs; `steer` edits features; `overwrite_mlp_hooks` intervenes on the ViT's own parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.hooks.activations import Activations as Activations
    from vit_clt.hooks.activations import capture as capture
    from vit_clt.hooks.hooked_vit import HookedViT as HookedViT
    from vit_clt.hooks.hooked_vit import HookedViTConfig as HookedViTConfig
    from vit_clt.hooks.interventions import Site as Site
    from vit_clt.hooks.interventions import overwrite_attn_hooks as overwrite_attn_hooks
    from vit_clt.hooks.interventions import overwrite_mlp_hooks as overwrite_mlp_hooks
    from vit_clt.hooks.passes.clean import CleanPass as CleanPass
    from vit_clt.hooks.passes.frozen import FrozenPass as FrozenPass
    from vit_clt.hooks.passes.overwritten import OverwrittenPass as OverwrittenPass
    from vit_clt.hooks.passes.readout import Readout as Readout
    from vit_clt.hooks.passes.replaced import ReplacedRange as ReplacedRange
    from vit_clt.hooks.passes.replaced import SharedPrefix as SharedPrefix
    from vit_clt.hooks.passes.steered import SteeredPass as SteeredPass
    from vit_clt.hooks.replacement import check_fits as check_fits
    from vit_clt.hooks.replacement import replace_mlps as replace_mlps
    from vit_clt.hooks.replacement import replacement_hooks as replacement_hooks
    from vit_clt.hooks.rows import TokenKind as TokenKind
    from vit_clt.hooks.rows import layer_list as layer_list
    from vit_clt.hooks.rows import token_rows as token_rows
    from vit_clt.hooks.steering import Edit as Edit
    from vit_clt.hooks.steering import EditKind as EditKind
    from vit_clt.hooks.steering import Rows as Rows
    from vit_clt.hooks.steering import steer as steer
    from vit_clt.hooks.steering import steering_hooks as steering_hooks

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "activations": ["Activations", "capture"],
        "hooked_vit": ["HookedViT", "HookedViTConfig"],
        "interventions": ["Site", "overwrite_attn_hooks", "overwrite_mlp_hooks"],
        "passes.clean": ["CleanPass"],
        "passes.frozen": ["FrozenPass"],
        "passes.overwritten": ["OverwrittenPass"],
        "passes.readout": ["Readout"],
        "passes.replaced": ["ReplacedRange", "SharedPrefix"],
        "passes.steered": ["SteeredPass"],
        "replacement": ["check_fits", "replace_mlps", "replacement_hooks"],
        "rows": ["TokenKind", "layer_list", "token_rows"],
        "steering": ["Edit", "EditKind", "Rows", "steer", "steering_hooks"],
    },
)
