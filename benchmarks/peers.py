"""The packages our step is raced against, and their contestants as processes that take turns."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measure import Timing
from peer_step import Problem

SCRIPT = Path(__file__).with_name("peer_step.py")
OURS = "ours"


@dataclass(frozen=True)
class Entry:
    """A contestant of a peer; its name is the one in `peer_step.CONTESTANTS`."""

    name: str
    same_step: bool
    differences: str


@dataclass(frozen=True)
class Peer:
    """A package on PyPI that trains cross-layer transcoders."""

    requirement: str
    python: str
    entries: tuple[Entry, ...]

    def skipped(self, name: str) -> str:
        """How to have it raced."""
        install = " ".join(shlex.quote(each) for each in self.requirement.split())
        return (
            f"{name}: skipped, no interpreter was given; with Python {self.python}: "
            f"python -m venv DIR && DIR/bin/pip install {install}, "
            f"then --peers {name}=DIR/bin/python"
        )


PEERS = {
    "lm-saes": Peer(
        # without the bound pip takes TransformerLens 4, which this release cannot import
        "lm-saes==2.0.0b34 transformer-lens<4",
        "3.11 or 3.12",
        (
            Entry("lm-saes, dense", True, "decoder-norm scaling of the top-k, its default, is off"),
            Entry("lm-saes, CSR", True, "the same; decode_with_csr=True, which is not its default"),
        ),
    ),
    "decode-clt": Peer(
        "decode-clt==0.0.1",
        "3.10 or newer",
        (
            Entry(
                "decode-clt, global top-k",
                False,
                "L k features of all layers together, ranked by standardised value, no ReLU; "
                "a bias a pair",
            ),
            Entry(
                "decode-clt, top-k a layer",
                True,
                "put together from its parts, because its per-layer mode returns zeros; "
                "a bias a pair",
            ),
        ),
    ),
}


class PeerError(Exception):
    """A contestant's process ended, or computed something else."""


@dataclass
class Runner:
    """A contestant's process; idle except while `step` waits for it."""

    name: str
    interpreter: str
    problem: Problem
    timing: Timing = field(default_factory=Timing)
    adamw: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __enter__(self) -> Runner:
        """Start the process and wait until its model stands."""
        command = [
            self.interpreter,
            str(SCRIPT),
            self.name,
            json.dumps(asdict(self.problem)),
        ]
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.versions = self._answer()
        except PeerError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._errors.close()

    def step(self, *, counts: bool) -> None:
        """One training step; its seconds are kept where it counts, its loss always."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process's own last words say more
        found = self._answer()
        self.losses.append(found["loss"])
        if counts:
            self.timing.cpu.append(found["cpu"])
            self.timing.wall.append(found["wall"])
            self.adamw.append(found["adamw"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().strip().splitlines() or ["nothing on standard error"]
        code = self._process.returncode
        raise PeerError(f"{self.name}: {self.interpreter} ended with code {code}: {words[-1]}")


def runners(interpreters: dict[str, str], problem: Problem) -> list[Runner]:
    """Ours and every contestant of the peers that have an interpreter, none of them started."""
    found = [Runner(OURS, sys.executable, problem)]
    for name, interpreter in interpreters.items():
        found += [Runner(entry.name, interpreter, problem) for entry in PEERS[name].entries]
    return found


def same_losses(mine: list[float], theirs: list[float]) -> bool:
    """Whether two contestants that start from the same weights take the same steps.

    The first losses compare outputs; the later ones, after updates, compare gradients: they may
    differ by 5 % of what ours has fallen (biases a pair, near ties of the top-k).
    """
    return all(
        abs(a - b) <= 1e-5 * abs(mine[0]) + 0.05 * abs(mine[0] - a)
        for a, b in zip(mine, theirs, strict=True)
    )
