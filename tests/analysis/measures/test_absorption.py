"""Absorption, against a plain loop by the definition, and on planted features."""

import numpy as np
import pytest
import torch
from builders import noisy_clt_of, random_clt
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from vit_clt.analysis.measures.absorption import (
    ReadRows,
    absorbed,
    absorption,
    main_features,
    read_rows,
    shuffled,
)
from vit_clt.data.hierarchies import listed
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT, capture


def by_loops(z, carried, cosines, wanted, main):
    """Both scores of one image, written out feature by feature."""
    parts = {i: z[i] * carried[i] for i in range(len(z)) if z[i] != 0}
    if wanted <= 0 or not parts:
        return 0.0, 0.0
    top = max(parts, key=lambda i: parts[i])
    full = not set(main) & set(parts) and cosines[top] >= 0.025 and parts[top] >= 0.4 * wanted
    of_main = sum(parts.get(i, 0.0) for i in main)
    others = sorted(
        (v for i, v in parts.items() if i not in main and cosines[i] >= 0.1 and v > 0),
        reverse=True,
    )
    three = sum(others[:3])
    if of_main >= wanted or three < 0.4 * wanted:
        return float(full), 0.0
    if of_main <= 0:
        return float(full), 1.0
    three = min(three, wanted - of_main)
    return float(full), three / (three + of_main)


@given(seed=st.integers(0, 10_000))
def test_it_is_the_definition(seed: int):
    rng = np.random.default_rng(seed)
    z = rng.random((6, 8)) * (rng.random((6, 8)) < 0.4)
    carried, wanted = rng.normal(0.3, 1, 8), rng.normal(0.5, 1, 6)
    cosines = carried / 4
    main = rng.choice(8, 2, replace=False)
    found = absorbed(csr_array(z), carried, cosines, wanted, main)
    expected = [by_loops(z[i], carried, cosines, wanted[i], main.tolist()) for i in range(6)]
    np.testing.assert_allclose(np.stack(found, axis=1), expected)


def planted(clt, seed: int, absorbs: bool) -> ReadRows:
    """Feature 0 of layer 0 stands for the parent of classes 0 and 1; on class 1 feature 1 does."""
    rng = np.random.default_rng(seed)
    labels = np.arange(240) % 4
    z = np.zeros((240, clt.config.n_features))
    z[:, 5] = rng.random(240)
    parent = labels < 2
    z[parent, 0] = 1 + rng.random(parent.sum())
    if absorbs:
        z[labels == 1, 1] = z[labels == 1, 0]
        z[labels == 1, 0] = 0
    w = clt.decoder(0, 0).detach().numpy()
    y = z @ w + clt.b_dec[0].detach().numpy()
    return ReadRows({0: csr_array(z)}, {0: y}, labels)


@pytest.mark.parametrize("absorbs", [True, False])
def test_a_child_with_a_feature_of_its_own_is_found(absorbs: bool):
    clt = noisy_clt_of(L=1, d=6, F=8)
    clt.decoder(0, 0).data.zero_()
    for feature, dims in {0: [0], 1: [0, 1], 5: [2]}.items():
        clt.decoder(0, 0).data[feature, dims] = 1.0
    names = ["a", "b", "c", "d"]
    sets = planted(clt, 0, absorbs), planted(clt, 1, absorbs)
    found = absorption(clt, *sets, 0, {"p": ["a", "b"], "q": ["c", "d"]}, names)
    of_p = {each.child: each for each in found if each.parent == "p"}
    # feature 1 is as good a sign of half of the parent's images; main features are chosen by means
    assert of_p["a"].n == of_p["b"].n == 60
    if not absorbs:
        assert of_p["a"].full == of_p["b"].full == 0
        assert of_p["a"].main[0] == (0, 0)


def test_main_features_grow_while_f1_rises():
    labels = np.arange(200) % 4
    inside = labels < 2
    z = np.zeros((200, 5))
    z[labels == 0, 3] = 2
    z[labels == 1, 1] = 1
    z[:, 4] = 0.1
    assert main_features(csr_array(z), inside).tolist() == [3, 1]


def test_rows_are_those_of_the_class_token(tiny_vit: HookedViT, images: torch.Tensor):
    clt = random_clt(tiny_vit)
    rows = read_rows(tiny_vit, clt, TensorImages(images, torch.arange(6)), [1, 2])
    found = capture(tiny_vit, images)
    assert sorted(rows.codes) == [0, 1, 2]
    assert rows.labels.tolist() == list(range(6))
    for l in (1, 2):
        np.testing.assert_allclose(rows.y[l], found.y[l][:, 0].double(), rtol=1e-6)
        z = clt.encode(found.x[l], layer=l).to_dense()[:, 0]
        np.testing.assert_allclose(rows.codes[l].toarray(), z.double(), rtol=1e-6, atol=1e-7)


def test_random_parents_keep_their_sizes():
    dealt = shuffled({"p": ["a", "b", "c"], "q": ["d"]}, np.random.default_rng(0))
    assert [len(children) for children in dealt.values()] == [3, 1]
    assert sorted(listed(dealt)) == ["a", "b", "c", "d"]
