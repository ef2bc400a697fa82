"""The studies of docs/results/cifar10_*.md, of the CLTs that `make cifar-clts` trains.

    VIT_CLT_DATA=DATA python scripts/cifar_studies.py [STEP ...]

Each step is a `vit-clt` command with a folder of its own in out/cifar10/studies, and is finished
once that holds metrics.json. Killed, the script goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from study_steps import run_steps

CLTS = Path("out/cifar10")
OUT = CLTS / "studies"
RANGES = {"cls": ("0-11", "11"), "patch": ("0-11", "7-11")}
"""Layers whose MLPs are replaced for the surrogate measures, by kind of rows."""
FIRST = "0,1,4,7,11"
"""First layers of the cascades."""


def steps(root: Path) -> dict[str, list[str]]:
    """Arguments of every command, by the name of its folder."""
    test = ["--data", f"parquet:{root}/data/cifar10/test.parquet", "--split", "test"]
    train = f"parquet:{root}/data/cifar10/train.parquet"

    def study(command: str, clt: str, limit: int, *more: str, png: bool = False) -> list[str]:
        data = [*test, "--limit", str(limit)]
        return [command, "--clt", str(CLTS / clt), *data, *more, *(["--png"] if png else [])]

    found = {
        "reconstruct": study(
            *("reconstruct", "relu_topk", 2000, "--compare"),
            *(str(CLTS / name) for name in ("jumprelu", "abs_topk", "per_layer")),
            png=True,
        ),
        "cascade": study(
            "cascade", "relu_topk", 1000, "--layers", FIRST, "--inputs", "stream", "teacher"
        ),
        **{
            f"cascade_{clt}": study("cascade", clt, 1000, "--layers", layers)
            for clt, layers in (
                ("relu_topk", "0"),
                ("relu_topk_seed1", "0"),
                ("jumprelu", FIRST),
                ("abs_topk", FIRST),
                ("per_layer", "0"),
                ("interventions", "0"),
                ("interventions_seed1", "0"),
            )
        },
        **{
            f"faithfulness_{tokens}_{layers}": study(
                "faithfulness", "relu_topk", 2000, "--layers", layers, "--tokens", tokens
            )
            for tokens, ranges in RANGES.items()
            for layers in ranges
        },
        "retrieve": study(
            *("retrieve", "relu_topk", 1000, "--corpus", test[1], "--corpus-limit", "5000"),
            *("--query", "0", "1", "2", "--top", "6", "--untrained"),
            png=True,
        ),
        "features": study(
            *("features", "relu_topk", 2000, "--layers", "2-11"),
            *("--select", "purity", "--count", "1"),
            png=True,
        ),
        "features_effect": study(
            *("features", "relu_topk", 2000, "--layers", "2-11"),
            *("--select", "effect", "--count", "1"),
        ),
        **{
            f"graph_{norms}": study(
                *("graph", "relu_topk", 18, "--query", "0", "5", "17", "--norms", norms),
                png=norms == "held",
            )
            for norms in ("held", "differentiated")
        },
        "steer": study("steer", "relu_topk", 400, "--search", "cat", "--top", "10"),
        "contributions": study(
            *("contributions", "relu_topk", 2000, "--compare"),
            *(str(CLTS / name) for name in ("jumprelu", "abs_topk")),
            png=True,
        ),
        **{
            f"keep_sets_{clt}": study("keep-sets", clt, 2000, "--fill", "mean")
            for clt in ("relu_topk", "jumprelu", "abs_topk")
        },
        **{
            f"causal_{clt}": study("causal", clt, 500, "--fill", "mean")
            for clt in ("jumprelu", "abs_topk", "interventions", "interventions_seed1")
        },
        **{
            f"claims_{clt}": study("claims", clt, 1000, png=True)
            for clt in (
                *("relu_topk", "relu_topk_seed1", "interventions", "interventions_seed1"),
                *("jumprelu", "abs_topk", "per_layer"),
            )
        },
        "audit": study(
            *("audit", "relu_topk", 1000, "--train-data", train, "--train-limit", "4000"),
            *("--epochs", "3", "--resume", "--per-layer", str(CLTS / "per_layer"), "--variants"),
            *(str(CLTS / name) for name in ("relu_topk_seed1", "abs_topk")),
        ),
    }
    return found


def main() -> None:
    """Run what is missing."""
    if "VIT_CLT_DATA" not in os.environ:
        sys.exit(
            "VIT_CLT_DATA is not set; expected a folder with teachers/cifar10 and data/cifar10"
        )
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    known = steps(root)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(known)}")
    names = parser.parse_args().steps
    if unknown := set(names) - set(known):
        sys.exit(f"no step is called {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    OUT.mkdir(parents=True, exist_ok=True)
    run_steps(OUT, known, f"local-dir:{root}/teachers/cifar10", names)


if __name__ == "__main__":
    main()
