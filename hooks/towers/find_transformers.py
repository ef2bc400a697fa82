"""The family of a transformers model that is already loaded, and the classes that have one."""

from __future__ import annotations

from torch import nn

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.transformers_base import TransformersTower
from vit_clt.hooks.towers.transformers_clip import ClipTower, SiglipTower
from vit_clt.hooks.towers.transformers_dino import Dinov2Tower, Dinov3Tower
from vit_clt.hooks.towers.transformers_vit import ViTTower

TRUNKS: dict[str, type[TransformersTower]] = {
    "CLIPVisionModel": ClipTower,
    "SiglipVisionModel": SiglipTower,
    "ViTModel": ViTTower,
    "DeiTModel": ViTTower,
    "Dinov2Model": Dinov2Tower,
    "Dinov2WithRegistersModel": Dinov2Tower,
    "DINOv3ViTModel": Dinov3Tower,
}
"""The classes of vision transformers that fit, by name."""
WRAPPERS = {
    "CLIPModel": "vision_model",
    "CLIPVisionModelWithProjection": "vision_model",
    "CLIPForImageClassification": "vision_model",
    "SiglipModel": "vision_model",
    "SiglipForImageClassification": "vision_model",
    "ViTForImageClassification": "vit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
}
"""The classes of models around one of them, each with the name of that part."""


def transformers_tower(
    model: nn.Module, recorder: Recorder, image_size: int | tuple[int, int] | None = None
) -> TransformersTower:
    """The model as a `TransformersTower`.

    Args:
        model: an instance of one of the classes above.
        recorder: of the clean passes of the model.
        image_size: of images in pixels, where it is not the model's.

    Raises:
        InputError: a model of another class, with its name, and where in it a vision tower is that
            fits; or what the tower refuses.
    """
    name = type(model).__name__
    trunk = getattr(model, WRAPPERS[name]) if name in WRAPPERS else model
    if type(trunk).__name__ in TRUNKS:
        return TRUNKS[type(trunk).__name__](model, trunk, recorder, image_size)
    inside = (path for path, part in model.named_modules() if type(part).__name__ in TRUNKS)
    found = next(inside, None)
    raise InputError(
        "model",
        f"is a {name} of transformers; expected "
        + (f"its vision tower, model.{found}." if found else f"{known_classes()}."),
    )


def known_classes() -> str:
    """The classes that fit, in words."""
    return ", ".join([*TRUNKS, *WRAPPERS])
