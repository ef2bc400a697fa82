"""All ranges s..L-1 of a cascade on one shared prefix, beside as many fully replaced passes.

    python benchmarks/bench_cascade.py [--rounds N] [--batch 8] [--digits-batch 64] [--out FILE]

Both contestants read the live stream and skip the MLPs nobody reads; the shared one is charged its
unaltered pass. Beside them every range as a pass of its own from the images on. A ViT-B-32 with
random weights (F 3,072, k 64) and the digits model (F 512, k 16), random CLTs, one thread.
Bar, in CPU seconds: 0.65 of L full passes. Exits 1 where the figures were measured under load.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from bench_replacement import MODEL, random_vit
from measure import LoadWatch, finish, interleave, ratios

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.choices import TokenKind
from vit_clt.hooks import HookedViT, SharedPrefix, replace_mlps

BAR = 0.65


def contestants(
    vit: HookedViT, clt: CrossLayerTranscoder, images: torch.Tensor, tokens: TokenKind
) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """Ways to run L ranges; the last two give the same embeddings."""
    n = vit.cfg.n_layers

    def passes(firsts: Iterable[int]) -> list[torch.Tensor]:
        outputs = []
        for first in firsts:
            with replace_mlps(vit, clt, layers=range(first, n), tokens=tokens):
                outputs.append(vit(images))
        return outputs

    def shared() -> list[torch.Tensor]:
        found = SharedPrefix(vit, images).replaced(clt, range(n), tokens)
        return [each.embeddings for each in found]

    return {
        "full passes": lambda: passes([0] * n),
        "a pass a range": lambda: passes(range(n)),
        "shared prefix": shared,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--digits-batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    watch = LoadWatch()
    digits = HookedViT.from_open_clip("digits")
    models = (
        ("digits", digits, 512, 16, options.digits_batch),
        (MODEL, random_vit().requires_grad_(False), 3072, 64, options.batch),
    )
    print("| model | rows | ranges | CPU ms | of full passes | low | high | bar |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    table: list[dict[str, Any]] = []
    for name, vit, n_features, k, batch in models:
        n = vit.cfg.n_layers
        config = CLTConfig(n, vit.cfg.d_model, n_features, ReLUTopK(k))
        clt = CrossLayerTranscoder(config).eval().requires_grad_(False)
        images = torch.randn(batch, 3, *vit.cfg.image_size)
        for tokens in vit.cfg.rows.kinds:
            with torch.inference_mode():
                timings = interleave(contestants(vit, clt, images, tokens), options.rounds)
            for way in timings:
                inverse = ratios(timings, way, "full passes")
                ratio, low, high = (1 / each for each in (inverse[0], inverse[2], inverse[1]))
                cpu = 1e3 * statistics.median(timings[way].cpu)
                judged = way == "shared prefix"
                verdict = f"{BAR} {'met' if ratio <= BAR else 'NOT met'}" if judged else ""
                print(
                    f"| {name} | {tokens} | {n}, {way} | {cpu:.0f} | {ratio:.2f} | {low:.2f} | "
                    f"{high:.2f} | {verdict} |",
                    flush=True,
                )
                row = {"model": name, "batch": batch, "tokens": tokens, "way": way}
                table.append(row | {"cpu_ms": cpu, "ratio": ratio, "low": low, "high": high})
    finish({"rows": table}, watch, options.out)


if __name__ == "__main__":
    main()
