"""Small models every test can afford. Nothing here is downloaded."""

from __future__ import annotations

import copy
import io
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK
from vit_clt.data.digits import digits_arrays
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT

TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 12, "layers": 4, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
}
KINDS = ["relu_topk", "abs_topk", "jumprelu"]
"""The names of the sparsifiers."""
UNREADABLE_ROWS = (3, 150)
"""Of `digits_parquet`: these rows hold no image."""


def tiny_clip(seed: int = 0, **vision: object) -> torch.nn.Module:
    """A random CLIP: 4 layers, width 16, 9 patches of 4x4 on 12x12 images."""
    config = copy.deepcopy(TINY)
    config["vision_cfg"].update(vision)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**config).eval()
        # random weights alone give MLP outputs near zero; make the blocks matter
        for name, parameter in clip.named_parameters():
            if "visual" in name and parameter.ndim >= 2:
                parameter.data.mul_(2.0)
            elif "visual" in name and name.endswith("bias"):
                parameter.data.normal_(std=0.1)
    return clip


TINY_TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
"""The size of tiny timm models: 3 layers, width 16, 16 patches of 4x4 on 16x16 images."""


def tiny_timm(name: str, seed: int = 0, **options: object) -> torch.nn.Module:
    """A random and frozen timm model of this architecture, small, with every part of it at work."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, **{**TINY_TIMM, "num_classes": 5, **options}).eval()
        return _stirred(model)


def tiny_timm_clip(name: str, pool: str, proj: str | None) -> torch.nn.Module:
    """A random and frozen CLIP of open_clip whose vision tower is a small timm model."""
    import timm

    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 16}
    small = partial(timm.create_model, **TINY_TIMM)
    with torch.random.fork_rng(), patch.object(timm, "create_model", small):
        torch.manual_seed(0)
        clip = open_clip.CustomTextCLIP(
            16, vision, {**TINY["text_cfg"], "width": 16}, init_logit_bias=-10.0
        )
    _stirred(clip.visual)
    return clip.eval().requires_grad_(False)


def tiny_transformers(name: str, seed: int = 0, **options: object) -> torch.nn.Module:
    """A random and frozen transformers model of this class, of the size of the timm ones.

    Options are those of the vision tower.
    """
    import transformers

    kind = getattr(transformers, name)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**sizes, "num_hidden_layers": 3, "image_size": 16, "patch_size": 4, **options}
    text = {**sizes, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 8}
    text |= {"projection_size": 16, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
    if "vision_config" in kind.config_class.sub_configs:
        vision = {"vision_config": vision, "text_config": text, "projection_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _stirred(kind(kind.config_class(**vision, num_labels=5)).eval())


def _stirred(model: torch.nn.Module) -> torch.nn.Module:
    """The model, frozen, with noise on every parameter: none is left at 0 or 1."""
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.1))
    return model


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_clt(
    vit: HookedViT, sparsifier: object = None, n_features: int = 24, seed: int = 0
) -> CrossLayerTranscoder:
    """An untrained CLT with biases, so that no term of the equations vanishes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clt = CrossLayerTranscoder(
            CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, n_features, sparsifier or ReLUTopK(k=5))
        )
        for bias in (clt.b_enc, clt.b_dec):
            bias.data.normal_(std=0.3)
    return clt.eval().requires_grad_(False)


def noisy_clt(
    config: CLTConfig, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any
) -> CrossLayerTranscoder:
    """A CLT without a ViT, whose every parameter is noise of a seed of its own.

    Thresholds are the exponential of half that noise minus 0.5, so that pre-activations of unit
    size lie on both sides of them.

    Args:
        config: its configuration.
        seed: CLTs of different seeds share no number with each other, nor with inputs of `noise`.
        dtype: of its parameters.
        options: of `CrossLayerTranscoder`, as `backend`.
    """
    clt = CrossLayerTranscoder(config, **options).to(dtype)
    for i, parameter in enumerate(clt.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=1000 * (seed + 1) + i))
    if clt.log_theta is not None:
        clt.log_theta.data.mul_(0.5).sub_(0.5)
    return clt


def noisy_clt_of(
    kind: str = "relu_topk",
    L: int = 3,
    d: int = 4,
    F: int = 8,
    k: int = 3,
    bandwidth: float = 1.0,
    seed: int = 0,
    backend: str = "sparse",
    cross_layer: bool = True,
) -> CrossLayerTranscoder:
    """`noisy_clt` in float64 from single numbers, as property tests draw them."""
    sparsifier = {
        "relu_topk": ReLUTopK(k=k),
        "abs_topk": AbsTopK(k=k),
        "jumprelu": JumpReLU(bandwidth=bandwidth),
    }[kind]
    config = CLTConfig(L, d, F, sparsifier, cross_layer=cross_layer)
    return noisy_clt(config, seed, backend=backend)


def noisy_digits(digits: ImageData, n: int, batch_size: int) -> TensorImages:
    """The first n of some digits with noise, which takes their teacher off its ceiling."""
    images, labels = digits.batch(range(n))
    images = images + 0.7 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    data = TensorImages(images, labels, digits.class_names, name="noisy digits")
    data.batch_size = batch_size
    return data


def digits_parquet(path: Path, invert: bool = False) -> None:
    """Write 200 handwritten digits as a parquet file, without the images of two rows."""
    images, _ = digits_arrays("train")
    rows = []
    for i, pixels in enumerate(images[:200]):
        file = io.BytesIO()
        Image.fromarray(255 - pixels if invert else pixels).save(file, "PNG")
        image = b"no image" if i in UNREADABLE_ROWS else file.getvalue()
        rows.append({"bytes": image, "path": None})
    pd.DataFrame({"image": rows}).to_parquet(path)
