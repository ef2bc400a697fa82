"""The ridge rival against scikit-learn, and as a CLT."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from vit_clt.analysis import contribution_scores
from vit_clt.analysis.auditing.ridge import HELD_OUT_EVERY, ridge_transcoder
from vit_clt.errors import InputError
from vit_clt.hooks.activations import capture


@pytest.fixture
def vit(tiny_vit):
    return tiny_vit


@pytest.fixture
def images():
    return torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tokens", ["all", "cls"])
def test_coefficients_are_scikit_learns(vit, images, tokens):
    fit = ridge_transcoder(vit, images, tokens=tokens, penalties=[1e-2])
    found = capture(vit, images)
    rows = slice(0, 1) if tokens == "cls" else slice(None)
    x, y = (a[:, :, rows].double().numpy() for a in (found.x, found.y))
    n, n_images, _, d = x.shape
    fitted = np.arange(n_images) % HELD_OUT_EVERY != 0
    for l in range(n):
        inputs = np.moveaxis(x[: l + 1], 0, 2)
        flat, target = inputs[fitted].reshape(-1, (l + 1) * d), y[l, fitted].reshape(-1, d)
        alpha = 1e-2 * flat.var(0).mean() * len(flat)
        model = Ridge(alpha=alpha, solver="svd").fit(flat, target)
        ours = torch.cat([fit.clt.W_dec[s][l - s] for s in range(l + 1)]).detach().numpy()
        np.testing.assert_allclose(ours, model.coef_.T, atol=2e-5)
        np.testing.assert_allclose(fit.clt.b_dec[l].detach(), model.intercept_, atol=2e-5)
        predicted = model.predict(inputs[~fitted].reshape(-1, (l + 1) * d))
        mean = y[l, ~fitted].reshape(-1, d)
        expected = 1 - ((mean - predicted) ** 2).sum() / ((mean - mean.mean(0)) ** 2).sum()
        assert fit.r2[l] == pytest.approx(expected, abs=1e-6)
        weighted = r2_score(mean, predicted, multioutput="variance_weighted")
        assert fit.r2[l] == pytest.approx(weighted, abs=1e-6)


def test_it_is_a_clt_that_reads_x_itself(vit, images):
    clt = ridge_transcoder(vit, images).clt
    x = capture(vit, images[:2]).x
    expected = torch.stack(
        [
            clt.b_dec[l] + sum(x[s] @ clt.W_dec[s][l - s] for s in range(l + 1))
            for l in range(len(x))
        ]
    )
    torch.testing.assert_close(clt(x), expected, rtol=1e-4, atol=1e-5)
    scores = contribution_scores(vit, clt, images, tokens="all", kind="centred")
    assert torch.allclose(scores.matrix.nansum(1), torch.ones(len(x), dtype=torch.float64))


def test_the_penalty_that_predicts_best_is_taken(vit, images):
    each = [ridge_transcoder(vit, images, penalties=[p]).r2 for p in (1e-6, 1e-1, 1e3)]
    best = ridge_transcoder(vit, images, penalties=[1e-6, 1e-1, 1e3])
    assert best.r2 == pytest.approx(np.max(each, axis=0).tolist())


def test_bad_input(vit, images):
    with pytest.raises(InputError, match="images has 4 rows; expected at least 5"):
        ridge_transcoder(vit, images[:4])
    with pytest.raises(InputError, match=r"penalties is .*; expected numbers above 0"):
        ridge_transcoder(vit, images, penalties=[0.0])


def test_per_layer_it_is_each_mlps_best_linear_map(vit, images):
    fit = ridge_transcoder(vit, images, cross_layer=False, penalties=[1e-2])
    found = capture(vit, images)
    fitted = np.arange(len(images)) % HELD_OUT_EVERY != 0
    for l in range(vit.cfg.n_layers):
        x, y = (a[l].double().numpy()[fitted].reshape(-1, 16) for a in (found.x, found.y))
        alpha = 1e-2 * x.var(0).mean() * len(x)
        model = Ridge(alpha=alpha, solver="svd").fit(x, y)
        np.testing.assert_allclose(fit.clt.W_dec[l][0].detach(), model.coef_.T, atol=2e-5)
        np.testing.assert_allclose(fit.clt.b_dec[l].detach(), model.intercept_, atol=2e-5)
