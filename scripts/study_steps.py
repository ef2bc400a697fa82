"""Commands of a page of results, each with a folder of its own, run where they are missing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def run_steps(
    out: Path,
    steps: Mapping[str, Sequence[str]],
    model: str | None = None,
    only: Iterable[str] = (),
) -> None:
    """Run the `vit-clt` command of every step that is not finished.

    A step is finished once its folder holds metrics.json; what a command prints goes to NAME.log.

    Args:
        out: folder of all steps.
        steps: arguments by the name of the step, in an order in which they can run.
        model: the --model of every command; None where each names its own.
        only: names of the steps that are run; all if there are none.

    Raises:
        SystemExit: a command failed; its last line is shown.
    """
    only = set(only)
    for name, args in steps.items():
        if (only and name not in only) or (out / name / "metrics.json").is_file():
            continue
        # a study begins anew, a training and an audit go on
        again = [] if "--resume" in args else ["--overwrite"]
        began, log = time.monotonic(), out / f"{name}.log"
        print(f"{name} ...", flush=True)
        of_all = [] if model is None else ["--model", model]
        command = [sys.executable, "-m", "vit_clt", *args, *of_all, *again]
        with log.open("a") as file:
            done = subprocess.run([*command, "--out", str(out / name)], stdout=file, stderr=file)
        if done.returncode:
            said = log.read_text().splitlines() or [f"exit status {done.returncode}"]
            sys.exit(f"step {name} failed: {said[-1]}")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
