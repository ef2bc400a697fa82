"""What measures of features foretell: the partial correlation, and effects of silenced features."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import random_clt
from scipy.stats import pearsonr, rankdata
from sklearn.linear_model import LinearRegression

from vit_clt import ZeroShot
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT, replace_mlps

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("feature_effects")


def table(seed: int, foretells: float) -> pd.DataFrame:
    """Features whose rate moves both the measure and the change, which share more if asked."""
    rng = np.random.default_rng(seed)
    layer = np.repeat([1, 4, 7, 10], 40)
    rate = rng.random(160)
    own = rng.normal(size=160)
    change = 3 * rate + layer + foretells * own + 0.5 * rng.normal(size=160)
    return pd.DataFrame(
        {"layer": layer, "image_rate": rate, "measure": 2 * rate + own - layer, "change": change}
    )


def test_rho_is_that_of_residuals_of_ranks_within_layers(script):
    data = table(0, 0.6)
    found, interval, floor = script.partial_correlation(data, "measure")
    ranked = {
        name: np.concatenate(
            [rankdata(each[name]) / len(each) for _, each in data.groupby("layer")]
        )
        for name in ("measure", "change", "image_rate")
    }
    rate = ranked["image_rate"][:, None]
    x, y = (
        ranked[name] - LinearRegression().fit(rate, ranked[name]).predict(rate)
        for name in ("measure", "change")
    )
    assert found == pytest.approx(pearsonr(x, y)[0])
    assert interval[0] < found < interval[1]
    assert floor[0] < 0 < floor[1]


def test_what_the_rate_alone_explains_foretells_nothing(script):
    _, interval, floor = script.partial_correlation(table(1, 0.0), "measure")
    assert interval[0] < floor[1]
    assert interval[1] > floor[0]
    _, interval, floor = script.partial_correlation(table(1, 1.0), "measure")
    assert interval[0] > floor[1]


def test_changes_are_those_of_one_feature_at_a_time(
    script, digits_vit: HookedViT, digits_test: ImageData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script, "ON", 3)
    clt = random_clt(digits_vit)
    zs = ZeroShot(digits_vit, digits_test.class_names, "single")
    images, labels = digits_test.batch(range(6))
    with torch.no_grad():
        found = script._changes(digits_vit, clt, zs, images, labels, 2, [5, 9])
        for feature, few, change in ((5, slice(0, 3), found[0]), (9, slice(3, 6), found[1])):

            def silence(codes: torch.Tensor, hook: object, feature: int = feature) -> torch.Tensor:
                return codes * (torch.arange(codes.shape[-1]) != feature)

            logits = []
            # here all MLPs are replaced, also those below the feature
            with replace_mlps(digits_vit, clt, layers=range(8), error_node=True):
                for hooks in ([], [("clt.2.hook_codes", silence)]):
                    embeddings = digits_vit.run_with_hooks(images[few], fwd_hooks=hooks)
                    logits.append(zs.logits(embeddings).gather(1, labels[few, None]))
            expected = float((logits[1] - logits[0]).abs().mean())
            assert change == pytest.approx(expected, rel=1e-3, abs=1e-4)
            assert expected > 1e-3
