from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_clt import (
    AbsTopK,
    BatchTopK,
    DenseCodes,
    InputError,
    JumpReLU,
    ReLUTopK,
    SparseCodes,
)
from vit_clt.choices import PaperSparsifier
from vit_clt.kernels.codes import RaggedCodes, stack_codes
from vit_clt.transcoder.sparsifiers import SPARSIFIERS

quick = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def preactivations(draw, ties: bool = True) -> tuple[Tensor, int]:
    """A matrix "token feature" and a k; with `ties`, a grid of few values that includes 0."""
    n, f = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    k = draw(st.integers(1, f))
    if ties:
        entries = st.lists(st.integers(-3, 3), min_size=n * f, max_size=n * f)
        return torch.tensor(draw(entries), dtype=torch.float64).reshape(n, f) / 2, k
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(n, f, dtype=torch.float64, generator=generator), k


def random_codes(signed: bool = True) -> SparseCodes:
    """Codes "layer=2 image=3 token=4" of 7 features with 3 slots, one of them silent."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.rand(2, 3, 4, 7, generator=generator).argsort(-1)[..., :3]
    values = torch.randn(2, 3, 4, 3, generator=generator)
    values[..., 0] = 0
    return SparseCodes(values if signed else values.abs(), indices, 7)


@quick
@given(preactivations())
def test_relu_topk_keeps_the_largest_positive_entries(drawn):
    a, k = drawn
    codes = ReLUTopK(k=k)(a)
    z = codes.to_dense()
    for row, kept in zip(a, z, strict=True):
        on = kept != 0
        assert int(on.sum()) == min(k, int((row > 0).sum()))
        assert torch.equal(kept[on], row[on])
        dropped = row[(row > 0) & ~on]
        if len(dropped):
            assert kept[on].min() >= dropped.max()


@quick
@given(preactivations(ties=False))
def test_relu_topk_equals_topk_of_relu(drawn):
    a, k = drawn
    top = a.relu().topk(k)
    expected = torch.zeros_like(a).scatter(-1, top.indices, top.values)
    assert torch.equal(ReLUTopK(k=k)(a).to_dense(), expected)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_relu_topk_of_negatives_is_zero(k):
    a = -torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) - 0.1
    codes = ReLUTopK(k=k)(a)
    assert torch.equal(codes.to_dense(), torch.zeros(4, 6))
    assert codes.l0().tolist() == [0] * 4


def test_relu_topk_keeps_a_lone_positive():
    a = torch.full((3, 6), -1.0)
    a[[0, 1, 2], [5, 0, 2]] = 0.5
    assert torch.equal(ReLUTopK(k=4)(a).to_dense(), a.relu())


@quick
@given(preactivations())
def test_abs_topk_keeps_the_largest_magnitudes_with_their_sign(drawn):
    a, k = drawn
    z = AbsTopK(k=k)(a).to_dense()
    for row, kept in zip(a, z, strict=True):
        on = kept != 0
        assert int(on.sum()) == min(k, int((row != 0).sum()))
        assert torch.equal(kept[on], row[on])
        if on.any() and not on.all():
            assert kept[on].abs().min() >= row[~on].abs().max()


@quick
@given(preactivations(ties=False))
def test_abs_topk_keeps_exactly_k(drawn):
    a, k = drawn
    assert AbsTopK(k=k)(a).l0().tolist() == [k] * len(a)


def test_abs_topk_counts_negative_codes_as_active():
    a = -torch.arange(1.0, 6.0).expand(3, 5)
    codes = stack_codes([AbsTopK(k=2)(a)])
    assert codes.l0().tolist() == [[2, 2, 2]]
    assert codes.fired().tolist() == [[0, 0, 0, 3, 3]]
    assert torch.equal(codes.to_dense()[0, 0], torch.tensor([0.0, 0, 0, -4, -5]))


@quick
@given(preactivations(), st.sampled_from([ReLUTopK, AbsTopK]))
def test_indices_never_repeat_within_a_token(drawn, kind):
    a, k = drawn
    codes = kind(k=k)(a)
    assert codes.indices.shape == (len(a), k)
    assert all(len(set(row)) == k for row in codes.indices.tolist())


@quick
@given(preactivations(), st.sampled_from([0.03, 0.5, 1.2]))
def test_jumprelu_codes_are_zero_or_above_theta(drawn, theta):
    a, _ = drawn
    log_theta = torch.full((a.shape[-1],), theta, dtype=torch.float64).log()
    z = JumpReLU(theta=theta)(a, log_theta).to_dense()
    above = a > log_theta.exp()
    assert torch.equal(z[above], a[above])
    assert (z[~above] == 0).all()


def test_jumprelu_uses_the_threshold_of_each_feature():
    a = torch.tensor([[0.4, 0.4, 0.4], [3.0, 3.0, -3.0]])
    log_theta = torch.tensor([0.1, 1.0, 0.3]).log()
    z = JumpReLU()(a, log_theta).to_dense()
    assert torch.equal(z, torch.tensor([[0.4, 0, 0.4], [3.0, 3.0, 0]]))


@pytest.mark.parametrize("bandwidth", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("tokens", [(5,), (2, 3)])
def test_jumprelu_gradients_are_the_written_formula(bandwidth, tokens):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(*tokens, 6, dtype=torch.float64, generator=generator).requires_grad_()
    log_theta = torch.randn(6, dtype=torch.float64, generator=generator).mul(0.5).requires_grad_()
    upstream = torch.randn(*tokens, 6, dtype=torch.float64, generator=generator)
    z = JumpReLU(bandwidth=bandwidth)(a, log_theta).to_dense()
    z.backward(upstream)

    theta = log_theta.detach().exp()
    expected_a = torch.zeros_like(a)
    expected_theta = torch.zeros_like(theta)
    rows = zip(a.detach().reshape(-1, 6), upstream.reshape(-1, 6), strict=True)
    for t, (row, grad) in enumerate(rows):
        for i in range(6):
            if row[i] > theta[i]:
                expected_a.view(-1, 6)[t, i] = grad[i]
            if abs(row[i] - theta[i]) < bandwidth / 2:
                expected_theta[i] -= theta[i] ** 2 / bandwidth * grad[i]
    torch.testing.assert_close(a.grad, expected_a, rtol=0, atol=0)
    torch.testing.assert_close(log_theta.grad, expected_theta, rtol=1e-12, atol=1e-12)
    assert (expected_theta != 0).any()


def test_topk_gradient_reaches_kept_entries_alone():
    a = torch.tensor([[3.0, -5.0, 1.0, 2.0]], requires_grad=True)
    ReLUTopK(k=2)(a).to_dense().sum().backward()
    assert a.grad.tolist() == [[1, 0, 0, 1]]
    a.grad = None
    AbsTopK(k=2)(a).to_dense().sum().backward()
    assert a.grad.tolist() == [[1, 1, 0, 0]]


def test_sparse_codes_written_out():
    codes = random_codes()
    z = codes.to_dense()
    assert z.shape == (2, 3, 4, 7)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        row = torch.zeros(7)
        for slot in range(3):
            row[codes.indices[(*place, slot)]] = codes.values[(*place, slot)]
        assert torch.equal(z[tuple(place)], row)


@pytest.mark.parametrize("signed", [True, False])
def test_activity_of_sparse_and_dense_codes_is_that_of_plain_torch(signed):
    sparse = random_codes(signed)
    z = sparse.to_dense()
    for codes in (sparse, DenseCodes(z)):
        assert torch.equal(codes.l0(), (z != 0).sum(-1))
        assert torch.equal(codes.fired(), (z != 0).sum((1, 2)))
        assert torch.equal(codes.to_dense(), z)
        assert (len(codes), codes.n_features) == (2, 7)
        assert torch.equal(codes[1].to_dense(), z[1])
    assert int(sparse.fired().sum()) == int(sparse.l0().sum()) == 2 * 3 * 4 * 2


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, None), slice(None)], ids=str)
def test_codes_at_some_rows_are_those_of_the_dense_matrix(rows):
    sparse = random_codes()
    z = sparse.to_dense()
    active = z != 0
    ragged = RaggedCodes(
        z[active],
        active.nonzero()[:, -1],
        torch.cat([torch.zeros(1, dtype=torch.long), active.sum(-1).flatten().cumsum(0)]),
        tuple(z.shape[:-1]),
        z.shape[-1],
    )
    for codes in (sparse, ragged, DenseCodes(z)):
        found = codes.at_rows(rows)
        assert type(found) is type(codes)
        assert found.tokens == z[..., rows, :].shape[:-1]
        assert torch.equal(found.to_dense(), z[..., rows, :])
        assert torch.equal(found.fired(), active[..., rows, :].sum((1, 2)))
        assert torch.equal(codes[1].at_rows(rows).to_dense(), z[1][..., rows, :])


def test_to_dense_is_differentiable_in_the_values():
    codes = random_codes()
    values = codes.values.clone().requires_grad_()
    upstream = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(1))
    SparseCodes(values, codes.indices, 7).to_dense().backward(upstream)
    assert torch.equal(values.grad, upstream.gather(-1, codes.indices))


def test_stacking_mixed_layouts_gives_dense_codes():
    sparse = random_codes()
    layers = [sparse[0], DenseCodes(sparse[1].to_dense())]
    assert torch.equal(stack_codes(layers).to_dense(), sparse.to_dense())
    assert isinstance(stack_codes(layers), DenseCodes)
    assert isinstance(stack_codes([sparse[0], sparse[1]]), SparseCodes)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ReLUTopK, "k", 0),
        (AbsTopK, "k", -1),
        (BatchTopK, "k", 0),
        (JumpReLU, "theta", 0.0),
        (JumpReLU, "bandwidth", -1.0),
        (JumpReLU, "theta", float("nan")),
    ],
)
def test_values_that_make_no_sparsifier_are_refused(kind, field, value):
    with pytest.raises(InputError, match=f"^{field} is {value}; expected a value above 0"):
        kind(**{field: value})


def test_names_are_those_of_the_command_line():
    kinds = (JumpReLU, ReLUTopK, AbsTopK, BatchTopK)
    assert {kind.name: kind for kind in kinds} == SPARSIFIERS
    assert set(get_args(PaperSparsifier)) < SPARSIFIERS.keys()
