"""metrics.json and the output folder it is written to."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from vit_clt import InputError
from vit_clt.metrics import Metric, metrics_json
from vit_clt.outputs import OutputFolder

CONTEXT = {
    "command": "ablate",
    "data": "digits (test)",
    "tokens": "cls",
    "trajectory": "teacher",
    "l0": 7.5,
    "fill": "zero",
    "split": "test",
    "seed": 3,
}
METRIC_KEYS = {"name", "value", "low", "high", "unit", "n", "floor", "baseline"}
FILES = ["metrics.json", "table.csv"]


def test_document_holds_context_and_metrics() -> None:
    full = Metric("keep_4_top1", 0.75, "fraction", 360, 0.7, 0.8, 0.1, 0.9)
    bare = Metric("seconds", 12.5, "seconds", 360)
    document = json.loads(metrics_json([full, bare], **CONTEXT, templates="single"))
    assert set(document) == {"context", "metrics"}
    versions = document["context"].pop("versions")
    assert document["context"] == {**CONTEXT, "templates": "single"}
    assert {"python", "vit-clt", "torch", "transformer_lens", "open_clip_torch"} == set(versions)
    assert all(versions.values())
    assert all(set(metric) == METRIC_KEYS for metric in document["metrics"])
    assert document["metrics"][0] == {
        "name": "keep_4_top1",
        "value": 0.75,
        "low": 0.7,
        "high": 0.8,
        "unit": "fraction",
        "n": 360,
        "floor": 0.1,
        "baseline": 0.9,
    }
    assert [document["metrics"][1][key] for key in ("low", "high", "floor", "baseline")] == [
        None
    ] * 4


def test_context_that_does_not_apply_is_null() -> None:
    document = json.loads(metrics_json([], command="reconstruct"))
    assert set(document["context"]) == {*CONTEXT, "versions"}
    assert document["context"]["command"] == "reconstruct"
    assert document["context"]["fill"] is None
    assert document["metrics"] == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_null(value: float) -> None:
    text = metrics_json([Metric("recovered", value, "fraction", 10, value, 1.0, floor=value)])
    (metric,) = json.loads(text, parse_constant=pytest.fail)["metrics"]
    assert [metric[key] for key in ("value", "low", "high", "floor")] == [None, None, 1.0, None]


@pytest.mark.parametrize("state", ["absent", "nested", "empty"])
def test_absent_or_empty_folder_is_taken(tmp_path: Path, state: str) -> None:
    path = {"absent": tmp_path / "out", "nested": tmp_path / "a/b", "empty": tmp_path}[state]
    folder = OutputFolder(path, FILES)
    assert state == "empty" or not path.exists(), "nothing is made before it is opened"
    folder.open().write("metrics.json", "{}\n")
    assert [f.name for f in path.iterdir()] == ["metrics.json"]
    assert (path / "metrics.json").read_text() == "{}\n"


@pytest.mark.parametrize("name", ["metrics.json", "notes.txt", ".hidden"])
def test_occupied_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        OutputFolder(tmp_path, FILES)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("below", ["", "out", "a/b"])
def test_folder_at_or_beneath_a_file_is_refused(
    tmp_path: Path, below: str, overwrite: bool
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        OutputFolder(file / below, FILES, overwrite)
    assert file.read_text() == "mine"


def test_overwrite_removes_only_files_of_the_command(tmp_path: Path) -> None:
    for name in (*FILES, "notes.txt"):
        (tmp_path / name).write_text("earlier")
    (tmp_path / "kept").mkdir()
    folder = OutputFolder(tmp_path, FILES, overwrite=True)
    assert (tmp_path / "table.csv").exists(), "nothing is removed before it is opened"
    folder.open()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["kept", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "earlier"


def test_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    folder = OutputFolder(tmp_path, FILES, overwrite=True)
    with pytest.raises(InputError, match="cannot be written"):
        folder.open()


@pytest.mark.parametrize("broken", ["replace", "write_bytes"])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    folder.write("metrics.json", "earlier")

    def full_disk(path: Path, *args: object, **kwargs: object) -> None:
        if broken == "write_bytes":
            path.write_text("part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if broken == "replace" else Path, broken, full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        folder.write("metrics.json", "later")
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_bytes() == b"earlier"


def test_write_replaces_a_file_whole(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    for text in ("a much longer first text ŷ", "short"):
        folder.write("metrics.json", text)
        assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == text


def test_stream_is_readable_line_by_line_while_it_grows(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    with folder.stream("table.csv") as stream:
        for line in ("a\n", "b\n"):
            stream.write(line)
            assert (tmp_path / "table.csv").read_text().endswith(line)


@pytest.mark.parametrize("method", ["write", "stream"])
def test_only_announced_files_are_written(tmp_path: Path, method: str) -> None:
    folder = OutputFolder(tmp_path, FILES).open()
    with pytest.raises(AssertionError, match=r"other\.txt"):
        getattr(folder, method)("other.txt", *(["text"] if method == "write" else []))
    assert list(tmp_path.iterdir()) == []


def test_context_that_is_not_finite_is_null():
    context = json.loads(metrics_json([], l0={"cls": float("nan"), "patch": 2.0}))["context"]
    assert context["l0"] == {"cls": None, "patch": 2.0}
