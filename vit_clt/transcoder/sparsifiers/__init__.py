"""The sparsifiers, pre-activations a -> codes z: one file and one line of this registry each.

`base` says what a sparsifier has to say about itself; `topk` is what the top-k ones share.
"""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import Any

from vit_clt.transcoder.sparsifiers.abs_topk import AbsTopK
from vit_clt.transcoder.sparsifiers.base import Sparsifier
from vit_clt.transcoder.sparsifiers.batch_topk import BatchTopK
from vit_clt.transcoder.sparsifiers.jumprelu import JumpReLU, JumpReLUTraining
from vit_clt.transcoder.sparsifiers.relu_topk import ReLUTopK
from vit_clt.transcoder.sparsifiers.topk import TopKTraining
from vit_clt.transcoder.train_config import SparsifierTraining

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
    "names_with",
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


def names_with(options: type[SparsifierTraining]) -> str:
    """The sparsifiers that are trained with these options, as part of a sentence."""
    *most, last = [kind.name for kind in _KINDS if kind.training is options]
    return f"{', '.join(most)} or {last}" if most else last
