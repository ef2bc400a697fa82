"""A small CLIP that learns classes of 18 templates, for the scripts that train shipped models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from vit_clt import ZeroShot, load_data
from vit_clt.analysis.fit.cascade_study import mean_mlp_outputs
from vit_clt.data.prompts import CIFAR_TEMPLATES, TEMPLATE_SETS
from vit_clt.hooks import HookedViT
from vit_clt.hooks.interventions import overwrite_mlp_hooks

CONTEXT = 16


def describe(image_size: int, patch_size: int) -> dict[str, Any]:
    """open_clip's description of it: 8 vision layers of width 64, a text tower of width 16."""
    return {
        "model_cfg": {
            "embed_dim": 64,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": image_size,
                "layers": 8,
                "width": 64,
                "head_width": 16,
                "patch_size": patch_size,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": 49408,
                "width": 16,
                "heads": 1,
                "layers": 1,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def tokens(class_names: Sequence[str]) -> torch.Tensor:
    """The class names in every template: "template class context"."""
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    return torch.stack([tokenizer([t.format(c) for c in class_names]) for t in CIFAR_TEMPLATES])


def as_pixels(images: torch.Tensor) -> torch.Tensor:
    """Grey levels 0 to 255, "image row column", to normalised "image 3 row column"."""
    return ((images.float() / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def class_loss(
    model: open_clip.CLIP, images: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of image embeddings against the texts "class context" of one template."""
    embeddings = F.normalize(model.encode_image(images), dim=-1)
    classes = F.normalize(model.encode_text(texts), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100)
    return F.cross_entropy(scale * embeddings @ classes.T, labels, label_smoothing=0.02)


@torch.no_grad()
def accuracy(
    model: open_clip.CLIP, images: np.ndarray, labels: np.ndarray, texts: torch.Tensor
) -> float:
    """Top-1 against the mean of the templates' text embeddings."""
    model.eval()
    classes = F.normalize(
        torch.stack([F.normalize(model.encode_text(t), dim=-1) for t in texts]).mean(0), dim=-1
    )
    batches = as_pixels(torch.from_numpy(images)).split(500)
    embeddings = torch.cat([F.normalize(model.encode_image(batch), dim=-1) for batch in batches])
    model.train()
    return float((embeddings @ classes.T).argmax(1).eq(torch.from_numpy(labels)).float().mean())


def export(model: open_clip.CLIP, description: dict[str, Any], out: Path) -> None:
    """Write open_clip's `local-dir:` form, weights in fp16."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: t.half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps(description, indent=1) + "\n")


@torch.no_grad()
def report(out: Path, form: str) -> None:
    """Print what the exported model does on the held-out images, and with its MLPs at their mean.

    Top-1 in % and mean cross-entropy in nats; the floor has every MLP output row of every layer at
    its mean over the same images.
    """
    vit = HookedViT.from_open_clip(f"local-dir:{out}")
    data = load_data(form, vit=vit, split="test")
    means = mean_mlp_outputs(vit, data, progress=True)
    floor = overwrite_mlp_hooks(range(len(means)), "all", dict(enumerate(means)))
    print(f"{data.name}, N = {len(data)}")
    for templates in TEMPLATE_SETS:
        zs = ZeroShot(vit, data.class_names, templates)
        for label, hooks in (("unaltered", []), ("floor", floor)):
            embeddings, labels = zip(
                *((vit.run_with_hooks(x, fwd_hooks=hooks), y) for x, y in data), strict=True
            )
            found = zs.read(torch.cat(embeddings), torch.cat(labels))
            top1, loss = 100 * found.correct.float().mean(), found.loss.mean()
            print(f"{templates:8} {label:9} {top1:6.2f} % {loss:7.4f} nats")
