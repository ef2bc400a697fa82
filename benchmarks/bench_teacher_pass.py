"""The parts of a clean pass over images, and the number of images that pass together.

    python benchmarks/bench_teacher_pass.py [--model ViT-B-32] [--out FILE]

Milliseconds an image on images of CIFAR-10 (from VIT_CLT_DATA): reading and preprocessing them,
the ViT's pass with x and y recorded at several batch sizes, and the same read from passes that
were kept just before, so that they lie in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import LoadWatch, finish, interleave
from torch import Tensor

from vit_clt.data import load_data
from vit_clt.data.kept_passes import keep_passes
from vit_clt.hooks import HookedViT, capture

BATCHES = (8, 16, 32, 64, 128)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pretrained", default="random")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    watch = LoadWatch()
    vit = HookedViT.load(options.model, options.pretrained)
    place = f"cifar10:{os.environ['VIT_CLT_DATA']}/data/cifar10"
    data = load_data(place, vit=vit, split="test", limit=max(BATCHES))
    images = data.batch(range(len(data)))[0]

    def passes(size: int) -> None:
        for part in images.split(size):
            capture(vit, part)

    contestants: dict[str, Callable[[], object]] = {
        "read": lambda: data.batch(range(len(data))),
        **{f"pass of {size}": partial(passes, size) for size in BATCHES},
    }
    timings = interleave(contestants, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        kept: list[Tensor] = [part for part, _ in keep_passes(vit, data, folder)]
        timings |= interleave(
            {"kept passes read": lambda: [capture(vit, part) for part in kept]}, options.rounds
        )
    found = {
        name: [1000 * statistics.median(each) / len(data) for each in (timing.cpu, timing.wall)]
        for name, timing in timings.items()
    }
    for name, (cpu, wall) in found.items():
        print(f"{name:18} {cpu:7.2f} CPU ms, {wall:7.2f} ms an image")
    finish({"model": options.model, "threads": options.threads, "ms": found}, watch, options.out)


if __name__ == "__main__":
    main()
