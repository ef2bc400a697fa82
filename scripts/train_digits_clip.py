"""Train the shipped digits CLIP from scratch and write it in open_clip's `local-dir:` form.

    python scripts/train_digits_clip.py --out vit_clt/teachers/digits

A small CLIP (vision tower: 8 layers, width 64, patch 2 on 8x8 images) learns scikit-learn's digits
on the 1,437 training images alone: cross-entropy of image embeddings against the ten class texts,
one of the 18 CIFAR templates drawn per batch, so that single-template and ensemble prompts both
work. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torchvision.transforms import v2
from tqdm import tqdm

from vit_clt.digits import CLASS_NAMES, digits_arrays
from vit_clt.prompts import CIFAR_TEMPLATES

CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 8,
            "layers": 8,
            "width": 64,
            "head_width": 16,
            "patch_size": 2,
        },
        "text_cfg": {
            "context_length": 16,
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


def as_pixels(images: torch.Tensor) -> torch.Tensor:
    """Uint8 "image row column" to normalised "image 3 row column"."""
    return ((images.float() / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def augment(images: torch.Tensor) -> torch.Tensor:
    """One random small rotation, shift, scale and contrast per image."""
    warp = v2.RandomAffine(degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=6, fill=-1.0)
    warped = torch.stack([warp(image) for image in images])
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1)
    return ((warped + 1) * contrast - 1 + 0.05 * torch.randn_like(warped)).clamp(-1, 1)


@torch.no_grad()
def accuracy(model: torch.nn.Module, texts: torch.Tensor, split: str) -> float:
    """Top-1 on a split against the mean of the templates' text embeddings."""
    images, labels = digits_arrays(split)
    model.eval()
    classes = F.normalize(
        torch.stack([F.normalize(model.encode_text(t), dim=-1) for t in texts]).mean(0), dim=-1
    )
    embeddings = F.normalize(model.encode_image(as_pixels(torch.from_numpy(images))), dim=-1)
    model.train()
    return float((embeddings @ classes.T).argmax(1).eq(torch.from_numpy(labels)).float().mean())


def main() -> None:
    """Train, export, and print the held-out accuracy of the exported file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    model = open_clip.CLIP(**CONFIG["model_cfg"])
    tokenizer = SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    texts = torch.stack([tokenizer([t.format(c) for c in CLASS_NAMES]) for t in CIFAR_TEMPLATES])
    pixels, labels = (torch.from_numpy(a) for a in digits_arrays("train"))
    pixels = as_pixels(pixels)

    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, args.steps, pct_start=0.1)
    for step in (bar := tqdm(range(args.steps), unit="step")):
        rows = torch.randint(len(labels), (256,))
        embeddings = F.normalize(model.encode_image(augment(pixels[rows])), dim=-1)
        classes = F.normalize(model.encode_text(texts[step % len(texts)]), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        loss = F.cross_entropy(scale * embeddings @ classes.T, labels[rows], label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 249:
            bar.set_postfix(loss=f"{loss.item():.3f}", test=f"{accuracy(model, texts, 'test'):.4f}")

    args.out.mkdir(parents=True, exist_ok=True)
    weights = {name: t.half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, args.out / "open_clip_model.safetensors")
    (args.out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    model.load_state_dict({name: t.float() for name, t in weights.items()})
    for split in ("train", "test"):
        print(f"{split} top-1 after export: {accuracy(model, texts, split):.4f}")


if __name__ == "__main__":
    main()
