"""Stability over seeds: exact on features that were permuted, against loops, and its floor."""

import numpy as np
import pytest
import torch
from assertions import one_sentence
from builders import noisy_clt_of

from vit_clt.analysis.measures.stability import stability
from vit_clt.errors import InputError


def test_permuted_and_rescaled_features_are_found_again():
    clt = noisy_clt_of(F=6, d=8)
    other = noisy_clt_of(F=6, d=8, seed=1)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for s in range(3):
        for l in range(s, 3):
            other.decoder(s, l).data.copy_(2.5 * clt.decoder(s, l)[order])
    for s in range(3):
        found = stability(clt, other, s)
        np.testing.assert_allclose(found.nearest, 1)
        assert found.matched.all()
        assert (found.floor < found.nearest).all()


@pytest.mark.parametrize("kind", ["relu_topk", "abs_topk"])
def test_it_is_the_largest_cosine_over_all_pairs(kind: str):
    clt, other = noisy_clt_of(kind, F=7), noisy_clt_of(kind, F=7, seed=2)
    found = stability(clt, other, 1)
    ours, theirs = (
        np.concatenate([each.decoder(1, l).detach().numpy() for l in (1, 2)], axis=1)
        for each in (clt, other)
    )
    cosines = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in theirs] for a in ours]
    )
    if kind == "abs_topk":
        cosines = np.abs(cosines)
    np.testing.assert_allclose(found.nearest, cosines.max(1))
    mutual = [cosines[:, cosines[i].argmax()].argmax() == i for i in range(7)]
    assert found.matched.tolist() == (np.array(mutual) & (cosines.max(1) >= 0.7)).tolist()


def test_signs_of_signed_codes_do_not_matter():
    clt, other = noisy_clt_of("abs_topk", F=5), noisy_clt_of("abs_topk", F=5, seed=1)
    for l in range(3):
        other.decoder(0, l).data.copy_(-clt.decoder(0, l))
    np.testing.assert_allclose(stability(clt, other, 0).nearest, 1)


def test_targets_that_one_of_the_two_lacks_do_not_count():
    clt, other = noisy_clt_of(F=6), noisy_clt_of(F=6, seed=1, cross_layer=False)
    other.decoder(0, 0).data.copy_(clt.decoder(0, 0))
    np.testing.assert_allclose(stability(clt, other, 0).nearest, 1)


def test_a_feature_that_writes_nothing_has_none():
    clt, other = noisy_clt_of(F=6), noisy_clt_of(F=6, seed=1)
    for l in range(3):
        clt.decoder(0, l).data[2] = 0
    found = stability(clt, other, 0)
    assert np.isnan(found.nearest).tolist() == [False, False, True, False, False, False]
    assert not found.matched[2]


def test_the_floor_is_what_other_random_decoders_give():
    # of decoders that are random themselves a rotation changes nothing but the draw
    clt, other = noisy_clt_of(F=200, d=6, L=2), noisy_clt_of(F=200, d=6, L=2, seed=1)
    found = stability(clt, other, 1)
    assert found.nearest.mean() == pytest.approx(found.floor.mean(), abs=0.02)


def test_another_width_is_refused():
    with pytest.raises(InputError) as error:
        stability(noisy_clt_of(F=6), noisy_clt_of(F=8), 0)
    assert "has n_features 8; expected 6" in one_sentence(error)
