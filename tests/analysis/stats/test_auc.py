"""AUCs of many groups and quantities at once, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vit_clt.analysis.stats.auc import auc, ranks


def test_they_are_those_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 4, (50, 5)).astype(float), rng.integers(0, 3, 50)
    found = auc(labels == np.arange(4)[:, None], ranks(values))
    assert found.shape == (4, 5)
    for quantity in range(5):
        for c in range(3):
            expected = roc_auc_score(labels == c, values[:, quantity])
            assert found[c, quantity] == pytest.approx(expected)
    assert np.isnan(found[3]).all()
