"""The model: what a CLT is, how it sparsifies, and how it is saved.

`CLTConfig` says its shape, `CrossLayerTranscoder` encodes and decodes (`model`), and a sparsifier
(`ReLUTopK`, `AbsTopK`, `JumpReLU`, `BatchTopK`) makes pre-activations sparse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.transcoder.checkpoints import PretrainedCLT as PretrainedCLT
    from vit_clt.transcoder.config import CLTConfig as CLTConfig
    from vit_clt.transcoder.config import TeacherIdentity as TeacherIdentity
    from vit_clt.transcoder.model import CrossLayerTranscoder as CrossLayerTranscoder
    from vit_clt.transcoder.model_card import model_card as model_card
    from vit_clt.transcoder.sparsifiers import AbsTopK as AbsTopK
    from vit_clt.transcoder.sparsifiers import BatchTopK as BatchTopK
    from vit_clt.transcoder.sparsifiers import JumpReLU as JumpReLU
    from vit_clt.transcoder.sparsifiers import JumpReLUTraining as JumpReLUTraining
    from vit_clt.transcoder.sparsifiers import ReLUTopK as ReLUTopK
    from vit_clt.transcoder.sparsifiers import TopKTraining as TopKTraining
    from vit_clt.transcoder.train_config import TrainConfig as TrainConfig

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoints": ["PretrainedCLT"],
        "config": ["CLTConfig", "TeacherIdentity"],
        "model": ["CrossLayerTranscoder"],
        "model_card": ["model_card"],
        "sparsifiers": [
            "AbsTopK",
            "BatchTopK",
            "JumpReLU",
            "ReLUTopK",
            "JumpReLUTraining",
            "TopKTraining",
        ],
        "train_config": ["TrainConfig"],
    },
)
