"""A linear readout against its optimum, and what it tells of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import noise
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vit_clt import InputError, LinearClassifier
from vit_clt.readouts.linear import PENALTY


@pytest.fixture(scope="module")
def clouds() -> tuple[Tensor, Tensor]:
    """Three overlapping clouds of points of very unequal scale, and one constant dimension."""
    labels = torch.arange(300) % 3
    points = noise(300, 6) + noise(3, 6, seed=2)[labels]
    return torch.cat([points * torch.logspace(-2, 2, 6) + 5, torch.ones(300, 1)], 1), labels


def fitted_part(n: int, seed: int = 0) -> Tensor:
    """The images that are fitted on."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[round(0.2 * n) :]


def test_a_linear_readout_is_the_optimum(clouds: tuple[Tensor, Tensor]):
    x, labels = clouds
    linear = LinearClassifier(x, labels)
    part = fitted_part(300)
    u = (x[part] - x[part].mean(0)) / x[part].std(0, correction=0).clamp(min=1e-9)
    scale = x[part].std(0, correction=0)
    scale[-1] = 1
    weights = (linear.weights * scale[:, None]).requires_grad_()
    bias = (linear.bias + x[part].mean(0) @ linear.weights).requires_grad_()
    logits = u @ weights + bias
    loss = -logits.log_softmax(-1)[torch.arange(len(part)), labels[part]].mean()
    loss = loss + PENALTY / 2 * (weights.square().sum() + bias.square().sum())
    gradients = torch.autograd.grad(loss, [weights, bias])
    assert max(g.abs().max() for g in gradients) < 2e-8
    # scikit-learn's optimum, with the bias as a weight of a constant
    constant = np.c_[u.numpy(), np.ones(len(part))]
    theirs = LogisticRegression(
        C=1 / (len(part) * PENALTY), fit_intercept=False, tol=1e-10, max_iter=10_000
    ).fit(constant, labels[part].numpy())
    np.testing.assert_allclose(
        np.c_[weights.detach().T.numpy(), bias.detach().numpy()], theirs.coef_, atol=1e-5
    )


def test_a_linear_readout_tells_its_accuracy_and_its_floor(clouds: tuple[Tensor, Tensor]):
    x, labels = clouds
    labels = labels.clone()
    labels[:40] = 0
    linear = LinearClassifier(x, labels, seed=3, fitted_on="clouds train")
    part = fitted_part(300, seed=3)
    held = torch.tensor(sorted({*range(300)} - {*part.tolist()}))
    right = linear.logits(x[held]).argmax(-1) == labels[held]
    assert linear.accuracy == pytest.approx(right.double().mean())
    majority = labels[part].bincount().argmax()
    assert linear.majority == pytest.approx((labels[held] == majority).double().mean())
    assert linear.accuracy > linear.majority
    assert linear.name == (
        f"linear (240 images of clouds train; {100 * linear.accuracy:.2f} % of 60 held out, "
        f"majority {100 * linear.majority:.2f} %)"
    )
    again = LinearClassifier(x, labels, seed=3)
    assert torch.equal(again.weights, linear.weights)
    assert not torch.equal(LinearClassifier(x, labels, seed=4).weights, linear.weights)


def test_labels_that_a_linear_readout_cannot_be_fitted_on(clouds: tuple[Tensor, Tensor]):
    x, labels = clouds
    with pytest.raises(InputError, match="240 images to fit on show one class; expected two"):
        LinearClassifier(x, torch.zeros_like(labels))
    with pytest.raises(InputError, match="labels hold -1, unknown"):
        LinearClassifier(x, labels - 1)
    with pytest.raises(InputError, match="run from 0 to 2; expected 0 to 1"):
        LinearClassifier(x, labels, ["a", "b"])
    with pytest.raises(InputError, match="NaN or infinite"):
        LinearClassifier(x / 0, labels)
    linear = LinearClassifier(x, labels, ["a", "b", "c", "d"])
    with pytest.raises(InputError, match=r'hold 3 \("d"\), which none of the images fitted on'):
        linear.read(x[:2], torch.tensor([0, 3]))
