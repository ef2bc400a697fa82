from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from assertions import close
from builders import KINDS, noise, noisy_clt
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_clt import (
    AbsTopK,
    CLTConfig,
    CrossLayerTranscoder,
    DenseCodes,
    InputError,
    JumpReLU,
    ReLUTopK,
    SparseCodes,
)

SPARSIFIERS = [ReLUTopK(k=3), AbsTopK(k=3), JumpReLU(theta=0.3, bandwidth=1.0)]
each_sparsifier = pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=KINDS)


def build(
    n_layers: int = 3, d_model: int = 4, n_features: int = 8, sparsifier=SPARSIFIERS[0], seed=0
) -> CrossLayerTranscoder:
    return noisy_clt(CLTConfig(n_layers, d_model, n_features, sparsifier), seed)


def support(sparsifier, a: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Which entries of one token's pre-activations stay on."""
    on = np.zeros(len(a), dtype=bool)
    if isinstance(sparsifier, JumpReLU):
        return a > theta
    size = np.abs(a) if isinstance(sparsifier, AbsTopK) else np.maximum(a, 0)
    on[np.argsort(-size)[: sparsifier.k]] = True
    return on & (size > 0)


def oracle(clt: CrossLayerTranscoder, x: np.ndarray, g: np.ndarray) -> dict[str, np.ndarray]:
    """Codes, terms, outputs and the gradients of sum(g * y_hat), token by token."""
    config, sparsifier = clt.config, clt.config.sparsifier
    L, F = config.n_layers, config.n_features
    W_enc = [w.detach().numpy() for w in clt.W_enc]
    W_dec = [w.detach().numpy() for w in clt.W_dec]
    b_enc, b_dec = clt.b_enc.detach().numpy(), clt.b_dec.detach().numpy()
    theta = np.zeros((L, F)) if clt.log_theta is None else clt.log_theta.detach().exp().numpy()
    T = x.shape[1]
    z, terms = np.zeros((L, T, F)), np.zeros((L, L, *x.shape[1:]))
    y = np.zeros(x.shape)
    grads = {"x": np.zeros_like(x), "b_enc": np.zeros((L, F)), "b_dec": np.zeros_like(b_dec)}
    grads["log_theta"] = np.zeros((L, F))
    for s in range(L):
        grads[f"W_enc.{s}"], grads[f"W_dec.{s}"] = np.zeros_like(W_enc[s]), np.zeros_like(W_dec[s])
    for t in range(T):
        for l in range(L):
            y[l, t] = b_dec[l]
            grads["b_dec"][l] += g[l, t]
        for s in range(L):
            a = W_enc[s] @ x[s, t] + b_enc[s]
            on = support(sparsifier, a, theta[s])
            z[s, t] = np.where(on, a, 0)
            grad_z = np.zeros(F)
            for l in range(s, L):
                decoder = W_dec[s][l - s]
                terms[l, s, t] = sum(z[s, t, i] * decoder[i] for i in range(F))
                y[l, t] += terms[l, s, t]
                grad_z += decoder @ g[l, t]
                grads[f"W_dec.{s}"][l - s] += np.outer(z[s, t], g[l, t])
            grad_a = np.where(on, grad_z, 0)
            grads["b_enc"][s] += grad_a
            grads[f"W_enc.{s}"] += np.outer(grad_a, x[s, t])
            grads["x"][s, t] = W_enc[s].T @ grad_a
            if isinstance(sparsifier, JumpReLU):
                near = np.abs(a - theta[s]) < sparsifier.bandwidth / 2
                grads["log_theta"][s] -= theta[s] ** 2 / sparsifier.bandwidth * near * grad_z
    return {"z": z, "terms": terms, "y": y, **grads}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n_layers=st.integers(1, 4),
    d_model=st.integers(1, 5),
    n_features=st.integers(1, 7),
    n_tokens=st.integers(1, 4),
    k=st.integers(1, 7),
    bandwidth=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_equal_the_dense_oracle(
    kind, n_layers, d_model, n_features, n_tokens, k, bandwidth, seed
):
    k = min(k, n_features)
    sparsifier = {
        "relu_topk": ReLUTopK(k=k),
        "abs_topk": AbsTopK(k=k),
        "jumprelu": JumpReLU(bandwidth=bandwidth),
    }[kind]
    clt = build(n_layers, d_model, n_features, sparsifier, seed)
    x = noise(n_layers, n_tokens, d_model, seed=seed + 1).requires_grad_()
    g = noise(n_layers, n_tokens, d_model, seed=seed + 2)
    codes = clt.encode(x)
    y_hat = clt.decode(codes)
    (y_hat * g).sum().backward()

    expected = oracle(clt, x.detach().numpy(), g.numpy())
    close(codes.to_dense(), torch.as_tensor(expected["z"]))
    close(y_hat, torch.as_tensor(expected["y"]))
    for l in range(n_layers):
        terms = clt.contributions(codes, target=l)
        close(terms, torch.as_tensor(expected["terms"][l, : l + 1]))
        close(terms.sum(0) + clt.b_dec[l], torch.as_tensor(expected["y"][l]))
    close(x.grad, torch.as_tensor(expected["x"]))
    for name, parameter in clt.named_parameters():
        close(parameter.grad, torch.as_tensor(expected[name]))


@each_sparsifier
def test_gradients_through_one_target_equal_the_dense_oracle(sparsifier):
    clt = build(sparsifier=sparsifier)
    x = noise(3, 5, 4).requires_grad_()
    g = torch.zeros(3, 5, 4, dtype=torch.float64)
    g[1] = noise(5, 4, seed=2)
    (clt.decode(clt.encode(x), target=1) * g[1]).sum().backward()
    expected = oracle(clt, x.detach().numpy(), g.numpy())
    close(x.grad, torch.as_tensor(expected["x"]))
    for name, parameter in clt.named_parameters():
        if parameter.grad is None:
            assert not expected[name].any()
        else:
            close(parameter.grad, torch.as_tensor(expected[name]))


@each_sparsifier
def test_layer_by_layer_equals_the_whole(sparsifier):
    clt = build(sparsifier=sparsifier)
    x = noise(3, 5, 4)
    codes = clt.encode(x)
    y_hat = clt.decode(codes)
    assert torch.equal(clt(x), y_hat)
    per_layer = [clt.encode(x[s], layer=s) for s in range(3)]
    for s in range(3):
        close(per_layer[s].to_dense(), codes[s].to_dense().detach())
        close(clt.encode(x[s], layer=s - 3).to_dense(), codes[s].to_dense().detach())
    close(clt.decode(per_layer), y_hat.detach())
    for l in range(3):
        close(clt.decode(codes, target=l), y_hat[l].detach())
        close(clt.decode(codes, target=l - 3), y_hat[l].detach())
        close(clt.decode(per_layer[: l + 1], target=l), y_hat[l].detach())
        terms = clt.contributions(per_layer[: l + 1], target=l)
        assert terms.shape == (l + 1, 5, 4)
        close(terms, clt.contributions(codes, target=l).detach())


@each_sparsifier
@pytest.mark.parametrize("changed", range(3))
def test_an_input_reaches_later_targets_and_its_own_terms_alone(sparsifier, changed):
    clt = build(sparsifier=sparsifier)
    x = noise(3, 5, 4)
    other = x.clone()
    other[changed] = noise(5, 4, seed=9)
    before, after = clt(x), clt(other)
    for l in range(3):
        assert torch.equal(before[l], after[l]) == (l < changed)
        pairs = zip(
            clt.contributions(clt.encode(x), target=l),
            clt.contributions(clt.encode(other), target=l),
            strict=True,
        )
        for s, (term, term_after) in enumerate(pairs):
            assert torch.equal(term, term_after) == (s != changed)


@each_sparsifier
def test_tokens_do_not_mix_and_may_have_several_axes(sparsifier):
    clt = build(sparsifier=sparsifier)
    x = noise(3, 2, 5, 4)
    flat = x.flatten(1, 2)
    codes, flat_codes = clt.encode(x), clt.encode(flat)
    assert codes.to_dense().shape == (3, 2, 5, 8)
    assert codes.l0().shape == (3, 2, 5)
    close(codes.to_dense().flatten(1, 2), flat_codes.to_dense().detach())
    assert torch.equal(codes.fired(), flat_codes.fired())
    close(clt.decode(codes).flatten(1, 2), clt(flat).detach())
    close(clt.decode(codes, target=2).flatten(0, 1), clt(flat)[2].detach())
    close(clt.encode(x[1], layer=1).to_dense(), codes[1].to_dense().detach())
    terms = clt.contributions(codes, target=2)
    assert terms.shape == (3, 2, 5, 4)
    close(clt(x[:, :, 3:4])[:, :, 0], clt(x)[:, :, 3].detach())


@each_sparsifier
def test_a_single_token_without_a_token_axis(sparsifier):
    clt = build(sparsifier=sparsifier)
    x = noise(3, 1, 4)
    close(clt(x[:, 0]), clt(x)[:, 0].detach())
    codes = clt.encode(x[2, 0], layer=2)
    close(codes.to_dense(), clt.encode(x)[2].to_dense()[0].detach())


@pytest.mark.parametrize("sparsifier", [SPARSIFIERS[0], SPARSIFIERS[2]], ids=["topk", "jumprelu"])
def test_silent_features_leave_the_decoder_bias(sparsifier):
    clt = build(sparsifier=sparsifier)
    clt.b_enc.data.fill_(-1e3)
    x = noise(3, 5, 4)
    codes = clt.encode(x)
    assert int(codes.l0().sum()) == int(codes.fired().sum()) == 0
    assert torch.equal(clt.decode(codes), clt.b_dec[:, None].expand(3, 5, 4))
    for l in range(3):
        assert torch.equal(clt.decode(codes, target=l), clt.b_dec[l].expand(5, 4))
        assert not clt.contributions(codes, target=l).any()


def test_topk_codes_stay_sparse_and_jumprelu_codes_are_dense():
    layouts = [type(build(sparsifier=s).encode(noise(3, 5, 4))) for s in SPARSIFIERS]
    assert layouts == [SparseCodes, SparseCodes, DenseCodes]


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@each_sparsifier
def test_codes_by_source_layer_leave_the_other_sources_silent(sparsifier, backend):
    clt, x = build(sparsifier=sparsifier), noise(3, 5, 4)
    clt.backend = backend
    codes, target = clt.encode(x), 2
    terms = clt.contributions(codes, target)
    for chosen in ([1], [2, 0], [0, 1, 2]):
        some = {s: codes[s] for s in chosen}
        expected = terms[sorted(chosen)]
        torch.testing.assert_close(clt.contributions(some, target), expected)
        torch.testing.assert_close(clt.decode(some, target), expected.sum(0) + clt.b_dec[target])
    # all targets at once: those above the only source are their biases
    y_hat = clt.decode({1: codes[1]})
    torch.testing.assert_close(y_hat[0], clt.b_dec[0].expand_as(y_hat[0]))
    torch.testing.assert_close(y_hat[2], terms[1] + clt.b_dec[2])


def test_codes_of_sources_that_a_target_cannot_read_are_refused():
    clt = build()
    codes = clt.encode(noise(3, 5, 4))
    for some, target in (({}, 1), ({2: codes[2]}, 1), ({-1: codes[2]}, 2), ({3: codes[2]}, None)):
        with pytest.raises(InputError, match="source layers"):
            clt.decode(some, target)
    with pytest.raises(InputError, match="8 features"):
        build(n_features=16).decode({1: codes[1]}, 1)


def test_edited_dense_codes_decode():
    clt = build()
    z = clt.encode(noise(3, 5, 4)).to_dense()
    doubled = clt.decode(DenseCodes(2 * z)) - clt.b_dec[:, None]
    close(doubled, 2 * (clt.decode(DenseCodes(z)) - clt.b_dec[:, None]).detach())


def test_parameters_of_vit_b_are_counted_without_allocating():
    config = CLTConfig(12, 768, 12288, ReLUTopK(k=128))
    assert config.n_parameters() == 849_503_232
    assert CLTConfig(12, 768, 12288, JumpReLU()).n_parameters() == 849_503_232 + 147_456
    with torch.device("meta"):
        clt = CrossLayerTranscoder(config)
    assert sum(p.numel() for p in clt.parameters()) == 849_503_232


@each_sparsifier
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 3), (4, 2, 7), (6, 3, 4)])
def test_parameter_count_equals_the_tensors(sparsifier, shape):
    config = CLTConfig(*shape, sparsifier)
    clt = CrossLayerTranscoder(config)
    assert sum(p.numel() for p in clt.parameters()) == config.n_parameters()
    assert [tuple(w.shape) for w in clt.W_enc] == [(shape[2], shape[1])] * shape[0]
    assert [len(w) for w in clt.W_dec] == list(range(shape[0], 0, -1))


