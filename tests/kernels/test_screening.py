"""Screened top-k codes against unscreened ones: the same supports, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from assertions import close
from builders import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_clt.kernels import bags, screening, sparse
from vit_clt.kernels.chunks import one_dnn
from vit_clt.kernels.rounding import Bounds, Rounded
from vit_clt.kernels.rows import over_rows
from vit_clt.kernels.screening import screened_top_k, screens
from vit_clt.kernels.sparse import encode_top_k
from vit_clt.kernels.topk import top_k

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no oneDNN products in bfloat16"
)


@dataclass(frozen=True)
class Case:
    """Inputs of an encoder, and how many entries it keeps."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    k: int
    signed: bool

    def screened(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        return screened_top_k(self.x[rows], self.weight, self.bias, self.k, signed=self.signed)

    def codes(self, find) -> Tensor:
        """Dense codes, nan and inf being kept apart from zero."""
        values, indices = find(self.x, self.weight, self.bias, self.k, self.signed)
        return values.new_zeros(len(self.x), len(self.weight)).scatter_(1, indices, values)

    def same_supports(self) -> None:
        """Assert that what is screened has the indices, zeros and values of what is not."""
        _, indices = sparse._screened(self.x, self.weight, self.bias, self.k, self.signed)
        _, expected = sparse._unscreened(self.x, self.weight, self.bias, self.k, self.signed)
        assert torch.equal(indices.sort(1).values, expected.sort(1).values)
        found, dense = self.codes(sparse._screened), self.codes(sparse._unscreened)
        assert torch.equal(found != 0, dense != 0)
        delta = Bounds.of(Rounded.of(self.x), Rounded.of(self.weight), self.bias).delta
        bounded = (found - dense).abs() <= 2 * delta[:, None]
        assert (bounded | (found == dense) | (found.isnan() & dense.isnan())).all()


def case(k: int = 5, signed: bool = False, d: int = 64, n_tokens: int = 24, seed: int = 0) -> Case:
    """Rows, features and biases of a common scale."""
    weight = noise(256, d, seed=seed).float() / d**0.5
    bias = 0.3 * noise(256, seed=seed + 1).float()
    return Case(noise(n_tokens, d, seed=seed + 2).float(), weight, bias, k, signed)


def ulps_apart(weight: Tensor, copies: int, seed: int) -> Tensor:
    """Features with `copies` of the first, which differ from it in the last bits."""
    weight = weight.clone()
    weight[1 : copies + 1] = weight[0] * (1 + 2.0**-20 * noise(copies, weight.shape[1], seed=seed))
    return weight


KINDS = {
    "plain": lambda c, seed: c,
    "ties": lambda c, seed: Case(c.x, c.weight[noise(256, seed=seed).argsort() // 4], *rest(c)),
    "integers": lambda c, seed: Case(c.x.round(), (3 * c.weight).round(), c.bias.round(), *end(c)),
    "near ties": lambda c, seed: Case(
        c.weight[0] * (1 + c.x[:, :1].abs()) + 0.1 * c.x,
        ulps_apart(4 * c.weight, 3 * c.k, seed),
        torch.zeros_like(c.bias),
        *end(c),
    ),
    "features of all norms": lambda c, seed: Case(
        c.x, c.weight * (2 * noise(256, 1, seed=seed).float()).exp(), *rest(c)
    ),
    "large biases": lambda c, seed: Case(c.x, c.weight, 1000 * c.bias, *end(c)),
    "few above zero": lambda c, seed: Case(c.x, c.weight, c.bias - 2, *end(c)),
    "about k above zero": lambda c, seed: Case(
        c.x,
        c.weight,
        c.bias - sparse.top_k(c.x @ c.weight.T + c.bias, c.k)[0].min(1).values.median(),
        *end(c),
    ),
    "silent rows": lambda c, seed: Case(
        c.x * (noise(len(c.x), 1, seed=seed) > 0), c.weight, 0 * c.bias, *end(c)
    ),
    "not finite": lambda c, seed: Case(
        torch.where(noise(len(c.x), 1, seed=seed) > 0.5, float("nan") * c.x, c.x)
        + torch.where(noise(len(c.x), 1, seed=seed) < -0.5, float("inf"), 0.0),
        *(c.weight, *rest(c)),
    ),
}


def rest(c: Case) -> tuple[Tensor, int, bool]:
    return c.bias, c.k, c.signed


def end(c: Case) -> tuple[int, bool]:
    return c.k, c.signed


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    k=st.integers(1, 8),
    d=st.sampled_from([1, 7, 64, 200]),
    scale=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e37]),
    signed=st.booleans(),
    n_tokens=st.integers(1, 40),
    seed=st.integers(0, 2**20),
)
def test_supports_are_those_of_the_unscreened_path(kind, k, d, scale, signed, n_tokens, seed):
    made = KINDS[kind](case(k, signed, d, n_tokens + 1, seed), seed)
    Case(scale * made.x, made.weight, scale * made.bias, k, signed).same_supports()


