"""Train the shipped digits CLIP from scratch and write it in open_clip's `local-dir:` form.

    python scripts/train_digits_clip.py --out vit_clt/teachers/digits

A small CLIP (vision tower: 8 layers, width 64, patch 2 on 8x8 images) learns scikit-learn's digits
on the 1,437 training images alone: cross-entropy of image embeddings against the ten class texts,
one of the 18 CIFAR templates drawn per batch, so that single-template and ensemble prompts both
work. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import open_clip
import torch
from small_clip import accuracy, as_pixels, class_loss, describe, export, report, tokens
from torchvision.transforms import v2

from vit_clt.data.digits import DIGITS_CLASSES, digits_arrays
from vit_clt.progress import Progress


def augment(images: torch.Tensor) -> torch.Tensor:
    """One random small rotation, shift, scale and contrast per image."""
    warp = v2.RandomAffine(degrees=12, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=6, fill=-1.0)
    warped = torch.stack([warp(image) for image in images])
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1)
    return ((warped + 1) * contrast - 1 + 0.05 * torch.randn_like(warped)).clamp(-1, 1)


def main() -> None:
    """Train, export, and print the held-out accuracy of the exported file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    description = describe(8, patch_size=2)
    model = open_clip.CLIP(**description["model_cfg"])
    texts = tokens(DIGITS_CLASSES)
    test = digits_arrays("test")
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
    for step in (bar := Progress(range(args.steps), unit="step")):
        rows = torch.randint(len(labels), (256,))
        loss = class_loss(model, augment(pixels[rows]), labels[rows], texts[step % len(texts)])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 250 == 249:
            bar.set_postfix(loss=f"{loss.item():.3f}", test=f"{accuracy(model, *test, texts):.4f}")

    export(model, description, args.out)
    report(args.out, "digits")


if __name__ == "__main__":
    main()
