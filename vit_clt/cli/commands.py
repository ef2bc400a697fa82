"""The commands of `vit-clt`, and how a command line becomes one of them.

A command's module is imported when it is named, so that its help does not wait for the others.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

import tyro

from vit_clt.cli.options import Command
from vit_clt.errors import InputError
from vit_clt.transcoder.train_config import TrainConfig

COMMANDS = {
    "demo": "demo:Demo",
    "train": "train:Train",
    "contributions": "contributions:Contributions",
    "ablate": "ablate:Ablate",
    "keep-sets": "keep_sets:KeepSets",
    "cascade": "cascade:Cascade",
    "reconstruct": "reconstruct:Reconstruct",
    "faithfulness": "faithfulness:Faithfulness",
    "causal": "causal:Causal",
    "probe": "probe:Probe",
    "audit": "audit:Audit",
    "fidelity": "fidelity:Fidelity",
    "weights": "weights:Weights",
    "reproduce": "reproduce:Reproduce",
    "retrieve": "retrieve:Retrieve",
    "graph": "graph:Graph",
    "features": "features:Features",
    "steer": "steer:Steer",
    "export": "export:Export",
    "import": "import_files:Import",
}
"""Where each command's class is: its module in `vit_clt.cli`, and its name there."""

_DESCRIPTION = "Cross-layer transcoders for Vision Transformers: which depth builds the answer?"


def command_class(name: str) -> type[Command]:
    """The class of a command of `COMMANDS`."""
    module, _, class_name = COMMANDS[name].partition(":")
    found: type[Command] = getattr(import_module(f"vit_clt.cli.{module}"), class_name)
    return found


def flag(name: str, argument: str) -> str:
    """The flag that a command has for an argument of the library, or `argument` if it has none."""
    command = command_class(name)
    options = {option: option for option in _options(command)} | dict(command.other_names)
    return f"--{options[argument].replace('_', '-')}" if argument in options else argument


def _options(command: type[Command]) -> list[str]:
    own = [field.name for field in fields(command)]
    if "training" not in own:
        return own
    from vit_clt.transcoder.sparsifiers import SPARSIFIERS

    of_training = list(fields(TrainConfig))
    for kind in SPARSIFIERS.values():
        of_training += fields(kind.training)
    return own + [field.name for field in of_training]


def parse(args: Sequence[str]) -> Command | None:
    """The command that a command line asks for, or None where it asks for help.

    Raises:
        InputError: no such command or option, or a value that it does not take.
    """
    if args and args[0] in COMMANDS:
        chosen = command_class(args[0])
        return _parsed(
            chosen, args[1:], prog=f"vit-clt {args[0]}", default=chosen.defaults(args[1:])
        )
    every: list[Any] = [
        Annotated[command_class(name), tyro.conf.subcommand(name)] for name in COMMANDS
    ]
    return _parsed(reduce(or_, every), args, prog="vit-clt", description=_DESCRIPTION)


def _parsed(form: Any, args: Sequence[str], **options: Any) -> Command | None:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config = (tyro.conf.FlagCreatePairsOff,)
            found: Command = tyro.cli(form, args=args, config=config, **options)
            return found
    except SystemExit as exit:
        if not exit.code:
            return None
        refused: BaseException | None = exit
        while refused is not None and not isinstance(refused, InputError):
            refused = refused.__context__
        if refused is not None:  # by one of our own classes, whose sentence says it better
            raise refused from None
        # tyro draws a box over several lines; the user gets its first statement as one sentence
        text = complaint.getvalue().split("For full helptext")[0]
        text = re.sub(r"╭─ (Invalid choice|Value error|Unrecognized options) ─*╮", "", text)
        text = " ".join(re.sub(r"[─│╭╮╰╯]+", " ", text).split())
        raise InputError(f"{text} (see vit-clt --help)") from None
