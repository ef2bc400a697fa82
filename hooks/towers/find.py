"""The family of a model that is already loaded."""

from __future__ import annotations

from torch import nn

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.base import Tower


def tower_of(
    model: nn.Module, recorder: Recorder, image_size: int | tuple[int, int] | None = None
) -> Tower:
    """The model as a `Tower` of its family; wrappers of torch.compile and DDP are taken off.

    Args:
        model: a CLIP or CoCa of open_clip, its vision tower, a timm ViT, or one of transformers.
        recorder: of the clean passes of the model.
        image_size: of images in pixels, for a model of transformers that takes several sizes.

    Raises:
        InputError: a model of no family here, with the name of what does not fit.
    """
    model = _unwrapped(model)
    if type(model).__module__.startswith("transformers."):
        from vit_clt.hooks.towers.find_transformers import transformers_tower

        return transformers_tower(model, recorder, image_size)
    if image_size is not None:
        raise InputError(
            "image_size",
            f"is {image_size}; expected none, as only models of transformers take several sizes.",
        )
    visual = _unwrapped(getattr(model, "visual", model))
    # what open_clip's TimmModel is built around
    trunk = _unwrapped(getattr(visual, "trunk", visual))
    # a family is imported only where its library made the model
    library, name = type(trunk).__module__.partition(".")[0], type(trunk).__name__
    if library == "open_clip" and name == "VisionTransformer":
        from vit_clt.hooks.towers.open_clip_vit import OpenClipTower

        return OpenClipTower(model, visual, recorder)
    if library == "timm" and name in ("VisionTransformer", "VisionTransformerDistilled"):
        from vit_clt.hooks.towers.timm_vit import TimmViTTower

        return TimmViTTower(model, visual, trunk, recorder)
    if library == "timm" and name == "Eva":
        from vit_clt.hooks.towers.timm_eva import TimmEvaTower

        return TimmEvaTower(model, visual, trunk, recorder)
    if library == "timm" and name in ("VisionTransformerRelPos", "Beit"):
        from vit_clt.hooks.towers import timm_relpos

        family = timm_relpos.TimmBeitTower if name == "Beit" else timm_relpos.TimmRelPosTower
        return family(model, visual, trunk, recorder)
    raise InputError(
        "model",
        f"has a vision tower of class {name}; expected a plain ViT of open_clip, "
        "timm or transformers (docs/models.md lists them).",
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        # of a module itself: torch.compile's passes other attributes on to what it wraps
        inner = [model._modules[name] for name in ("_orig_mod", "module") if name in model._modules]
        if not inner or inner[0] is None:
            return model
        model = inner[0]
