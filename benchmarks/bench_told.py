"""What commands tell of their time and memory before they start, beside what they then take.

    VIT_CLT_DATA=DATA python benchmarks/bench_told.py [--clt out/demo/clt] [--model digits]
        [--sizes 500 2000] [--only contributions ablate] [--out out/bench/told.json]

Every run is a child process on one thread. Aims: within a factor of 1.5 in time and of 1.25 in
memory. Time is counted from the line that tells it to the end of the process, in CPU seconds of the
one thread beside wall time: on a busy machine the truth of what was told lies between. Results are
kept in --out after every run, and those that it holds, also of `bench_study_memory.py`, are not run
again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from study_commands import Place, Results, Taken, run

AIMS = {"time": 1.5, "memory": 1.25}


def ratios(taken: Taken) -> dict[str, float]:
    """Told divided by taken, of time and of memory."""
    seconds, memory = taken.told_numbers()
    assert taken.cpu is not None
    return {"time": seconds / max(1.0, taken.cpu), "memory": memory / taken.peak}


def row(name: str, n_images: str, taken: Taken) -> str:
    """A line of the table; misses of the aims are bold."""
    seconds, memory = taken.told_numbers()
    found = ratios(taken)
    texts = {
        key: f"{value:.2f}" if 1 / AIMS[key] <= value <= AIMS[key] else f"**{value:.2f}**"
        for key, value in found.items()
    }
    return (
        f"| {name} | {int(n_images):,} | {seconds:.0f} | {taken.cpu:.0f} | {taken.measured:.0f} | "
        f"{texts['time']} | {memory / 1e9:.2f} | {taken.peak / 1e9:.2f} | {texts['memory']} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clt", type=Path, default=Path("out/demo/clt"))
    parser.add_argument("--model", default="digits")
    parser.add_argument("--sizes", type=int, nargs=2, default=[500, 2000])
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("out/bench/told.json"))
    options = parser.parse_args()
    if "VIT_CLT_DATA" not in os.environ:
        sys.exit("VIT_CLT_DATA is not set; expected a folder with data/cifar10")
    root = Path(os.environ["VIT_CLT_DATA"]).resolve()
    place = Place(root, options.clt.resolve(), options.model)
    results = Results(options.out)
    for name in options.only or place.commands():
        for size in options.sizes:
            if str(size) not in results.runs.get(name, {}):
                results.add(name, size, run(place.arguments(name, size)))
    print("| command | images | told, s | CPU s | wall s | ratio | told, GB | taken, GB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    misses = {key: 0 for key in AIMS}
    n = 0
    for name, runs in results.runs.items():
        for size, taken in runs.items():
            if taken.rc or taken.told is None:
                print(f"| {name} | {size} | failed: {taken.last} |")
                continue
            print(row(name, size, taken))
            n += 1
            for key, value in ratios(taken).items():
                misses[key] += not 1 / AIMS[key] <= value <= AIMS[key]
    print(f"\n{n} runs; outside the aim: {misses['time']} in time, {misses['memory']} in memory")


if __name__ == "__main__":
    main()
