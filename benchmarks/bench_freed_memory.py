"""What it costs to give freed memory back between steps of a large CLT, in child processes.

    python benchmarks/bench_freed_memory.py [--layers 12] [--features 12288] [--tokens 2048]

The same step three ways: as glibc does it by itself; with the two variables in the environment that
make it keep freed memory; and as `train` arranges it (`vit_clt.training.freed_memory`). CPU seconds
of the last of three steps, those in the kernel, page faults, and peak memory. Bar: train's own way
within 10 % of the CPU seconds with the variables. Page faults do not depend on other work on the
machine. Needs 8 GiB of free memory at these sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from measure import LoadWatch, finish

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.training.freed_memory import freed_memory_kept

VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "200000000000"}
WAYS = {"as it is": {}, "variables": VARIABLES, "train": {}}
BAR = 1.1


def steps(layers: int, features: int, tokens: int, keep: bool) -> dict[str, float]:
    """Forward and backward three times; what the last one cost."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with freed_memory_kept() if keep else nullcontext():
        config = CLTConfig(layers, 768, features, ReLUTopK(min(128, features // 8)))
        clt = CrossLayerTranscoder(config, backend="sparse")
        x, y = torch.randn(2, layers, tokens, 768)
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF)
            clt.zero_grad(set_to_none=True)
            (clt(x) - y).square().sum(-1).mean().backward()
            after = resource.getrusage(resource.RUSAGE_SELF)
    user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {
        "cpu_seconds": user + kernel,
        "kernel_seconds": kernel,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_gib": after.ru_maxrss / 2**20,
    }


def main() -> None:
    """Command line; every way is a child process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--features", type=int, default=12288)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--child", choices=WAYS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shape = (options.layers, options.features, options.tokens)
    if options.child:
        print(json.dumps(steps(*shape, keep=options.child == "train")))
        return
    watch = LoadWatch()
    names = ("--layers", "--features", "--tokens")
    arguments = [str(part) for pair in zip(names, shape, strict=True) for part in pair]
    found = {}
    for way, variables in WAYS.items():
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        child = subprocess.run(
            [sys.executable, __file__, "--child", way, *arguments],
            env=clean | variables,
            check=True,
            capture_output=True,
            text=True,
        )
        found[way] = json.loads(child.stdout.splitlines()[-1])
        print(
            "{:10} {cpu_seconds:6.2f} CPU s, {kernel_seconds:5.2f} in the kernel, "
            "{page_faults:9,.0f} page faults, peak {peak_gib:.2f} GiB".format(way, **found[way])
        )
    ratio = found["train"]["cpu_seconds"] / found["variables"]["cpu_seconds"]
    print(f"train to variables: {ratio:.2f}; bar {BAR}: {'met' if ratio <= BAR else 'NOT met'}")
    finish({"shape": shape, "ways": found, "ratio": ratio, "bar": BAR}, watch, options.out)


if __name__ == "__main__":
    main()
