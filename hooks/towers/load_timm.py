"""Loads a timm ViT by name, once its shape is known to be one of a family here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.find import tower_of
from vit_clt.hooks.towers.names import TIMM
from vit_clt.inputs import reading
from vit_clt.tensor_files import check_finite


def load_timm(
    name: str, pretrained: str | None, image_size: int | tuple[int, int] | None = None
) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A timm model in fp32 and its preprocessing of images.

    Args:
        name: timm's name of the architecture ("vit_small_patch14_reg4_dinov2").
        pretrained: a tag of timm ("lvd142m"), which may be downloaded, or a weights file; None
            leaves random weights.
        image_size: of images in pixels, where it is not the model's; timm interpolates positions.

    Raises:
        InputError: an unknown name or tag, an architecture that does not fit (before anything is
            downloaded), or weights that are missing, unreadable or of another model.
    """
    sizes: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    what = f'"{TIMM}{name}" with the weights "{pretrained}"'
    if not timm.is_model(name):
        raise InputError("model", f'is "{TIMM}{name}"; expected a name of timm.list_models().')
    expected = "a ViT of timm, one of its tags, or a file of its weights"
    with reading(what, expected, problem="cannot be loaded", field="model"):
        with torch.device("meta"):
            tower_of(timm.create_model(name, **sizes), Recorder())
        model: Any
        if pretrained is None:
            model = timm.create_model(name, **sizes)
        elif Path(pretrained).is_file():
            model = timm.create_model(name, **sizes)
            # strict: no parameter stays random
            timm.models.load_checkpoint(model, pretrained, weights_only=True)
        else:
            model = timm.create_model(f"{name}.{pretrained}", pretrained=True, **sizes)
        if pretrained is not None:
            check_finite(what, model.state_dict())
        config = timm.data.resolve_model_data_config(model)
        config["input_size"] = (3, *model.patch_embed.img_size)
        steps = timm.data.create_transform(**config, is_training=False).transforms
        return model, Compose([ToRGB(), *steps])


class ToRGB:
    """Makes grey images and images with transparency RGB, as timm's own readers do."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image in RGB."""
        return image.convert("RGB")

    def __repr__(self) -> str:
        return "ToRGB()"
