"""Per-layer transcoders: `CLTConfig(cross_layer=False)` against a dense computation by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from assertions import close
from builders import KINDS, noise, noisy_clt_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vit_clt import (
    AbsTopK,
    CLTConfig,
    CrossLayerTranscoder,
    InputError,
    JumpReLU,
    ReLUTopK,
    TrainConfig,
    train,
)
from vit_clt.cli import main
from vit_clt.data.images import TensorImages
from vit_clt.hooks import SharedPrefix, replace_mlps
from vit_clt.training.cost import estimate
from vit_clt.transcoder import model as module
from vit_clt.transcoder.model_card import model_card
from vit_clt.transcoder.sparsifiers import TopKTraining
from vit_clt.transcoder.sparsifiers.jumprelu import tanh_penalty

each_kind = pytest.mark.parametrize("kind", KINDS)
each_backend = pytest.mark.parametrize("backend", ["dense", "sparse"])
build = partial(noisy_clt_of, backend="auto", cross_layer=False)


def with_zero_decoders(plt: CrossLayerTranscoder) -> CrossLayerTranscoder:
    """The CLT of the same weights, its off-diagonal decoders zero."""
    clt = CrossLayerTranscoder(replace(plt.config, cross_layer=True), plt.backend).double()
    for name, parameter in clt.named_parameters():
        parameter.data.zero_()
        given = plt.get_parameter(name).data
        parameter.data[: len(given)] = given
    return clt


def codes_by_hand(sparsifier, a: Tensor, log_theta: Tensor | None) -> Tensor:
    if isinstance(sparsifier, JumpReLU):
        return torch.where(a > log_theta.exp(), a, 0.0)
    size = a.abs() if isinstance(sparsifier, AbsTopK) else a.clamp(min=0)
    rank = size.argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where((rank < sparsifier.k) & (size > 0), a, 0.0)


# ---- the equations ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["dense", "sparse", "auto"])
@each_kind
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    L=st.integers(1, 4),
    d=st.integers(1, 5),
    F=st.integers(1, 17),
    T=st.integers(1, 6),
    k=st.integers(1, 6),
    bandwidth=st.sampled_from([0.25, 1.0, 3.0]),
    seed=st.integers(0, 2**20),
)
def test_outputs_and_gradients_equal_those_by_hand(backend, kind, L, d, F, T, k, bandwidth, seed):
    plt = build(kind, L, d, F, min(k, F), bandwidth, seed, backend=backend)
    sparsifier = plt.config.sparsifier
    x, dy = noise(L, T, d, seed=seed + 100).requires_grad_(), noise(L, T, d, seed=seed + 200)
    codes = plt.encode(x)
    y_hat = plt.decode(codes)
    (y_hat * dy).sum().backward()
    for l in range(L):
        W_enc, W_dec = plt.W_enc[l].detach(), plt.W_dec[l].detach()
        assert W_dec.shape == (1, F, d)
        log_theta = None if plt.log_theta is None else plt.log_theta[l].detach()
        a = x[l].detach() @ W_enc.T + plt.b_enc[l].detach()
        z = codes_by_hand(sparsifier, a, log_theta)
        dz = dy[l] @ W_dec[0].T
        da = dz * (z != 0)
        close(codes[l].to_dense(), z)
        close(y_hat[l], z @ W_dec[0] + plt.b_dec[l])
        close(plt.W_dec[l].grad[0], z.T @ dy[l])
        close(plt.b_dec.grad[l], dy[l].sum(0))
        close(plt.W_enc[l].grad, da.T @ x[l])
        close(plt.b_enc.grad[l], da.sum(0))
        close(x.grad[l], da @ W_enc)
        if log_theta is not None:
            theta = log_theta.exp()
            near = (a - theta).abs() < bandwidth / 2
            close(plt.log_theta.grad[l], -(theta**2) / bandwidth * (near * dz).sum(0))


def penalty(clt, codes):
    penalised = clt.config.sparsifier.penalised
    return tanh_penalty(clt, codes, 4.0) if penalised else torch.zeros(())


@each_backend
@each_kind
def test_it_is_the_clt_whose_off_diagonal_decoders_are_zero(kind, backend):
    plt = build(kind, backend=backend)
    clt = with_zero_decoders(plt)
    x = noise(3, 2, 5, 4, seed=7)
    results = []
    for each in (plt, clt):
        leaf = x.clone().requires_grad_()
        codes = each.encode(leaf)
        y_hat = each.decode(codes)
        # one target alone as well, from codes of all layers and of those it needs
        one = each.decode(codes, target=1) + each.decode([codes[0], codes[1]], target=1)
        (y_hat.square().sum() + one.square().sum() + penalty(each, codes)).backward()
        results.append((y_hat, one, leaf.grad, each.decoder_norms(), each))
    for found, expected in zip(results[0][:-1], results[1][:-1], strict=True):
        close(found, expected)
    for name, parameter in plt.named_parameters():
        close(parameter.grad, clt.get_parameter(name).grad[: len(parameter)])


@each_backend
@each_kind
@pytest.mark.parametrize("target", [0, 1, 2, -1])
def test_terms_are_zero_but_for_the_targets_own(kind, backend, target):
    plt = build(kind, backend=backend)
    codes = plt.encode(noise(3, 2, 5, 4))
    y, terms = plt.decode(codes, target=target), plt.contributions(codes, target)
    l = target % 3
    assert terms.shape == (l + 1, 2, 5, 4)
    assert not terms[:l].any()
    assert terms[l].any()
    close(terms.sum(0) + plt.b_dec[l], y)
    # of some sources: the others are silent, as for a CLT
    some = {s: codes[s] for s in range(l)}
    if some:
        close(plt.decode(some, l), plt.b_dec[l].expand(2, 5, 4))
        assert not plt.contributions(some, l).any()
    close(plt.decode({l: codes[l]}, l), y)


@each_backend
@each_kind
@pytest.mark.parametrize("changed", range(3))
def test_an_input_reaches_its_own_target_alone(kind, backend, changed):
    plt, x = build(kind, backend=backend), noise(3, 5, 4)
    other = x.clone()
    other[changed] = noise(5, 4, seed=9)
    before, after = plt(x), plt(other)
    for l in range(3):
        assert torch.equal(before[l], after[l]) == (l != changed)


@each_kind
def test_a_decoded_target_costs_its_own_product_alone(kind):
    plt = build(kind, backend="dense")
    codes = plt.encode(noise(3, 5, 4))
    with mock.patch.object(module, "decode_dense", wraps=module.decode_dense) as decode:
        plt.decode(codes, target=2)
        plt.contributions(codes, target=2)
    assert [list(call.args[0]) for call in decode.call_args_list] == [[2], [2]]


def test_an_edit_in_place_of_a_silent_target_leaves_the_bias():
    plt = build()
    y = plt.decode({0: plt.encode(noise(3, 5, 4))[0]}, target=2).detach()
    y += 1
    close(y - 1, plt.b_dec[2].expand(5, 4))


@each_kind
def test_second_derivatives_on_the_dense_path(kind):
    found = []
    for each in ((plt := build(kind, backend="dense")), with_zero_decoders(plt)):
        x = noise(3, 5, 4).requires_grad_()
        (grad,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        found.append(x.grad)
    close(*found)


# ---- shape, start, normalisation -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relu_topk", "jumprelu"])
@pytest.mark.parametrize(("L", "d", "F"), [(1, 3, 5), (4, 2, 7), (6, 3, 4)])
def test_parameters_are_counted_and_no_zero_block_is_kept(kind, L, d, F):
    plt = build(kind, L, d, F)
    thresholds = L * F if kind == "jumprelu" else 0
    assert plt.config.n_parameters() == 2 * L * F * d + L * F + L * d + thresholds
    assert sum(p.numel() for p in plt.parameters()) == plt.config.n_parameters()
    assert [plt.config.targets(s) for s in range(L)] == [range(s, s + 1) for s in range(L)]
    assert [list(CLTConfig(3, 4, 8, ReLUTopK(3)).targets(s)) for s in range(3)] == [
        [0, 1, 2],
        [1, 2],
        [2],
    ]


def test_the_last_layer_starts_at_the_scale_of_a_clts():
    # the same number of active features a layer, of the same size: L sources against one
    scales = {}
    for cross_layer in (True, False):
        clt = CrossLayerTranscoder(CLTConfig(6, 64, 256, AbsTopK(16), cross_layer=cross_layer))
        x = torch.randn(6, 400, 64, generator=torch.Generator().manual_seed(0))
        scales[cross_layer] = clt(x)[-1].square().mean().sqrt()
    assert 0.9 < scales[False] / scales[True] < 1.1
    assert clt.W_dec[0].abs().max() <= 64**-0.5
    assert clt.W_dec[0].abs().max() > 0.95 * 64**-0.5


@each_kind
def test_rescaling_folds_normalisation_in(kind):
    plt, raw = build(kind), build(kind)
    scale_x, scale_y = noise(3, seed=3).exp(), noise(3, seed=4).exp()
    raw.rescale_(scale_x, scale_y)
    x = noise(3, 5, 4)
    expected = plt(x * scale_x[:, None, None]) / scale_y[:, None, None]
    close(raw(x), expected)


def test_zero_cross_init_has_nothing_to_zero():
    with pytest.raises(InputError, match=r"zero_cross_init is True with cross_layer False"):
        CLTConfig(3, 4, 8, ReLUTopK(3), zero_cross_init=True, cross_layer=False)


# ---- files -----------------------------------------------------------------------------------


@each_kind
def test_saved_and_loaded(kind, tmp_path):
    plt = build(kind).float()
    plt.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["cross_layer"] is False
    loaded = CrossLayerTranscoder.from_pretrained(tmp_path)
    assert loaded.config == plt.config
    x = noise(3, 5, 4).float()
    assert torch.equal(loaded(x), plt(x))
    text = (tmp_path / "README.md").read_text()
    assert "# Per-layer transcoder" in text
    assert "its MLP output y_s alone" in text
    assert "per-layer-transcoder" in text
    assert "cross-layer-transcoder" not in text


def test_a_config_without_the_field_is_a_clts(tmp_path):
    clt = CrossLayerTranscoder(CLTConfig(3, 4, 8, ReLUTopK(3)))
    clt.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("cross_layer") is True
    (tmp_path / "config.json").write_text(json.dumps(values))
    loaded = CrossLayerTranscoder.from_pretrained(tmp_path)
    assert loaded.config.cross_layer
    assert torch.equal(loaded(x := noise(3, 5, 4).float()), clt(x))
    # and one of another kind than its weights is refused
    (tmp_path / "config.json").write_text(json.dumps(values | {"cross_layer": False}))
    with pytest.raises(
        InputError, match=r"W_dec.0 is \(3, 8, 4\); config.json expects \(1, 8, 4\)"
    ):
        CrossLayerTranscoder.from_pretrained(tmp_path)


def test_a_card_refuses_the_report_of_the_other_kind():
    plt = CLTConfig(3, 4, 8, ReLUTopK(3), cross_layer=False)
    report = {"context": {"clt": replace(plt, cross_layer=True).to_json()}, "metrics": []}
    with pytest.raises(InputError, match="cross_layer is True; expected False"):
        model_card(plt, report)


# ---- training --------------------------------------------------------------------------------


def test_dead_features_rebuild_through_the_diagonal_decoder():
    plt, x, error = build(), noise(3, 5, 4), noise(3, 5, 4, seed=5).float()
    dead = torch.zeros(3, 8, dtype=torch.bool)
    dead[1, 2] = dead[1, 5] = True
    sparsifier = plt.config.sparsifier
    found = sparsifier.auxiliary_error(plt, x, error, dead, TopKTraining(aux_k=2))
    chosen = torch.tensor([2, 5])
    z = (x[1] @ plt.W_enc[1][chosen].T + plt.b_enc[1][chosen]).relu()
    expected = error.clone()
    expected[1] += (z @ plt.W_dec[1][0, chosen]).detach().float()
    expected[[0, 2]] = 0
    torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize(
    ("sparsifier", "backend"),
    [(ReLUTopK(4), "sparse"), (JumpReLU(), "auto")],
    ids=["sparse", "jumprelu"],
)
def test_it_trains_saves_and_replaces(tiny_vit, images, sparsifier, backend, tmp_path):
    data = TensorImages(images)
    config = CLTConfig(4, 16, 24, sparsifier, cross_layer=False)
    topk = isinstance(sparsifier, ReLUTopK)
    how = TrainConfig(lr=1e-2, epochs=16, batch_size=20, backend=backend, log_every=1)
    if topk:
        how = replace(how, sparsity=TopKTraining(aux_k=8))
    log: list[dict] = []
    plt = train(tiny_vit, data, config, how, on_log=log.append, progress=False)
    losses = [record["loss"] for record in log if "loss" in record]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    plt.save_pretrained(tmp_path)
    loaded = CrossLayerTranscoder.from_pretrained(tmp_path).requires_grad_(False)
    for layers in (range(4), [2]):
        with replace_mlps(tiny_vit, loaded, layers=layers):
            embeddings = tiny_vit.encode_image(images)
        assert not torch.equal(embeddings, tiny_vit.encode_image(images))
    # the shared pass of a cascade, which adds terms up by source, agrees
    for found in SharedPrefix(tiny_vit, images).replaced(loaded, range(4), "all"):
        with replace_mlps(tiny_vit, loaded, layers=range(found.first, 4)):
            torch.testing.assert_close(found.embeddings, tiny_vit.encode_image(images))


def counted_encodes(clt: CrossLayerTranscoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that are encoded from here on."""
    encode, seen = clt.encode, []
    monkeypatch.setattr(clt, "encode", lambda x, layer: seen.append(layer) or encode(x, layer))
    return seen


