"""Cross-layer transcoders for Vision Transformers: train, attach, take apart."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_clt.codes import DenseCodes, SparseCodes
    from vit_clt.config import CLTConfig
    from vit_clt.data import ImageData, load_data
    from vit_clt.errors import InputError
    from vit_clt.sparsifiers import AbsTopK, JumpReLU, ReLUTopK
    from vit_clt.training import TrainConfig, train
    from vit_clt.transcoder import CrossLayerTranscoder
    from vit_clt.zero_shot import ZeroShot

__version__ = "0.1.0"

# resolved on first use, so that `vit-clt --help` does not wait for torch
_HOME = {
    "AbsTopK": "sparsifiers",
    "CLTConfig": "config",
    "CrossLayerTranscoder": "transcoder",
    "DenseCodes": "codes",
    "ImageData": "data",
    "InputError": "errors",
    "JumpReLU": "sparsifiers",
    "ReLUTopK": "sparsifiers",
    "SparseCodes": "codes",
    "TrainConfig": "training",
    "ZeroShot": "zero_shot",
    "load_data": "data",
    "train": "training",
}
__all__ = [
    "AbsTopK",
    "CLTConfig",
    "CrossLayerTranscoder",
    "DenseCodes",
    "ImageData",
    "InputError",
    "JumpReLU",
    "ReLUTopK",
    "SparseCodes",
    "TrainConfig",
    "ZeroShot",
    "load_data",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vit_clt' has no attribute '{name}'")
    return getattr(import_module(f"vit_clt.{_HOME[name]}"), name)
