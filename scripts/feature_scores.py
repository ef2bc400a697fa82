"""The measures of docs/results/feature_scores.md, and what they foretell: `make feature-scores`.

    VIT_CLT_DATA=DATA python scripts/feature_scores.py

It reads the CLTs that `make cifar-clts` and `make dinov2-small` leave in out/, and in out/altered
those of `adding` (docs/results/replaced_stream.md); what is not there is left out. Each step has a
folder or a file of its own in out/feature_scores. Killed, the script goes on where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from feature_effects import effects_of, verdicts
from study_steps import run_steps

OUT = Path("out/feature_scores")
CIFAR, ADDING, DINO = Path("out/cifar10"), Path("out/altered"), Path("out/dinov2_small")
SEEDS = ("relu_topk", "relu_topk_seed1")
CLTS = (*SEEDS, "jumprelu", "abs_topk", "per_layer", "batch_topk")
IMAGES = 1000
LAYERS = "1,4,7,10"


def steps(root: Path) -> dict[str, list[str]]:
    """Arguments of every command whose CLTs are there, by the name of its folder."""
    cifar = f"parquet:{root}/data/cifar10"
    test = ["--data", f"{cifar}/test.parquet", "--split", "test", "--limit"]
    train = ["--train-data", f"{cifar}/train.parquet", "--train-limit", "20000"]
    photographs = [*test, str(IMAGES), *train, "--layers", LAYERS]
    photographs += ["--model", f"local-dir:{root}/teachers/cifar10"]
    agreement = ["--seed-clt", *(str(CIFAR / name) for name in SEEDS)]
    compared = ["--compare", *(str(CIFAR / name) for name in CLTS[1:])]
    adding = ["--data", "adding", "--model", "adding", "--limit", str(IMAGES)]
    found = {
        "cifar10": ["--clt", str(CIFAR / SEEDS[0]), *compared, *photographs, *agreement],
        "adding": [
            *("--clt", str(ADDING / "plain_0"), "--compare", str(ADDING / "per_layer_0")),
            *("--seed-clt", str(ADDING / "plain_1"), *adding),
        ],
        "dinov2_small": [
            *("--clt", str(DINO / "clt"), "--model", f"hf:{DINO / 'vit'}", *test, "1000", *train),
        ],
    }
    return {
        name: ["feature-scores", *args]
        for name, args in found.items()
        if (Path(args[1]) / "model.safetensors").is_file()
    }


def main() -> None:
    """Run what is missing, then print what the measures foretell."""
    if "VIT_CLT_DATA" not in os.environ:
        sys.exit("VIT_CLT_DATA is not set; expected a folder with teachers/cifar10, data/cifar10")
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    OUT.mkdir(parents=True, exist_ok=True)
    known = steps(root)
    run_steps(OUT, known)
    measured = [name for name in CLTS if (CIFAR / name / "model.safetensors").is_file()]
    for name in measured:
        effects_of(root, CIFAR / name, OUT)
    print(verdicts(OUT, measured))


if __name__ == "__main__":
    main()
