"""Forward + backward of a CLT step: our back ends beside other stock-torch ways, one thread.

    python benchmarks/bench_step.py [--growth] [--paper] [--sizes mid,full] [--out FILE]

Every contestant runs once a round; ratios are taken within rounds, in CPU seconds. Gradients are
compared before anything is timed. Exits 1 where a table was made under load.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from contestants import CONTESTANTS
from measure import LoadWatch, finish, interleave, ratios
from torch import Tensor, nn

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.kernels.choose import choose

BASE, BAG = "dense per pair", "embedding_bag, source-major"


@dataclass(frozen=True)
class Size:
    """Shape of a step."""

    layers: int
    d_model: int
    features: int
    k: int
    tokens: int

    def clt(self) -> CrossLayerTranscoder:
        """A CLT of this shape with its initial weights."""
        return CrossLayerTranscoder(
            CLTConfig(self.layers, self.d_model, self.features, ReLUTopK(self.k))
        )

    def inputs(self) -> tuple[Tensor, Tensor]:
        """x of unit scale and a gradient for y^."""
        shape = (self.layers, self.tokens, self.d_model)
        return torch.randn(shape), torch.randn(shape) / self.tokens


SIZES = {"mid": Size(12, 192, 3072, 32, 1024), "full": Size(3, 768, 12288, 128, 2048)}
BARS = {"mid": {BASE: 8.0, BAG: 1.7}, "full": {BASE: 4.5}}
GROWTH = {
    "tokens": [256, 1024, 4096],
    "features": [768, 3072, 12288],
    "layers": [3, 6, 12],
    "k": [8, 32, 128, 512],
}


def stepper(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """A function that does one forward and backward, with gradients set to none before."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        (module(x) * dy).sum().backward()

    return step


def ours(clt: CrossLayerTranscoder, backend: Any, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """A function that does one forward and backward with one of our back ends."""
    step = stepper(clt, x, dy)

    def run() -> None:
        clt.backend = backend
        step()

    return run


def contestants(size: Size) -> dict[str, Callable[[], None]]:
    """All ways to compute a step of this size, by name; their gradients have been compared."""
    torch.manual_seed(0)
    clt, (x, dy) = size.clt(), size.inputs()
    others = {name: make(clt, size.k) for name, make in CONTESTANTS.items()}
    runs = {
        f"ours, {backend}": ours(clt, backend, x, dy) for backend in ("dense", "sparse", "auto")
    }
    runs |= {name: stepper(other, x, dy) for name, other in others.items()}
    runs["ours, sparse"]()
    grads = [w.grad.clone() for w in clt.W_enc]
    for name, other in others.items():
        runs[name]()
        for mine, theirs in zip(grads, other.W_enc, strict=True):
            # near ties may go either way between two matmuls: compare the whole
            error = (mine - theirs.grad).norm() / mine.norm()
            assert error < 1e-2, f"{name}: gradients differ by {error:.1e}"
        other.zero_grad(set_to_none=True)
    return runs


def race(name: str, rounds: int) -> dict[str, Any]:
    """Time all ways at one size and print the table; returns its rows and how the bars are met."""
    size = SIZES[name]
    timings = interleave(contestants(size), rounds)
    print(f"\n{name}: {size}, {rounds} rounds, one thread")
    print(
        "| step | CPU ms | wall ms | times dense per pair | low | high |\n|---|---|---|---|---|---|"
    )
    rows = []
    for step, timing in timings.items():
        ratio, low, high = ratios(timings, step, BASE)
        cpu, wall = (1e3 * statistics.median(seconds) for seconds in (timing.cpu, timing.wall))
        print(f"| {step} | {cpu:.0f} | {wall:.0f} | {ratio:.2f} | {low:.2f} | {high:.2f} |")
        rows.append({"step": step, "ratio": ratio, "low": low, "high": high, **asdict(timing)})
    bars = []
    for baseline, bar in BARS[name].items():
        ratio, low, high = ratios(timings, "ours, auto", baseline)
        verdict = "met" if ratio >= bar else "NOT met"
        print(
            f"auto against {baseline}: {ratio:.2f} ({low:.2f} to {high:.2f}); bar {bar}: {verdict}"
        )
        bars.append({"baseline": baseline, "ratio": ratio, "low": low, "high": high, "bar": bar})
    return {"size": name, **asdict(size), "rows": rows, "bars": bars}


def growth(rounds: int) -> list[dict[str, Any]]:
    """Our step and the dense one as one side of the mid size grows."""
    rows = []
    print("\n| mid size, but | ours dense ms | ours sparse ms | ratio | auto is |")
    print("|---|---|---|---|---|")
    for axis, values in GROWTH.items():
        for value in values:
            size = replace(SIZES["mid"], **{axis: value})
            torch.manual_seed(0)
            clt, (x, dy) = size.clt(), size.inputs()
            runs = {b: ours(clt, b, x, dy) for b in ("dense", "sparse")}
            timings = interleave(runs, rounds)
            dense, sparse = (1e3 * statistics.median(timings[b].cpu) for b in runs)
            ratio = ratios(timings, "sparse", "dense")[0]
            plan = choose("auto", size.features, size.d_model, size.k / size.features, clt.b_enc)
            print(f"| {axis} {value} | {dense:.0f} | {sparse:.0f} | {ratio:.2f} | {plan} |")
            row = {"dense_ms": dense, "sparse_ms": sparse, "ratio": ratio, "auto": plan}
            rows.append({"axis": axis, "value": value, **row})
    return rows


def paper() -> dict[str, Any]:
    """Twelve full-width layers, one round, one model in memory at a time (14 GiB)."""
    size = replace(SIZES["full"], layers=12)
    torch.manual_seed(0)
    clt, (x, dy) = size.clt(), size.inputs()
    run = ours(clt, "auto", x, dy)
    mine = interleave({"ours": run}, 1)["ours"].cpu[0]  # after a round that does not count
    clt.zero_grad(set_to_none=True)
    contestant = CONTESTANTS["dense per source"](clt, size.k)
    del clt, run
    began = time.process_time()
    stepper(contestant, x, dy)()
    dense = time.process_time() - began
    print(f"\npaper size: {size}, one round")
    print(f"ours, auto {mine:.1f} CPU s, dense per source {dense:.1f}: {dense / mine:.2f} times")
    return {**asdict(size), "ours": mine, "dense per source": dense}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="mid,full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--paper", action="store_true", help="12 full-width layers; 14 GiB")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = LoadWatch()
    result: dict[str, Any] = {"races": [race(s, options.rounds) for s in options.sizes.split(",")]}
    if options.growth:
        result["growth"] = growth(max(1, options.rounds // 2))
    if options.paper:
        result["paper"] = paper()
    finish(result, watch, options.out)


if __name__ == "__main__":
    main()
