"""Hand-set weights: zero error, opposite heatmaps, the wrong one sparser."""

import pytest
import torch

from vit_clt.analysis.auditing.controls import OUT, shortcut_example


def projection(clt, x, target):
    terms = clt.contributions(clt.encode(x), target=target)
    y_hat = terms.sum(0) + clt.b_dec[target]
    alive = y_hat.square().sum(-1) > 0
    return ((terms * y_hat).sum(-1)[:, alive] / y_hat.square().sum(-1)[alive]).mean(1)


@pytest.fixture(scope="module")
def case():
    return shortcut_example()


def test_the_model_computes_two_ands(case):
    a, b, c = case.x[0, :, :3].T
    assert torch.equal(case.y[0].sum(-1), a * b)
    assert torch.equal(case.y[1].sum(-1), a * b * c)
    assert case.y[1, :, OUT].sum() == 1


@pytest.mark.parametrize("name", ["deep", "shortcut"])
def test_both_rebuild_every_output_exactly(case, name):
    assert torch.equal(getattr(case, name)(case.x), case.y)


def test_they_disagree_about_the_source_of_the_last_output(case):
    assert projection(case.deep, case.x, 1).tolist() == [0, 1]
    assert projection(case.shortcut, case.x, 1).tolist() == [1, 0]


def test_the_shortcut_is_sparser(case):
    l0 = {
        name: float(getattr(case, name).encode(case.x).l0().sum(0).double().mean())
        for name in ("deep", "shortcut")
    }
    assert l0 == {"deep": 3 / 8, "shortcut": 2 / 8}


def test_the_model_itself_needs_its_first_mlp(case):
    """C(1->1) = 0 in the shortcut, and all of y_1 goes when MLP_0 does: it is computed at depth 1
    from what MLP_0 wrote, which only the deep CLT says."""
    assert case.y_without_mlp_0.count_nonzero() == 0
    assert case.y[1].count_nonzero() == 1
