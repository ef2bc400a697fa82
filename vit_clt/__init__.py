"""Cross-layer transcoders for Vision Transformers: train, attach, take apart."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.data.forms import load_data as load_data
    from vit_clt.data.images import ImageData as ImageData
    from vit_clt.errors import InputError as InputError
    from vit_clt.kernels.codes import DenseCodes as DenseCodes
    from vit_clt.kernels.codes import SparseCodes as SparseCodes
    from vit_clt.readouts.base import Classifier as Classifier
    from vit_clt.readouts.head import HeadClassifier as HeadClassifier
    from vit_clt.readouts.linear import LinearClassifier as LinearClassifier
    from vit_clt.readouts.zero_shot import ZeroShot as ZeroShot
    from vit_clt.training.trainer import train as train
    from vit_clt.transcoder.config import CLTConfig as CLTConfig
    from vit_clt.transcoder.model import CrossLayerTranscoder as CrossLayerTranscoder
    from vit_clt.transcoder.sparsifiers import AbsTopK as AbsTopK
    from vit_clt.transcoder.sparsifiers import BatchTopK as BatchTopK
    from vit_clt.transcoder.sparsifiers import JumpReLU as JumpReLU
    from vit_clt.transcoder.sparsifiers import JumpReLUTraining as JumpReLUTraining
    from vit_clt.transcoder.sparsifiers import ReLUTopK as ReLUTopK
    from vit_clt.transcoder.sparsifiers import TopKTraining as TopKTraining
    from vit_clt.transcoder.train_config import TrainConfig as TrainConfig

__version__ = "0.2.0"

if "ipykernel" in sys.modules:
    # libraries below draw their bars with tqdm.auto, which is plain text without ipywidgets; it
    # warns of that on its first import, above the first cell of every notebook
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        import tqdm.auto  # noqa: F401

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data.forms": ["load_data"],
        "data.images": ["ImageData"],
        "errors": ["InputError"],
        "kernels.codes": ["DenseCodes", "SparseCodes"],
        "training.trainer": ["train"],
        "transcoder.config": ["CLTConfig"],
        "transcoder.model": ["CrossLayerTranscoder"],
        "transcoder.sparsifiers": [
            "AbsTopK",
            "BatchTopK",
            "JumpReLU",
            "ReLUTopK",
            "JumpReLUTraining",
            "TopKTraining",
        ],
        "transcoder.train_config": ["TrainConfig"],
        "readouts.base": ["Classifier"],
        "readouts.head": ["HeadClassifier"],
        "readouts.linear": ["LinearClassifier"],
        "readouts.zero_shot": ["ZeroShot"],
    },
)
