"""Train the CIFAR-10 CLTs that studies use, and write their table: `make cifar-clts`.

Four sparsifiers, a second seed, a per-layer transcoder and two trained on passes with
interventions, F = 2,048, k = 32, 3 passes over 20,000 images, 1,024 token rows a step, by the
preset "small", on the teacher in $VIT_CLT_DATA/teachers/cifar10. Killed, it goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from vit_clt import CrossLayerTranscoder, load_data
from vit_clt.analysis import reconstruction
from vit_clt.analysis.reporting.training_page import read_log
from vit_clt.hooks import HookedViT

RUNS: dict[str, tuple[str, int, list[str]]] = {
    "relu_topk": ("relu_topk", 0, []),
    "relu_topk_seed1": ("relu_topk", 1, []),
    "abs_topk": ("abs_topk", 0, []),
    "batch_topk": ("batch_topk", 0, []),
    "jumprelu": ("jumprelu", 0, []),
    "per_layer": ("relu_topk", 0, ["--no-cross-layer"]),
    "interventions": ("relu_topk", 0, ["--interventions", "0.5"]),
    "interventions_seed1": ("relu_topk", 1, ["--interventions", "0.5"]),
}
"""Sparsifier, seed and further options of each run."""
OUT = Path("out/cifar10")
EVALUATED = 2000


def train(name: str, root: Path) -> None:
    """One run, or the rest of it."""
    sparsifier, seed, more = RUNS[name]
    options = {
        "model": f"local-dir:{root}/teachers/cifar10",
        "data": f"parquet:{root}/data/cifar10/train.parquet",
        "limit": 20500,
        "val-images": 500,
        "sparsifier": sparsifier,
        "n-features": 2048,
        "k": 32,
        "seed": seed,
        "cache": OUT / "cache",
        "out": OUT / name,
    }
    args = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    subprocess.run(
        [sys.executable, "-m", "vit_clt", "train", *args, *more, "--resume"],
        check=True,
    )


def tables(root: Path) -> str:
    """The runs side by side, as Markdown."""
    vit = HookedViT.from_open_clip(f"local-dir:{root}/teachers/cifar10")
    data = load_data(
        f"parquet:{root}/data/cifar10/test.parquet", split="test", limit=EVALUATED, vit=vit
    )
    fits, rows = {}, []
    for name, (_, seed, _) in RUNS.items():
        clt = CrossLayerTranscoder.from_pretrained(OUT / name).eval().requires_grad_(False)
        fits[name] = fit = reconstruction(vit, clt, data, progress=True)
        document = json.loads((OUT / name / "metrics.json").read_text())
        measured = {metric["name"]: metric["value"] for metric in document["metrics"]}
        steps = [r for r in read_log(OUT / name / "train.jsonl") if "event" not in r]
        rows.append(
            f"| {name}, seed {seed} | {fit.mean('cls'):.3f} | {fit.mean('patch'):.3f} | "
            f"{fit.mean('patch', 'r2_position'):.3f} | {fit.mean('all', 'l0'):.1f} | "
            f"{fit.mean('all', 'dead'):.1%} | {steps[0]['loss']:.0f} → {steps[-1]['loss']:.0f} | "
            f"{measured['tokens_per_second']:,.0f} | {measured['seconds'] / 60:.0f} | "
            f"{measured['peak_memory'] / 1e9:.1f} |"
        )
    lines = [
        "| sparsifier | R² CLS | R² patches | against position means | L0 | dead | training loss "
        "| tokens/s | minutes | peak, GB |",
        "|" + "---|" * 10,
        *rows,
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread(s); {EVALUATED} test images; the first run's minutes "
        "do not include building the cache.",
        "",
    ]
    layers = range(vit.cfg.n_layers)
    for tokens in ("cls", "patch"):
        lines += [
            "",
            f"R² of {tokens} rows by layer:",
            "",
            f"| run | {' | '.join(map(str, layers))} |",
        ]
        lines.append("|" + "---|" * (len(layers) + 1))
        for name, fit in fits.items():
            values = fit.frame.query("tokens == @tokens").sort_values("layer")["r2"]
            lines.append(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, then evaluate all."""
    if "VIT_CLT_DATA" not in os.environ:
        sys.exit(
            "VIT_CLT_DATA is not set; expected a folder with teachers/cifar10 and data/cifar10"
        )
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in RUNS:
        train(name, root)
    text = tables(root)
    (OUT / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
