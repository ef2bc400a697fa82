"""What tyro prints, made plainer: its complaints as one sentence, its help without "None"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from vit_clt.errors import InputError

_KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}


def complaint(text: str, command: str, options: Sequence[str]) -> InputError:
    """The error of a command line.

    Args:
        text: what tyro printed, a statement in a box over several lines.
        command: the command, as it is called.
        options: the options of the command.
    """
    flat = " ".join(re.sub(r"[─│╭╮╰╯]+|-{5,}", " ", text.split("For full helptext")[0]).split())
    return InputError(f"{_sentence(flat, command, options)} (see {command} --help).")


def without_none(text: str) -> str:
    """The help of a command without "None", which says no more than that an option may be left out.

    What such an option does by itself stands in its description. The width of every line stays.
    """
    text = re.sub(r"\{None\}\|(\w+)", r"\1       ", text)
    text = re.sub(r"\{None\}\|\{(\[[^}]+\])\}", r"\1         ", text)
    text = re.sub(r"\{None,([\w,]+)\}", r"{\1}     ", text)
    blank = re.compile(r"\(default:(\s|│)*(None)?\)")
    text = blank.sub(lambda found: re.sub(r"[^\s│]", " ", found[0]), text)
    return re.sub(r"^(│ +│|  +)\n", "", text, flags=re.MULTILINE)


def _sentence(text: str, command: str, options: Sequence[str]) -> str:
    if found := re.search(r"Unrecognized options: (\S+?)(?:,|\s|$)", text):
        name = found[1].partition("=")[0]
        if not name.startswith("-"):
            return f'"{name}" belongs to no option of {command}'
        if name in options:  # a switch that is on has no option that turns it on
            off = name.replace("--", "--no-", 1)
            return f"{name} holds by default; expected {off} to turn it off, or neither"
        near = get_close_matches(name, options, n=1, cutoff=0.7)
        return f"{name} is no option of {command}; expected {near[0] if near else 'another name'}"
    if found := re.search(r"Error parsing (--\S+?): .*?(?:from \[|base 10: |float: )('.*?')", text):
        kind = re.search(rf"helptext: {found[1]} (?:\{{None\}}\|)?([A-Z]+)", text)
        expected = _KINDS.get(kind[1], kind[1]) if kind else "another value"
        return f"{found[1]} is {_quoted(found[2])}; expected {expected}"
    if found := re.search(r"invalid choice (.*?) for argument '(--\S+?)'.*one of \((.*?)\)", text):
        values = _quoted(found[3].replace("'None', ", ""))
        return f"{found[2]} is {_quoted(found[1])}; expected one of {values}"
    if found := re.search(r"Missing value for argument '(--\S+?)'", text):
        return f"{found[1]} has no value; expected one"
    if "Required options" in text:
        missing = re.findall(r"(?<=\s)(--[a-z-]+)(?= [A-Z{[])", text)
        return f"{' and '.join(sorted(missing))} must be given to {command}"
    return text


def _quoted(values: str) -> str:
    return values.replace("'", '"')
