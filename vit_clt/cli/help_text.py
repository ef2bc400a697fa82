"""The help of a command on one screen: its common options, each in a sentence.

It is made from what tyro prints, which `--help-all` shows whole.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterator
from typing import NamedTuple

WIDTH = 100
_COLUMN = 25
"""Where descriptions begin."""
UNCOMMON = {
    # how a command is run, and what most data and weights say themselves
    *("traceback", "gelu", "image_column", "label_column", "class_names", "any_teacher"),
    *("train_limit", "templates", "max_groups", "memory", "index", "cache", "config", "trackers"),
    # the finer points of studies
    *("draws", "ablated", "order", "only_active", "random", "norms", "contrast", "path"),
    *("every_intervention", "linear", "untrained", "effect_images", "label", "image"),
    *("corpus_limit", "full", "variants", "raises", "group_cosine"),
    # the finer points of training
    *("zero_cross_init", "accumulate", "cls_weight", "cls_balance", "start", "matryoshka"),
    *("stream_share", "interventions", "warmup_steps", "lr_schedule", "decay_fraction", "clip"),
    *("buffer_batches", "shards", "norm_images", "val_images", "dead_tokens", "optimiser"),
    *("precision", "workers", "unreadable", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("backend", "bandwidth", "l0", "sparsity", "sparsity_scale", "sparsity_ramp", "ramp"),
    *("compile", "k_start", "k_ramp", "aux_k", "aux_weight"),
}
"""Options, by name, that only `--help-all` shows."""
_CLAUSE = re.compile(r"; (?![^()]*\))")
_DEFAULT = re.compile(r" *\(default: ([^()]*)\)$")
_OPTION = re.compile(r"(-h, --help|--[\w-]+)((?: \S+)*?)(?:  +(.*))?")


class Option(NamedTuple):
    """An option as the help of a command lists it."""

    flag: str
    values: str
    """What may follow it, such as INT or {cls,patch}."""
    text: str
    """Its description, with its default in brackets."""

    @property
    def name(self) -> str:
        """Name of the option in Python; a switch that is on has the name of what it turns off."""
        return self.flag.removeprefix("--").removeprefix("no-").replace("-", "_")

    def line(self) -> str:
        """Flag, values, what the description says first, and the default."""
        default = _DEFAULT.search(self.text)
        text = _DEFAULT.sub("", self.text)
        sentence = re.split(r"\.(?: (?=[A-Z\"-])|$)", text)[0]
        start, *further = _CLAUSE.split(sentence)
        first = "; ".join([start, *(clause for clause in further if clause.startswith("default"))])
        known = "" if default is None else default[1]
        if self.text.endswith("(required)"):
            first = f"{first.removesuffix(' (required)').rstrip('.')} (required)"
        elif known not in ("", "False", "True"):
            first = f"{first} (default: {known})"
        if self.flag.startswith("--no-"):
            first = f"Turn off: {first[:1].lower()}{first[1:]}"
        left = f"  {self.flag} {self.values}".rstrip()
        return textwrap.fill(
            first,
            WIDTH,
            initial_indent=f"{left:{_COLUMN - 2}}  ",
            subsequent_indent=" " * _COLUMN,
            break_on_hyphens=False,
            break_long_words=False,
        )


def short_help(
    text: str, command: str, own: Collection[str], uncommon: Collection[str] = ()
) -> str:
    """The help of a command, shortened.

    Args:
        text: what tyro prints.
        command: the command, as it is called.
        own: names of the options that are the command's alone, which come after those it needs.
        uncommon: names of options that are left out beside `UNCOMMON`.
    """
    head = re.sub(r"\n{3,}", "\n\n", re.split(r"\n╭", text, maxsplit=1)[0].strip())
    head = "\n".join(
        line if len(line) <= WIDTH else textwrap.fill(line, WIDTH) for line in head.splitlines()
    )
    options = [option for option in listed_options(text) if option.flag != "-h, --help"]
    shown = [o for o in options if o.name not in UNCOMMON and o.name not in uncommon]
    needed = [option for option in shown if option.text.endswith("(required)")]
    rest = [option for option in shown if option not in needed]
    rest.sort(key=lambda option: option.name not in own)
    left = len(options) - len(shown)
    more = f"{command} --help-all lists {left} more options and says more of each."
    return "\n".join([head, "", *(option.line() for option in [*needed, *rest]), "", more, ""])


def listed_options(text: str) -> Iterator[Option]:
    """The options in what tyro prints, one to several lines each, in boxes."""
    found: list[str] = []
    for line in text.splitlines():
        if not line.startswith("│"):
            continue
        inner = line[2:-1].rstrip()
        if inner.startswith("-"):
            if found:
                yield _option(found)
            found = [inner]
        elif found and inner.startswith(" "):
            found.append(inner.strip())
        elif found:  # the description of a box
            yield _option(found)
            found = []
    if found:
        yield _option(found)


def _option(lines: list[str]) -> Option:
    first = _OPTION.fullmatch(lines[0])
    assert first is not None, lines[0]
    flag, values, text = first[1], first[2].strip(), first[3] or ""
    # a list of values is shown by its first one
    values = values.removeprefix("{None}|")
    values = re.sub(r"\{?\[(\S+) \[(?:\1 )?\.\.\.\]\]\}?", r"\1 ...", values)
    return Option(flag, values, " ".join([text, *lines[1:]]).strip())
