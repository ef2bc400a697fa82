"""The help of every command, the overview, and what completes a command line."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vit_clt.cli import main
from vit_clt.cli.commands import COMMANDS, GROUPS, _options, command_class, overview
from vit_clt.cli.help_text import UNCOMMON


def flags(text: str) -> set[str]:
    """The options that begin a line of a help."""
    return set(re.findall(r"^[│| ] (--[a-z][\w-]*)", text, re.MULTILINE))


def spelled(name: str) -> set[str]:
    """The flags of a command's options, as a help may name them."""
    command = command_class(name)
    hidden = {"training", "sparsifier_settings", "studies"}
    names = {dict(source="from").get(option, option) for option in _options(command)} - hidden
    return {f"--{option}".replace("_", "-") for option in names}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_on_a_screen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert "{None}" not in text
    assert main([name, "--help-all"]) == 0
    whole = capsys.readouterr().out
    listed = {flag.replace("--no-", "--") for flag in flags(whole)}
    expected = {flag.replace("--no-", "--") for flag in spelled(name)}
    if "training" not in _options(command_class(name)):
        assert listed == expected
    common = flags(text)
    assert common <= flags(whole)
    count = int(re.search(r"--help-all lists (\d+) more", text)[1])
    assert count == len(flags(whole)) - len(common)
    for option in ("--clt", "--out", "--from"):
        assert option in common or option not in listed


def test_what_is_uncommon_exists() -> None:
    known = {option for name in COMMANDS for option in _options(command_class(name))}
    assert known >= UNCOMMON
    for name in COMMANDS:
        command = command_class(name)
        assert {*_options(command)} >= {*command.uncommon}


def test_every_command_answers_one_question() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(COMMANDS)


def test_no_command_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == overview() + "\n"
    assert shown.err.startswith("a command is missing; expected one of those")


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    program = (
        f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vit_clt; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, "bash", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "vit-clt", "ca") == ["cascade", "causal"]
    assert completed(script, "vit-clt", "cascade", "--inp") == ["--inputs"]
    assert completed(script, "vit-clt", "cascade", "--inputs", "s") == ["stream"]
    assert "--warmup-steps" in completed(script, "vit-clt", "train", "--w")
    (tmp_path / "weights.pt").touch()
    found = completed(script, "vit-clt", "train", "--pretrained", f"{tmp_path}/wei")
    assert found == [f"{tmp_path}/weights.pt"]


def test_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert main(["--completion", "fish"]) == 0
    fish = capsys.readouterr().out
    assert "__fish_seen_subcommand_from steer' -l kind -x -a 'clamp scale'" in fish
    assert main(["--completion", "csh"]) == 2
    assert '--completion is "csh"; expected bash, zsh or fish.' in capsys.readouterr().err
