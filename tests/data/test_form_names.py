"""Forms of data, refused by their names and folders before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_clt import InputError
from vit_clt.data.form_names import FORMS, HELD_OUT, check_form, split_form
from vit_clt.data.forms import NAMED


def test_the_names_are_those_that_are_read() -> None:
    assert {*NAMED, "coco"} == HELD_OUT.keys()
    assert all(split_form(form.replace("PATH", "x").replace("NAME", "x")) for form in FORMS)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("images/test/cat", "classes/cat", "tables", "saved", "coco/annotations"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tables" / "train-0.parquet").touch()
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").touch()


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("form", "split"),
    [
        *(("digits", "train"), ("cifar10", None), ("imagenet100", "val"), ("hf:mnist", None)),
        *(("hf:someone/data:plain", None), ("hf:./saved", None), ("hf:saved:plain", None)),
        *(("imagefolder:images", None), ("imagefolder:classes", "train"), ("coco:coco", None)),
        *(("parquet:tables", "train"), ("parquet:tables/train-0.parquet", "test")),
        *(("cifar10:tables", "train"), ("cifar10:images", None)),
    ],
)
def test_what_may_be_there_passes(form: str, split: str | None) -> None:
    check_form(form, split)


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("form", "split", "sentence"),
    [
        ("digit", None, r'data is "digit"; expected .* \(did you mean "digits"\?\)'),
        ("parquet", None, "expected one of"),
        ("digits:x", None, "expected one of"),
        ("digits", "val", 'split is "val"; digits has "train" and "test"'),
        ("imagenet100", "test", 'split is "test"; imagenet100 has "train" and "validation"'),
        ("parquet:tables", None, r"expected a parquet file, or a folder with test\*.parquet"),
        ("cifar10:tables", "val", 'split is "val"; cifar10 has "train" and "test"'),
        ("cifar10:absent", None, "data is absent, which does not exist"),
        ("imagefolder:images", "train", 'split is "train"; expected a folder of that name'),
        ("coco:coco", "train", 'split is "train"; coco:coco has val'),
        ("coco:images", None, "data is coco:images; expected annotations/instances_val2017.json"),
        ("hf:saved/absent", None, "found no such folder"),
        ("hf:/absent:plain", None, "found no such folder"),
    ],
)
def test_what_is_not_there_is_refused(form: str, split: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_form(form, split)