def test_initial_values():
    clt = CrossLayerTranscoder(CLTConfig(3, 16, 50, JumpReLU(theta=0.2)))
    for s in range(3):
        for weights, bound in ((clt.W_enc[s], 50**-0.5), (clt.W_dec[s], (3 * 16) ** -0.5)):
            assert 0.95 * bound < weights.abs().max() <= bound
            assert abs(weights.mean()) < 0.1 * bound
    assert not clt.b_enc.any()
    assert not clt.b_dec.any()
    torch.testing.assert_close(clt.log_theta.exp(), torch.full((3, 50), 0.2))
    assert CrossLayerTranscoder(CLTConfig(3, 16, 50, AbsTopK(k=4))).log_theta is None


@pytest.mark.parametrize("zero", [True, False])
def test_zero_cross_init_zeroes_off_diagonal_decoders_alone(zero):
    clt = CrossLayerTranscoder(CLTConfig(3, 4, 8, ReLUTopK(k=2), zero_cross_init=zero))
    for s, decoder in enumerate(clt.W_dec):
        assert decoder[0].all()
        if s < 2:
            assert bool(decoder[1:].any()) is not zero


def test_decoder_norms_run_over_all_targets():
    clt = build()
    for s in range(3):
        for i in range(8):
            joined = torch.cat([clt.W_dec[s][l - s, i] for l in range(s, 3)])
            torch.testing.assert_close(clt.decoder_norms()[s, i], joined.norm())


