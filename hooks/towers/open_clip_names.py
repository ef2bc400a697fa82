"""Whether the vision tower of a model that open_clip lists fits, before its weights are read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower

from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.base import Tower
from vit_clt.hooks.towers.find import tower_of


def check_listed(name: str) -> None:
    """Refuse a name of `open_clip.list_models()` whose vision tower is no plain ViT.

    Names that open_clip does not list pass: their files are at hand, and are read first.

    Raises:
        InputError: the tower does not fit, with the name of what does not.
    """
    if open_clip.get_model_config(name.replace("/", "-")):
        shape_of(name)


def shape_of(name: str) -> Tower:
    """The vision tower of a listed model, of tensors without values.

    Raises:
        InputError: the tower does not fit, with the name of what does not.
    """
    return shape_of_config(open_clip.get_model_config(name.replace("/", "-")))


def shape_of_config(config: Mapping[str, Any]) -> Tower:
    """The vision tower of a model configuration, of tensors without values.

    Args:
        config: what open_clip keeps as `model_cfg`, whose fields are known to be harmless.

    Raises:
        InputError: the tower does not fit, with the name of what does not.
    """
    config = copy.deepcopy(dict(config))
    with torch.device("meta"):
        visual = _build_vision_tower(
            config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
        )
        return tower_of(visual, Recorder())
