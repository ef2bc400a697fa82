"""Interleaved timing in one process, the machine, and whether its load spoils the figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

MAX_LOAD_PER_CORE = 0.5


@dataclass
class Timing:
    """Seconds of one contestant, a value per round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def interleave(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Run every contestant once a round, after one round that does not count."""
    timings = {name: Timing() for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if turn > 0:
                timings[name].cpu.append(time.process_time() - cpu)
                timings[name].wall.append(time.perf_counter() - wall)
    return timings


def ratios(
    timings: dict[str, Timing], name: str, baseline: str, clock: Literal["cpu", "wall"] = "cpu"
) -> tuple[float, float, float]:
    """Median, lowest and highest of baseline / name in seconds of `clock`, round by round."""
    base, own = (getattr(timings[each], clock) for each in (baseline, name))
    each = [b / o for b, o in zip(base, own, strict=True)]
    return statistics.median(each), min(each), max(each)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if ":" in line]
        fields = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines}
        model = f"{fields.get('model name', model)}, family {fields.get('cpu family', '?')}"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


class LoadWatch:
    """Other work on the machine at the start and at the end of a run."""

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1
        self.start = self._others(own=0.0)
        self.began = time.perf_counter()
        self.cpu = _own_seconds()

    def report(self) -> dict[str, float | bool]:
        """Load a core, this process left out, and whether it is too high to publish."""
        busy = (_own_seconds() - self.cpu) / max(1e-9, time.perf_counter() - self.began)
        # the one-minute average has seen this process for as long as it ran
        seen = 1 - 2.718 ** (-(time.perf_counter() - self.began) / 60)
        end = self._others(own=busy * seen)
        loaded = max(self.start, end) > MAX_LOAD_PER_CORE
        return {"load_start": self.start, "load_end": end, "loaded": loaded}

    def _others(self, own: float) -> float:
        return max(0.0, os.getloadavg()[0] - own) / self.cores


def _own_seconds() -> float:
    # CPU seconds of this process and of those it started
    return sum(os.times()[:4])


def finish(result: dict[str, Any], watch: LoadWatch, out: Path | None) -> None:
    """Say where and at what load this ran, write the result, exit 1 if the load was too high."""
    load = watch.report()
    result |= {"machine": machine(), "load": load}
    print(f"\n{result['machine']}")
    print(f"load a core, others': {load['load_start']:.2f} before, {load['load_end']:.2f} after")
    if load["loaded"]:
        print(f"LOADED: above {MAX_LOAD_PER_CORE} a core; do not publish these figures")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if load["loaded"] else 0)
