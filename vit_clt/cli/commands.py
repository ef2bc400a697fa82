"""The list of the commands of `vit-clt`, and the parsing of a command line.

The module of a command is imported only when the command is named, which keeps its help fast.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import tyro

from vit_clt.cli.command import Command
from vit_clt.cli.ranges import check_ranges
from vit_clt.cli.tyro_text import complaint, without_none
from vit_clt.errors import InputError
from vit_clt.inputs import expanded
from vit_clt.transcoder.train_config import TrainConfig


class Entry(NamedTuple):
    """A command in the list of commands."""

    place: str
    """Module in `vit_clt.cli` and class of the command, as "module:Class"."""
    summary: str
    """First line of the docstring of that class, so that the overview imports no command."""


COMMANDS = {
    "demo": Entry(
        "demo:Demo",
        "Train a CLT for the shipped digits model, replace its MLPs, attribute, ablate, report.",
    ),
    "train": Entry(
        "train:Train",
        "Train a CLT on a frozen ViT; the output folder is itself a --clt.",
    ),
    "explore": Entry(
        "explore:Explore",
        "Linked pages of a CLT: heatmap, features, images, graphs, steering. They open from disk.",
    ),
    "contributions": Entry(
        "contributions:Contributions",
        "Contribution scores C(s->l): heatmaps, a table of every kind, metrics.",
    ),
    "ablate": Entry(
        "ablate:Ablate",
        "Keep or drop source layers of one or several layers' reconstructions: accuracy and loss.",
    ),
    "keep-sets": Entry(
        "keep_sets:KeepSets",
        "All sets of k source layers of one layer: where does the chosen one stand among them?",
    ),
    "cascade": Entry(
        "cascade:Cascade",
        "Accuracy, loss and floors with the CLT in place of the MLPs from layer s on, for every s.",
    ),
    "reconstruct": Entry(
        "reconstruct:Reconstruct",
        "Reconstruction per layer and token kind: R^2, cosine, MSE, L0, dead features.",
    ),
    "faithfulness": Entry(
        "faithfulness:Faithfulness",
        "How closely the ViT with the CLT in its MLPs' place answers as the ViT does, and floors.",
    ),
    "causal": Entry(
        "causal:Causal",
        "What changes in the ViT itself when a layer is ablated; with --clt, does it agree?",
    ),
    "claims": Entry(
        "claims:Claims",
        "What a CLT's scores claim and whether it holds: C reads, E acts, beside the ViT's own "
        "MLPs.",
    ),
    "probe": Entry(
        "probe:Probe",
        "At which depth can the class, or what else is known of an image, be read linearly?",
    ),
    "audit": Entry(
        "audit:Audit",
        "Can this CLT's attribution be believed? Diagnostics (D1 to D8, D10 to D12) and a verdict.",
    ),
    "fidelity": Entry(
        "fidelity:Fidelity",
        "Fidelity against sparsity: a CLT and a per-layer transcoder at each k, side by side.",
    ),
    "weights": Entry(
        "weights:Weights",
        "Decoder norms per source and target layer, cross-layer shares, concentration: no images.",
    ),
    "reproduce": Entry(
        "reproduce:Reproduce",
        "The source paper's evaluation: train and measure its CLTs, report beside its numbers.",
    ),
    "retrieve": Entry(
        "retrieve:Retrieve",
        "Which images of a corpus are alike in the codes of each layer, and have they one class?",
    ),
    "graph": Entry(
        "graph:Graph",
        "What drives a class logit of an image: features, errors, patches, and the paths between.",
    ),
    "features": Entry(
        "features:Features",
        "What does each feature fire on, write and do? A gallery that opens from disk.",
    ),
    "steer": Entry(
        "steer:Steer",
        "Turn features up or down: what do class probabilities do? Or which features move a class?",
    ),
    "export": Entry(
        "export:Export",
        "Export a CLT to files of another tool; ReLU-TopK gets thresholds, whose cost is measured.",
    ),
    "import": Entry(
        "import_files:Import",
        "Import a CLT from the files of another tool; the output folder is itself a --clt.",
    ),
}
"""Every command, in the order a new user meets them."""

_DESCRIPTION = "Cross-layer transcoders for Vision Transformers: which depth builds the answer?"


def command_class(name: str) -> type[Command]:
    """The class of a command of `COMMANDS`."""
    module, _, class_name = COMMANDS[name].place.partition(":")
    command: type[Command] = getattr(import_module(f"vit_clt.cli.{module}"), class_name)
    return command


def flag(name: str, argument: str) -> str:
    """The flag of command `name` for an argument of the library, or `argument` if it has none."""
    command = command_class(name)
    options = {option: option for option in _options(command)} | dict(command.other_names)
    return f"--{options[argument].replace('_', '-')}" if argument in options else argument


def _options(command: type[Command]) -> list[str]:
    options = [field.name for field in fields(command)]
    if "training" not in options:
        return options
    from vit_clt.transcoder.sparsifiers import SPARSIFIERS

    training = list(fields(TrainConfig))
    for kind in SPARSIFIERS.values():
        training += [*fields(kind.training), *fields(kind.settings)]
    return options + [field.name for field in training]


def overview() -> str:
    """The text that `vit-clt --help` prints, with one line per command."""
    width = max(map(len, COMMANDS)) + 2
    lines = (f"  {name:{width}}{entry.summary}" for name, entry in COMMANDS.items())
    return "\n".join(
        [
            "usage: vit-clt COMMAND [OPTIONS]",
            "",
            _DESCRIPTION,
            "",
            *lines,
            "",
            "vit-clt COMMAND --help lists a command's options, with an example.",
            "To begin: vit-clt demo --out out/demo",
        ]
    )


def parse(args: Sequence[str]) -> Command | None:
    """The command that a command line asks for, or None if it asked for help, which is printed.

    Raises:
        InputError: the command or an option does not exist, or a value is not one that it takes, or
            out of its range.
    """
    if not args:
        raise InputError("a command is missing; expected one of those of vit-clt --help.")
    name, *rest = args
    if name in ("-h", "--help"):
        print(overview())
        return None
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        known = f'"{near[0]}"' if near else f"one of {', '.join(COMMANDS)}"
        raise InputError("command", f'is "{name}"; expected {known} (see vit-clt --help).')
    command = command_class(name)
    rest = [_expanded(arg) for arg in rest]
    parsed = _parsed(command, rest, prog=f"vit-clt {name}", default=command.defaults(rest))
    if parsed is not None:
        check_ranges(parsed)
    return parsed


def _expanded(arg: str) -> str:
    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return option + equals + expanded(value)


def _parsed(form: Any, args: Sequence[str], **options: Any) -> Command | None:
    # tyro draws its boxes in the characters that the terminal has
    shown = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding or "utf-8", write_through=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = (tyro.conf.FlagCreatePairsOff,)
            with contextlib.redirect_stdout(shown):
                command: Command = tyro.cli(form, args=args, config=config, **options)
            return command
    except SystemExit as exit:
        if not exit.code:
            shown.seek(0)
            print(without_none(shown.read()), end="")
            return None
        refused: BaseException | None = exit
        while refused is not None and not isinstance(refused, InputError):
            refused = refused.__context__
        if refused is not None:  # an error of our own classes is clearer than tyro's
            raise refused from None
        flags = [f"--{name.replace('_', '-')}" for name in _options(form)]
        raise complaint(said.getvalue(), options["prog"], flags) from None
