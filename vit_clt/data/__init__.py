"""Labelled images, with the preprocessing of a ViT.

`load_data` loads digits, CIFAR, COCO, parquet files, image folders or a data set of the Hub, and
returns an `ImageData`, which gives batches of images and labels. `TensorImages` is an `ImageData`
of tensors. `keep_passes` keeps what a ViT makes of them for further studies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.data.forms import check_prepared as check_prepared
    from vit_clt.data.forms import load_data as load_data
    from vit_clt.data.images import DecodedImages as DecodedImages
    from vit_clt.data.images import ImageData as ImageData
    from vit_clt.data.images import ImageSubset as ImageSubset
    from vit_clt.data.images import TensorImages as TensorImages
    from vit_clt.data.images import UnreadableImage as UnreadableImage
    from vit_clt.data.images import as_image_data as as_image_data
    from vit_clt.data.kept_passes import keep_passes as keep_passes

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "forms": ["check_prepared", "load_data"],
        "images": [
            "DecodedImages",
            "ImageData",
            "ImageSubset",
            "TensorImages",
            "UnreadableImage",
            "as_image_data",
        ],
        "kept_passes": ["keep_passes"],
    },
)
