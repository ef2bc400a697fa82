"""The `vit-clt` command. This package does not import torch before a command runs."""

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
from vit_clt.cli.terminal import printable_output
from vit_clt.errors import InputError, Stopped
from vit_clt.text import printable

__all__ = ["main", "script"]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 0 if the command is done, 2 for bad input (one sentence on stderr), 130 for Ctrl-C,
    and 1 for any other error.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        code = _run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has closed the pipe
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    return code


def _run(args: list[str]) -> int:
    # this is imported here, so that Ctrl-C is answered at any time
    from vit_clt.cli.commands import parse

    if args == ["--version"]:
        print(f"vit-clt {__version__}")
        return 0
    try:
        command = parse(args)
        if command is not None:
            command.check()
    except InputError as error:
        print(_with_flags(error, args), file=sys.stderr)
        return 2
    if command is None:  # help was asked for
        return 0
    # idle OpenMP threads that spin make small steps ten times slower on a machine that is not idle
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _load_libraries(command.imports)
        with printable_output():
            command.run()
    except InputError as error:
        if command.traceback:
            traceback.print_exc()
        print(_with_flags(error, args), file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        if command.traceback:
            traceback.print_exc()
        reason = (
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}"
        )
        print(_one_sentence(f"{reason}."), file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"{stop}; --resume goes on from there", file=sys.stderr)
        return 130 if stop.by_keyboard else 1
    except Exception as error:  # the user gets one line, or the traceback on request
        if command.traceback:
            traceback.print_exc()
        summary = f"{type(error).__name__}: {error}"
        print(f"{_one_sentence(summary)} (--traceback shows where)", file=sys.stderr)
        return 1
    finally:
        _close_outputs()
    return 0


def script() -> None:
    """Entry point of the console script."""
    sys.exit(main())


def _close_outputs() -> None:
    if "vit_clt.outputs" in sys.modules:
        from vit_clt.outputs import close_outputs

        close_outputs()


def _load_libraries(modules: Sequence[str]) -> None:
    # the command needs these libraries anyway; docs/performance.md says how long each one takes.
    # They make a million objects that stay, and collecting garbage took a sixth of the import time
    gc.disable()
    try:
        for module in modules:
            import_module(module)
    finally:
        gc.freeze()
        gc.enable()
    # the progress bars and notices of other libraries would hide ours
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(str(message))}\n"


def _with_flags(error: InputError, args: Sequence[str]) -> str:
    """The sentence of the error, with arguments spelled as the options of the command."""
    from vit_clt.cli.commands import COMMANDS, flag

    known = bool(args) and args[0] in COMMANDS
    return _one_sentence(error.spelled(partial(flag, args[0])) if known else str(error))


def _one_sentence(text: str) -> str:
    flat = " ".join(printable(text).split())
    return flat if len(flat) < 300 else f"{flat[:290]} ..."
