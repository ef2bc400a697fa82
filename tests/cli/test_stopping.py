"""Ctrl-C and a closed pipe end a command with one line at most, and never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.run_train import IS_INTERRUPTED, At, trained

FINDS_CTRL_C = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tyro":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from vit_clt.cli import script
sys.argv = ["vit-clt", "train"]
script()
"""
PRINTS = """
import sys
from dataclasses import dataclass
from pathlib import Path
import vit_clt.cli.commands as commands
from vit_clt.cli import script
from vit_clt.cli.command import Command
@dataclass(kw_only=True)
class Prints(Command):
    imports = ()
    def run(self):
        for _ in range({lines}):
            print("a line")
        Path({done!r}).touch()
commands.parse = lambda args: Prints(out=Path("unused"))
sys.argv = ["vit-clt", "train"]
script()
"""


def test_ctrl_c_while_modules_are_imported():
    done = subprocess.run([sys.executable, "-c", FINDS_CTRL_C], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_in_a_study(digits_clt: Path, tmp_path: Path):
    args = ["--clt", str(digits_clt), "--limit", "4"]
    at = At("vit_clt.analysis.reporting.study:write_study", 1, IS_INTERRUPTED)
    found = trained(args, tmp_path / "out", [at], command="reconstruct")
    assert found.code == 130
    assert found.err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in found.err
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".out.")] == []


@pytest.mark.parametrize(("lines", "is_done"), [(3, True), (100_000, False)])
def test_the_reader_of_the_output_goes_away(lines: int, is_done: bool, tmp_path: Path):
    program = PRINTS.format(lines=lines, done=str(tmp_path / "done"))
    command = [sys.executable, "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, env=buffered, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    assert (tmp_path / "done").exists() == is_done
