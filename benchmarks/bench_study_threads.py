"""Studies on two threads beside one: wall seconds from the line that tells their time to the end.

    VIT_CLT_DATA=DATA python benchmarks/bench_study_threads.py --clt out/demo/clt --model digits
        [--images 500] [--only contributions ablate] [--out FILE]

Every run is a child process. Bar: 1.7 times as fast; what misses it names its serial part in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from measure import LoadWatch, finish
from study_commands import Place, run

COMMANDS = ("reconstruct", "contributions", "ablate", "cascade", "features")
BAR = 1.7


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clt", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--only", nargs="*", default=COMMANDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    place = Place(Path(os.environ["VIT_CLT_DATA"]), options.clt.resolve(), options.model)
    watch = LoadWatch()
    found = {}
    for name in options.only:
        taken = [run(place.arguments(name, options.images), threads=n) for n in (1, 2)]
        one, two = (each.measured or float("nan") for each in taken)
        found[name] = {"one": one, "two": two, "ratio": one / two}
        said = "met" if one / two >= BAR else "NOT met"
        print(f"{name:14} {one:7.1f} s on one, {two:7.1f} s on two: {one / two:.2f}, {said}")
    finish({"images": options.images, "bar": BAR, "commands": found}, watch, options.out)


if __name__ == "__main__":
    main()