def in_the_tiny_vit(kind: str) -> tuple[CrossLayerTranscoder, CrossLayerTranscoder]:
    """A per-layer transcoder of the tiny ViT's shape, and the CLT with zero decoders beside it."""
    plt = build(kind, L=4, d=16, F=24, k=4)
    return tuple(each.float().requires_grad_(False) for each in (plt, with_zero_decoders(plt)))


@each_kind
@pytest.mark.parametrize(
    ("inputs", "error_node"), [("stream", False), ("teacher", False), ("stream", True)]
)
def test_a_replacement_encodes_the_layers_it_replaces_alone(
    tiny_vit, images, kind, inputs, error_node, monkeypatch
):
    plt, clt = in_the_tiny_vit(kind)
    how = {"layers": [1, 3], "inputs": inputs, "error_node": error_node}
    with replace_mlps(tiny_vit, clt, **how):
        expected = tiny_vit(images)
    seen = counted_encodes(plt, monkeypatch)
    with replace_mlps(tiny_vit, plt, **how):
        torch.testing.assert_close(tiny_vit(images), expected)
        assert sorted(seen) == ([1, 1, 3, 3] if error_node else [1, 3])
        # nothing below is needed: a forward may start at the first layer replaced
        if inputs == "stream" and not error_node:
            resid = tiny_vit(images, stop_at_layer=1)
            torch.testing.assert_close(tiny_vit(resid, start_at_layer=1), expected)
    assert "clt.0.hook_codes" not in tiny_vit.hook_dict