@each_sparsifier
def test_rescale_folds_normalisation_in(sparsifier):
    clt = build(sparsifier=sparsifier).float()
    raw = copy.deepcopy(clt)
    scale_x, scale_y = torch.tensor([0.2, 3.0, 11.0]), torch.tensor([5.0, 0.7, 0.04])
    raw.rescale_(scale_x, scale_y)
    x = noise(3, 50, 4).float()
    codes, raw_codes = clt.encode(x * scale_x[:, None, None]), raw.encode(x)
    torch.testing.assert_close(raw_codes.to_dense(), codes.to_dense(), rtol=1e-5, atol=1e-5)
    for l in range(3):
        expected = clt.decode(codes, target=l) / scale_y[l]
        assert (raw(x)[l] - expected).norm() < 1e-5 * expected.norm()
        terms = clt.contributions(codes, target=l) / scale_y[l]
        assert (raw.contributions(raw_codes, target=l) - terms).norm() < 1e-5 * terms.norm()


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((2, 5, 4), None, "2 entries on its layer axis; expected 3"),
        ((4, 5, 4), None, "4 entries on its layer axis; expected 3"),
        ((3, 5, 6), None, "width 6; expected d_model, 4"),
        ((5, 3), 1, "width 3; expected d_model, 4"),
        ((5, 4), 3, "layer is 3; expected a layer from 0 to 2"),
        ((5, 4), -4, "layer is -4; expected"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shape, layer, message):
    with pytest.raises(InputError, match=message):
        build().encode(noise(*shape), layer=layer)


@pytest.mark.parametrize("target", [3, -4])
def test_targets_that_do_not_exist_are_refused(target):
    clt = build()
    codes = clt.encode(noise(3, 5, 4))
    with pytest.raises(InputError, match=f"target is {target}"):
        clt.decode(codes, target=target)
    with pytest.raises(InputError, match=f"target is {target}"):
        clt.contributions(codes, target=target)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsifier": ReLUTopK(k=9)}, "k is 9; expected at most n_features, 8"),
        ({"sparsifier": AbsTopK(k=9)}, "k is 9; expected at most n_features, 8"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"d_model": -1}, "d_model is -1"),
        ({"n_features": 0}, "n_features is 0"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(values, message):
    shape = {"n_layers": 3, "d_model": 4, "n_features": 8, "sparsifier": ReLUTopK(k=2)}
    with pytest.raises(InputError, match=message):
        CLTConfig(**{**shape, **values})


def test_float16_inputs_are_encoded_in_the_precision_of_the_weights():
    clt = build().float()
    x = noise(3, 5, 4).half()
    assert torch.equal(clt(x), clt(x.float()))
