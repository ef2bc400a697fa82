"""D13: on which images the audit measures features, and what they are compared with."""

from __future__ import annotations

import pytest
from builders import random_clt

from vit_clt import JumpReLU
from vit_clt.analysis.auditing import feature_check
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.hooks import HookedViT


def test_the_check_is_bounded_and_matches_features_of_its_own_kind(
    digits_vit: HookedViT, digits_test: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_check, "MOST_IMAGES", 30)
    others = {
        "other": random_clt(digits_vit, seed=1),
        "wide": random_clt(digits_vit, n_features=32),
        "jump": random_clt(digits_vit, JumpReLU()),
    }
    data = ImageSubset(digits_test, range(100))
    found = feature_check.check_features(digits_vit, random_clt(digits_vit), data, None, others)
    assert found.code == "D13"
    assert "N = 30" in found.measured
    assert "Stability over seeds" in found.found
    assert "AUC" not in found.found  # nothing to fit on
    metrics = {metric.name: metric for metric in found.metrics}
    stability = metrics["D13_this CLT_stability"]
    assert stability.floor is not None
    assert f"Stability over seeds {stability.value:.2f}" in found.found
    assert found.table["dictionary"].iloc[0] == "this CLT"
    # against the CLT of another seed alone: those of another kind would change the mean
    alone = feature_check.check_features(
        *(digits_vit, random_clt(digits_vit), data, None, {"other": others["other"]})
    )
    assert alone.found == found.found