@each_kind
@pytest.mark.parametrize("tokens", ["cls", "all"])
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
def test_ranges_encode_what_they_replace_alone(tiny_vit, images, kind, tokens, inputs, monkeypatch):
    plt, clt = in_the_tiny_vit(kind)
    prefix = SharedPrefix(tiny_vit, images)
    expected = {r.first: r for r in prefix.replaced(clt, [1, 3], tokens, inputs)}
    names = [f"clt.{s}.hook_codes" for s in range(4)]
    rows = slice(0, 1) if tokens == "cls" else slice(None)
    seen = counted_encodes(plt, monkeypatch)
    found = list(prefix.replaced(plt, [1, 3], tokens, inputs))
    # the stream's layer 3: once unaltered, and once behind layers 1 and 2
    assert sorted(seen) == ([1, 2, 3, 3] if inputs == "stream" else [1, 2, 3])
    for each in found:
        torch.testing.assert_close(each.embeddings, expected[each.first].embeddings)
        layers = range(each.first, 4)
        with replace_mlps(tiny_vit, clt, layers=layers, tokens=tokens, inputs=inputs):
            _, cache = tiny_vit.run_with_cache(images, names_filter=names)
        active = [cache[names[s]][:, rows].ne(0).sum(-1).double().mean() for s in layers]
        assert each.l0 == pytest.approx(float(torch.stack(active).mean()), rel=1e-6)


