"""Scripts that complete `vit-clt` in a shell: commands, their options, and values of options.

`vit-clt --completion bash` prints one. It holds all names, so that completing runs no Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vit_clt.errors import InputError

Options = Mapping[str, list[str]]
"""The values of options, by flag; none where they are not listed."""

_BASH = """\
_vit_clt() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} known=
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}} $before" in
{values}
  esac
  if [ -z "$known" ] && [[ "$word" == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{options}
    esac
  fi
  if [ -n "$known" ]; then COMPREPLY=($(compgen -W "$known" -- "$word"))
  else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _vit_clt vit-clt
"""


def completion(shell: str, commands: Mapping[str, Options]) -> str:
    """The script for a shell.

    Args:
        shell: "bash", "zsh" or "fish".
        commands: the options of every command, by its name.

    Raises:
        InputError: another shell.
    """
    if shell == "fish":
        return _fish(commands)
    if shell not in ("bash", "zsh"):
        raise InputError("--completion", f'is "{shell}"; expected bash, zsh or fish.')
    values = [
        f"    '{name} {flag}') known='{' '.join(choices)}' ;;"
        for name, options in commands.items()
        for flag, choices in options.items()
        if choices
    ]
    flags = [f"    {name}) known='{' '.join(options)}' ;;" for name, options in commands.items()]
    script = _BASH.format(
        commands=" ".join(commands), values="\n".join(values), options="\n".join(flags)
    )
    # zsh runs completions of bash
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + script


def _fish(commands: Mapping[str, Options]) -> str:
    lines = [f"complete -c vit-clt -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
    for name, options in commands.items():
        for flag, choices in options.items():
            values = f" -x -a '{' '.join(choices)}'" if choices else ""
            condition = f"-n '__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c vit-clt {condition} -l {flag.removeprefix('--')}{values}")
    return "\n".join(lines) + "\n"


def choices_of(values: str) -> list[str]:
    """The values in what a help says of an option, "{cls,patch} ..."; none for INT and the like."""
    found = re.match(r"\{([\w,./-]+)\}", values)
    return found[1].split(",") if found else []
