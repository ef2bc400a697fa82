"""How long a command takes to show something: `--help`, and its first progress bar.

    python benchmarks/bench_startup.py [--rounds 3] [--command PATH/vit-clt ...] [--out FILE]

Every command runs in a process of its own, in turns, until the first bar stands on standard error,
and is then stopped; wall seconds count, CPU seconds of the process stand beside them. Several
`--command`s (of other checkouts, say) take turns. Files are in the page cache after a first round
that does not count. Exits 1 where the figures were measured under load.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import LoadWatch, finish

HELP = ("--help", "contributions --help", "train --help")
RUNS = (
    "demo",
    "train --data digits --n-features 128 --k 8 --epochs 1",
    "contributions --clt {clt} --data digits",
    "reconstruct --clt {clt} --data digits",
    "cascade --clt {clt} --data digits",
    "features --clt {clt} --data digits",
    "retrieve --clt {clt} --data digits",
    "graph --clt {clt} --data digits",
    "causal --model digits",
)


def until_it_shows(command: str, words: list[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds to the end of `--help`, or to the first bar.

    Raises:
        RuntimeError: the command ended without a bar.
    """
    helps = words[-1] == "--help"
    out = [] if helps else ["--out", str(folder / "out"), "--overwrite"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [command, *words, *out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = b""
    while helps or b"%|" not in said:
        more = os.read(process.stderr.fileno(), 4096)
        said += more
        if not more and not helps:
            raise RuntimeError(f"{' '.join(words)} shows no bar: {said[-300:].decode()}")
        if not more:
            break
    if helps:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        return time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    wall = time.perf_counter() - began
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    process.kill()
    process.wait()
    return wall, cpu


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--command", nargs="+", default=[str(Path(sys.executable).parent / "vit-clt")]
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench/startup.json"))
    args = parser.parse_args()
    watch = LoadWatch()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        clt = folder / "clt"
        train = [args.command[0], *RUNS[1].split(), "--out", str(clt)]
        subprocess.run(train, check=True, capture_output=True)
        for line in (*HELP, *RUNS):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in args.command}
            for turn in range(args.rounds + 1):
                for name in args.command:
                    seen = until_it_shows(name, line.format(clt=clt).split(), folder)
                    if turn:
                        found[name].append(seen)
            results[line] = {
                name: {
                    "wall": statistics.median(wall for wall, _ in times),
                    "cpu": statistics.median(cpu for _, cpu in times),
                }
                for name, times in found.items()
            }
            cells = " ".join(
                f"{each['wall']:6.2f} s wall {each['cpu']:6.2f} s CPU"
                for each in results[line].values()
            )
            print(f"{line.split(' --clt')[0][:40]:40} {cells}", flush=True)
    finish({"results": results}, watch, args.out)


if __name__ == "__main__":
    main()
