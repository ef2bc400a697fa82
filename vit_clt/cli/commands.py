"""The list of the commands of `vit-clt`, and the parsing of a command line.

The module of a command is imported only when the command is named, which keeps its help fast.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import tyro

from vit_clt.cli.command import BaseCommand
from vit_clt.cli.completion import choices_of, completion
from vit_clt.cli.help_text import WIDTH, listed_options, short_help
from vit_clt.cli.ranges import check_ranges
from vit_clt.cli.tyro_text import complaint, without_none
from vit_clt.errors import InputError
from vit_clt.inputs import expanded
from vit_clt.transcoder.sparsifier_options import OPTIONS
from vit_clt.transcoder.train_config import TrainConfig


class Entry(NamedTuple):
    """A command in the list of commands."""

    place: str
    """Module in `vit_clt.cli` and class of the command, as "module:Class"."""
    summary: str
    """First line of the docstring of that class, so that the overview imports no command."""


COMMANDS = {
    "doctor": Entry(
        "doctor:Doctor",
        "What this machine has, and what is missing or slow: packages, devices, memory, disk, Hub.",
    ),
    "demo": Entry(
        "demo:Demo",
        "Train a CLT for the shipped digits model and explore it: the whole path, a minute.",
    ),
    "train": Entry(
        "train:Train",
        "Train a CLT on a frozen ViT; the output folder is itself a --clt.",
    ),
    "run": Entry(
        "run:Run",
        "Train a CLT, run every study of it, and put all of them behind one page, index.html.",
    ),
    "study": Entry(
        "study:Study",
        "Several studies of one CLT and images, for which the ViT runs once: the same numbers.",
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
    "high-norm": Entry(
        "high_norm:HighNorm",
        "Which patch rows have outlying norms, and what do they do to a CLT? A map a layer.",
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
        "Can this CLT's attribution be believed? Diagnostics (D1 to D8, D10 to D13) and a verdict.",
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
    "heads": Entry(
        "heads:Heads",
        "What does each attention head add to the answer, which features does it carry there?",
    ),
    "features": Entry(
        "features:Features",
        "What does each feature fire on, write and do? A gallery that opens from disk.",
    ),
    "feature-scores": Entry(
        "feature_scores:FeatureScores",
        "Are a CLT's features any good? Measures of each, beside neurons, components and floors.",
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
"""Every command, by its name."""

GROUPS = {
    "Start": ("demo", "run", "study", "explore", "doctor"),
    "Train": ("train",),
    "From which depth can it be read, and what does a source do?": ("contributions", "weights"),
    "Is it true?": ("claims", "ablate", "keep-sets", "causal", "probe", "audit"),
    "How well does the CLT stand in for the MLPs?": (
        *("reconstruct", "cascade", "faithfulness", "fidelity", "high-norm"),
    ),
    "What do layers and features look for?": ("features", "feature-scores", "retrieve"),
    "One image, one logit": ("graph", "heads", "steer"),
    "Exchange, and the source paper": ("export", "import", "reproduce"),
}
"""The commands by the question that they answer, in the order a new user meets them."""

_CONFIG = (tyro.conf.FlagCreatePairsOff,)
_DESCRIPTION = "Cross-layer transcoders for Vision Transformers: which depth builds the answer?"


def command_class(name: str) -> type[BaseCommand]:
    """The class of a command of `COMMANDS`."""
    module, _, class_name = COMMANDS[name].place.partition(":")
    command: type[BaseCommand] = getattr(import_module(f"vit_clt.cli.{module}"), class_name)
    return command


def flag(name: str, argument: str) -> str:
    """The flag of command `name` for an argument of the library, or `argument` if it has none."""
    command = command_class(name)
    options = {option: option for option in _options(command)} | dict(command.other_names)
    return f"--{options[argument].replace('_', '-')}" if argument in options else argument


def _options(command: type[BaseCommand]) -> list[str]:
    options = [field.name for field in fields(command)]
    if "training" not in options:
        return options
    training = list(fields(TrainConfig))
    for kind in OPTIONS.values():
        training += [*fields(kind.training), *fields(kind.settings)]
    return options + [field.name for field in training]


def overview() -> str:
    """The text that `vit-clt --help` prints, with one line per command."""
    width = max(map(len, COMMANDS)) + 2
    lines = []
    for question, names in GROUPS.items():
        lines += [question, *(f"  {name:{width}}{COMMANDS[name].summary}" for name in names)]
    return "\n".join(
        [
            "usage: vit-clt COMMAND [OPTIONS]",
            "",
            _DESCRIPTION,
            "",
            *lines,
            "",
            "vit-clt COMMAND --help lists a command's common options, --help-all the others too.",
            "To begin: vit-clt demo --out out/demo",
        ]
    )


def parse(args: Sequence[str]) -> BaseCommand | None:
    """The command that a command line asks for, or None if it asked for help, which is printed.

    Raises:
        InputError: the command or an option does not exist, or a value is not one that it takes, or
            out of its range.
    """
    if not args:
        print(overview())
        raise InputError("a command is missing; expected one of those of vit-clt --help.")
    name, *rest = args
    if name in ("-h", "--help", "--help-all"):
        print(overview())
        return None
    if name == "--completion":
        print(completion(rest[0] if rest else "", _completed()), end="")
        return None
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        known = f'"{near[0]}"' if near else f"one of {', '.join(COMMANDS)}"
        raise InputError("command", f'is "{name}"; expected {known} (see vit-clt --help).')
    command = command_class(name)
    if "--help-all" in rest:
        print(_help(command, name, sys.stdout.encoding or "utf-8"), end="")
        return None
    if {"-h", "--help"} & {*rest}:
        full, own = _help(command, name), command.__annotations__
        print(short_help(full, f"vit-clt {name}", own, command.uncommon), end="")
        return None
    rest = [_expanded(arg) for arg in rest]
    return parsed(command, rest, prog=f"vit-clt {name}", default=command.defaults(rest))


def _help(command: type[BaseCommand], name: str, encoding: str | None = None) -> str:
    """What tyro prints as the help of a command.

    Args:
        command: the class of the command.
        name: its name.
        encoding: of the terminal, whose width and characters the boxes then have; by default they
            are as `listed_options` reads them.
    """
    shown = io.TextIOWrapper(io.BytesIO(), encoding or "utf-8", write_through=True)
    columns = os.environ.get("COLUMNS")
    if encoding is None:
        os.environ["COLUMNS"] = str(WIDTH)
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        tyro.cli(
            command,
            args=["--help"],
            config=_CONFIG,
            prog=f"vit-clt {name}",
            default=command.defaults([]),
        )
    os.environ.pop("COLUMNS", None)
    if columns is not None:
        os.environ["COLUMNS"] = columns
    shown.seek(0)
    return without_none(shown.read())


def _expanded(arg: str) -> str:
    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return option + equals + expanded(value)


def _completed() -> dict[str, dict[str, list[str]]]:
    """The options of every command, with their values where these are listed."""
    return {
        name: {
            option.flag: choices_of(option.values)
            for option in listed_options(_help(command_class(name), name))
            if option.flag != "-h, --help"
        }
        for name in COMMANDS
    }


def parsed(form: Any, args: Sequence[str], **options: Any) -> Any:
    """A command with these options.

    Args:
        form: the class of the command.
        args: its options, as on a command line.
        options: of tyro: `prog`, the name in messages, and `default`, a command with the defaults.

    Raises:
        InputError: an option does not exist, or a value is not one that it takes, or out of range.
    """
    command = _parsed(form, args, **options)
    check_ranges(command)
    return command


def _parsed(form: Any, args: Sequence[str], **options: Any) -> BaseCommand:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: BaseCommand = tyro.cli(form, args=args, config=_CONFIG, **options)
            return command
    except SystemExit as exit:
        refused: BaseException | None = exit
        while refused is not None and not isinstance(refused, InputError):
            refused = refused.__context__
        if refused is not None:  # an error of our own classes is clearer than tyro's
            raise refused from None
        flags = [f"--{name.replace('_', '-')}" for name in _options(form)]
        raise complaint(said.getvalue(), options["prog"], flags) from None
