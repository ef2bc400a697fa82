"""The list of commands, and everything that must know each of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vit_clt
from vit_clt.cli import main
from vit_clt.cli.command import BaseCommand
from vit_clt.cli.commands import COMMANDS, command_class, flag

README = Path(vit_clt.__file__).parents[1] / "README.md"


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_help_names_every_command():
    program = "import sys; sys.argv = ['vit-clt', '--help']; from vit_clt.cli import script; "
    done = run(program + "script()")
    assert done.returncode == 0
    named = dict(re.findall(r"^  ([a-z-]+) +(.+)$", done.stdout, flags=re.MULTILINE))
    assert named == {name: entry.summary for name, entry in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_is_the_first_sentence_of_its_class(name: str):
    first = (command_class(name).__doc__ or "").split("\n\n")[0]
    assert COMMANDS[name].summary == " ".join(first.split())


def test_the_readme_names_every_command():
    table = README.read_text().split("The same from the shell")[1].split("\n\n")[1]
    named = re.findall(r"`([a-z-]+)`", table)
    assert sorted(named) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([name, "--help"]) == 0
    assert f"Example: vit-clt {name} " in capsys.readouterr().out
    assert issubclass(command_class(name), BaseCommand)


def test_every_command_module_is_listed():
    classes = {command_class(name) for name in COMMANDS}
    assert len(classes) == len(COMMANDS)
    modules = {module for module in (Path(vit_clt.__file__).parent / "cli").glob("*.py")}
    commands = {m.stem for m in modules if m.read_text().startswith('"""`vit-clt ')}
    assert commands == {entry.place.partition(":")[0] for entry in COMMANDS.values()}


def test_a_command_imports_no_other_and_no_torch():
    loaded = "[m for m in sys.modules if m.startswith('vit_clt.cli.')]"
    done = run(
        "import sys; from vit_clt.cli import main; main(['probe', '--help']); "
        f"print(*{loaded}, 'torch' in sys.modules)"
    )
    found = done.stdout.splitlines()[-1].split()
    assert set(found) == {
        "False",
        *(
            f"vit_clt.cli.{each}"
            for each in (
                "command",
                "commands",
                "completion",
                "devices",
                "feature_work",
                "fits",
                "help_text",
                "layers",
                "loaded",
                "options",
                "probe",
                "printed_table",
                "ranges",
                "study_work",
                "terminal",
                "tyro_text",
            )
        ),
    }


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("graph", "max_nodes", "--max-nodes"),
        ("train", "warmup_steps", "--warmup-steps"),  # of the nested TrainConfig
        ("graph", "warmup_steps", "warmup_steps"),  # not an option of this command
        ("import", "source", "--from"),
        ("features", "class_name", "--raises"),
        ("retrieve", "backend", "--search"),
        ("train", "backend", "--backend"),
        ("features", "clt.forget_teacher()", "--any-teacher"),
    ],
)
def test_arguments_are_spelled_as_flags(name: str, argument: str, expected: str):
    assert flag(name, argument) == expected


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        # refused by the class of the options, inside the parser
        (["train", "--lr", "-1"], "--lr is -1.0; expected a value above 0."),
        (["train", "--preset", "demo", "--config", "x"], "--preset and --config are both set"),
        # refused by the library
        (["train", "--limit", "0"], "--limit is 0; expected at least 1."),
        (
            ["import", "--from", "/no/such"],
            "--from is /no/such; expected a folder holding config.yaml.",
        ),
        (["weights", "--clt", "x", "--device", "abacus"], '--device is "abacus", which'),
        # told by the option that was given, not by the argument it was passed as
        (["probe", "--train-data", "nonsense"], '--train-data is "nonsense"'),
        (["train", "--sparsifier", "jumprelu", "--bandwidth", "0"], "--bandwidth is 0.0; expected"),
        (["train", "--k", "0"], "--k is 0; expected at least 1."),
        (["probe", "--factors", "foo", "--limit", "40"], '--factors is "foo"'),
    ],
)
def test_refusals_name_flags(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_a_full_folder_is_refused_with_the_flag_that_lifts_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "notes").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    expected = f"--out is {tmp_path}, which is not empty; expected a new folder, or --overwrite.\n"
    assert capsys.readouterr().err == expected
