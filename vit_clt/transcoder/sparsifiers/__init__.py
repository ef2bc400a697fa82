"""The sparsifiers, pre-activations a -> codes z: one file and one line of this registry each.

`base` says what a sparsifier has to say about itself; `topk` is what the top-k ones share.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

from vit_clt.errors import InputError
from vit_clt.transcoder.sparsifier_options import JumpReLUTraining, TopKTraining, listed
from vit_clt.transcoder.sparsifiers.abs_topk import AbsTopK
from vit_clt.transcoder.sparsifiers.base import Sparsifier
from vit_clt.transcoder.sparsifiers.batch_topk import BatchTopK
from vit_clt.transcoder.sparsifiers.jumprelu import JumpReLU
from vit_clt.transcoder.sparsifiers.relu_topk import ReLUTopK
from vit_clt.transcoder.train_config import SparsifierSettings

__all__ = [
    "SPARSIFIERS",
    "AbsTopK",
    "BatchTopK",
    "JumpReLU",
    "JumpReLUTraining",
    "ReLUTopK",
    "Sparsifier",
    "TopKTraining",
    "sparsifier_with",
]

_KINDS: tuple[type[Sparsifier[Any]], ...] = (JumpReLU, ReLUTopK, AbsTopK, BatchTopK)
SPARSIFIERS: dict[str, type[Sparsifier[Any]]] = {kind.name: kind for kind in _KINDS}
"""By the name that config.json and the command line know them by."""


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
            owners = listed(k.name for k in _KINDS if hasattr(k.settings, field.name))
            raise InputError(field.name, f"is {value}; expected only with sparsifier {owners}.")
    chosen = {setting: v for setting, v in asdict(settings).items() if setting in own}
    return replace(kind.for_l0(l0), **chosen)
