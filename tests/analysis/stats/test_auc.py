"""AUCs of many quantities and classes at once, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vit_clt.analysis.stats.auc import class_aucs


def test_they_are_those_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 4, (50, 5)).astype(float), rng.integers(0, 3, 50)
    found = class_aucs(values, labels, 4)
    assert found.shape == (5, 4)
    for quantity in range(5):
        for c in range(3):
            expected = roc_auc_score(labels == c, values[:, quantity])
            assert found[quantity, c] == pytest.approx(expected)
    assert np.isnan(found[:, 3]).all()
