"""A CLT step, and its parts, on one thread and on all: what the second core is worth.

    python benchmarks/bench_threads.py [--sizes mid,full] [--rounds 9] [--threads N] [--out FILE]

One and N threads take turns; ratios are taken within rounds, in seconds of wall time. Exits 1 where
the machine was loaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_screening import both_ways, encoder, stepper
from bench_step import SIZES
from measure import LoadWatch, finish, interleave, ratios

from vit_clt.kernels.topk import top_k

BAR = 1.7


def parts(name: str) -> dict[str, Callable[[], Any]]:
    """The step of one size, the encoder of one layer, and selection alone, for one chunk."""
    size = SIZES[name]
    step, encode = both_ways(stepper(size)), both_ways(encoder(size, signed=False))
    a = torch.randn(512, size.features)
    return {
        "step": step["screened"],
        "step, unscreened": step["unscreened"],
        "encode": encode["screened"],
        "encode, unscreened": encode["unscreened"],
        "top-k of 512 rows": lambda: top_k(a, size.k),
    }


def race(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Time all parts of one size and print the table; returns its rows."""
    print(f"\n{name}: {SIZES[name]}, {rounds} rounds")
    print(f"| | 1 thread, ms | {threads} threads | ratio | low | high |\n|---|---|---|---|---|---|")
    rows = []

    def on(n: int, run: Callable[[], Any]) -> Callable[[], None]:
        def started() -> None:
            torch.set_num_threads(n)
            run()

        return started

    for what, run in parts(name).items():
        timings = interleave({"one": on(1, run), "all": on(threads, run)}, rounds)
        ratio, low, high = ratios(timings, "all", "one", clock="wall")
        one, many = (1e3 * statistics.median(t.wall) for t in timings.values())
        print(f"| {what} | {one:.2f} | {many:.2f} | {ratio:.2f} | {low:.2f} | {high:.2f} |")
        rows.append({"what": what, "ratio": ratio, "low": low, "high": high})
    ratio = rows[0]["ratio"]
    print(f"step: {ratio:.2f}; bar {BAR}: {'met' if ratio >= BAR else 'NOT met'}")
    return {"size": name, "threads": threads, "rows": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="mid,full")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    watch = LoadWatch()
    sizes = options.sizes.split(",")
    races = [race(size, options.threads, options.rounds) for size in sizes]
    finish({"races": races}, watch, options.out)


if __name__ == "__main__":
    main()
