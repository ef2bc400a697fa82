"""The `vit-clt` command. Nothing here imports torch before a command runs."""

from __future__ import annotations

import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from vit_clt import __version__
from vit_clt.cli.commands import COMMANDS, flag, parse
from vit_clt.errors import InputError, Stopped

__all__ = ["COMMANDS", "main", "script"]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 2 bad input (one sentence on stderr), 1 anything else."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"vit-clt {__version__}")
        return 0
    try:
        command = parse(args)
    except BrokenPipeError:  # whoever read the help has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(_with_flags(error, args), file=sys.stderr)
        return 2
    if command is None:  # help was asked for
        return 0
    # idle OpenMP threads that spin make small steps ten times slower on a machine that is not idle
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _load_libraries(command.imports)
        command.run()
    except InputError as error:
        if command.traceback:
            traceback.print_exc()
        print(_with_flags(error, args), file=sys.stderr)
        return 2
    except OSError as error:
        if command.traceback:
            traceback.print_exc()
        reason = (
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}"
        )
        print(_one_sentence(f"{reason}."), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(f"{stop}; --resume goes on from there", file=sys.stderr)
        return 1
    except Exception as error:  # the last stop before the user: one line, or all of it on request
        if command.traceback:
            traceback.print_exc()
        summary = f"{type(error).__name__}: {error}"
        print(f"{_one_sentence(summary)} (--traceback shows where)", file=sys.stderr)
        return 1
    return 0


def script() -> None:
    """Entry point of the console script."""
    sys.exit(main())


def _load_libraries(modules: Sequence[str]) -> None:
    # what a command uses anyway, first of all; docs/performance.md says what each library costs.
    # They make a million objects that stay: looking for garbage among them took a sixth of the time
    gc.disable()
    try:
        for module in modules:
            import_module(module)
    finally:
        gc.freeze()
        gc.enable()
    # their bars and notices would drown ours
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def _with_flags(error: InputError, args: Sequence[str]) -> str:
    """The error's sentence, in which arguments are spelled as the options of the command."""
    named = bool(args) and args[0] in COMMANDS
    return _one_sentence(error.spelled(partial(flag, args[0])) if named else str(error))


def _one_sentence(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) < 300 else f"{flat[:290]} ..."
