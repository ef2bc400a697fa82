"""Options of every command that trains: the sparsifier, the width, and how to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from vit_clt.choices import Preset, SparsifierName
from vit_clt.transcoder.train_config import PRESETS, TrainConfig


@dataclass(kw_only=True)
class TrainingOptions:
    """How to train."""

    preset: Preset = "small"
    """Hyperparameters to start from; options override them."""
    sparsifier: SparsifierName = "relu_topk"
    """How codes are made sparse."""
    n_features: int | None = None
    """Features per layer; default: 16 times the width."""
    bandwidth: float = 1.0
    """JumpReLU only: width of the band in which a threshold learns."""
    cache: Path | None = None
    """Folder of an activation cache, built where missing; default: recompute activations."""
    training: tyro.conf.OmitArgPrefixes[TrainConfig] = field(
        default_factory=lambda: PRESETS["small"]
    )


def value_of(option: str, args: Sequence[str]) -> str | None:
    """What a command line gives for `option`, which decides other options' defaults."""
    for i, arg in enumerate(args):
        name, joined, value = arg.partition("=")
        if name == option:
            return value if joined else next(iter(args[i + 1 :]), None)
    return None


def preset_in(args: Sequence[str]) -> TrainConfig:
    """The preset that a command line names, or the default one."""
    return PRESETS.get(value_of("--preset", args) or "small", PRESETS["small"])
