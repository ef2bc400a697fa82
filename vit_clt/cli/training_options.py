"""Options of every command that trains: the sparsifier, the width, and the training settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from vit_clt.choices import Preset, SparsifierName
from vit_clt.errors import InputError
from vit_clt.transcoder.sparsifier_options import (
    OPTIONS,
    every_option,
    every_setting,
    names_with,
)
from vit_clt.transcoder.train_config import (
    PRESETS,
    SparsifierSettings,
    SparsifierTraining,
    TrainConfig,
    preset,
)


@dataclass(kw_only=True)
class TrainingOptions:
    """Options of a command that trains."""

    preset: Preset = "small"
    """Hyperparameters to start from; options override them."""
    sparsifier: SparsifierName = "relu_topk"
    """Function that makes codes sparse."""
    n_features: int | None = None
    """Features per layer; default: 16 times the width."""
    sparsifier_settings: tyro.conf.OmitArgPrefixes[SparsifierSettings] = field(
        default_factory=SparsifierSettings
    )
    cache: Path | None = None
    """Folder of an activation store, built if it is missing; default: recompute activations."""
    training: tyro.conf.OmitArgPrefixes[TrainConfig] = field(
        default_factory=lambda: PRESETS["small"]
    )

    def as_json(self, *left_out: str) -> dict[str, Any]:
        """All options of the command by name, as JSON values, but those left out."""
        options: dict[str, Any] = {}
        for name, value in asdict(self).items():
            # fields of the sparsifier stand among the others, as on the command line
            options |= value if name == "sparsifier_settings" else {name: value}
        plain: dict[str, Any] = json.loads(json.dumps(options, default=str))
        return {name: value for name, value in plain.items() if name not in left_out}

    def sparsifier_training(self) -> TrainConfig:
        """`training` with the options of the chosen sparsifier, and of no other.

        Raises:
            InputError: an option of another sparsifier is set.
        """
        sparsity, kind = self.training.sparsity, OPTIONS[self.sparsifier].training
        for part in fields(sparsity):
            options = getattr(sparsity, part.name)
            if not isinstance(options, SparsifierTraining) or isinstance(options, kind):
                continue
            for name, value in asdict(options).items():
                if value != getattr(type(options)(), name):
                    raise InputError(
                        name,
                        f"is {value}; expected only with sparsifier {names_with(type(options))}.",
                    )
        found = sparsity.options_of(kind)
        assert found is not None, "options of every sparsifier are held"
        return replace(self.training, sparsity=found)


def value_of(option: str, args: Sequence[str]) -> str | None:
    """The value of `option` on a command line, or None if it is not there.

    It is needed before the command line is parsed, for an option that decides others' defaults.
    """
    for i, arg in enumerate(args):
        name, joined, value = arg.partition("=")
        if name == option:
            return value if joined else next(iter(args[i + 1 :]), None)
    return None


def starting_options(args: Sequence[str]) -> dict[str, Any]:
    """Defaults of `TrainingOptions` with the options of every sparsifier, for a command line."""
    return {"training": preset_in(args), "sparsifier_settings": every_setting()()}


def options_in(
    path: Path, command: type[TrainingOptions], left_out: Sequence[str]
) -> dict[str, Any]:
    """The options of a training run, by name, from its run.json.

    Args:
        path: the file.
        command: the command that they are options of, whose fields say their types.
        left_out: fields of it that a run.json does not have.

    Raises:
        InputError: the file is no run.json of a training run, or has an option that is unknown or
            of another type.
    """
    from vit_clt.inputs import read_json, reading
    from vit_clt.typed import fits, made

    with reading(path, "the run.json of a training run", field="config"):
        options: dict[str, Any] = dict(read_json(path)["options"])
        kind, settings = OPTIONS[options["sparsifier"]], every_setting()
        options["training"] = with_every_option(
            TrainConfig.from_json(options["training"], kind.training)
        )
        held = [setting.name for setting in fields(settings) if setting.name in options]
        given = {name: options.pop(name) for name in held}
        options["sparsifier_settings"] = made(settings, given)
        for name in ("cache", "class_names"):
            options[name] = None if options[name] is None else Path(options[name])
        hints = get_type_hints(command)
        for name, value in options.items():
            if name in left_out or name not in hints:
                raise ValueError(f'"{name[:50]}" is no option of a run')
            if not fits(value, hints[name]):
                raise ValueError(f"{name} is {str(value)[:50]}")
        return options


def preset_in(args: Sequence[str]) -> TrainConfig:
    """The preset that a command line names, or the default one, with every sparsifier's options.

    Its rate is that of the sparsifier that the command line names.
    """
    named = value_of("--preset", args)
    sparsifier = value_of("--sparsifier", args) or "relu_topk"
    return with_every_option(preset(named if named in PRESETS else "small", sparsifier))


def with_every_option(settings: TrainConfig) -> TrainConfig:
    """`settings` with the options of every sparsifier's training, for the command line to list."""
    return replace(settings, sparsity=every_option(settings.sparsity))
