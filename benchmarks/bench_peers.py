"""A whole training step (forward, backward, fused AdamW) beside other packages', one thread.

    python benchmarks/bench_peers.py [--peers NAME=/path/to/venv/bin/python ...] [--rounds N]
                                     [--sizes mid,full] [--out FILE]

Each peer runs in a process of its own environment; contestants take turns, one step a round, and
ratios are taken within rounds, in CPU seconds. All start from the same weights on the same data;
those that claim the same step must have the same losses. Full size wants about 3 GiB a contestant.
Exits 1 where a table was made under load, 2 for a peer that cannot run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_step import SIZES
from measure import LoadWatch, finish, ratios
from peer_step import Problem
from peers import OURS, PEERS, PeerError, Runner, runners, same_losses

ENTRIES = {entry.name: entry for peer in PEERS.values() for entry in peer.entries}


def race(name: str, interpreters: dict[str, str], rounds: int) -> dict[str, Any]:
    """The table of one size."""
    problem = Problem(**asdict(SIZES[name]))
    with contextlib.ExitStack() as stack:
        contestants = [stack.enter_context(each) for each in runners(interpreters, problem)]
        # the first round, with fresh optimiser states, does not count
        for turn in range(rounds + 1):
            for each in contestants:
                each.step(counts=turn > 0)
    print(f"\n{name}: {problem}, {rounds} rounds, one thread, float32")
    print("| step | version | CPU ms | of it AdamW | times ours | low | high | first, last loss |")
    print("|---|---|---|---|---|---|---|---|")
    rows = [row(each, contestants[0]) for each in contestants]
    for name_, found in zip((each.name for each in contestants), rows, strict=True):
        if found["differences"]:
            print(f"{name_}: {found['differences']}")
    return {"size": name, **asdict(problem), "rows": rows}


def row(each: Runner, mine: Runner) -> dict[str, Any]:
    """One contestant's line, printed, and its record."""
    entry = ENTRIES.get(each.name)
    if entry is not None and entry.same_step and not same_losses(mine.losses, each.losses):
        raise PeerError(f"{each.name}: losses {each.losses}, ours {mine.losses}: not the same step")
    timings = {OURS: mine.timing, each.name: each.timing}
    # how many times ours: the peer's seconds over ours
    ratio, low, high = ratios(timings, OURS, each.name)
    cpu, adamw = (1e3 * statistics.median(times) for times in (each.timing.cpu, each.adamw))
    print(
        f"| {each.name} | {each.versions['version']} | {cpu:.0f} | {adamw:.0f} | {ratio:.2f} "
        f"| {low:.2f} | {high:.2f} | {each.losses[0]:.3f}, {each.losses[-1]:.3f} |"
    )
    return {
        "step": each.name,
        **each.versions,
        "differences": entry.differences if entry is not None else "",
        "same_step": entry is None or entry.same_step,
        "ratio": ratio,
        "low": low,
        "high": high,
        **asdict(each.timing),
        "adamw": each.adamw,
        "losses": each.losses,
    }


def interpreters_of(pairs: list[str]) -> dict[str, str]:
    """NAME=PYTHON pairs as a table; ValueError with one sentence for a bad one."""
    found = {}
    for pair in pairs:
        name, _, interpreter = pair.partition("=")
        if name not in PEERS:
            raise ValueError(f"--peers: found {pair!r}, expected NAME=PYTHON, NAME of {[*PEERS]}")
        if shutil.which(interpreter) is None:
            raise ValueError(f"--peers: {name}: {interpreter!r} is no executable file")
        found[name] = interpreter
    return found


def children_seconds() -> float:
    """CPU seconds of child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--sizes", default="mid,full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    try:
        interpreters = interpreters_of(options.peers)
    except ValueError as error:
        parser.error(str(error))
    # before a child's torch reads it
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    watch, before = LoadWatch(), children_seconds()
    for name, peer in PEERS.items():
        if name not in interpreters:
            print(peer.skipped(name))
    try:
        races = [race(size, interpreters, options.rounds) for size in options.sizes.split(",")]
    except PeerError as error:
        parser.error(str(error))
    # the contestants' seconds are this run's own, not other work
    watch.cpu -= children_seconds() - before
    finish({"races": races}, watch, options.out)


if __name__ == "__main__":
    main()
