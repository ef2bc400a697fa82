"""A training run tells itself from its log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vit_clt import CLTConfig, ReLUTopK, TrainConfig, train
from vit_clt.analysis.fit.training_study import Training
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.hooks import HookedViT
from vit_clt.outputs import OutputFolder


@pytest.fixture(scope="module")
def training(digits_vit: HookedViT, digits_test: ImageData) -> Training:
    data, records = ImageSubset(digits_test, range(30)), []
    config = CLTConfig(digits_vit.cfg.n_layers, digits_vit.cfg.d_model, 16, ReLUTopK(k=2))
    # the second and last batch of the epoch has 3 rows, all of patches
    settings = TrainConfig(epochs=1, batch_size=456, val_images=3, log_every=1, warmup_steps=1)
    clt = train(digits_vit, data, config, settings, on_log=records.append, progress=False)
    return Training(records, clt.config, settings, data.name, data.split, 30, "cpu", 7)


def test_numbers_are_those_of_the_log(training: Training):
    numbers = {metric.name: metric for metric in training.metrics()}
    validation = next(r for r in training.records if r.get("event") == "validation")
    assert numbers["held_out_fvu_cls"].value == pytest.approx(
        sum(validation["fvu_cls_by_layer"]) / 8
    )
    assert numbers["held_out_fvu_cls"].n == 3
    whole, part = [r for r in training.records if "event" not in r]
    assert part["fvu_cls"] is None
    assert numbers["last_batch_fvu_cls"].value == whole["fvu_cls"]
    assert numbers["last_batch_l0"].n == 456
    assert numbers["peak_memory"].value == 7
    facts = training.facts().context()
    assert (facts["images"], facts["steps"], facts["l0"]) == (27, 2, whole["l0"])
    assert training.caption().startswith("3 held-out images: FVU CLS ")


def test_without_held_out_images_the_last_batch_is_told(training: Training):
    records = [r for r in training.records if r.get("event") != "validation"]
    alone = replace(training, records=records)
    assert alone.caption().startswith("last batch: FVU CLS ")
    assert not any(metric.name.startswith("held_out") for metric in alone.metrics())


def test_rows_that_are_rebuilt_worse_than_by_their_mean_are_named(training: Training):
    def captioned(cls: float, patch: float) -> str:
        last = {**training.records[1], "fvu": 1.0, "fvu_cls": cls, "fvu_patch": patch}
        steps = [last, *(r for r in training.records if r.get("event") == "end")]
        return replace(training, records=steps).caption()

    assert captioned(1.2, 0.9).endswith("; worse than the mean on CLS (R^2 below 0)")
    assert captioned(1.2, 3.0).endswith("; worse than the mean on CLS and patches (R^2 below 0)")
    assert "worse" not in captioned(1.0, 0.9)


def test_it_writes_page_card_and_numbers(training: Training, tmp_path: Path):
    folder = OutputFolder(tmp_path / "out", study_files(Training)).open()
    write_study(folder, training, "train")
    files = {"training.html", "README.md", "metrics.json", "manifest.json"}
    assert {file.name for file in folder.path.iterdir()} == files == set(study_files(Training))
    assert "`held_out_fvu_cls`" in (folder.path / "README.md").read_text()
    assert "Training a CLT on " in (folder.path / "training.html").read_text()
    assert training.caption() in training._repr_html_()
