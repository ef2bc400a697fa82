"""Forward + backward of a JumpReLU step: our back ends by bandwidth and share of firing units.

    python benchmarks/bench_jump.py [--rounds N] [--out FILE]

Mid size (12 x 192 x 3,072, 1,024 tokens), theta set so that the stated share of units fires. With
bandwidth 1 nearly every silent unit lies within its threshold's window, and the sparse back end
takes one dense product a pair for them ("banded"); with a narrow one it lists them. Ratios against
our dense back end, in CPU seconds, one thread. Exits 1 where the table was made under load.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_step import SIZES, Size, ours
from measure import LoadWatch, finish, interleave, ratios

from vit_clt import CLTConfig, CrossLayerTranscoder, JumpReLU

BANDWIDTHS = (1.0, 0.1)
FIRING = (0.01, 0.03, 0.10)


def firing_clt(size: Size, bandwidth: float, firing: float) -> CrossLayerTranscoder:
    """A random CLT whose thresholds let this share of units fire on inputs of unit scale."""
    config = CLTConfig(
        size.layers, size.d_model, size.features, JumpReLU(theta=1.0, bandwidth=bandwidth)
    )
    clt = CrossLayerTranscoder(config)
    assert clt.log_theta is not None
    with torch.no_grad():
        # pre-activations of unit scale, as a trained encoder's: the window is then a share of them
        for encoder in clt.W_enc:
            encoder.div_(encoder.norm(dim=1, keepdim=True))
        pre = torch.randn(256, size.d_model) @ clt.W_enc[0].T
        clt.log_theta.fill_(pre.flatten()[:100_000].quantile(1 - firing).log())
    return clt


def contestants(size: Size, bandwidth: float, firing: float) -> dict[str, Callable[[], None]]:
    """Our dense, sparse and auto steps at this share of firing units."""
    torch.manual_seed(0)
    clt, (x, dy) = firing_clt(size, bandwidth, firing), size.inputs()
    return {backend: ours(clt, backend, x, dy) for backend in ("dense", "sparse", "auto")}


def race(size: Size, rounds: int) -> list[dict[str, Any]]:
    """A row for each bandwidth and share."""
    rows = []
    print("| bandwidth | firing | dense, CPU ms | sparse, CPU ms | times dense | auto's |")
    print("|---|---|---|---|---|---|")
    for bandwidth in BANDWIDTHS:
        for firing in FIRING:
            timings = interleave(contestants(size, bandwidth, firing), rounds)
            dense, sparse = (1e3 * statistics.median(timings[b].cpu) for b in ("dense", "sparse"))
            ratio, low, high = ratios(timings, "sparse", "dense")
            auto = ratios(timings, "auto", "dense")[0]
            print(
                f"| {bandwidth} | {firing:.0%} | {dense:.0f} | {sparse:.0f} | {ratio:.2f} "
                f"({low:.2f} to {high:.2f}) | {auto:.2f} |"
            )
            row = {"bandwidth": bandwidth, "firing": firing, "ratio": ratio, "auto": auto}
            rows.append({**row, "low": low, "high": high, **asdict(timings["sparse"])})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = LoadWatch()
    finish({"rows": race(SIZES["mid"], options.rounds)}, watch, options.out)


if __name__ == "__main__":
    main()
