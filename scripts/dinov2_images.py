"""A DINOv2 at another size of images, and images to train on; see scripts/dinov2_small.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
from PIL import Image, ImageOps

PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],  # ImageNet's, as DINOv2 was trained
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}
"""DINOv2's own preprocessing but for the size, which is that of the whole image."""


def linked_model(model: Path, out: Path, pixels: int) -> Path:
    """A folder, `out`, of the same weights whose image processor gives images of this size.

    `hf:PATH` takes the size of images from the processor of the folder; positions are interpolated
    by the model's own code. Images of 98 pixels have 50 token rows, of 224 pixels 257.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        link = out / name
        link.unlink(missing_ok=True)
        link.symlink_to((model / name).resolve())
    processor = PROCESSOR | {"size": {"height": pixels, "width": pixels}}
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    return out


def training_images(root: Path, out: Path, n_cifar: int) -> Path:
    """A folder of images, out/train: CIFAR-10's first training images, and squares of COCO's.

    It is complete before it has its name, so that a folder that exists is not made again.
    """
    if out.exists():
        return out
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    folder = part / "train"
    folder.mkdir(parents=True)
    table = parquet.read_table(root / "data/cifar10/train.parquet", columns=["img"])
    for row, cell in enumerate(table["img"][:n_cifar].to_pylist()):
        (folder / f"cifar_{row:05d}.jpg").write_bytes(cell["bytes"])
    for path in sorted((root / "data/coco_tiny/train2017").glob("*.jpg")):
        with Image.open(path) as opened:
            photograph = ImageOps.exif_transpose(opened).convert("RGB")
        for name, square in squares(photograph).items():
            square.save(folder / f"coco_{path.stem}_{name}.png")
    part.rename(out)
    return out


def squares(photograph: Image.Image) -> dict[str, Image.Image]:
    """Five squares: the largest in the middle, and half its side in each corner of the image."""
    width, height = photograph.size
    side = min(width, height)
    half = side // 2
    corners = {
        "middle": ((width - side) // 2, (height - side) // 2, side),
        "top_left": (0, 0, half),
        "top_right": (width - half, 0, half),
        "bottom_left": (0, height - half, half),
        "bottom_right": (width - half, height - half, half),
    }
    return {
        name: photograph.crop((x, y, x + size, y + size)) for name, (x, y, size) in corners.items()
    }