@pytest.mark.parametrize("signed", [False, True])
def test_screening_decides_all_rows_but_a_few(signed):
    assert case(signed=signed, n_tokens=500).screened()[2].double().mean() > 0.99
    assert KINDS["near ties"](case(signed=signed, n_tokens=500), 3).screened()[2].sum() > 50


def test_entries_above_zero_are_found_where_their_rounded_sums_are_below():
    c = case(n_tokens=2000)
    # all rows are nearly one, at which sixty features are nearly zero and the others far below
    x = c.x[0] + 0.002 * c.x
    bias = 0.003 * noise(256, seed=5).float() - c.weight @ c.x[0]
    bias[60:] -= 5
    near_zero = Case(x, c.weight, bias, k=5, signed=False)
    a = one_dnn(x, c.weight, bias)
    s = one_dnn(x.bfloat16(), c.weight.bfloat16(), bias)
    kept = torch.zeros_like(a, dtype=torch.bool).scatter_(1, top_k(a, 5)[1], True)
    success = near_zero.screened()[2]
    assert (success & (kept & (s < 0)).any(1)).sum() > 20
    near_zero.same_supports()


@pytest.mark.parametrize("level", [0.003, 5.0])
def test_no_entry_is_lost_where_all_rounding_errors_point_one_way(level):
    # x is rounded down by nearly half a step; weights of 1 lose from it, those of -1 gain as much
    d, k = 64, 4
    x = 1 + 2.0**-9 * (0.95 + 0.01 * noise(50, d, seed=0).float())
    signs = torch.ones(256)
    signs[: 256 - k] = -1
    # after biases the k features that lose are the largest by little
    ahead = 0.002 * (signs > 0) - 0.0003 * noise(256, seed=1).float().abs()
    bias = level + ahead - signs * x.sum(1).mean()
    bias[40 : 256 - k] = -200
    lost = Case(x, signs[:, None].repeat(1, d), bias, k, signed=False)
    assert lost.screened()[2].all()
    assert (lost.screened()[1] >= 256 - k).all(1).sum() > 10
    lost.same_supports()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    d=st.sampled_from([1, 7, 64, 192, 768]),
    sizes=st.tuples(*[st.sampled_from([1e-12, 1e-3, 1.0, 1e3])] * 3),
    seed=st.integers(0, 2**20),
)
def test_bounds_hold_against_float64(d, sizes, seed):
    x, weight, bias = (
        size * noise(*shape, seed=seed + i).float()
        for i, (size, shape) in enumerate(zip(sizes, [(16, d), (64, d), (64,)], strict=True))
    )
    rounded, table = Rounded.of(x), Rounded.of(weight)
    bounds = Bounds.of(rounded, table, bias)
    exact = x.double() @ weight.double().T + bias.double()
    a = one_dnn(x, weight, bias)
    s = one_dnn(rounded.rows, table.rows, bias)
    assert bounds.use.all()
    assert ((a - exact).abs() <= bounds.delta[:, None]).all()
    # s is rounded to bfloat16 on top
    assert ((s - exact).abs() <= bounds.screen[:, None] + 2.0**-8 * s.abs()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_rows_beside_it(kind):
    c = KINDS[kind](case(n_tokens=90), 1)
    values, indices, success = c.screened()
    for rows in (slice(0, 2), slice(31, 80), torch.arange(89, -1, -3)):
        of = success[rows]
        found = c.screened(rows)
        assert torch.equal(found[2], of)
        assert torch.equal(found[0][of], values[rows][of])
        assert torch.equal(found[1][of], indices[rows][of])


def test_dots_have_the_same_bits_read_token_by_token_and_feature_by_feature(monkeypatch):
    x, table = noise(50, 24, seed=0).float(), noise(64, 24, seed=1).float()
    counts = (noise(50, seed=2).abs() * 4).long()
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    indices = noise(int(offsets[-1]), seed=3).abs().mul(1000).long() % 64
    by_token = bags.token_dots(x, table, indices, offsets)
    tokens = torch.arange(50).repeat_interleave(counts)
    close(by_token, (x[tokens] * table[indices]).sum(1), 1e-5)
    monkeypatch.setattr(bags, "_CACHED_TABLE", 0)
    monkeypatch.setattr(bags, "_CACHED_ROWS", 7)
    assert torch.equal(bags.token_dots(x, table, indices, offsets), by_token)
    assert len(bags.token_dots(x, table, indices[:0], 0 * offsets)) == 0


@pytest.mark.parametrize("d", [1, 16, 100, 192, 300, 768, 1024])
def test_a_product_has_the_same_bits_whatever_its_other_rows_and_columns(d):
    x, weight, bias = (
        noise(*n, seed=i).float() for i, n in enumerate([(300, d), (512, d), (512,)])
    )
    whole = one_dnn(x, weight, bias)
    for rows, columns in ((2, 512), (37, 512), (300, 16), (64, 64), (2, 8), (299, 511)):
        part = one_dnn(x[-rows:], weight[-columns:], bias[-columns:])
        assert torch.equal(part, whole[-rows:, -columns:])
    assert screening._repeats_bits(512, d, torch.get_num_threads())


def test_products_that_an_environment_variable_rounds_are_noticed():
    program = (
        "from vit_clt.kernels import screening as s; import torch; x = torch.randn(2, 64); "
        "print(s._repeats_bits(512, 64, 1), s._has_matrix_units())"
    )
    for mode, exact in (("STRICT", True), ("BF16", False)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"ONEDNN_DEFAULT_FPMATH_MODE": mode},
            capture_output=True,
            text=True,
            check=True,
        )
        found, rounds = done.stdout.split()
        # only a CPU with matrix units rounds
        assert found == str(exact or rounds == "False")


