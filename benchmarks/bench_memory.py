"""Peak memory of a step at the paper's size, forward + backward and with AdamW, in child processes.

    python benchmarks/bench_memory.py [--layers 12] [--tokens 4096] [--out FILE]

Bar: weights + gradients + 1.5 GiB without an optimiser (fp32, sparse back end). Needs about 10 GiB
free memory, with the optimiser 18 GiB; what does not fit is left out and said.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK

GIB = 2**30
D_MODEL, FEATURES, K = 768, 12288, 128
ALLOWANCE = 1.5


def step(layers: int, tokens: int, with_optimiser: bool) -> dict[str, float]:
    """Run two steps in this process and report its peak resident memory, in GiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = _peak()
    clt = CrossLayerTranscoder(CLTConfig(layers, D_MODEL, FEATURES, ReLUTopK(K)), backend="sparse")
    weights = sum(p.numel() * p.element_size() for p in clt.parameters()) / GIB
    x, y = torch.randn(layers, tokens, D_MODEL), torch.randn(layers, tokens, D_MODEL)
    optimiser = torch.optim.AdamW(clt.parameters(), lr=2e-4, weight_decay=0.0, fused=True)
    for _ in range(2):
        began = time.process_time()
        optimiser.zero_grad(set_to_none=True)
        (clt(x) - y).square().sum(-1).mean().backward()
        if with_optimiser:
            optimiser.step()
        seconds = time.process_time() - began
    return {"weights": weights, "before": before, "peak": _peak(), "cpu_seconds": seconds}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _available() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024 / GIB
    return 0.0


def main() -> None:
    """Command line; every measurement is a child process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--child", choices=["plain", "adamw"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(step(options.layers, options.tokens, options.child == "adamw")))
        return
    config = CLTConfig(options.layers, D_MODEL, FEATURES, ReLUTopK(K))
    weights = 4 * config.n_parameters() / GIB
    result: dict[str, Any] = {"machine": machine(), "layers": options.layers}
    result["tokens"] = options.tokens
    missed = False
    for kind, copies in (("plain", 2), ("adamw", 4)):
        needed = copies * weights + 2.5
        if _available() < needed:
            print(f"{kind}: needs {needed:.0f} GiB, {_available():.0f} GiB are free; left out")
            continue
        shape = ["--layers", str(options.layers), "--tokens", str(options.tokens)]
        command = [sys.executable, __file__, "--child", kind, *shape]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(child.stdout.splitlines()[-1])
        over = found["peak"] - copies * weights
        print(
            f"{kind}: peak {found['peak']:.2f} GiB = {copies} x {weights:.2f} GiB of parameters + "
            f"{over:.2f} GiB ({found['before']:.2f} before the CLT was made); "
            f"{found['cpu_seconds']:.1f} CPU s a step"
        )
        result[kind] = {**found, "over": over}
        if kind == "plain":
            missed = over > ALLOWANCE
            print(f"bar: {ALLOWANCE} GiB over weights + gradients: {'NOT ' * missed}met")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
