"""What is printed cannot act on the terminal."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from vit_clt.cli import main
from vit_clt.cli.terminal import printable_output


def test_a_terminal_that_lacks_a_character_gets_its_escape(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with printable_output():
        sys.stdout.write("\x1b[2JR² of café\n")
        assert not sys.stdout.isatty()
        sys.stdout.flush()
    assert raw.getvalue() == b"[2JR\\xb2 of caf\\xe9\n"


def test_names_of_classes_and_files_do_not_reach_the_terminal_as_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for split in ("train", "test"):
        for name in ("\x1b[31mred", "=1+1"):
            folder = tmp_path / "\x1b]0;title\x07data" / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (28, 28), (80 * i, 9, 9)).save(folder / f"{i}.png")
    data = ["--data", f"imagefolder:{tmp_path}/\x1b]0;title\x07data"]
    out = tmp_path / "out"
    assert main(["causal", "--model", "digits", *data, "--out", str(out)]) == 0
    assert main(["causal", "--model", "\x1b[31m", *data, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert "\x1b" not in captured.out + captured.err
    for file in out.glob("*.csv"):
        assert "\x1b" not in file.read_text()