def test_where_screening_is_chosen(monkeypatch):
    monkeypatch.setattr(screening, "_has_matrix_units", lambda: True)
    x, weight = torch.zeros(1024, 32), torch.zeros(4096, 32)
    assert screens(x, weight, 128)
    assert not screens(x, weight, 129)
    assert not screens(x[:100], weight, 32)
    assert not screens(x, weight[:2048], 32)
    assert not screens(x, weight[:4095], 32)
    assert not screens(x.double(), weight.double(), 32)
    assert not screens(x.to("meta"), weight.to("meta"), 32)
    # the last chunk would be a product of one row
    assert not screens(torch.zeros(1537, 32), weight, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not screens(x, weight, 32)
    torch.set_float32_matmul_precision("medium")
    try:
        assert not screens(x, weight, 32)
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(screening, "_repeats_bits", lambda *shape: False)
    assert not screens(x, weight, 32)
    monkeypatch.undo()
    monkeypatch.setattr(screening, "_has_matrix_units", lambda: False)
    assert not screens(x, weight, 32)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("above", [-1.0, 0.1])
def test_an_encoder_that_screens_has_the_gradients_of_one_that_does_not(monkeypatch, signed, above):
    c, found = case(n_tokens=60, signed=signed), []
    for chosen in (True, False):
        monkeypatch.setattr(sparse, "screens", lambda *inputs, chosen=chosen: chosen)
        inputs = [v.clone().requires_grad_() for v in (c.x, c.weight, c.bias + above)]
        values, indices = encode_top_k(*inputs, c.k, signed=signed)
        dense = values.new_zeros(60, 256).scatter(1, indices, values)
        (dense * noise(60, 256, seed=9).float()).sum().backward()
        found.append([dense, *(v.grad for v in inputs)])
    for screened, plain in zip(*found, strict=True):
        close(screened, plain, 1e-4)


def test_threads_change_nothing():
    c, found = case(n_tokens=3000), []
    a = one_dnn(c.x, c.weight, c.bias)
    threads = torch.get_num_threads()
    for n in (1, 3):
        torch.set_num_threads(n)
        found.append([*c.screened(), *top_k(a, c.k)])
    torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


def test_rows_are_worked_on_in_order_and_all():
    rows = np.arange(5 * 2**18).reshape(-1, 2**16)
    found = over_rows(lambda part, here: (part[:, 0], np.arange(len(rows))[here]), rows)
    assert len(found) == 10
    assert np.array_equal(np.concatenate([first for first, _ in found]), rows[:, 0])
    assert np.array_equal(np.concatenate([at for _, at in found]), np.arange(len(rows)))
