"""The sparsifiers, pre-activations a -> codes z: one file and one line of this registry each.

`base` says what a sparsifier has to say about itself; `topk` is what the top-k ones share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, make_dataclass, replace
from typing import Any

from vit_clt.errors import InputError
from vit_clt.transcoder.sparsifiers.abs_topk import AbsTopK
from vit_clt.transcoder.sparsifiers.base import Sparsifier
from vit_clt.transcoder.sparsifiers.batch_topk import BatchTopK
from vit_clt.transcoder.sparsifiers.jumprelu import JumpReLU, JumpReLUTraining
from vit_clt.transcoder.sparsifiers.relu_topk import ReLUTopK
from vit_clt.transcoder.sparsifiers.topk import TopKTraining
from vit_clt.transcoder.train_config import SparsifierSettings, SparsifierTraining

__all__ = [
    "SPARSIFIERS",
    "AbsTopK",
    "BatchTopK",
    "JumpReLU",
    "JumpReLUTraining",
    "ReLUTopK",
    "Sparsifier",
    "TopKTraining",
    "every_option",
    "every_setting",
    "names_with",
    "sparsifier_with",
]

_KINDS: tuple[type[Sparsifier[Any]], ...] = (JumpReLU, ReLUTopK, AbsTopK, BatchTopK)
SPARSIFIERS: dict[str, type[Sparsifier[Any]]] = {kind.name: kind for kind in _KINDS}
"""By the name that config.json and the command line know them by."""


def every_option(given: SparsifierTraining) -> SparsifierTraining:
    """The options of every sparsifier's training: those given, the others at their defaults.

    A dataclass with a field for each kind of options; `options_of` takes out those of one.
    """
    kinds = {kind.training.__name__: kind.training for kind in _KINDS}
    every = make_dataclass("EveryOption", kinds.items(), bases=(SparsifierTraining,), frozen=True)
    found: SparsifierTraining = every(
        *(given.options_of(kind) or kind() for kind in kinds.values())
    )
    return found


def every_setting() -> type[SparsifierSettings]:
    """A dataclass of the settings of every sparsifier, at their defaults."""
    kinds = tuple(dict.fromkeys(kind.settings for kind in _KINDS if fields(kind.settings)))
    return make_dataclass("EverySetting", [], bases=kinds, frozen=True)


def sparsifier_with(name: str, l0: int, settings: SparsifierSettings) -> Sparsifier[Any]:
    """The sparsifier of this name for `l0`, with its own of these settings.

    Raises:
        InputError: a setting of another sparsifier is not at its default, or a value is refused.
    """
    kind = SPARSIFIERS[name]
    own = {field.name for field in fields(kind.settings)}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name not in own and value != field.default:
            owners = _listed(k for k in _KINDS if hasattr(k.settings, field.name))
            raise InputError(field.name, f"is {value}; expected only with sparsifier {owners}.")
    chosen = {setting: v for setting, v in asdict(settings).items() if setting in own}
    return replace(kind.for_l0(l0), **chosen)


def names_with(options: type[SparsifierTraining]) -> str:
    """The sparsifiers that are trained with these options, as part of a sentence."""
    return _listed(kind for kind in _KINDS if kind.training is options)


def _listed(kinds: Iterable[type[Sparsifier[Any]]]) -> str:
    *most, last = [kind.name for kind in kinds]
    return f"{', '.join(most)} or {last}" if most else last
