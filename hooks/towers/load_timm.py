"""Loads a timm ViT by name, once its shape is known to be one of a family here."""

from __future__ import annotations

import sys
import warnings
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
from vit_clt.hooks.towers.names import TIMM, random_seed
from vit_clt.hooks.towers.weights import WeightsFile, fill, read_weights, told
from vit_clt.inputs import expanded, reading
from vit_clt.seeding import seeded_globally
from vit_clt.tensor_files import check_finite

_TRAINING_ONLY = ("head.", "head_dist.", "mask_token", "decoder")
"""How tensors begin that training needs and an embedding does not."""


def load_timm(
    name: str, pretrained: str | None, image_size: int | tuple[int, int] | None = None
) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A timm model in fp32 and its preprocessing of images.

    Args:
        name: timm's name of the architecture ("vit_small_patch14_reg4_dinov2").
        pretrained: a tag of timm ("lvd142m"), which may be downloaded, or weights on disk
            (docs/weights.md), whose classifier the model then has, or "random:SEED", or none; None
            leaves random weights of no seed.
        image_size: of images in pixels, where it is not the model's; timm interpolates positions.

    Warns:
        UserWarning: weights of a file were renamed or left out.

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
        seed = random_seed(pretrained)
        if seed is not None:
            with seeded_globally(seed):
                model = timm.create_model(name, **sizes)
        elif pretrained is None:
            model = timm.create_model(name, **sizes)
        elif Path(expanded(pretrained)).exists():
            model = timm.create_model(name, **sizes)
            _fill_from(model, read_weights(expanded(pretrained)))
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


def _fill_from(model: Any, file: WeightsFile) -> None:
    weights = file.named_as(model.state_dict().keys())
    tensors = weights.tensors
    head = tensors.get("head.weight")
    n_classes = 0 if head is None else len(head)
    if n_classes != model.num_classes:
        model.reset_classifier(n_classes)
    if model.state_dict().keys() - tensors.keys():
        # names of the authors, as timm converts them in the file of the family
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        tensors = tensors if convert is None else dict(convert(tensors, model))
    left_out = fill(model, tensors, file.path, lambda name: name.startswith(_TRAINING_ONLY))
    parts = told(weights, left_out)
    if head is None:
        parts.append("the model has no classifier, as the file has none")
    if parts:
        warnings.warn(f"{file.path.name}: {'; '.join(parts)}.", stacklevel=2)
