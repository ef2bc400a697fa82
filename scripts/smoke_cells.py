"""Try that all 18 cells of the paper's evaluation run: `vit-clt reproduce --smoke`, offline.

    VIT_CLT_DATA=FOLDER python scripts/smoke_cells.py --out out/smoke_cells

Random ViT-B/32 and ViT-B/16 weights are saved in two formats that open_clip reads (safetensors, and
a .pt state dict) and go in through --weights, so they take the path of real ones. COCO is real
where $VIT_CLT_DATA/data/coco_tiny lies (official layout); CIFAR-100 and ImageNet-100 are a few
random pictures in their official formats and names. The numbers mean nothing; the script says how
long each cell took and fails if one of the 18 is missing. Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from vit_clt.analysis.reproduction.cells import (
    BACKBONES,
    DATASET_NAMES,
    SPARSIFIER_NAMES,
    cells,
    is_finished,
)
from vit_clt.data.imagenet100 import IMAGENET100
from vit_clt.data.prompts import CIFAR100_CLASSES
from vit_clt.outputs.staging import staged_file

N_IMAGES = 8
FORMATS = {"ViT-B/32": "safetensors", "ViT-B/16": "pt"}


def save_weights(folder: Path) -> dict[str, Path]:
    """Random weights by backbone: ViT-B/32 as safetensors, ViT-B/16 as a .pt state dict."""
    paths = {name: folder / f"{name.replace('/', '-')}.{end}" for name, end in FORMATS.items()}
    for seed, (backbone, path) in enumerate(paths.items()):
        if path.is_file():
            continue
        torch.manual_seed(seed)
        state = open_clip.create_model(BACKBONES[backbone]).state_dict()
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        with staged_file(path) as staging:
            if path.suffix == ".safetensors":
                save_file(state, staging)
            else:
                torch.save(state, staging)
    return paths


def picture(seed: int, size: int) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save_cifar100(folder: Path) -> str:
    """Parquet files as the Hub holds CIFAR-100, of random pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.replace(" ", "_") for name in CIFAR100_CLASSES]
    features = {
        "img": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=names),
        "coarse_label": datasets.ClassLabel(names=[f"superclass {i}" for i in range(20)]),
    }
    for split, start in (("train", 0), ("test", 1000)):
        seeds = range(start, start + N_IMAGES)
        rows = {
            "img": [picture(seed, 32) for seed in seeds],
            "fine_label": [seed % 100 for seed in seeds],
            "coarse_label": [seed % 20 for seed in seeds],
        }
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"cifar100:{folder} (random pictures in the official format)"


def save_imagenet100(folder: Path) -> str:
    """Folders named by WordNet id, of random pictures."""
    for split, start in (("train", 2000), ("validation", 3000)):
        for seed, wnid in zip(range(start, start + N_IMAGES), IMAGENET100, strict=False):
            path = folder / split / wnid / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed, 256).save(path)
    return f"imagenet100:{folder} (random pictures in folders named by WordNet id)"


def save_coco(folder: Path) -> str:
    """The official layout with random pictures, one box each, for want of real ones."""
    for split, start in (("train", 4000), ("val", 5000)):
        (folder / f"{split}2017").mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        seeds = range(start, start + N_IMAGES)
        document = {
            "images": [{"id": seed, "file_name": f"{seed:012d}.jpg"} for seed in seeds],
            "annotations": [
                {"image_id": seed, "category_id": 1 + seed % 80, "bbox": [0, 0, 9, 9]}
                for seed in seeds
            ],
            "categories": [{"id": i, "name": f"thing {i}"} for i in range(1, 81)],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
        for seed in seeds:
            picture(seed, 256).save(folder / f"{split}2017" / f"{seed:012d}.jpg")
    return f"coco:{folder} (random pictures in the official layout)"


def main() -> None:
    """Save weights and data, run every cell, say what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/smoke_cells"))
    for name, known in (
        ("datasets", DATASET_NAMES),
        ("backbones", BACKBONES),
        ("sparsifiers", SPARSIFIER_NAMES),
    ):
        parser.add_argument(f"--{name}", nargs="+", default=list(known), choices=list(known))
    args = parser.parse_args()
    inputs = args.out / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    weights = save_weights(inputs)
    root = os.environ.get("VIT_CLT_DATA")
    real = Path(root or "") / "data" / "coco_tiny"
    forms = {
        "cifar100": save_cifar100(inputs / "cifar100"),
        "imagenet100": save_imagenet100(inputs / "imagenet100"),
        "coco": f"coco:{real} (real images)"
        if root is not None and real.is_dir()
        else save_coco(inputs / "coco"),
    }
    for name in args.datasets:
        print(forms[name])
    study = args.out / "study"
    command = [sys.executable, "-m", "vit_clt", "reproduce", "--smoke", "--resume"]
    command += ["--out", str(study), "--datasets", *(forms[n].split(" ")[0] for n in args.datasets)]
    command += ["--weights", *(f"{name}={path}" for name, path in weights.items())]
    command += ["--backbones", *args.backbones, "--sparsifiers", *args.sparsifiers]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"{time.perf_counter() - began:.0f} s for the command")
    wanted = cells(args.datasets, args.backbones, args.sparsifiers)
    missing = [cell.name for cell in wanted if not is_finished(study, cell)]
    if missing:
        sys.exit(f"not finished: {', '.join(missing)}")
    print(f"{len(wanted)} cells finished; their numbers mean nothing; {study / 'report.html'}")


if __name__ == "__main__":
    main()
