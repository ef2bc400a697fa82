"""Train the shipped adding CLIP from scratch and write it in open_clip's `local-dir:` form.

    python scripts/train_adding_clip.py --out vit_clt/teachers/adding --checkpoint adding.pt

A small CLIP (vision tower: 8 layers, width 64, patch 4 on 16x16 images) learns the last digit of
the sum of two of scikit-learn's handwritten digits, on pairs of the 1,437 training digits drawn
afresh at every step; one of the 18 CIFAR templates is drawn per batch. Muon takes the blocks'
matrices, AdamW the rest. Started again with the same --checkpoint it goes on where it was.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from small_clip import accuracy, as_pixels, class_loss, describe, export, report, tokens

from vit_clt.data.digits import ADDING_CLASSES, SIDE, adding_arrays, digits_arrays, side_by_side
from vit_clt.outputs.staging import staged_file
from vit_clt.progress import Progress

BATCH = 128
WARM_UP = 200
EVEN_FROM = 600
"""The step from which all digits are drawn alike; small ones come more often before."""
CHECKPOINT_EVERY = 100


def augment(digits: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """One small random rotation, scale, shear, shift and contrast per digit "digit 8 8"."""
    n = len(digits)
    spread = torch.rand(n, 6, generator=draw) * 2 - 1
    angle = spread[:, 0] * math.radians(12)
    scale = 1 + 0.1 * spread[:, 1]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    shear, shift = 0.1 * spread[:, 2], 0.2 * spread[:, 3:5]
    warp = torch.stack(
        [cos, shear * cos - sin, shift[:, 0], sin, shear * sin + cos, shift[:, 1]], dim=1
    )
    grid = F.affine_grid(warp.view(n, 2, 3), [n, 1, 8, 8], align_corners=False)
    warped = F.grid_sample(digits[:, None], grid, align_corners=False)[:, 0]
    return (warped * (1 + 0.2 * spread[:, 5, None, None])).clamp(0, 255)


class Pairs:
    """Pairs of the training digits, drawn afresh for every step."""

    def __init__(self, seed: int):
        pixels, values = digits_arrays("train")
        self.digits, self.values = torch.from_numpy(pixels).float(), torch.from_numpy(values)
        self.seed = seed

    def batch(self, step: int, slope: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Images "image 3 16 16" and labels; a step's number decides what it draws.

        A digit of value v is drawn in proportion to exp(-slope v). With a slope of 0 either digit
        alone says nothing about the label, and training would first have to find both at once.
        """
        draw = torch.Generator().manual_seed(self.seed * 1_000_000 + step)
        weights = (-slope * self.values).exp()
        chosen = weights.multinomial(2 * BATCH, True, generator=draw).view(BATCH, 2)
        tops = torch.randint(SIDE // 2 + 1, (BATCH, 2), generator=draw)
        digits = augment(self.digits[chosen].flatten(0, 1), draw).unflatten(0, (BATCH, 2))
        images = torch.from_numpy(side_by_side(digits.numpy(), tops.numpy()))
        images = images + 6 * torch.randn(images.shape, generator=draw)
        return as_pixels(images.clamp(0, 255)), self.values[chosen].sum(1) % 10


def optimisers(model: open_clip.CLIP, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the vision blocks, AdamW for everything else."""
    blocks = model.visual.transformer.parameters()
    matrices = {id(p): p for p in blocks if p.ndim == 2}
    others = [p for p in model.parameters() if id(p) not in matrices]
    return [
        torch.optim.Muon(list(matrices.values()), lr=muon_lr, weight_decay=0.05),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then linear decay to 0 from 40 % on."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (0.6 * steps))


def main() -> None:
    """Train, export, and print what the exported file does on held-out pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    description = describe(SIDE, patch_size=4)
    model = open_clip.CLIP(**description["model_cfg"])
    both = optimisers(model, args.lr, args.muon_lr)
    first = 0
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(both, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    texts = tokens(ADDING_CLASSES)
    pairs = Pairs(args.seed)
    test = adding_arrays("test")
    bar = Progress(range(first, args.steps), unit="step", initial=first, total=args.steps)
    for step in bar:
        for optimiser, peak in zip(both, (args.muon_lr, args.lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate(step, args.steps)
        images, labels = pairs.batch(step, slope=max(0.0, 1 - step / EVEN_FROM))
        loss = class_loss(model, images, labels, texts[step % len(texts)])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
        if (step + 1) % CHECKPOINT_EVERY == 0:
            top1 = accuracy(model, test.images[:1000], test.labels[:1000], texts)
            bar.set_postfix(loss=f"{loss.item():.3f}", test=f"{top1:.4f}")
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in both],
            }
            with staged_file(args.checkpoint) as beside:
                torch.save(state, beside)

    export(model, description, args.out)
    report(args.out, "adding")


if __name__ == "__main__":
    main()
