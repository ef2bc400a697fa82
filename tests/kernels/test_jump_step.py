"""JumpReLU's sparse steps, near units listed or masked, against a dense computation in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from assertions import close
from builders import noise, noisy_clt_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_clt import CrossLayerTranscoder, JumpReLU
from vit_clt.kernels.choose import choose_jump
from vit_clt.kernels.chunks import code_gradient_chunks
from vit_clt.kernels.codes import DenseCodes, RaggedCodes, stack_codes
from vit_clt.transcoder.sparsifiers.jumprelu import tanh_penalty

LAYOUTS = ["listed", "masked"]
build = partial(noisy_clt_of, "jumprelu")


@contextmanager
def laid_out(layout: str) -> Iterator[None]:
    """Silent near units listed, or masked, however many there are."""
    with patch("vit_clt.kernels.choose._LISTED", 1.0 if layout == "listed" else -1.0):
        yield


def oracle(clt: CrossLayerTranscoder, x: Tensor, dy: Tensor, weight: float) -> dict[str, Tensor]:
    """Codes, outputs and gradients of sum(dy * y^) + weight * sum of tanh(2 ||W|| z), by hand."""
    L, eps = clt.config.n_layers, clt.config.sparsifier.bandwidth
    y = clt.b_dec.detach()[:, None].repeat(1, x.shape[1], 1)
    rows: dict[str, list[Tensor]] = {"z": [], "x": [], "b_enc": [], "log_theta": []}
    found: dict[str, Tensor] = {}
    for s in range(L):
        W, table = clt.W_enc[s].detach(), clt.W_dec[s].detach()
        theta = clt.log_theta[s].detach().exp()
        a = x[s] @ W.T + clt.b_enc[s].detach()
        z = torch.where(a > theta, a, 0.0)
        norm = table.square().sum((0, 2)).sqrt()
        slope = weight * 2 * (1 - torch.tanh(2 * norm * z) ** 2)
        dz, d_norm = slope * norm, (slope * z).sum(0)
        for l in range(s, L):
            y[l] += z @ table[l - s]
            dz = dz + dy[l] @ table[l - s].T
        da = torch.where(a > theta, dz, 0.0)
        near = (a - theta).abs() < eps / 2
        rows["log_theta"].append(-(theta**2) / eps * (near * dz).sum(0))
        rows["z"].append(z)
        rows["x"].append(da @ W)
        rows["b_enc"].append(da.sum(0))
        found[f"W_enc.{s}"] = da.T @ x[s]
        found[f"W_dec.{s}"] = (
            torch.stack([z.T @ dy[l] for l in range(s, L)]) + (d_norm / norm)[:, None] * table
        )
    return {**found, **{n: torch.stack(v) for n, v in rows.items()}, "y": y, "b_dec": dy.sum(1)}


def assert_equals_the_oracle(clt: CrossLayerTranscoder, x: Tensor, seed: int) -> None:
    x = x.clone().requires_grad_()
    dy = noise(*x.shape, seed=seed + 50)
    codes = clt.encode(x)
    assert isinstance(codes, RaggedCodes)
    y_hat = clt.decode(codes)
    penalty = 0.7 * tanh_penalty(clt, codes, 2.0) / x.shape[1]
    ((y_hat * dy).sum() + penalty).backward()
    expected = oracle(clt, x.detach(), dy, 0.7 / x.shape[1])
    close(codes.to_dense(), expected["z"])
    assert torch.equal(codes.l0(), (expected["z"] != 0).sum(-1))
    assert torch.equal(codes.fired(), (expected["z"] != 0).sum(1))
    close(y_hat, expected["y"])
    close(x.grad, expected["x"])
    for name, parameter in clt.named_parameters():
        close(parameter.grad, expected[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    L=st.integers(1, 4),
    d=st.integers(1, 5),
    F=st.integers(1, 17),
    T=st.integers(1, 6),
    bandwidth=st.sampled_from([0.25, 1.0, 3.0]),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),
    shift=st.sampled_from([0.0, -1.0]),
    seed=st.integers(0, 2**20),
)
def test_both_layouts_equal_the_dense_oracle(layout, L, d, F, T, bandwidth, scale, shift, seed):
    clt = build(L, d, F, bandwidth=bandwidth, seed=seed)
    clt.b_enc.data.add_(shift)
    with laid_out(layout):
        assert_equals_the_oracle(clt, scale * noise(L, T, d, seed=seed + 100), seed)


def test_more_tokens_than_one_chunk_of_gradients():
    clt = build(F=5, bandwidth=3.0)
    with laid_out("masked"):
        assert_equals_the_oracle(clt, noise(3, 600, 4), seed=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", ["silent but near", "silent and far", "firing", "firing and far"])
def test_all_units_on_one_side(layout, where):
    clt = build(bandwidth=1.0)
    with torch.no_grad():
        for encoder in clt.W_enc:
            encoder.mul_(1e-3)
        gap = {
            "silent but near": -0.3,
            "silent and far": -9.0,
            "firing": 0.3,
            "firing and far": 9.0,
        }
        clt.b_enc.copy_(clt.log_theta.exp() + gap[where])
    with laid_out(layout):
        assert_equals_the_oracle(clt, noise(3, 5, 4), seed=3)
    assert (clt.log_theta.grad != 0).all() == ("far" not in where)
    assert (clt.b_enc.grad != 0).all() == where.startswith("firing")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_silent_tokens_and_features_that_never_fire(layout):
    clt, x = build(bandwidth=0.5), noise(3, 6, 4)
    with torch.no_grad():
        for encoder in clt.W_enc:
            encoder[2:4] = 0
        clt.b_enc[:, 2:4] = -9.0
        clt.b_enc[1] = -99.0
        x[:, 2:4] = 0
    with laid_out(layout):
        assert_equals_the_oracle(clt, x, seed=3)
        assert clt.encode(x).l0()[1].sum() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("read_by", ["sparse", "dense"])
@pytest.mark.parametrize("target", [None, 0, 1, 2])
def test_leading_axes_targets_and_terms_also_read_on_the_dense_path(layout, read_by, target):
    clt, dense, x = build(), build(backend="dense"), noise(3, 2, 5, 4)
    grads = []
    for each in (clt, dense):
        with laid_out(layout):
            codes = each.encode(x)
            if each is clt:
                each.backend = read_by
        y = each.decode(codes, target=target)
        loss = (y.square() * noise(*y.shape, seed=9)).sum() + codes.to_dense().square().sum()
        if target is not None:
            terms = each.contributions([codes[s] for s in range(target + 1)], target)
            close(terms.sum(0) + each.b_dec[target].detach(), y)
            loss = loss - terms.square().sum()
        loss.backward()
        grads.append([p.grad for p in each.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        close(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("learning", ["log_theta", "W_dec", "W_enc"])
def test_one_parameter_learning_alone(layout, learning):
    clt, dense, x = build(), build(backend="dense"), noise(3, 5, 4)
    grads = []
    for each in (clt, dense):
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(name.startswith(learning))
        with laid_out(layout):
            each(x).square().sum().backward()
        grads.append([p.grad for p in each.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        close(one, other)


def test_what_each_layout_stores():
    clt, x = build(bandwidth=0.5), noise(3, 5, 4)
    with laid_out("listed"):
        listed = clt.encode(x)
    with laid_out("masked"):
        masked = clt.encode(x)
        with torch.no_grad():
            plain = clt.encode(x)
    assert listed.band is None
    assert plain.band is None
    assert masked.band is not None
    assert torch.equal(masked.values, plain.values)
    assert (masked.values != 0).all()
    assert len(listed.values) == len(masked.values) + int(masked.band.silent.sum())
    assert 0 < int(masked.band.silent.sum()) < masked.band.silent.numel()
    assert not masked.band.shift.any()
    assert torch.equal(plain.to_dense(), listed.to_dense())
    assert torch.equal(plain.to_dense(), masked.to_dense())
    assert plain.density() == len(plain.values) / plain.to_dense().numel()
    found = [clt.backend_for(codes) for codes in (listed, masked, plain)]
    assert found == ["sparse", "banded", "sparse"]
    clt.backend = "dense"
    assert clt.backend_for(masked) == "dense"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ragged_codes_stack_and_index(layout):
    clt, x = build(), noise(3, 2, 5, 4)
    with laid_out(layout):
        whole = clt.encode(x)
        layers = [clt.encode(x[s], layer=s) for s in range(3)]
    stacked = stack_codes(layers)
    for codes in (whole, stacked):
        for s in range(3):
            assert torch.equal(codes[s].to_dense(), layers[s].to_dense())
            assert torch.equal(codes[s].l0(), layers[s].l0())
            if layout == "masked":
                assert torch.equal(codes[s].band.silent, layers[s].band.silent)
    assert torch.equal(whole[-1].to_dense(), layers[2].to_dense())
    with pytest.raises(IndexError):
        whole[3]
    others = [DenseCodes(layers[1].to_dense())]
    if layout == "masked":
        others.append(replace(layers[1], band=None))
    for other in others:
        mixed = stack_codes([layers[0], other])
        assert isinstance(mixed, DenseCodes)
        assert torch.equal(mixed[1].to_dense(), layers[1].to_dense())


def test_the_masked_layout_differentiates_once_and_repeats_to_the_bit():
    with laid_out("masked"):
        clt, x = build(L=4, d=6, F=32).float(), noise(4, 300, 6).float().requires_grad_()
        runs = []
        for _ in range(2):
            y_hat = clt(x)
            grads = torch.autograd.grad(y_hat.square().sum(), [x, *clt.parameters()])
            runs.append([y_hat.detach(), *grads])
        (grad,) = torch.autograd.grad(clt(x).square().sum(), x, create_graph=True)
    for first, again in zip(*runs, strict=True):
        assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


@pytest.mark.parametrize("n_tokens", [0, 1, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_code_gradients_are_the_whole_product(n_tokens, dtype):
    grads, tables = noise(3, n_tokens, 4).to(dtype), noise(3, 7, 4).to(dtype)
    chunks = [(start, dz.clone()) for start, dz in code_gradient_chunks(grads, tables)]
    assert [start for start, _ in chunks] == list(range(0, n_tokens, 256))
    expected = torch.einsum("ltd,lfd->tf", grads, tables)
    torch.testing.assert_close(torch.cat([dz for _, dz in chunks] or [expected]), expected)


def test_the_choice_is_a_function_of_both_densities():
    shape, weight = (2048, 128), torch.zeros(1)
    assert choose_jump("auto", *shape, 32 / 2048, 0.5, weight) == "banded"
    assert choose_jump("auto", *shape, 32 / 2048, 0.03, weight) == "sparse"
    assert choose_jump("auto", *shape, 0.5, 0.6, weight) == "dense"
    assert choose_jump("auto", *shape, 0.01, 0.5, torch.zeros(1, device="meta")) == "dense"
    assert choose_jump("dense", *shape, 0.01, 0.5, weight) == "dense"
    assert choose_jump("sparse", *shape, 0.9, 1.0, weight) == "banded"
    assert choose_jump("sparse", *shape, 0.9, 0.92, weight) == "sparse"


def test_auto_reads_both_densities_from_the_batch():
    clt, x = build(L=2, d=4, F=64, backend="auto"), noise(2, 100, 4)
    clt.b_enc.data.sub_(2.0)
    with torch.no_grad():
        for encoder in clt.W_enc:
            encoder.mul_(0.5)
    found = {}
    for bandwidth in (0.02, 4.0):
        clt.config = replace(clt.config, sparsifier=JumpReLU(bandwidth=bandwidth))
        found[bandwidth] = clt.backend_for(clt.encode(x))
    assert found == {0.02: "sparse", 4.0: "banded"}
    clt.b_enc.data.add_(4.0)
    assert clt.backend_for(clt.encode(x)) == "dense"
