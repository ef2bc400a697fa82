"""manifest.json, and the hash in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vit_clt.outputs.manifest import Manifest, file_hash, is_whole


def test_the_hash_of_a_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    path.write_bytes(b"clt" * 6_000_000)  # more than one block
    command = ["sha256sum", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert file_hash(path) == said.split()[0]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "README.md").write_text("a card")
    manifest = Manifest.of(tmp_path, "ablate", ["a.csv", "README.md"])
    (tmp_path / "manifest.json").write_text(manifest.text())
    assert Manifest.read(tmp_path) == manifest
    assert is_whole(tmp_path, "ablate", None) is True
    assert is_whole(tmp_path, "audit", None) is False
    (tmp_path / "README.md").write_text("a card with my notes")
    assert is_whole(tmp_path, "ablate", None) is True
    (tmp_path / "a.csv").write_text("2")
    assert manifest.damage(tmp_path) == {"a.csv"}
    assert is_whole(tmp_path, "ablate", None) is False


def test_checkpoints_and_results_in_sub_folders_are_listed_without_a_hash(tmp_path: Path) -> None:
    names = ["a.csv", "checkpoints/step-00000001/model.safetensors"]
    names += ["runs/one/manifest.json", "runs/one/a.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    manifest = Manifest.of(tmp_path, "fidelity", names)
    assert list(manifest.files) == ["a.csv", "runs/one/manifest.json"]
    assert manifest.names() == {*names, "manifest.json"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"command": 1, "files": []}', "\0"])
def test_anything_else_is_no_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert Manifest.read(tmp_path) is None
    assert is_whole(tmp_path, "ablate", None) is None
