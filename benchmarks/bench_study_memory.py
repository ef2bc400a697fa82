"""Peak memory of every command that reads a set of images, by the number of images.

    VIT_CLT_DATA=DATA python benchmarks/bench_study_memory.py [--clt out/demo/clt]
        [--model digits] [--sizes 500 2000 8000] [--seconds 360] [--only contributions ablate]

By default the images are CIFAR-10's test split as the shipped digits' ViT reads them, and the CLT
that of `vit-clt demo`: growth is the same for any images, and with a small ViT 8,000 take a minute.
Every run is a child process on one thread. A size at which a command would take more than
--seconds, judged from the size before, is left out, and a smaller one that fits is run in its
place. Results are kept in --out after every run; the same command line goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from study_commands import MIB, Place, Results, run


def missing(results: Results, name: str, sizes: list[int], most: float) -> Iterator[int]:
    """The sizes to run, smallest first; the largest is smaller where it would take too long."""
    for size in sorted(sizes):
        done = {int(n): taken for n, taken in results.runs.get(name, {}).items()}
        below = max((n for n in done if n < size), default=None)
        if size in done:
            continue
        if below is not None:
            last = done[below]
            if last.rc != 0 or last.measured is None:
                return
            # imports and loading do not grow with the images
            start, an_image = last.seconds - last.measured, last.measured / below
            if start + size * an_image > most:
                size = int((most - start) / an_image) // 100 * 100
                if size <= below:
                    return
        yield size


def table(results: Results) -> str:
    """Peaks in MiB at each number of images, and the growth from the smallest to the largest."""
    lines = ["| command | peak, MiB, by images | growth, KB an image |", "|---|---|---|"]
    for name, runs in results.runs.items():
        found = {int(n): taken for n, taken in runs.items() if taken.rc == 0}
        if not found:
            lines.append(f"| {name} | failed: {next(iter(runs.values())).last} | |")
            continue
        least, most = min(found), max(found)
        growth = (found[most].peak - found[least].peak) / max(1, most - least) / 1000
        sizes = ", ".join(f"{found[n].peak / MIB:,.0f} at {n:,}" for n in sorted(found))
        lines.append(f"| {name} | {sizes} | {growth if most > least else float('nan'):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clt", type=Path, default=Path("out/demo/clt"))
    parser.add_argument("--model", default="digits")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("out/bench/study_memory.json"))
    options = parser.parse_args()
    if "VIT_CLT_DATA" not in os.environ:
        sys.exit("VIT_CLT_DATA is not set; expected a folder with data/cifar10")
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    place = Place(root, options.clt.resolve(), options.model)
    results = Results(options.out)
    for stage in range(1, len(options.sizes) + 1):
        for name in options.only or place.commands():
            for size in missing(results, name, sorted(options.sizes)[:stage], options.seconds):
                taken = run(place.arguments(name, size))
                results.add(name, size, taken)
                ended = "" if taken.rc == 0 else f", FAILED: {taken.last}"
                peak = taken.peak / MIB
                print(f"{name}, {size}: {peak:,.0f} MiB, {taken.seconds:.0f} s{ended}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
