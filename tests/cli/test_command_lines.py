"""Command lines as people type them: read as they are meant, or one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vit_clt.cli import main
from vit_clt.cli.commands import parse


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train --n-featurs 3 --out x", "--n-featurs is no option of vit-clt train; expected "),
        ("train --n-featurs=3 --out x", "expected --n-features (see vit-clt train --help)."),
        ("train --cls-balance --out x", "--cls-balance holds by default; expected --no-cls-bal"),
        ("train --k abc --out x", '--k is "abc"; expected a whole number ('),
        ("train --seed 1.5 --out x", '--seed is "1.5"; expected a whole number ('),
        ("train --lr fast --out x", '--lr is "fast"; expected a number ('),
        ("train --precision fp8 --out x", '"fp8"; expected one of "fp32", "tf32", "bf16" ('),
        ("train --device", "--device has no value; expected one ("),
        ("contributions", "--clt and --out must be given to vit-clt contributions ("),
        ("weights --clt a --out b more", '"more" belongs to no option of vit-clt weights ('),
    ],
)
def test_a_refused_command_line_is_one_sentence(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert said.endswith(" --help).\n")


@pytest.mark.parametrize("command", ["train", "contributions", "steer"])
def test_help_says_a_default_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"default:\W*None|\{None", text)
    assert "(default: 0)" in re.sub(r"[\s│]+", " ", text)  # perhaps over two lines
    widths = {len(line) for line in text.splitlines() if line[:1] in "│╭╰"}
    assert len(widths) == 1, "the box has lost its shape"


def test_a_tilde_is_the_home_folder_in_every_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    line = "contributions --clt ~/clt --out=~/out --data imagefolder:~/x --model local-dir:~/m"
    command = parse([*line.split(), "--class-names", "~"])
    assert command.clt == f"{tmp_path}/clt"
    assert command.out == tmp_path / "out"
    assert command.data == f"imagefolder:{tmp_path}/x"
    assert command.model == f"local-dir:{tmp_path}/m"
    assert command.class_names == tmp_path


def test_a_clt_that_is_no_folder_is_looked_up_on_the_hub_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def ask(url: str, timeout: float) -> None:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    assert main(["weights", "--clt", "someone/ctl", "--out", str(tmp_path / "out")]) == 2
    (sentence,) = capfd.readouterr().err.splitlines()
    expected = "--clt is someone/ctl; found no such folder, and the Hub is not reached (OSError)."
    assert sentence == expected
    assert len(asked) == 1
