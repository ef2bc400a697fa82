"""Images in another model's preprocessing are refused by every study, before any work."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from builders import random_clt, tiny_clip

from vit_clt import ReLUTopK, ZeroShot, load_data
from vit_clt.analysis import (
    cascade,
    causal_effects,
    clamp,
    contribution_scores,
    feature_statistics,
    graph_study,
    keep_sets,
    keep_top_k,
    probes,
    reconstruction,
    selectivity,
    steering_curve,
    steering_search,
    suppress,
    surrogate_faithfulness,
)
from vit_clt.analysis.factors.sets import FeatureSet
from vit_clt.analysis.retrieval.descriptors import describe
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, ImageSubset, TensorImages
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.interchange.thresholds import with_thresholds
from vit_clt.training.trainer import train

GROUP: FeatureSet = {0: torch.tensor([1])}

STUDIES: dict[str, Callable[..., object]] = {
    "keep_top_k": lambda vit, clt, data, zs: keep_top_k(vit, clt, data, zs),
    "cascade": lambda vit, clt, data, zs: cascade(vit, clt, data, zs),
    "causal": lambda vit, clt, data, zs: causal_effects(vit, data),
    "clamp": lambda vit, clt, data, zs: clamp(
        vit, clt, data, zs, GROUP, mean_data=data, randoms=[GROUP], factor="left", other="right"
    ),
    "contributions": lambda vit, clt, data, zs: contribution_scores(vit, clt, data),
    "describe": lambda vit, clt, data, zs: describe(vit, clt, data, tokens="cls"),
    "faithfulness": lambda vit, clt, data, zs: surrogate_faithfulness(vit, clt, data, zs),
    "features": lambda vit, clt, data, zs: feature_statistics(vit, clt, data),
    "graph": lambda vit, clt, data, zs: graph_study(vit, clt, data, zs, [0]),
    "keep_sets": lambda vit, clt, data, zs: keep_sets(vit, clt, data, zs),
    "probes": lambda vit, clt, data, zs: probes(vit, data, data),
    "reconstruction": lambda vit, clt, data, zs: reconstruction(vit, clt, data),
    "selectivity": lambda vit, clt, data, zs: selectivity(vit, clt, data),
    "steer": lambda vit, clt, data, zs: steering_curve(vit, clt, data, zs, [(0, 1)]),
    "search": lambda vit, clt, data, zs: steering_search(vit, clt, data, zs, 3),
    "suppress": lambda vit, clt, data, zs: suppress(vit, clt, data, zs, GROUP, randoms=[GROUP]),
    "train": lambda vit, clt, data, zs: train(vit, data, clt.config),
    "thresholds": lambda vit, clt, data, zs: with_thresholds(vit, clt, data),
}


@pytest.fixture(scope="module")
def foreign() -> ImageData:
    """Images of the right size, normalised for another model."""
    plain = open_clip.image_transform(8, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    other = HookedViT(tiny_clip(), preprocess=plain)
    return ImageSubset(load_data("digits", vit=other), range(4))


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_refuses_images_prepared_for_another_model(
    study: str, digits_vit: HookedViT, foreign: ImageData
) -> None:
    clt = random_clt(digits_vit, ReLUTopK(k=2))
    zs = ZeroShot(digits_vit, foreign.class_names, "single")
    with pytest.raises(InputError) as refused:
        STUDIES[study](digits_vit, clt, foreign, zs)
    text = str(refused.value)
    assert text.startswith("data digits (test) went through Compose(")
    assert "mean=(0, 0, 0)" in text
    assert "mean=[0.5, 0.5, 0.5]" in text


def test_images_of_the_same_preprocessing_and_tensors_pass(digits_vit: HookedViT) -> None:
    again = HookedViT.from_open_clip("digits")
    check_prepared(digits_vit, load_data("digits", vit=again, limit=2))
    check_prepared(digits_vit, TensorImages(torch.zeros(1, 3, 8, 8)))
