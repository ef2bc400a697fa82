"""The study of all measures: its numbers recomputed from codes, its floors, its files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import one_sentence, tells_itself
from builders import random_clt, tiny_clip
from sklearn.metrics import roc_auc_score

from vit_clt import load_data
from vit_clt.analysis.features.effects import class_effects
from vit_clt.analysis.measures import study
from vit_clt.analysis.measures.localization import morans_i
from vit_clt.analysis.measures.monosemanticity import monosemanticity
from vit_clt.analysis.measures.scores import FeatureScores
from vit_clt.analysis.measures.study import COMPONENTS, NEURONS, UNTRAINED, feature_scores
from vit_clt.data.hierarchies import DIGITS_GROUPS, listed
from vit_clt.data.images import ImageData, ImageSubset, TensorImages
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, capture
from vit_clt.hooks.neurons import hidden_units
from vit_clt.readouts.zero_shot import ZeroShot

LAYERS = [1, 6]
N = 80


@pytest.fixture(scope="module")
def parts(digits_vit: HookedViT, digits_test: ImageData):
    clt = random_clt(digits_vit)
    test = ImageSubset(digits_test, range(N))
    train = load_data("digits", vit=digits_vit, split="train")
    zs = ZeroShot(digits_vit, digits_test.class_names)
    return clt, test, train, zs


@pytest.fixture(scope="module")
def scores(digits_vit: HookedViT, parts) -> FeatureScores:
    clt, test, train, zs = parts
    return feature_scores(
        digits_vit,
        {"a": clt, "b": random_clt(digits_vit, seed=1)},
        test,
        train,
        zs=zs,
        layers=LAYERS,
        seed_clts={"a again": clt},
        hierarchy=DIGITS_GROUPS,
        effect_images=30,
    )


def pooled(values: torch.Tensor) -> np.ndarray:
    """Signed activations of largest size, image by image and unit by unit."""
    at = values.abs().argmax(1, keepdim=True)
    return values.gather(1, at)[:, 0].double().numpy()


def test_every_number_of_a_feature_is_that_of_its_codes(scores, digits_vit: HookedViT, parts):
    clt, test, _, zs = parts
    images, labels = test.batch(range(N))
    x = capture(digits_vit, images).x[6]
    z = clt.encode(x, layer=6).to_dense()
    rows = scores.units[(scores.units["dictionary"] == "a") & (scores.units["layer"] == 6)]
    counts = (z != 0).any(1).sum(0).numpy()
    assert rows["images"].tolist() == counts.tolist()
    enough = counts >= 10
    assert enough.sum() > 0
    mono = monosemanticity(np.abs(pooled(z)), digits_vit(images).double().numpy())
    np.testing.assert_allclose(rows["monosemanticity"], np.where(enough, mono, np.nan), rtol=1e-5)
    rows_of = digits_vit.cfg.rows
    maps = z[:, rows_of.first_patch :].abs().double().unflatten(1, rows_of.grid)
    moran = torch.stack([morans_i(image) for image in maps]).numpy()
    fires = ~np.isnan(moran)
    for unit in np.flatnonzero(fires.sum(0) >= 10):
        expected = moran[fires[:, unit], unit].mean()
        assert rows["morans_i"].iloc[unit] == pytest.approx(expected, abs=1e-5)
    for unit in np.flatnonzero(enough):
        truth = labels.numpy() == test.class_names.index(rows["class"].iloc[unit])
        expected = roc_auc_score(truth, np.abs(pooled(z))[:, unit])
        assert rows["class_auc"].iloc[unit] == pytest.approx(expected)
    effects = class_effects(digits_vit, clt, test, zs, [6], n_images=30).mean(6)
    centred = np.abs(effects - effects.mean(1, keepdims=True)).mean(1)
    np.testing.assert_allclose(rows["effect"], centred, rtol=1e-5)


def test_layers_in_passes_of_their_own_have_the_same_numbers(
    scores, digits_vit: HookedViT, parts, monkeypatch: pytest.MonkeyPatch
):
    clt, test, train, zs = parts
    passes: list[list[int]] = []
    gather = study.gather
    monkeypatch.setattr(study, "gather", lambda *a, **k: passes.append(a[3]) or gather(*a, **k))
    apart = feature_scores(
        digits_vit,
        {"a": clt, "b": random_clt(digits_vit, seed=1)},
        test,
        train,
        zs=zs,
        layers=LAYERS,
        seed_clts={"a again": clt},
        hierarchy=DIGITS_GROUPS,
        effect_images=30,
        kept_bytes=0,
    )
    assert passes == [[1], [1], [6], [6]]
    pd.testing.assert_frame_equal(apart.units, scores.units, check_exact=True)
    pd.testing.assert_frame_equal(apart.probes, scores.probes, check_exact=True)
    assert (apart.l0, apart.floors, apart.ceiling) == (scores.l0, scores.floors, scores.ceiling)


def test_the_ones_it_is_compared_with_are_measured_by_the_same_code(
    scores, digits_vit: HookedViT, parts
):
    _, test, _, _ = parts
    images, _ = test.batch(range(N))
    x = capture(digits_vit, images).x[1]
    assert scores.dictionaries == ["a", "b", UNTRAINED, NEURONS, COMPONENTS]
    hidden = pooled(hidden_units(digits_vit.blocks[1], x))
    expected = monosemanticity(np.abs(hidden), digits_vit(images).double().numpy())
    rows = scores.units[(scores.units["dictionary"] == NEURONS) & (scores.units["layer"] == 1)]
    np.testing.assert_allclose(rows["monosemanticity"], expected, rtol=1e-5)
    assert scores.l0[NEURONS] == hidden.shape[1]


def test_components_are_those_of_the_training_images(digits_vit: HookedViT, parts):
    from sklearn.decomposition import PCA

    from vit_clt.analysis.measures.dictionaries import PrincipalComponents

    _, test, _, _ = parts
    images, _ = test.batch(range(N))
    x = capture(digits_vit, images).x[6]
    found = PrincipalComponents.of_images(digits_vit, test, [6]).codes(x, 6).to_dense()
    expected = PCA().fit(x.flatten(0, 1).double().numpy()).transform(x.flatten(0, 1).double())
    largest = 5
    np.testing.assert_allclose(
        found.flatten(0, 1).abs()[:, :largest], np.abs(expected[:, :largest]), atol=1e-3
    )


def test_a_clt_is_as_stable_as_can_be_against_itself(scores):
    assert np.isnan(scores.mean("a", "stability"))  # a CLT is no seed of its own
    assert 0 < scores.mean("b", "stability") < 1
    assert scores.floor("b", "stability") == pytest.approx(scores.mean("b", "stability"), abs=0.1)


def test_means_have_floors_and_intervals(scores):
    mono = scores.mean("a", "monosemanticity")
    assert mono.low < mono < mono.high
    assert scores.floor("a", "class_auc") == 0.5
    assert scores.probe("a", 5)["auc"] > scores.probe("a", 1)["auc"]
    assert scores.ceiling > scores.probe("a", 20)["auc"]
    assert set(scores.absorption["child"]) == set(listed(DIGITS_GROUPS))


def test_it_tells_itself(scores, tmp_path: Path):
    context = tells_itself(scores, tmp_path / "out")
    assert context["l0"]["a"] == scores.l0["a"]
    assert context["probes_fitted_on"] == f"{N} images of digits (train)"


def test_without_labels_and_text_there_is_what_can_be_measured(images: torch.Tensor):
    vit = HookedViT(tiny_clip())
    data = TensorImages(images.repeat(3, 1, 1, 1))
    scores = feature_scores(vit, {"a": random_clt(vit)}, data)
    assert scores.units["class_auc"].isna().all()
    assert scores.units["effect"].isna().all()
    assert scores.units["monosemanticity"].notna().any()
    assert list(scores.shown().columns) == [
        *("dictionary", "units", "L0", "silent %", "measured %"),
        *("monosemanticity", "Moran's I"),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"embeddings": torch.zeros(3, 2)}, "are of 3 images; expected 6"),
        ({"hierarchy": {"p": ["x"]}}, "which is no class of the data"),
        ({"layers": [4]}, "contains 4"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, said: str, images: torch.Tensor):
    vit = HookedViT(tiny_clip())
    with pytest.raises(InputError) as error:
        feature_scores(vit, {"a": random_clt(vit)}, images, **options)
    assert said in one_sentence(error)
    with pytest.raises(InputError) as error:
        feature_scores(vit, {}, images)
    assert "is empty" in one_sentence(error)
