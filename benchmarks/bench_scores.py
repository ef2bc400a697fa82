"""All contribution scores of a set of images, beside the reconstruction pass over them.

    python benchmarks/bench_scores.py [--rounds N] [--images 256] [--batch 16] [--out FILE]
    python benchmarks/bench_scores.py --clt DIR --data FORM --images 1000

Every kind, reduction and token kind from one gathering of moments, without and with bootstrap
intervals; the reconstruction (R^2, cosine, L0) is what a reader pays anyway. The digits model with
held-out digits (F 512, k 16) and a ViT-B-32 with random weights and images (F 3,072, k 64), random
CLTs; or a CLT of yours. One thread. Bar, in CPU seconds: 1.5 of the reconstruction, intervals left
out. Exits 1 where the figures were measured under load.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench_replacement import MODEL, random_vit
from measure import LoadWatch, finish, interleave, ratios

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK, load_data
from vit_clt.analysis import contribution_moments, reconstruction, score
from vit_clt.analysis.contributions.scores import ALL_SCORES, ContributionScores
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.teacher_files import unasked

BAR = 1.5


def contestants(
    vit: HookedViT, clt: CrossLayerTranscoder, data: ImageData
) -> dict[str, Callable[[], Any]]:
    """The baseline, every score, and every score with its intervals."""

    def scores() -> list[ContributionScores]:
        moments = contribution_moments(vit, clt, data)
        return [
            score(moments, tokens=tokens, kind=kind, reduce=reduce)
            for tokens in vit.cfg.rows.kinds
            for kind, reduce in ALL_SCORES
        ]

    return {
        "reconstruction": lambda: reconstruction(vit, clt, data),
        "scores": scores,
        "scores and intervals": lambda: [(each.low, each.high) for each in scores()],
    }


def studies(
    options: argparse.Namespace,
) -> Iterator[tuple[str, HookedViT, CrossLayerTranscoder, ImageData]]:
    """Name, teacher, CLT and images of what is measured."""
    if options.clt is not None:
        clt = CrossLayerTranscoder.from_pretrained(options.clt).eval().requires_grad_(False)
        vit = HookedViT.from_open_clip(*unasked(clt.config.teacher))
        yield options.clt, vit, clt, load_data(options.data, vit=vit, limit=options.images)
        return
    digits = HookedViT.from_open_clip("digits")
    large = random_vit().requires_grad_(False)
    pixels = torch.randn(options.batch, 3, *large.cfg.image_size)
    for name, vit, n_features, k, data in (
        ("digits", digits, 512, 16, load_data("digits", vit=digits, limit=options.images)),
        (MODEL, large, 3072, 64, TensorImages(pixels)),
    ):
        config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, n_features, ReLUTopK(k))
        yield name, vit, CrossLayerTranscoder(config).eval().requires_grad_(False), data


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clt")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    watch = LoadWatch()
    print("| model | images | what | CPU ms an image | of reconstruction | low | high | bar |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    table: list[dict[str, Any]] = []
    for name, vit, clt, data in studies(options):
        timings = interleave(contestants(vit, clt, data), options.rounds)
        for what in timings:
            inverse = ratios(timings, what, "reconstruction")
            ratio, low, high = (1 / each for each in (inverse[0], inverse[2], inverse[1]))
            cpu = 1e3 * statistics.median(timings[what].cpu) / len(data)
            verdict = f"{BAR} {'met' if ratio <= BAR else 'NOT met'}" if what == "scores" else ""
            print(
                f"| {name} | {len(data)} | {what} | {cpu:.1f} | {ratio:.2f} | {low:.2f} | "
                f"{high:.2f} | {verdict} |",
                flush=True,
            )
            row = {"model": name, "images": len(data), "what": what, "cpu_ms_an_image": cpu}
            table.append(row | {"ratio": ratio, "low": low, "high": high})
    finish({"rows": table}, watch, options.out)


if __name__ == "__main__":
    main()
