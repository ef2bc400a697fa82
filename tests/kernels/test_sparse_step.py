"""Every back end against an independent dense computation in float64, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from assertions import close
from builders import KINDS, noise, noisy_clt_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_clt import AbsTopK, CrossLayerTranscoder, JumpReLU
from vit_clt.kernels.choose import choose
from vit_clt.kernels.codes import DenseCodes, SparseCodes
from vit_clt.kernels.dense import decode_dense
from vit_clt.kernels.sparse import decode_entries
from vit_clt.kernels.topk import _by_blocks, top_k


def oracle(clt: CrossLayerTranscoder, x: Tensor, dy: Tensor, dz: Tensor) -> dict[str, Tensor]:
    """Codes, outputs and gradients of sum(dy * y_hat) + sum(dz * z), by hand, all dense."""
    sparsifier, L = clt.config.sparsifier, clt.config.n_layers
    W_enc, W_dec = [w.detach() for w in clt.W_enc], [w.detach() for w in clt.W_dec]
    y = clt.b_dec.detach()[:, None].repeat(1, x.shape[1], 1)
    found = {"z": [], "x": [], "b_enc": [], "log_theta": []}
    for s in range(L):
        a = x[s] @ W_enc[s].T + clt.b_enc[s].detach()
        if isinstance(sparsifier, JumpReLU):
            theta = clt.log_theta[s].detach().exp()
            on = a > theta
        else:
            size = a.abs() if isinstance(sparsifier, AbsTopK) else a.clamp(min=0)
            rank = size.argsort(dim=1, descending=True).argsort(dim=1)
            on = (rank < sparsifier.k) & (size > 0)
        z = torch.where(on, a, 0.0)
        grad_z = dz[s].clone()
        for l in range(s, L):
            y[l] += z @ W_dec[s][l - s]
            grad_z += dy[l] @ W_dec[s][l - s].T
        grad_a = torch.where(on, grad_z, 0.0)
        if isinstance(sparsifier, JumpReLU):
            eps = sparsifier.bandwidth
            near = (a - theta).abs() < eps / 2
            found["log_theta"].append(-(theta**2) / eps * (near * grad_z).sum(0))
        found["z"].append(z)
        found["x"].append(grad_a @ W_enc[s])
        found["b_enc"].append(grad_a.sum(0))
        found[f"W_enc.{s}"] = grad_a.T @ x[s]
        found[f"W_dec.{s}"] = torch.stack([z.T @ dy[l] for l in range(s, L)])
    stacked = {n: torch.stack(v) if isinstance(v, list) and v else v for n, v in found.items()}
    return {**stacked, "y": y, "b_dec": dy.sum(1)}


def assert_equals_the_oracle(clt: CrossLayerTranscoder, x: Tensor, seed: int) -> None:
    L, T, d = x.shape
    x = x.clone().requires_grad_()
    dy, dz = noise(L, T, d, seed=seed + 50), noise(L, T, clt.config.n_features, seed=seed + 51)
    codes = clt.encode(x)
    y_hat = clt.decode(codes)
    # a term on the codes themselves, as the sparsity penalty is, reaches silent near units too
    kept = codes.to_dense()
    if not isinstance(clt.config.sparsifier, JumpReLU):
        dz = dz * kept.detach().ne(0)
    ((y_hat * dy).sum() + (kept * dz).sum()).backward()
    expected = oracle(clt, x.detach(), dy, dz)
    close(codes.to_dense(), expected["z"])
    assert torch.equal(codes.to_dense() != 0, expected["z"] != 0)
    assert torch.equal(codes.l0(), (expected["z"] != 0).sum(-1))
    assert torch.equal(codes.fired(), (expected["z"] != 0).sum(1))
    close(y_hat, expected["y"])
    close(x.grad, expected["x"])
    for name, parameter in clt.named_parameters():
        close(parameter.grad, expected[name])


@pytest.mark.parametrize("backend", ["dense", "sparse", "auto"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    L=st.integers(1, 4),
    d=st.integers(1, 5),
    F=st.integers(1, 17),
    T=st.integers(1, 6),
    k=st.integers(1, 6),
    bandwidth=st.sampled_from([0.25, 1.0, 3.0]),
    scale=st.sampled_from([1e-3, 1.0, 10.0]),
    seed=st.integers(0, 2**20),
)
def test_every_back_end_equals_the_dense_oracle(
    backend, kind, L, d, F, T, k, bandwidth, scale, seed
):
    clt = noisy_clt_of(kind, L, d, F, min(k, F), bandwidth, seed, backend)
    assert_equals_the_oracle(clt, scale * noise(L, T, d, seed=seed + 100), seed)


@pytest.mark.parametrize("kind", KINDS)
def test_silent_tokens_and_features_that_never_fire(kind):
    clt = noisy_clt_of(kind)
    x = noise(3, 6, 4)
    with torch.no_grad():
        for encoder in clt.W_enc:
            encoder[2:4] = 0
        clt.b_enc[:, 2:4] = -9.0  # below every threshold and outside the bandwidth
        clt.b_enc[1] = -99.0  # one layer in which nothing fires at all
        if kind == "abs_topk":
            clt.b_enc[:, 2:4] = 0.0
    assert_equals_the_oracle(clt, x, seed=3)
    if kind != "abs_topk":
        assert clt.encode(x).l0()[1].sum() == 0
        torch.testing.assert_close(clt.W_dec[1].grad, torch.zeros_like(clt.W_dec[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_tokens", [0, 1])
def test_no_tokens_and_one_token(kind, n_tokens):
    clt = noisy_clt_of(kind)
    x = noise(3, n_tokens, 4).requires_grad_()
    y_hat = clt(x)
    y_hat.sum().backward()
    assert y_hat.shape == x.shape == x.grad.shape


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_in_every_run(kind):
    clt, x = noisy_clt_of(kind, L=4, d=6, F=32, k=5).float(), noise(4, 64, 6).float()

    def step() -> list[Tensor]:
        clt.zero_grad()
        y_hat = clt(x)
        y_hat.square().sum().backward()
        return [y_hat.detach(), *(parameter.grad.clone() for parameter in clt.parameters())]

    for first, again in zip(step(), step(), strict=True):
        assert torch.equal(first, again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0, 1, 2])
def test_one_target_and_its_terms(kind, target):
    clt, dense = noisy_clt_of(kind), noisy_clt_of(kind, backend="dense")
    x = noise(3, 2, 5, 4)
    grads = []
    for each in (clt, dense):
        codes = each.encode(x)
        y = each.decode([codes[s] for s in range(target + 1)], target=target)
        terms = each.contributions(codes, target)
        close(terms.sum(0) + each.b_dec[target].detach(), y.detach())
        ((y - terms.square().sum(0)) * noise(2, 5, 4, seed=9)).sum().backward()
        grads.append([p.grad for p in each.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        close(one, other)


def test_gradcheck_of_the_sparse_decoder():
    values = noise(2, 3, 2).requires_grad_()
    indices = torch.tensor([[[0, 3], [1, 2], [3, 0]], [[2, 0], [2, 1], [0, 1]]])
    tables = [noise(2, 4, 3).requires_grad_(), noise(1, 4, 3).requires_grad_()]
    bias = noise(2, 3).requires_grad_()

    def run(values: Tensor, bias: Tensor, *tables: Tensor) -> Tensor:
        codes = SparseCodes(values, indices, 4)
        return decode_entries({s: codes[s].entries() for s in range(2)}, list(tables), bias)

    assert torch.autograd.gradcheck(run, (values, bias, *tables))


def test_second_derivatives_on_the_dense_path_and_a_clear_end_on_the_sparse():
    x = noise(3, 4, 4).requires_grad_()
    for backend in ("dense", "sparse"):
        clt = noisy_clt_of(backend=backend)
        (grad,) = torch.autograd.grad(clt(x).square().sum(), x, create_graph=True)
        if backend == "sparse":
            with pytest.raises(RuntimeError, match="once_differentiable"):
                grad.square().sum().backward()
        else:
            grad.square().sum().backward()
            assert x.grad is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [None, 1])
def test_second_derivatives_equal_those_through_dense_codes(kind, target):
    found = []
    for written_out in (False, True):
        clt, x = noisy_clt_of(kind, backend="dense"), noise(3, 2, 5, 4).requires_grad_()
        codes = clt.encode(x)
        if written_out:
            codes = DenseCodes(codes.to_dense())
        y_hat = clt.decode(codes, target=target)
        (grad,) = torch.autograd.grad(y_hat.square().sum(), x, create_graph=True)
        (grad.square().sum() + y_hat.sum()).backward()
        found.append([x.grad, *(p.grad for p in clt.parameters() if p.grad is not None)])
    for first, second in zip(*found, strict=True):
        close(first, second)


def test_a_decoder_reads_sparse_and_dense_codes_side_by_side():
    clt, x = noisy_clt_of(), noise(3, 5, 4)
    codes = clt.encode(x)
    mixed = [codes[0], DenseCodes(codes[1].to_dense()), codes[2]]
    close(clt.decode(mixed), clt.decode(codes).detach())
    close(clt.decode(mixed, target=2), clt.decode(codes)[2].detach())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    T=st.integers(0, 9),
    F=st.sampled_from([1, 7, 8, 24, 40, 96, 256]),
    k=st.integers(1, 24),
    ties=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_top_k_is_exact_also_with_ties(T, F, k, ties, seed):
    k = min(k, F)
    a = noise(T, F, seed=seed).float()
    a = a.round() if ties else a
    # as on CPU, and as on a GPU
    found = [top_k(a, k), *([_by_blocks(a, k)] if T else [])]
    for values, indices in found:
        assert torch.equal(a.gather(1, indices), values)
        assert torch.equal(values.sort(1).values, a.topk(k).values.sort(1).values)
        ordered = indices.sort(1).values
        assert (ordered[:, 1:] != ordered[:, :-1]).all()


def test_single_precision_supports_agree_with_torch():
    x, clt = noise(2, 700, 16).float(), noisy_clt_of(L=2, d=16, F=512, k=8).float()
    for s, x_s in enumerate(x):
        codes = clt.encode(x_s, layer=s)
        a = torch.nn.functional.linear(x_s, clt.W_enc[s], clt.b_enc[s])
        expected = torch.zeros_like(a).scatter(1, a.topk(8).indices, a.topk(8).values.relu())
        torch.testing.assert_close(codes.to_dense(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_autocast_keeps_master_weights(kind, backend):
    clt = noisy_clt_of(kind, L=2, d=16, F=64, k=4, backend=backend).float()
    x = noise(2, 32, 16).float()
    exact = clt(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y_hat = clt(x)
        loss = (y_hat.float() - 1).square().mean()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in clt.parameters())
    # near ties may choose another unit in bfloat16: compare the whole
    assert (y_hat.float() - exact).norm() < 0.3 * exact.norm()


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_float64_as_it_is(kind, backend):
    clt, x = noisy_clt_of(kind, backend=backend), noise(3, 6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y_hat = clt(x)
    assert torch.equal(y_hat, clt(x))
    found, expected = (torch.autograd.grad(y.sum(), [*clt.parameters()]) for y in (y_hat, clt(x)))
    for mine, plain in zip(found, expected, strict=True):
        assert torch.equal(mine, plain)


def test_gradients_of_values_come_in_any_layout():
    clt, weights = noisy_clt_of(k=3), noise(3, 5, seed=1)
    x = noise(5, 4).requires_grad_()
    values = clt.encode(x, layer=0).values
    (found,) = torch.autograd.grad((values.T * weights).sum(), x)
    values = clt.encode(x, layer=0).values
    (expected,) = torch.autograd.grad((values * weights.T.contiguous()).sum(), x)
    assert torch.equal(found, expected)


def test_densities_are_measured_only_where_they_decide(monkeypatch):
    monkeypatch.setattr("vit_clt.transcoder.sparsifiers.jumprelu.jump_densities", None)
    clt = noisy_clt_of("jumprelu", backend="dense")
    assert isinstance(clt.encode(noise(3, 6, 4)), DenseCodes)
    clt.backend = "auto"
    with pytest.raises(TypeError):
        clt.encode(noise(3, 6, 4))


def test_the_choice_is_a_function_of_shape_and_density():
    weight = torch.zeros(1)
    assert choose("auto", 3072, 192, 32 / 3072, weight) == "sparse"
    assert choose("auto", 12288, 768, 128 / 12288, weight) == "sparse"
    assert choose("auto", 12288, 768, 0.5, weight) == "dense"
    assert choose("auto", 12288, 768, 0.01, weight.half()) == "dense"
    assert choose("auto", 12288, 768, 0.01, torch.zeros(1, device="meta")) == "dense"
    assert choose("dense", 12288, 768, 0.01, weight) == "dense"
    assert choose("sparse", 12288, 768, 0.9, weight) == "sparse"


def test_dense_decoding_adds_to_what_it_is_given():
    codes = DenseCodes(noise(2, 5, 8))
    tables = [noise(2, 8, 4), noise(1, 8, 4)]
    start = noise(1, 1, 4)
    out = decode_dense({0: codes[0], 1: codes[1]}, tables, start, first=1)
    expected = start[0] + codes.dense[0] @ tables[0][1] + codes.dense[1] @ tables[1][0]
    close(out[0], expected)
