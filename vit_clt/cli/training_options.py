"""Options of every command that trains: the sparsifier, the width, and the training settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import tyro

from vit_clt.choices import Preset, SparsifierName
from vit_clt.errors import InputError
from vit_clt.transcoder.train_config import PRESETS, SparsifierTraining, TrainConfig


@dataclass(kw_only=True)
class TrainingOptions:
    """Options of a command that trains."""

    preset: Preset = "small"
    """Hyperparameters to start from; options override them."""
    sparsifier: SparsifierName = "relu_topk"
    """Function that makes codes sparse."""
    n_features: int | None = None
    """Features per layer; default: 16 times the width."""
    bandwidth: float = 1.0
    """For JumpReLU only: width of the band around a threshold in which it learns."""
    cache: Path | None = None
    """Folder of an activation store, built if it is missing; default: recompute activations."""
    training: tyro.conf.OmitArgPrefixes[TrainConfig] = field(
        default_factory=lambda: PRESETS["small"]
    )

    def sparsifier_training(self) -> TrainConfig:
        """`training` with the options of the chosen sparsifier, and of no other.

        Raises:
            InputError: an option of another sparsifier is set.
        """
        from vit_clt.transcoder.sparsifiers import SPARSIFIERS, names_with

        sparsity, kind = self.training.sparsity, SPARSIFIERS[self.sparsifier]
        for part in fields(sparsity):
            options = getattr(sparsity, part.name)
            if not isinstance(options, SparsifierTraining) or isinstance(options, kind.training):
                continue
            for name, value in asdict(options).items():
                if value != getattr(type(options)(), name):
                    raise InputError(
                        name,
                        f"is {value}; expected only with sparsifier {names_with(type(options))}.",
                    )
        return kind().with_options(self.training)


def value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of `option` on a command line, or None if it is not there.

    It is needed before the command line is parsed, for an option that decides others' defaults.
    """
    for i, arg in enumerate(args):
        name, joined, value = arg.partition("=")
        if name == option:
            return value if joined else next(iter(args[i + 1 :]), None)
    return None


def preset_in(args: Sequence[str]) -> TrainConfig:
    """The preset that a command line names, or the default one, with every sparsifier's options."""
    return with_every_option(PRESETS.get(value_of("--preset", args) or "small", PRESETS["small"]))


def with_every_option(settings: TrainConfig) -> TrainConfig:
    """`settings` with the options of every sparsifier's training, for the command line to list."""
    from vit_clt.transcoder.sparsifiers import every_option

    return replace(settings, sparsity=every_option(settings.sparsity))
