"""Which texts name a place on the disk, and which a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_clt.places import is_hub_id, is_path


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "clt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("./a/b", "../b", "/a", "~/a", "a/b/c", "a/", "a//b", "out/clt", "a\\b", "a b/c", ""),
        *("mine/clt", "mine/other", "mine", "owner/weights.safetensors", "x.parquet"),
    ],
)
def test_paths(text: str) -> None:
    assert is_path(text)
    assert not is_hub_id(text)


@pytest.mark.parametrize("text", ["owner/name", "o/n-2.1_x", "outer/clt", "O/mine"])
def test_names_on_the_hub(text: str) -> None:
    assert not is_path(text)
    assert is_hub_id(text)


def test_a_name_without_an_owner_is_neither() -> None:
    assert not is_path("mnist")
    assert not is_hub_id("mnist")
