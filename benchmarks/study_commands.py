"""Every command that reads a set of images, as a command line, and what one run of it takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 2**20
_TOLD = re.compile(
    r"time: about (?P<time>[\d.,]+) (?P<unit>s|min|h|days) .*memory: about (?P<memory>[\d.]+) "
    r"(?P<bytes>[GM]B)"
)
_SECONDS = {"s": 1, "min": 60, "h": 3600, "days": 86400}
_BYTES = {"MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Place:
    """Where images and a CLT are."""

    root: Path
    """Folder with data/cifar10/{train,test}.parquet."""
    clt: Path
    model: str
    """The teacher of the CLT."""

    def commands(self) -> dict[str, list[str]]:
        """Command lines by name, without --limit and --out; N stands for the number of images."""
        model = ["--model", self.model, *self._form("data", "test")]
        clt = ["--clt", str(self.clt), *model]
        train = [*self._form("train-data", "train"), "--train-limit"]
        return {
            "reconstruct": ["reconstruct", *clt],
            "high-norm": ["high-norm", *clt],
            "contributions": ["contributions", *clt],
            "contributions, effects": [
                "contributions",
                *clt,
                "--kind",
                "effect",
                "--tokens",
                "cls",
            ],
            "ablate": ["ablate", *clt, "--fill", "mean"],
            "keep-sets": ["keep-sets", *clt, "--fill", "mean"],
            "cascade": ["cascade", *clt, "--layers", "0,4,7"],
            "faithfulness": ["faithfulness", *clt],
            "causal": ["causal", *clt, "--fill", "mean"],
            "claims": ["claims", *clt],
            "probe": ["probe", *model, *train, "N"],
            "fidelity": ["fidelity", *model, "--clts", str(self.clt)],
            "retrieve": ["retrieve", *clt, *self._form("corpus", "train"), "--corpus-limit", "N"],
            "features": ["features", *clt, "--count", "4"],
            "feature-scores": ["feature-scores", *clt, "--layers", "6,7", *train, "N"],
            "heads": ["heads", *clt, "--sample", "N", "--drawn", "1"],
            "graph": ["graph", *clt, "--query", "0"],
            "steer": ["steer", *clt, "--feature", "7:76", "--values", "0", "2", "--random", "1"],
            "explore": ["explore", *clt, "--count", "16", "--graphs", "2"],
            "export": ["export", *clt, *train, "N"],
        }

    def arguments(self, name: str, n_images: int) -> list[str]:
        """The command line of a command on this many images, without --out."""
        line = [str(n_images) if part == "N" else part for part in self.commands()[name]]
        return [*line, "--limit", str(n_images)]

    def _form(self, option: str, split: str) -> list[str]:
        form = [f"--{option}", f"parquet:{self.root}/data/cifar10/{split}.parquet"]
        return [*form, "--split", split] if option == "data" else form


@dataclass(frozen=True)
class Taken:
    """What a command took on one number of images."""

    rc: int
    peak: int
    """Peak resident memory, in bytes."""
    seconds: float
    """Wall time of the whole process."""
    told: str | None
    """The line that the command printed before it started, if it printed one."""
    measured: float | None
    """Wall time from that line to the end."""
    cpu: float | None
    """CPU seconds from that line to the end, on which other work on the machine weighs less."""
    last: str
    """Last line printed, for a run that failed."""

    def told_numbers(self) -> tuple[float, float]:
        """Seconds and bytes that the command told."""
        found = _TOLD.match(self.told or "")
        assert found is not None
        seconds = float(found["time"].replace(",", "")) * _SECONDS[found["unit"]]
        return seconds, float(found["memory"]) * _BYTES[found["bytes"]]


def run(arguments: list[str], python: str = sys.executable, threads: int = 1) -> Taken:
    """Run a command into a folder that is removed afterwards."""
    out = Path(tempfile.mkdtemp(prefix="vit_clt_bench_"))
    line = [python, "-u", "-m", "vit_clt", *arguments, "--out", str(out / "out")]
    began = time.perf_counter()
    child = subprocess.Popen(
        line,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=out,
    )
    told, at, spent, last = None, 0.0, 0.0, ""
    assert child.stdout is not None
    for text in child.stdout:
        if _TOLD.match(text):
            told, at, spent = text.strip(), time.perf_counter(), _cpu_seconds(child.pid)
        last = text.strip() or last
    _, status, usage = os.wait4(child.pid, 0)
    ended = time.perf_counter()
    child.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(out, ignore_errors=True)
    measured, cpu = ended - at, usage.ru_utime + usage.ru_stime - spent
    return Taken(
        rc=child.returncode,
        peak=usage.ru_maxrss * 1024,
        seconds=ended - began,
        told=told,
        measured=measured if told else None,
        cpu=cpu if told else None,
        last=last[:300],
    )


def _cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


class Results:
    """Results in a JSON file, written after every run, so that a killed benchmark goes on."""

    def __init__(self, path: Path):
        self.path = path
        self.runs: dict[str, dict[str, Taken]] = {}
        if path.is_file():
            read = json.loads(path.read_text())
            for name, sizes in read.items():
                self.runs[name] = {size: Taken(**taken) for size, taken in sizes.items()}

    def add(self, name: str, n_images: int, taken: Taken) -> None:
        """Keep a result, and write all of them."""
        self.runs.setdefault(name, {})[str(n_images)] = taken
        found = {
            name: {size: asdict(one) for size, one in runs.items()}
            for name, runs in self.runs.items()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(found, indent=1) + "\n")
        beside.replace(self.path)
