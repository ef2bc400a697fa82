"""A ViT-B-32 with every MLP replaced, beside its plain forward: random weights, one thread.

    python benchmarks/bench_replacement.py [--rounds N] [--batch 32] [--out FILE]

Bars, in CPU seconds: 3.2 times the plain forward through hooks, 2.5 times where a replaced block
skips its MLP (`replace_mlps`). Exits 1 where the figures were measured under load.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from measure import LoadWatch, finish, interleave, ratios

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.hooks import HookedViT, replace_mlps, replacement_hooks

MODEL = "ViT-B-32-quickgelu"
BARS = {"through hooks": 3.2, "MLPs skipped": 2.5}


def random_vit() -> HookedViT:
    """A full-size vision tower, untrained."""
    import open_clip

    return HookedViT(open_clip.create_model(MODEL).eval(), model=MODEL)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    watch = LoadWatch()
    vit = random_vit().requires_grad_(False)
    n = vit.cfg.n_layers
    clt = CrossLayerTranscoder(CLTConfig(n, vit.cfg.d_model, 12288, ReLUTopK(128)))
    clt.eval().requires_grad_(False)
    images = torch.randn(options.batch, 3, 224, 224)

    def through_hooks() -> None:
        vit.run_with_hooks(images, fwd_hooks=replacement_hooks(clt, layers=range(n)))

    def skipped(tokens: Any = "all") -> None:
        with replace_mlps(vit, clt, layers=range(n), tokens=tokens):
            vit(images)

    runs = {
        "plain": lambda: vit(images),
        "through hooks": through_hooks,
        "MLPs skipped": skipped,
        "CLS rows only": lambda: skipped("cls"),
    }
    with torch.inference_mode():
        timings = interleave(runs, options.rounds)
    print(f"{MODEL}, all {n} MLPs replaced, batch {options.batch}, F 12288, k 128, one thread")
    print("| forward | CPU ms | times plain | low | high | bar |\n|---|---|---|---|---|---|")
    rows = []
    for name, timing in timings.items():
        inverse = ratios(timings, name, "plain")
        ratio, low, high = (1 / each for each in (inverse[0], inverse[2], inverse[1]))
        cpu, bar = 1e3 * statistics.median(timing.cpu), BARS.get(name)
        verdict = "" if bar is None else f"{bar} {'met' if ratio <= bar else 'NOT met'}"
        print(f"| {name} | {cpu:.0f} | {ratio:.2f} | {low:.2f} | {high:.2f} | {verdict} |")
        rows.append({"forward": name, "cpu_ms": cpu, "ratio": ratio, "low": low, "high": high})
    finish({"rows": rows, "batch": options.batch}, watch, options.out)


if __name__ == "__main__":
    main()
