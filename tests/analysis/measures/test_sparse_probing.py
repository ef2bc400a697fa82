"""Sparse probes against scikit-learn's own AUC, and what they choose."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from vit_clt.analysis.measures.probing import (
    LabelledActivations,
    full_probe,
    shown_in_both,
    sparse_probes,
)


def planted(seed: int, n: int = 120) -> LabelledActivations:
    """Three classes; unit 3 + c fires on class c, the others at random."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    values = rng.random((n, 9)) * (rng.random((n, 9)) < 0.4)
    for c in range(3):
        values[labels == c, 3 + c] += 2 * (rng.random((labels == c).sum()) < 0.8)
    return LabelledActivations(values, labels)


def test_the_unit_of_a_class_is_found_and_read_on_other_images():
    train, test = planted(0), planted(1)
    for probe in sparse_probes(train, test, ks=(1, 2)):
        inside, truth = train.labels == probe.label, test.labels == probe.label
        difference = np.abs(train.values[inside].mean(0) - train.values[~inside].mean(0))
        chosen = np.argsort(-difference)[: probe.k]
        assert chosen[0] == 3 + probe.label
        scaler = StandardScaler().fit(train.values[:, chosen])
        fit = LogisticRegression(class_weight="balanced").fit(
            scaler.transform(train.values[:, chosen]), inside
        )
        x = scaler.transform(test.values[:, chosen])
        assert probe.auc == pytest.approx(roc_auc_score(truth, fit.decision_function(x)))
        assert probe.accuracy == pytest.approx(balanced_accuracy_score(truth, fit.predict(x)))
        assert probe.auc > 0.8
        assert probe.auc_random < probe.auc


def test_a_single_informative_unit_leaves_its_random_partner_at_chance():
    floors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sets = []
        for _ in range(2):
            labels = rng.integers(0, 2, 300)
            values = rng.random((300, 6))
            values[:, 0] += labels
            sets.append(LabelledActivations(values, labels))
        floors += [probe.auc_random for probe in sparse_probes(*sets, seed, ks=(1,))]
    assert abs(np.mean(floors) - 0.5) < 0.02


def test_too_few_units_leave_no_random_ones():
    train = planted(0)
    few = LabelledActivations(train.values[:, 3:6], train.labels)
    assert all(np.isnan(probe.auc_random) for probe in sparse_probes(few, few, ks=(2,)))


def test_a_probe_of_everything_is_the_ceiling():
    auc, accuracy = full_probe(planted(0), planted(1))
    assert auc > max(probe.auc for probe in sparse_probes(planted(0), planted(1), ks=(1,)))
    assert 0.5 < accuracy <= 1


def test_classes_are_those_that_both_sets_show():
    a, b = np.array([0, 1, 2, -1]), np.array([1, 2, 2, 3])
    assert shown_in_both(a, b) == [1, 2]
    assert shown_in_both(np.array([1, 1]), b) == []
