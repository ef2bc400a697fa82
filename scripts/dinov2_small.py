"""A CLT of a real ViT-S/14 and its studies, of docs/results/dinov2_small.md: `make dinov2-small`.

$DINOV2_SMALL is a folder with a DINOv2-small of transformers (config.json and model.safetensors);
without it, $VIT_CLT_DATA/teachers/dinov2_small. Images are those of $VIT_CLT_DATA: CIFAR-10 and
COCO. Each step is a `vit-clt` command with a folder of its own in out/dinov2_small, and is finished
once that holds metrics.json. Killed, the script goes on where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dinov2_depth import depth_tables
from dinov2_images import linked_model, training_images
from study_steps import run_steps

OUT = Path("out/dinov2_small")
MODEL, IMAGES = OUT / "vit", OUT / "images"
PIXELS, N_CIFAR = 98, 8_000
TRAINING = ["--epochs", "1", "--batch-size", "1024", "--k", "32", "--no-cls-balance", "--resume"]
"""Of every transcoder; the rest is the preset small. The published page is older than balance."""


def steps(root: Path) -> dict[str, list[str]]:
    """Arguments of every command, by the name of its folder, in an order in which they can run."""
    train = ["train", "--data", f"imagefolder:{IMAGES}", "--cache", str(OUT / "cache"), *TRAINING]
    cifar = f"parquet:{root}/data/cifar10"
    test = ["--data", f"{cifar}/test.parquet", "--split", "test"]
    study = ["--clt", str(OUT / "clt"), *test]
    fit = ["--train-data", f"{cifar}/train.parquet", "--train-limit", "4000"]
    readout = [*fit, "--readout", "linear"]
    coco = ["--data", f"coco:{root}/data/coco_tiny", "--split", "val"]
    return {
        "clt": [*train, "--n-features", "3072", "--seed", "0"],
        "reconstruct": ["reconstruct", *study, "--limit", "1000"],
        "reconstruct_coco": ["reconstruct", "--clt", str(OUT / "clt"), *coco],
        "contributions": ["contributions", *study, "--limit", "1000"],
        "cascade": ["cascade", *study, "--limit", "500", *readout],
        "causal": ["causal", *study, "--limit", "500", *readout],
        "retrieve": [
            *("retrieve", *study, "--limit", "500", "--untrained"),
            *("--corpus", f"{cifar}/train.parquet", "--corpus-limit", "2000"),
        ],
        "claims": ["claims", *study, "--limit", "1000", *readout, "--png"],
        # rivals of the audit, which is left to train none of its own: those would take hours
        "per_layer": [*train, "--n-features", "3072", "--seed", "0", "--no-cross-layer"],
        "seed1": [*train, "--n-features", "1024", "--seed", "1"],
        "audit": [
            *("audit", *study, "--limit", "500", *readout, "--no-train", "--resume"),
            *("--per-layer", str(OUT / "per_layer"), "--variants", str(OUT / "seed1")),
        ],
    }


def main() -> None:
    """Run what is missing, then print the tables of the page."""
    if "VIT_CLT_DATA" not in os.environ:
        sys.exit("VIT_CLT_DATA is not set; expected a folder with data/cifar10 and data/coco_tiny")
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    model = Path(os.environ.get("DINOV2_SMALL", root / "teachers" / "dinov2_small"))
    if not (model / "model.safetensors").is_file():
        sys.exit(f"DINOV2_SMALL is {model}; expected a folder with model.safetensors")
    linked_model(model, MODEL, PIXELS)
    training_images(root, IMAGES, N_CIFAR)
    run_steps(OUT, steps(root), f"hf:{MODEL}")
    # of every study the table made for reading; depth is no command
    tables = [path.read_text() for name in steps(root) for path in (OUT / name).glob("[!R]*.md")]
    text = "\n".join([*tables, depth_tables(model, root, OUT)])
    (OUT / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
