"""What a study will take, from a trial of its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_clt

from vit_clt.data.images import ImageData, TensorImages
from vit_clt.data.kept_passes import keep_passes
from vit_clt.forecast import trial
from vit_clt.forecast.trial import Forecast, forecast, measured_rates
from vit_clt.forecast.work import PARTS, Scope, Work
from vit_clt.hooks import HookedViT


def test_works_add_up_and_need_the_larger_memory() -> None:
    once = Work({"read": 2, "pass": 3}, seconds=1, memory=5)
    both = once + Work({"pass": 4, "terms": 1}, seconds=2, memory=9)
    assert {part: both.of(part) for part in PARTS} == {
        **{"read": 2, "pass": 7, "encode": 0, "decode": 0, "terms": 1, "sums": 0}
    }
    assert (both.seconds, both.memory) == (3, 9)
    twice = 2 * once
    assert (twice.of("read"), twice.of("pass"), twice.seconds, twice.memory) == (4, 6, 2, 5)


def told(vit: HookedViT, clts: list[Any], data: ImageData, work: Work) -> Forecast:
    return forecast(vit, data, work, measured_rates(vit, clts, data, work))


def test_a_line_has_two_digits_and_the_images() -> None:
    line = Forecast(images=1000, seconds=126, memory=1.94e9).line()
    assert line == "time: about 2.1 min for 1,000 images; memory: about 1.9 GB"


def test_seconds_are_rates_times_work(
    tiny_vit: HookedViT, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every part takes half a second for each image that a trial gives it
    given: list[int] = []
    batch = TensorImages.batch

    def counted(self: TensorImages, numbers: range):
        given.append(len(numbers))
        return batch(self, numbers)

    monkeypatch.setattr(TensorImages, "batch", counted)
    monkeypatch.setattr(trial, "fastest", lambda run, device: 0.5 * given[-1])
    clt = random_clt(tiny_vit)
    work = Work(
        {"read": 10, "pass": 20, "encode": 4, "decode": 2, "terms": 1, "sums": 3}, 7.0, 1e12
    )
    found = told(tiny_vit, [clt], TensorImages(images), work)
    assert found.seconds == 7 + 0.5 * 40
    assert 1e12 < found.memory < 1e12 + 2**36
    # slow images are tried two at a time
    assert set(given) == {2}
    # without a CLT only the ViT's parts are timed
    alone = told(tiny_vit, [], TensorImages(images), Work({"read": 1, "pass": 1}))
    assert alone.seconds == 1


def test_a_trial_of_fast_images_takes_more_of_them(
    tiny_vit: HookedViT, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    rates = trial._rates
    monkeypatch.setattr(trial, "fastest", lambda run, device: 1e-6)
    monkeypatch.setattr(trial, "_rates", lambda *a: tried.append(a[3]) or rates(*a))
    told(tiny_vit, [random_clt(tiny_vit)], TensorImages(images.repeat(5, 1, 1, 1)), Work())
    assert tried == [2, 16]


def test_passes_of_a_store_are_read_after_the_first(
    tiny_vit: HookedViT, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = keep_passes(tiny_vit, TensorImages(images), tmp_path / "passes")
    store = tiny_vit.pass_store
    monkeypatch.setattr(trial, "fastest", lambda run, device: run() is None or 2.0)
    work = Work({"read": 3 * len(images), "pass": 3 * len(images)})
    found = told(tiny_vit, [], data, work)
    # a second for each part of an image: one pass is kept, two are read
    n = len(images)
    assert found.seconds == pytest.approx(3 * n + (1 + 0.4 + 2 * 0.2) * n)
    # a study of few images keeps only these
    few = told(tiny_vit, [], data, Work({"read": 2, "pass": 2}))
    assert few.seconds == pytest.approx(2 * (2 + 0.4))
    # the trial itself neither keeps nor reads a pass
    assert tiny_vit.pass_store is store
    assert (store.n_run, store.n_read) == (0, 0)
    assert not [*(tmp_path / "passes").rglob("*.safetensors")]


def test_a_trial_changes_nothing(tiny_vit: HookedViT, images: torch.Tensor) -> None:
    clt, data = random_clt(tiny_vit), TensorImages(images)
    weights = {name: value.clone() for name, value in clt.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    told(tiny_vit, [clt], data, Work({"read": 5}))
    after = torch.get_rng_state(), np.random.get_state()[1]
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert all(torch.equal(weights[name], value) for name, value in clt.state_dict().items())
    assert not any(point.fwd_hooks for point in tiny_vit.hook_dict.values())


def test_sizes_of_a_study(tiny_vit: HookedViT, images: torch.Tensor) -> None:
    clt, data = random_clt(tiny_vit), TensorImages(images)
    of = Scope.of(tiny_vit, data, [clt, clt], data)
    cfg = tiny_vit.cfg
    assert (of.images, of.train, of.clts, of.batch) == (6, 6, 2, 6)
    assert (of.layers, of.tokens, of.width) == (cfg.n_layers, 10, 16)
    x = torch.zeros(cfg.n_layers, len(images), cfg.n_tokens, cfg.d_model)
    assert of.array == x.nbytes
    assert replace(of, batch=64).array == 64 * x[:, 0].nbytes