@each_kind
def test_the_sources_of_targets_are_those_that_write_there(kind):
    for cross_layer in (True, False):
        config = replace(build(kind, L=5).config, cross_layer=cross_layer)
        for targets in ([0], [3], [1, 4]):
            writers = [s for s in range(5) for l in targets if l in config.targets(s)]
            assert config.sources(*targets) == sorted(set(writers))


def test_a_run_of_the_other_kind_is_not_resumed(tiny_vit, images, tmp_path):
    data, how = TensorImages(images), TrainConfig(epochs=1, batch_size=30)
    per_layer = CLTConfig(4, 16, 24, ReLUTopK(4), cross_layer=False)
    train(tiny_vit, data, per_layer, how, checkpoints=tmp_path, progress=False)
    other = replace(per_layer, cross_layer=True)
    with pytest.raises(InputError, match="cross_layer is True; expected False, as in the run"):
        train(tiny_vit, data, other, how, checkpoints=tmp_path, resume=True, progress=False)


def test_a_run_from_before_the_option_is_a_clts(tmp_path, capsys):
    command = ["train", "--limit", "40", "--epochs", "1", "--n-features", "32", "--k", "4"]
    command += ["--resume", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    path = tmp_path / "run" / "run.json"
    run = json.loads(path.read_text())
    assert run["options"].pop("cross_layer") is True
    assert run["options"].pop("skip") is False
    assert run["options"]["training"].pop("matryoshka") is None
    del run["finished_by"]  # runs of that time had no manifest
    (tmp_path / "run" / "manifest.json").unlink()
    path.write_text(json.dumps(run))
    capsys.readouterr()
    assert main(command) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*command, "--no-cross-layer"]) == 2
    assert "--cross-layer is False; expected True" in capsys.readouterr().err


def test_it_is_estimated_at_its_own_size():
    clt = CLTConfig(12, 768, 12288, ReLUTopK(128))
    given = {"n_images": 100, "n_tokens": 50, "teacher_parameters": 0}
    for how in (TrainConfig(), TrainConfig(accumulate=4), TrainConfig(backend="dense")):
        whole = estimate(clt, how, **given)
        alone = estimate(replace(clt, cross_layer=False), how, **given)
        assert alone.memory["weights"] == 4 * replace(clt, cross_layer=False).n_parameters()
        # 66 of the 78 decoders are not there
        assert whole.memory["weights"] - alone.memory["weights"] == 4 * 66 * 12288 * 768
        assert alone.memory["step"] <= whole.memory["step"]
        assert alone.disk["result"] < whole.disk["result"]
