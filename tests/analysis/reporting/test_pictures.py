"""Pictures of preprocessed images, whichever library preprocessed them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import one_sentence
from builders import tiny_clip, tiny_transformers
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor
from transformers import CLIPImageProcessor

from vit_clt import InputError
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.hooks import HookedViT
from vit_clt.hooks.towers.transformers_inputs import Preprocessing

SHOWN = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("library", ["torchvision", "transformers", "transformers, as is"])
def test_normalisation_is_undone(library: str) -> None:
    mean, std = (0.2, 0.4, 0.6), (0.1, 0.3, 0.5)
    if library == "torchvision":
        vit = HookedViT(tiny_clip(), preprocess=Compose([ToTensor(), Normalize(mean, std)]))
    else:
        processor = CLIPImageProcessor(
            size={"height": 16, "width": 16},
            do_center_crop=False,
            do_normalize=library == "transformers",
            image_mean=list(mean),
            image_std=list(std),
        )
        vit = HookedViT(tiny_clip(), preprocess=Preprocessing(processor))
    assert vit.preprocess is not None
    prepared = vit.preprocess(Image.fromarray(SHOWN))
    assert abs(pixels(vit, prepared[None])[0].astype(int) - SHOWN).max() <= 1


def test_a_folder_of_transformers_gives_pictures(tmp_path: Path) -> None:
    """As `hf:PATH` loads it, which a study of nearest images does."""
    tiny_transformers("ViTModel").save_pretrained(tmp_path)
    CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(
        tmp_path
    )
    vit = HookedViT.load(f"hf:{tmp_path}")
    assert vit.preprocess is not None
    found = pixels(vit, vit.preprocess(Image.fromarray(SHOWN))[None])
    assert abs(found[0].astype(int) - SHOWN).max() <= 1


def test_a_model_without_preprocessing_is_refused() -> None:
    with pytest.raises(InputError) as error:
        pixels(HookedViT(tiny_clip()), torch.zeros(1, 3, 16, 16))
    assert "no preprocessing with a Normalize step" in one_sentence(error)
