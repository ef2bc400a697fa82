"""A training run tells itself from its log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from builders import random_clt

from vit_clt import CLTConfig, ReLUTopK, TrainConfig, train
from vit_clt.analysis import measure_fit
from vit_clt.analysis.fit.gate import Fit, fit_of_training
from vit_clt.analysis.fit.training_study import Training
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.hooks import HookedViT
from vit_clt.outputs import OutputFolder
from vit_clt.training.order import held_out_images


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


def some_fit(r2: float, dead: float) -> Fit:
    return Fit("CLT", "toy", None, 3, 3, {"cls": (r2,), "patch": (0.9,)}, (2.0,), (dead,))


def test_what_to_try_is_what_the_run_has_not(training: Training):
    assert training.fit is None
    assert training.advice() is None
    assert replace(training, fit=some_fit(0.1, 0.2)).advice() is None
    # the run is of the paper's settings, and short
    worse = replace(training, fit=some_fit(-0.1, 0.0)).advice()
    tries = ["--epochs above 1", "--start centred", "--lr 3e-3", "--cls-weight 4", "--cls-balance"]
    assert all(name in worse for name in [*tries, "a larger --k"])
    assert "--n-features" not in worse
    # features are dead by what training saw, not silent on the few images of the fit
    assert replace(training, fit=some_fit(0.1, 0.9)).advice() is None
    end = {"event": "end", "step": 900, "seconds": 1.0, "tokens_per_second": 1.0}
    steps = [{**training.records[1], "dead": 0.3}, end]
    dead = replace(training, records=steps, fit=some_fit(0.1, 0.0)).advice()
    assert "--aux-k 32, a smaller --n-features." in dead
    assert "--cls-weight" not in dead
    settings = TrainConfig(start="centred", lr=3e-3, cls_weight=4, cls_balance=True)
    long = [training.records[1], end]
    tried = replace(training, settings=settings, records=long, fit=some_fit(-0.1, 0.0))
    assert tried.advice() == "What to try: --lr 1e-3, a larger --k."


def test_the_fit_is_that_of_the_images_held_out(digits_vit: HookedViT, digits_test: ImageData):
    data = ImageSubset(digits_test, range(30))
    clt = random_clt(digits_vit)
    held_out, _ = held_out_images(TrainConfig(val_images=3), 30)
    fit = fit_of_training(digits_vit, clt, data, TrainConfig(val_images=3))
    alone = measure_fit(digits_vit, clt, ImageSubset(data, held_out))
    assert (fit.r2, fit.n_images) == (alone.r2, 3)
    assert fit.data == f"held-out images of {data.name}"
    fit = fit_of_training(digits_vit, clt, data, TrainConfig())
    assert (fit.data, fit.n_images) == (f"training images of {data.name}", 30)
    many = fit_of_training(digits_vit, clt, digits_test, TrainConfig())
    assert "360 images, evenly spaced" in many.line()
    assert (many.n_images, many.of_images) == (256, 360)
    names = [metric.name for metric in fit.metrics()]
    kinds = [f"fit_r2_{kind}" for kind in ("cls", "cls_least", "patch", "patch_least")]
    assert names == [*kinds, "fit_l0", "fit_silent"]


def test_images_that_cannot_be_read_are_left_out_of_the_fit(
    digits_vit: HookedViT, digits_test: ImageData
):
    data = ImageSubset(digits_test, range(8))
    broken = patch.object(ImageSubset, "readable", lambda self, chosen: (None, [1, 2]))
    settings = TrainConfig(unreadable="skip")
    with broken:
        fit = fit_of_training(digits_vit, random_clt(digits_vit), data, settings)
    assert fit.n_images == 2
    with patch.object(ImageSubset, "readable", lambda self, chosen: (None, [])):
        assert fit_of_training(digits_vit, random_clt(digits_vit), data, settings) is None
