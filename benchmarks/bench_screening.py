"""Top-k codes with and without screening (`vit_clt.kernels.screening`): encode, and a whole step.

    python benchmarks/bench_screening.py [--sizes mid,full] [--rounds 9] [--out FILE]

One layer's encoder and a whole forward and backward, both ways in turn, one thread; ratios are
taken within rounds, in CPU seconds. Supports are compared before anything is timed. Exits 1 where
the machine was loaded.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_step import SIZES, Size, ours
from measure import LoadWatch, finish, interleave, ratios

from vit_clt.kernels import sparse
from vit_clt.kernels.screening import screened_top_k, screens

BARS = {"encode": 1.5, "step": 1.2}


def both_ways(run: Callable[[], Any]) -> dict[str, Callable[[], None]]:
    """`run` screened and unscreened, whatever the rule would have chosen."""

    def choosing(screened: bool) -> Callable[[], None]:
        def chosen() -> None:
            sparse.screens = lambda *inputs: screened
            run()
            sparse.screens = screens

        return chosen

    return {"screened": choosing(True), "unscreened": choosing(False)}


def encoder(size: Size, signed: bool) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A function that encodes one layer of this size."""
    torch.manual_seed(0)
    clt, (x, _) = size.clt(), size.inputs()
    weight, bias = clt.W_enc[0].detach(), clt.b_enc[0].detach()

    def encode() -> tuple[torch.Tensor, torch.Tensor]:
        return sparse.encode_top_k(x[0], weight, bias, size.k, signed=signed)

    found = [sparse._screened, sparse._unscreened]
    one, other = (find(x[0], weight, bias, size.k, signed)[1].sort(1).values for find in found)
    assert torch.equal(one, other)
    success = screened_top_k(x[0], weight, bias, size.k, signed=signed)[2]
    print(f"screening decides {success.double().mean():.1%} of the rows")
    return encode


def stepper(size: Size) -> Callable[[], None]:
    """A function that takes one step of this size."""
    torch.manual_seed(0)
    clt, (x, dy) = size.clt(), size.inputs()
    return ours(clt, "sparse", x, dy)


def race(name: str, rounds: int) -> dict[str, Any]:
    """Time all at one size and print the table; returns its rows."""
    size, rows = SIZES[name], []
    print(f"\n{name}: {size}, {rounds} rounds, one thread; encode is of one layer")
    print("| | screened, CPU ms | unscreened | ratio | low | high |\n|---|---|---|---|---|---|")
    makers = {
        "encode": lambda: encoder(size, signed=False),
        "encode, signed": lambda: encoder(size, signed=True),
        "step": lambda: stepper(size),
    }
    for what, make in makers.items():
        timings = interleave(both_ways(make()), rounds)
        ratio, low, high = ratios(timings, "screened", "unscreened")
        mine, base = (1e3 * statistics.median(t.cpu) for t in timings.values())
        print(f"| {what} | {mine:.2f} | {base:.2f} | {ratio:.2f} | {low:.2f} | {high:.2f} |")
        rows.append({"what": what, "ratio": ratio, "low": low, "high": high})
        if what in BARS:
            print(f"bar {BARS[what]}: {'met' if ratio >= BARS[what] else 'NOT met'}")
    return {"size": name, "rows": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="mid,full")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = LoadWatch()
    races = [race(size, options.rounds) for size in options.sizes.split(",")]
    finish({"races": races}, watch, options.out)


if __name__ == "__main__":
    main()
