"""`vit-clt doctor`: what it finds wrong, with what to do about it."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vit_clt.cli import machine, main
from vit_clt.cli.machine import EXTRAS, PACKAGES, Finding, findings


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: Any) -> None:
        pytest.fail("asked the network")

    monkeypatch.setattr(socket.socket, "connect", connect)


def found(out: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings(out)}


def test_doctor_prints_an_aligned_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIT_CLT_DATA", str(tmp_path / "absent"))
    assert main(["doctor", "--out", str(tmp_path / "out")]) == 0
    table, _, advice = capsys.readouterr().out.partition("\n\n")
    rows = {line[2:].split("  ")[0]: line for line in table.splitlines()}
    for name in (*PACKAGES, "python", "devices", "threads", "memory", "Hub", "OMP_WAIT_POLICY"):
        assert name in rows
    (column,) = {len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in rows.values()}
    assert column > 2
    assert rows["VIT_CLT_DATA"].startswith("! ")
    assert "! VIT_CLT_DATA: it names no folder" in advice
    assert not (tmp_path / "out").exists()


def test_nothing_wrong_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "findings", lambda out: iter([Finding("memory", "enough")]))
    assert main(["doctor"]) == 0
    shown = "  memory  enough\n\nNothing is missing, and no setting is known to be slow.\n"
    assert capsys.readouterr().out == shown


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("VIT_CLT_DATA", raising=False)
    settings = found(tmp_path)
    assert "unset it, or set PASSIVE" in settings["OMP_WAIT_POLICY"].advice
    assert settings["Hub"].state.startswith("offline, ")
    assert settings["VIT_CLT_DATA"] == Finding("VIT_CLT_DATA", "not set")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert not found(tmp_path)["OMP_WAIT_POLICY"].advice


def test_resources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "results" in found(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1e9))
    monkeypatch.setattr(machine, "_cores", lambda: 0)
    memory = SimpleNamespace(total=100e9, available=1e9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    short = found(tmp_path / "a" / "b")
    assert short["results"].advice.startswith(f"the disk of {tmp_path} is nearly full")
    assert short["memory"].state == "1.0 GB free of 100.0"
    assert short["memory"].advice
    assert short["threads"].advice.endswith("set OMP_NUM_THREADS=0.")
    monkeypatch.setattr(machine.os, "access", lambda *args: False)
    assert "cannot be written to" in found(tmp_path)["results"].advice


def test_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        if name == "timm":
            raise machine.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    packages = found(tmp_path)
    assert packages["timm"] == Finding("timm", "missing", "install it, as in pip install timm.")
    assert packages["extra png"].state.startswith("no: pip install 'vit-clt[png]'")
    assert "browser" not in packages


def test_every_extra_is_one_of_the_package() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    listed = text.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    extras = set(re.findall(r"^(\w+) = ", listed, re.MULTILINE))
    assert extras - {"dev", "docs"} == EXTRAS.keys()
