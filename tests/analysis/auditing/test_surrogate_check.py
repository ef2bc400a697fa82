"""D12: which images and rivals surrogate causality is measured on in an audit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import noisy_digits, random_clt

from vit_clt import ZeroShot
from vit_clt.analysis.auditing import surrogate_check
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT


def test_the_check_is_bounded_and_takes_a_clt_of_another_model(
    digits_vit: HookedViT, digits_test: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noisy_digits(digits_test, 9, 16)
    zs = ZeroShot(digits_vit, data.class_names, "single")
    monkeypatch.setattr(surrogate_check, "MOST_IMAGES", 6)
    foreign = random_clt(digits_vit, seed=1)
    another = replace(digits_vit.identity(), weights_sha256="0" * 64)
    foreign.config = replace(foreign.config, teacher=another)
    found = surrogate_check.check_surrogate(
        digits_vit, random_clt(digits_vit), data, zs, [("shuffled weights", foreign)]
    )
    assert found.code == "D12"
    assert "N = 6" in found.measured
    assert "shuffled weights" in found.found
    assert foreign.config.teacher == another
    assert {metric.unit for metric in found.metrics} == {"fraction"}
    assert all(metric.name.startswith("D12_") for metric in found.metrics)
    single = {m.name: m for m in found.metrics}[
        "D12_this_CLT_mlp_mean_all_total_single_loss_pearson"
    ]
    assert f"Pearson {single.value:.2f} ({single.low:.2f} to {single.high:.2f})" in found.found
