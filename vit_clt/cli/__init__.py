"""The `vit-clt` command. Nothing here imports torch before a command runs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import tyro

from vit_clt import __version__
from vit_clt.cli.ablate import Ablate
from vit_clt.cli.audit import Audit
from vit_clt.cli.cascade import Cascade
from vit_clt.cli.causal import Causal
from vit_clt.cli.contributions import Contributions
from vit_clt.cli.demo import Demo
from vit_clt.cli.export import Export
from vit_clt.cli.faithfulness import Faithfulness
from vit_clt.cli.features import Features
from vit_clt.cli.fidelity import Fidelity
from vit_clt.cli.graph import Graph
from vit_clt.cli.import_files import Import
from vit_clt.cli.keep_sets import KeepSets
from vit_clt.cli.probe import Probe
from vit_clt.cli.reconstruct import Reconstruct
from vit_clt.cli.reproduce import Reproduce
from vit_clt.cli.retrieve import Retrieve
from vit_clt.cli.steer import Steer
from vit_clt.cli.train import Train
from vit_clt.cli.weights import Weights
from vit_clt.errors import InputError, Stopped

_DESCRIPTION = "Cross-layer transcoders for Vision Transformers: which depth builds the answer?"
Command = (
    Demo
    | Train
    | Contributions
    | Ablate
    | KeepSets
    | Cascade
    | Reconstruct
    | Faithfulness
    | Causal
    | Probe
    | Audit
    | Fidelity
    | Weights
    | Reproduce
    | Retrieve
    | Graph
    | Features
    | Steer
    | Export
    | Import
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 2 bad input (one sentence on stderr), 1 anything else."""
    args = list(sys.argv[1:] if args is None else args)
    if args == ["--version"]:
        print(f"vit-clt {__version__}")
        return 0
    try:
        command = _parse(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if command is None:
        return 0
    # idle OpenMP threads that spin make small steps ten times slower on a machine that is not idle
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _quiet_libraries()
        command.run()
    except InputError as error:
        if command.traceback:
            traceback.print_exc()
        print(_one_sentence(str(error)), file=sys.stderr)
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


def _quiet_libraries() -> None:
    # their bars and notices would drown ours
    import logging
    import warnings

    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def _parse(args: list[str]) -> Command | None:
    commands = (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Train, tyro.conf.subcommand("train", default=Train.defaults(args))]
        | Annotated[Contributions, tyro.conf.subcommand("contributions")]
        | Annotated[Ablate, tyro.conf.subcommand("ablate")]
        | Annotated[KeepSets, tyro.conf.subcommand("keep-sets")]
        | Annotated[Cascade, tyro.conf.subcommand("cascade")]
        | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
        | Annotated[Faithfulness, tyro.conf.subcommand("faithfulness")]
        | Annotated[Causal, tyro.conf.subcommand("causal")]
        | Annotated[Probe, tyro.conf.subcommand("probe")]
        | Annotated[Audit, tyro.conf.subcommand("audit", default=Audit.defaults(args))]
        | Annotated[Fidelity, tyro.conf.subcommand("fidelity", default=Fidelity.defaults(args))]
        | Annotated[Weights, tyro.conf.subcommand("weights")]
        | Annotated[Reproduce, tyro.conf.subcommand("reproduce", default=Reproduce.defaults(args))]
        | Annotated[Retrieve, tyro.conf.subcommand("retrieve")]
        | Annotated[Graph, tyro.conf.subcommand("graph")]
        | Annotated[Features, tyro.conf.subcommand("features")]
        | Annotated[Steer, tyro.conf.subcommand("steer")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Import, tyro.conf.subcommand("import")]
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(  # type: ignore[call-overload,no-any-return]
                commands,
                prog="vit-clt",
                description=_DESCRIPTION,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if not exit.code:
            return None
        # tyro draws a box over several lines; the user gets its first statement as one sentence
        text = complaint.getvalue().split("For full helptext")[0]
        text = re.sub(r"Error parsing \S*\.training(\.\S+)?: ", "", text)
        text = re.sub(r"╭─ (Invalid choice|Value error|Unrecognized options) ─*╮", "", text)
        text = " ".join(re.sub(r"[─│╭╮╰╯]+", " ", text).split())
        raise InputError(_one_sentence(f"{text} (see vit-clt --help)")) from None


def _one_sentence(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) < 300 else f"{flat[:290]} ..."
