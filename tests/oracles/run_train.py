"""`vit-clt train` as real processes, forked from one that has imported torch already.

Importing torch and its company takes a process several seconds, and drawing its first figure one
more (plotly builds its templates then); tests that kill dozens need both once.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_IMPORTED_ONCE = (
    "datasets",
    "open_clip",
    "plotly.io",
    "sklearn.datasets",
    "sklearn.model_selection",
    "vit_clt.analysis.fit.training_study",
    "vit_clt.analysis.reporting.training_page",
    "vit_clt.cli",
    "vit_clt.training.cost",
    "vit_clt.hooks",
    "vit_clt.transcoder.model_card",
    "vit_clt.training.run_folder",
    "vit_clt.training.trainer",
    # last: it uses them
    "oracles.warm_up",
)
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(list(_IMPORTED_ONCE))


def forked(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that has imported what training needs, not yet started.

    Args:
        target: a function of a test module.
        args: its arguments.
    """
    # the server ignores this process's sys.path (and, silently, what it cannot import), but not
    # the environment it is started with
    before = os.environ.get("PYTHONPATH")
    tests = Path(__file__).parents[1]
    places = [place for place in sys.path if tests in (Path(place), *Path(place).parents)]
    os.environ["PYTHONPATH"] = os.pathsep.join(places if before is None else [*places, before])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return _PROCESSES.Process(target=target, args=args)


@dataclass(frozen=True)
class At:
    """Something happens inside the process just before the n-th call of a function."""

    function: str
    """ "module:name" or "module:Class.name"."""
    call: int
    happens: Callable[[], Any]


DIES = partial(signal.raise_signal, signal.SIGKILL)
IS_ASKED_TO_STOP = partial(signal.raise_signal, signal.SIGTERM)
IS_INTERRUPTED = partial(signal.raise_signal, signal.SIGINT)
"""Ctrl-C."""


def limit_file_size(n_bytes: int, *, kill: bool = False) -> None:
    """Writes beyond `n_bytes` of a file fail, as on a full disk, or kill in the middle of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Python ignores the signal, and the write then fails
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    out: str
    err: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The last line of standard error."""
        return self.err.strip().splitlines()[-1]


class Started:
    """A process that trains. Use as a context manager: it does not outlive the test.

    Args:
        args: of `vit-clt train`, or of `command`.
        out: its output folder; standard output and error go beside it.
        at: what befalls it.
        environment: added to ours.
        command: another command.
    """

    def __init__(
        self,
        args: Sequence[str],
        out: Path,
        at: Sequence[At] = (),
        environment: Mapping[str, str] | None = None,
        command: str = "train",
    ):
        environment = dict(environment or {})
        rank = environment.get("RANK", "0")
        self._streams = [out.with_name(f".{out.name}.{rank}.{name}") for name in ("out", "err")]
        self._began = time.monotonic()
        whole = [command, *args, "--out", str(out)]
        self.process = forked(_trains, whole, self._streams, tuple(at), environment)
        self.process.start()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()

    def kill_after(self, seconds: float) -> None:
        """SIGKILL, if it lives that long."""
        self.process.join(seconds)
        self.process.kill()

    def ended(self, within: float = 120) -> Ended:
        """Wait for its end; longer than `within` seconds is a failure."""
        self.process.join(within)
        code = self.process.exitcode
        out, err = (path.read_text() if path.exists() else "" for path in self._streams)
        assert code is not None, f"still running after {within} s: {err[-500:]}"
        return Ended(code, out, err, time.monotonic() - self._began)


def trained(
    args: Sequence[str],
    out: Path,
    at: Sequence[At] = (),
    environment: Mapping[str, str] | None = None,
    command: str = "train",
) -> Ended:
    """One process, from its start to its end."""
    with Started(args, out, at, environment, command) as started:
        return started.ended()


def _trains(
    args: list[str], streams: Sequence[Path], at: Sequence[At], environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    # of its own accord it would start workers as it was started
    multiprocessing.set_start_method(None, force=True)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), number)
    for each in at:
        _arrange(each)
    from tqdm import tqdm

    from vit_clt.cli import main

    # the lock it would make is a semaphore of the system, which outlives a killed process
    tqdm.set_lock(threading.RLock())

    # a shell starts background processes with Ctrl-C ignored, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main(args)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _arrange(at: At) -> None:
    module, _, path = at.function.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at.call:
            at.happens()
        return original(*args, **kwargs)

    setattr(owner, name, called)
