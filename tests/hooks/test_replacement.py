"""A CLT in the place of a ViT's MLPs, against an oracle and against loops written out by hand."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Sequence

import jaxtyping
import pytest
import torch
from assertions import close
from builders import random_clt, tiny_clip
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, JumpReLU, ReLUTopK
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits, replace_mlps, replacement_hooks, token_rows
from vit_clt.hooks.rows import TokenRows
from vit_clt.kernels.codes import Codes, DenseCodes

LAYERS = [[3], [0, 2], range(4)]
TOKENS = ["cls", "patch", "all"]
SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2)]
MODES = [("stream", False), ("stream", True), ("teacher", False), ("teacher", True)]

Edit = Callable[[Tensor, int], Tensor]


def left_behind(vit: HookedViT) -> list[str | None]:
    """Names of all hook points that hold a hook, and of points that are not the model's own."""
    points = [m for m in vit.modules() if isinstance(m, HookPoint)]
    held = [p.name for p in points if p.has_hooks() or p._forward_hooks or p._backward_hooks]
    return held + [name for name in (*vit.hook_dict, *vit.mod_dict) if name.startswith("clt")]


def everything(vit: HookedViT, images: Tensor) -> dict[str, Tensor]:
    """A clean cache as a user makes it."""
    return dict(vit.run_with_cache(images)[1].items())


class Oracle(CrossLayerTranscoder):
    """Its codes are x itself and its reconstructions the MLP's own outputs."""

    def __init__(self, vit: HookedViT):
        super().__init__(CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 2, ReLUTopK(k=1)))
        self.mlps = [block.mlp for block in vit.blocks]

    def encode(self, x: Tensor, layer: int | None = None) -> Codes:
        return DenseCodes(x)

    def decode(
        self, codes: Codes | Sequence[Codes], target: int | None = None, x: Tensor | None = None
    ) -> Tensor:
        return self.mlps[target](codes[target].to_dense())


def sparsify_by_hand(pre: Tensor, sparsifier: object) -> Tensor:
    if isinstance(sparsifier, JumpReLU):
        return torch.where(pre > sparsifier.theta, pre, 0.0)
    size = pre.abs() if isinstance(sparsifier, AbsTopK) else pre.relu()
    smallest = size.sort(-1, descending=True).values[..., sparsifier.k - 1, None]
    return torch.where((size >= smallest) & (size > 0), pre, 0.0)


def by_hand(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: Tensor,
    layers: Iterable[int] = (),
    tokens: str = "all",
    teacher_codes: list[Tensor] | None = None,
    edit: Edit = lambda z, source: z,
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings and codes of all layers, from a plain loop over blocks."""
    visual = vit.model.visual
    chosen = torch.zeros(vit.cfg.n_tokens, 1, dtype=torch.bool)
    chosen[{"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}[tokens]] = True
    codes: list[Tensor] = []
    resid = visual._embeds(images)
    for l, block in enumerate(visual.transformer.resblocks):
        h = block.ln_1(resid)
        resid = resid + block.attn(h, h, h, need_weights=False)[0]
        x = block.ln_2(resid)
        if teacher_codes is None:
            pre = x @ clt.W_enc[l].T + clt.b_enc[l]
            codes.append(edit(sparsify_by_hand(pre, clt.config.sparsifier), l))
        else:
            codes.append(edit(teacher_codes[l], l))
        y = block.mlp(x)
        if l in layers:
            recon = clt.b_dec[l] + sum(codes[s] @ clt.W_dec[s][l - s] for s in range(l + 1))
            y = torch.where(chosen, recon, y)
        resid = resid + y
    return visual.ln_post(resid)[:, 0] @ visual.proj, codes


def zero_feature(source: int, feature: int) -> Edit:
    def edit(z: Tensor, layer: int) -> Tensor:
        keep = torch.ones(z.shape[-1])
        keep[feature] = 0
        return z * keep if layer == source else z

    return edit


# ---- what a replacement computes ----------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "error_node"), MODES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_an_oracle_changes_nothing(
    layers: Iterable[int],
    tokens: str,
    inputs: str,
    error_node: bool,
    tiny_vit: HookedViT,
    images: Tensor,
) -> None:
    expected = tiny_vit(images)
    mode = {"tokens": tokens, "inputs": inputs, "error_node": error_node}
    with replace_mlps(tiny_vit, Oracle(tiny_vit), layers=layers, **mode) as replaced:
        found = replaced(images)
        heard, _ = replaced.run_with_cache(images, names_filter=lambda name: "clt" in name)
    if tokens == "all" or error_node:
        assert torch.equal(found, expected)
        assert torch.equal(heard, expected)
    close(found, expected, 1e-6)
    close(heard, expected, 1e-6)


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
def test_equals_a_loop_over_blocks(
    inputs: str,
    layers: Iterable[int],
    tokens: str,
    sparsifier: object,
    tiny_vit: HookedViT,
    images: Tensor,
) -> None:
    clt = random_clt(tiny_vit, sparsifier)
    clean, codes = by_hand(tiny_vit, clt, images)
    close(clean, tiny_vit(images))
    teacher = codes if inputs == "teacher" else None
    expected, _ = by_hand(tiny_vit, clt, images, layers, tokens, teacher)
    with replace_mlps(tiny_vit, clt, layers=layers, tokens=tokens, inputs=inputs):
        found = tiny_vit(images)
        heard, _ = tiny_vit.run_with_cache(images, names_filter="clt.0.hook_codes")
    close(found, expected)
    close(heard, expected)
    if (tokens, list(layers)) != ("patch", [3]):
        assert (found - clean).abs().max() > 1e-2


def test_stream_and_teacher_differ_after_the_first_layer(
    tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    outs = {}
    for inputs in ("stream", "teacher"):
        for layers in ((0,), (0, 1)):
            with replace_mlps(tiny_vit, clt, layers=layers, inputs=inputs):
                outs[inputs, layers] = tiny_vit(images)
    close(outs["stream", (0,)], outs["teacher", (0,)])
    assert (outs["stream", (0, 1)] - outs["teacher", (0, 1)]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [3, -1])
def test_patch_rows_of_the_last_layer_do_not_matter_to_cls_pooling(
    layer: int, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    expected = tiny_vit(images)
    outs = {}
    for tokens in TOKENS:
        with replace_mlps(tiny_vit, clt, layers=layer, tokens=tokens):
            outs[tokens] = tiny_vit(images)
    assert torch.equal(outs["patch"], expected)
    close(outs["all"], outs["cls"])
    assert (outs["cls"] - expected).abs().max() > 1e-2


def test_average_pooling_reads_the_patch_rows(images: Tensor) -> None:
    vit = HookedViT(tiny_clip(pool_type="avg"))
    with replace_mlps(vit, random_clt(vit), layers=-1, tokens="patch"):
        found = vit(images)
    assert (found - vit(images)).abs().max() > 1e-2


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
def test_only_the_chosen_rows_are_overwritten(
    inputs: str, tokens: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    with replace_mlps(tiny_vit, clt, layers=[1, 2], tokens=tokens, inputs=inputs):
        _, cache = tiny_vit.run_with_cache(images)
    rows = token_rows(tokens)
    for l, block in enumerate(tiny_vit.blocks):
        expected = block.mlp(cache[f"blocks.{l}.ln2.hook_out"])
        if l in (1, 2):
            assert not torch.equal(cache["mlp_out", l][:, rows], expected[:, rows])
            expected[:, rows] = cache[f"clt.{l}.hook_recon"][:, rows]
        assert torch.equal(cache["mlp_out", l], expected)


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_error_nodes_are_exact_while_nothing_intervenes(
    tokens: str, inputs: str, sparsifier: object, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit, sparsifier)
    expected = tiny_vit(images)
    mode = {"layers": range(4), "tokens": tokens, "inputs": inputs, "error_node": True}
    with replace_mlps(tiny_vit, clt, **mode):
        assert torch.equal(tiny_vit(images), expected)
        out, cache = tiny_vit.run_with_cache(images)
    assert torch.equal(out, expected)
    assert cache["clt.3.hook_codes"].abs().max() > 0
    clean = everything(tiny_vit, images)
    hooks = replacement_hooks(clt, **mode, clean=clean)
    assert torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=hooks), expected)


def test_error_nodes_let_interventions_through(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    clean = everything(tiny_vit, images)
    shift = torch.linspace(-1, 1, 16)
    edit = ("blocks.0.hook_resid_pre", lambda resid, hook: resid + shift)
    with replace_mlps(tiny_vit, clt, layers=[2], error_node=True), tiny_vit.hooks(fwd_hooks=[edit]):
        _, cache = tiny_vit.run_with_cache(images)
    before, after = (
        clt.decode([clt.encode(c[f"blocks.{s}.ln2.hook_out"], layer=s) for s in range(3)], target=2)
        for c in (clean, cache)
    )
    close(cache["mlp_out", 2], clean["blocks.2.hook_mlp_out"] + (after - before))
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("inputs", ["stream", "teacher"])
def test_differentiable_in_every_parameter_it_uses(
    inputs: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit, JumpReLU(theta=0.2)).requires_grad_(True)
    with replace_mlps(tiny_vit, clt, layers=[1, 2], inputs=inputs):
        tiny_vit(images).square().sum().backward()
    grads = {name: p.grad for name, p in clt.named_parameters()}
    assert {name for name, grad in grads.items() if grad is not None} == set(grads) - {
        "W_enc.3",
        "W_dec.3",
    }
    for name in ("W_enc.0", "W_enc.2"):
        assert grads[name].abs().max() > 0
    for name in ("b_enc", "log_theta"):
        assert (grads[name].abs().amax(1) > 0).tolist() == [True, True, True, False]
    assert (grads["W_dec.1"].abs().amax((1, 2)) > 0).tolist() == [True, True, False]
    assert (grads["b_dec"].abs().amax(1) > 0).tolist() == [False, True, True, False]


def test_gradient_equals_the_loops(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit).requires_grad_(True)
    used = [clt.W_enc[0], clt.W_dec[0], clt.b_enc, clt.b_dec]
    with replace_mlps(tiny_vit, clt, layers=[0, 2], tokens="patch"):
        found = torch.autograd.grad(tiny_vit(images).square().sum(), used)
    out, _ = by_hand(tiny_vit, clt, images, [0, 2], "patch")
    for a, b in zip(found, torch.autograd.grad(out.square().sum(), used), strict=True):
        close(a, b, 1e-4)


# ---- composition with a user's hooks ------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "error_node"), MODES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_hook_list_equals_the_context(
    tokens: str, inputs: str, error_node: bool, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    mode = {"layers": [1, 3], "tokens": tokens, "inputs": inputs, "error_node": error_node}
    edit = ("blocks.0.hook_attn_out", lambda out, hook: out * 2)
    clean = None
    if error_node or inputs == "teacher":
        clean = everything(tiny_vit, images)
    hooks = replacement_hooks(clt, **mode, clean=clean)
    with replace_mlps(tiny_vit, clt, **mode):
        expected = tiny_vit(images)
        edited = tiny_vit.run_with_hooks(images, fwd_hooks=[edit])
    for _ in range(2):
        assert torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=hooks), expected)
    assert torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=[edit, *hooks]), edited)
    assert torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=[*hooks, edit]), edited)
    assert not torch.equal(edited, expected)


@pytest.mark.parametrize("inputs", ["stream", "teacher"])
def test_clean_may_be_an_activation_cache(inputs: str, tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    _, clean = tiny_vit.run_with_cache(images)
    mode = {"layers": [1, 3], "inputs": inputs, "error_node": inputs == "stream"}
    with replace_mlps(tiny_vit, clt, **mode):
        expected = tiny_vit(images)
    hooks = replacement_hooks(clt, **mode, clean=clean)
    assert torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=hooks), expected)


def test_an_edit_of_x_reaches_mlp_and_clt_whoever_came_first(
    tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    shift = torch.linspace(-1, 1, 16)
    edit = ("blocks.1.ln2.hook_out", lambda x, hook: x + shift)
    hooks = replacement_hooks(clt, layers=[1, 2], tokens="cls")
    outs = [
        tiny_vit.run_with_hooks(images, fwd_hooks=order)
        for order in ([edit, *hooks], [*hooks, edit])
    ]
    with replace_mlps(tiny_vit, clt, layers=[1, 2], tokens="cls"), tiny_vit.hooks([edit]):
        outs.append(tiny_vit(images))
        _, cache = tiny_vit.run_with_cache(images)
    with tiny_vit.hooks([edit]), replace_mlps(tiny_vit, clt, layers=[1, 2], tokens="cls"):
        outs.append(tiny_vit(images))
    assert all(torch.equal(out, outs[0]) for out in outs)

    x = tiny_vit.blocks[1].ln2(cache["resid_mid", 1]) + shift
    close(cache["clt.1.hook_codes"], clt.encode(x, layer=1).to_dense())
    close(cache["mlp_out", 1][:, 1:], tiny_vit.blocks[1].mlp(x)[:, 1:])


def test_two_clts_side_by_side(tiny_vit: HookedViT, images: Tensor) -> None:
    first, second = random_clt(tiny_vit, seed=0), random_clt(tiny_vit, seed=1)
    hooks = replacement_hooks(first, layers=1, tokens="cls")
    hooks += replacement_hooks(second, layers=2, tokens="patch")
    with tiny_vit.hooks(fwd_hooks=hooks):
        _, cache = tiny_vit.run_with_cache(images)
    for clt, layer, rows in ((first, 1, slice(0, 1)), (second, 2, slice(1, None))):
        x = [cache[f"blocks.{s}.ln2.hook_out"] for s in range(layer + 1)]
        recon = clt.decode([clt.encode(x_s, layer=s) for s, x_s in enumerate(x)], target=layer)
        close(cache["mlp_out", layer][:, rows], recon[:, rows])


# ---- the CLT's own hook points ------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_clt_stages_are_hook_points(
    tokens: str, inputs: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    keys = list(tiny_vit.state_dict())
    own = list(tiny_vit.hook_dict)
    with replace_mlps(tiny_vit, clt, layers=[1, 2], tokens=tokens, inputs=inputs):
        points = [name for name in tiny_vit.hook_dict if name not in own]
        _, cache = tiny_vit.run_with_cache(images)
        assert list(tiny_vit.state_dict()) == keys
    assert sorted(points) == sorted(
        [f"clt.{s}.hook_codes" for s in range(3)] + [f"clt.{l}.hook_recon" for l in (1, 2)]
    )
    assert set(points) <= set(cache.keys())
    teacher = by_hand(tiny_vit, clt, images)[1] if inputs == "teacher" else None
    _, codes = by_hand(tiny_vit, clt, images, [1, 2], tokens, teacher)
    for s in range(3):
        assert cache[f"clt.{s}.hook_codes"].shape == (6, 10, 24)
        close(cache[f"clt.{s}.hook_codes"], codes[s])
    recon = clt.decode([DenseCodes(z) for z in codes], target=2)
    close(cache["clt.2.hook_recon"], recon)
    assert list(tiny_vit.hook_dict) == own
    assert list(tiny_vit.state_dict()) == keys
    assert left_behind(tiny_vit) == []


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@pytest.mark.parametrize("source", [0, 2])
def test_ablating_a_feature_zeroes_that_feature(
    source: int,
    inputs: str,
    tokens: str,
    sparsifier: object,
    tiny_vit: HookedViT,
    images: Tensor,
) -> None:
    clt = random_clt(tiny_vit, sparsifier)
    _, codes = by_hand(tiny_vit, clt, images)
    feature = int(codes[source][:, token_rows(tokens)].abs().sum((0, 1)).argmax())

    def ablate(z: Tensor, hook: HookPoint) -> Tensor:
        z[..., feature] = 0
        return z

    teacher = codes if inputs == "teacher" else None
    edit = zero_feature(source, feature)
    expected, _ = by_hand(tiny_vit, clt, images, [0, 2], tokens, teacher, edit)
    with replace_mlps(tiny_vit, clt, layers=[0, 2], tokens=tokens, inputs=inputs):
        whole = tiny_vit(images)
        hook = (f"clt.{source}.hook_codes", ablate)
        found = tiny_vit.run_with_hooks(images, fwd_hooks=[hook])
        assert torch.equal(tiny_vit(images), whole)
    close(found, expected)
    assert (found - whole).abs().max() > 1e-4


def test_steering_a_reconstruction(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    shift = torch.linspace(-1, 1, 16)
    with replace_mlps(tiny_vit, clt, layers=[1], tokens="patch"):
        _, before = tiny_vit.run_with_cache(images)
        with tiny_vit.hooks(fwd_hooks=[("clt.1.hook_recon", lambda y, hook: y + shift)]):
            _, after = tiny_vit.run_with_cache(images)
    moved = after["mlp_out", 1] - before["mlp_out", 1]
    assert torch.equal(moved[:, 0], torch.zeros(6, 16))
    close(moved[:, 1:], shift.expand(6, 9, 16))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
def test_ablation_with_error_nodes_subtracts_the_term(
    sparsifier: object, inputs: str, in_place: bool, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit, sparsifier)
    clean = everything(tiny_vit, images)
    z = clt.encode(clean["blocks.1.ln2.hook_out"], layer=1).to_dense()
    ablate = ("clt.1.hook_codes", lambda z, hook: z.zero_() if in_place else z * 0)
    replacement = replace_mlps(tiny_vit, clt, layers=[2], inputs=inputs, error_node=True)
    with replacement, tiny_vit.hooks(fwd_hooks=[ablate]):
        _, cache = tiny_vit.run_with_cache(images)
    close(cache["mlp_out", 2], clean["blocks.2.hook_mlp_out"] - z @ clt.W_dec[1][1])


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
def test_only_the_replaced_rows_are_encoded_while_nobody_listens(
    inputs: str,
    tokens: str,
    tiny_vit: HookedViT,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clt = random_clt(tiny_vit)
    encode, seen = clt.encode, []

    def spy(x: Tensor, layer: int) -> Codes:
        seen.append((layer, x.shape[1]))
        return encode(x, layer=layer)

    monkeypatch.setattr(clt, "encode", spy)
    n_rows = {"cls": 1, "patch": 9, "all": 10}[tokens]
    with replace_mlps(tiny_vit, clt, layers=[2], tokens=tokens, inputs=inputs):
        tiny_vit(images)
        assert seen == [(0, n_rows), (1, n_rows), (2, n_rows)]
        seen.clear()
        tiny_vit.run_with_cache(images, names_filter="clt.1.hook_codes")
        assert seen == [(0, 10), (1, 10), (2, 10)]


# ---- nothing outlives its forward or its context ------------------------------------------------


@pytest.mark.parametrize("names_filter", [None, "clt.0.hook_codes"])
@pytest.mark.parametrize(("inputs", "error_node"), MODES)
def test_each_forward_in_a_context_stands_alone(
    inputs: str, error_node: bool, names_filter: str | None, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    mode = {"layers": [1, 3], "tokens": "patch", "inputs": inputs, "error_node": error_node}
    batches = [images, images[:2].flip(-1), images[2:3] * 2, images]
    fresh = []
    for batch in batches:
        with replace_mlps(tiny_vit, clt, **mode):
            fresh.append(tiny_vit(batch))
    with replace_mlps(tiny_vit, clt, **mode):
        for batch, expected in zip(batches, fresh, strict=True):
            close(tiny_vit.run_with_cache(batch, names_filter=names_filter)[0], expected, 1e-6)
            assert torch.equal(tiny_vit(batch), expected)


@pytest.mark.parametrize(("inputs", "error_node"), MODES)
def test_codes_are_freed_with_their_forward(
    inputs: str,
    error_node: bool,
    tiny_vit: HookedViT,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clt = random_clt(tiny_vit)
    encode, made = clt.encode, []

    def spy(x: Tensor, layer: int) -> Codes:
        codes = encode(x, layer=layer)
        made.append(weakref.ref(codes))
        return codes

    monkeypatch.setattr(clt, "encode", spy)
    with replace_mlps(tiny_vit, clt, layers=[2], inputs=inputs, error_node=error_node):
        tiny_vit(images)
        assert len(made) == (6 if error_node and inputs == "stream" else 3)
        assert [codes for ref in made if (codes := ref()) is not None] == []


class Abort(Exception):
    """A user's hook fails."""


def abort(tensor: Tensor, hook: HookPoint) -> None:
    raise Abort


@pytest.mark.parametrize(
    "where",
    ["blocks.0.mlp.hook_in", "blocks.2.hook_attn_out", "clt.1.hook_codes", "clt.3.hook_recon"],
)
@pytest.mark.parametrize(("inputs", "error_node"), MODES)
def test_an_aborted_forward_leaves_the_next_one_right(
    inputs: str, error_node: bool, where: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    mode = {"layers": [1, 3], "inputs": inputs, "error_node": error_node}
    with replace_mlps(tiny_vit, clt, **mode):
        expected = tiny_vit(images)
    with replace_mlps(tiny_vit, clt, **mode):
        with pytest.raises(Abort):
            tiny_vit.run_with_hooks(images[:2] * 3, fwd_hooks=[(where, abort)])
        assert torch.equal(tiny_vit(images), expected)
        tiny_vit(images[:2] * 3, stop_at_layer=2)
        assert torch.equal(tiny_vit(images), expected)
        with pytest.raises(InputError):
            tiny_vit(images[..., :8])
        assert torch.equal(tiny_vit(images), expected)


def test_stop_at_layer_within_a_replacement(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    with replace_mlps(tiny_vit, clt, layers=[1, 3]):
        resid = tiny_vit(images, stop_at_layer=2)
        _, cache = tiny_vit.run_with_cache(images)
    assert torch.equal(resid, cache["resid_post", 1])


@pytest.mark.parametrize("where", ["clt.1.hook_codes", "clt.2.hook_recon", "blocks.2.hook_mlp_out"])
def test_nothing_is_left_after_an_exception(
    where: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    expected = tiny_vit(images)
    with pytest.raises(Abort), replace_mlps(tiny_vit, clt, layers=[2]):
        tiny_vit.run_with_hooks(images, fwd_hooks=[(where, abort)])
    assert left_behind(tiny_vit) == []
    with pytest.raises(Abort), replace_mlps(tiny_vit, clt, layers=[2], error_node=True):
        raise Abort
    assert left_behind(tiny_vit) == []
    assert torch.equal(tiny_vit(images), expected)


def test_nothing_is_left_after_a_normal_exit(tiny_vit: HookedViT, images: Tensor) -> None:
    expected = tiny_vit(images)
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=range(4)):
        assert not torch.equal(tiny_vit(images), expected)
    assert left_behind(tiny_vit) == []
    assert torch.equal(tiny_vit(images), expected)
    with pytest.raises(InputError):
        tiny_vit.run_with_cache(images, names_filter="clt.0.hook_codes")


def test_hooks_of_the_user_outlive_the_context(tiny_vit: HookedViT, images: Tensor) -> None:
    tiny_vit.add_hook("hook_input", lambda x, hook: -x)
    expected = tiny_vit(images)
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=[1]):
        tiny_vit(images)
    assert torch.equal(tiny_vit(images), expected)
    assert left_behind(tiny_vit) == ["hook_input"]


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [{"inputs": "teacher"}, {"error_node": True}], ids=str)
def test_a_hook_list_needs_clean_values(
    mode: dict[str, object], tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    with pytest.raises(InputError, match="clean"):
        replacement_hooks(clt, layers=[2], **mode)
    clean = everything(tiny_vit, images)
    needed = "blocks.2.hook_mlp_out" if "error_node" in mode else "blocks.1.ln2.hook_out"
    partial = {name: value for name, value in clean.items() if name != needed}
    with pytest.raises(InputError, match=needed):
        replacement_hooks(clt, layers=[2], clean=partial, **mode)
    hooks = replacement_hooks(clt, layers=[2], clean=clean, **mode)
    with pytest.raises(InputError, match="same images"):
        tiny_vit.run_with_hooks(images[:3], fwd_hooks=hooks)
    assert left_behind(tiny_vit) == []


def test_the_stream_cannot_be_entered_half_way(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    resid = tiny_vit(images, stop_at_layer=2)
    with replace_mlps(tiny_vit, clt, layers=[3]):
        with pytest.raises(InputError, match="starts after layer"):
            tiny_vit(resid, start_at_layer=2)
        close(tiny_vit(tiny_vit(images, stop_at_layer=0), start_at_layer=0), tiny_vit(images), 1e-6)
    hooks = replacement_hooks(clt, layers=[3])
    with tiny_vit.hooks(fwd_hooks=hooks), pytest.raises(InputError, match="starts after layer"):
        tiny_vit(resid, start_at_layer=2)


def test_teacher_codes_can_be_used_from_half_way(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    clean = everything(tiny_vit, images)
    hooks = replacement_hooks(clt, layers=[2, 3], inputs="teacher", clean=clean)
    with tiny_vit.hooks(fwd_hooks=hooks):
        whole = tiny_vit(images)
        half = tiny_vit(clean["blocks.2.hook_resid_pre"], start_at_layer=2)
    assert torch.equal(half, whole)


@pytest.mark.parametrize("layers", [[], [4], [-5], [0, 9], range(2, 2), 4], ids=str)
def test_layers_out_of_range_are_refused(layers: object, tiny_vit: HookedViT) -> None:
    clt = random_clt(tiny_vit)
    with pytest.raises(InputError, match="layers"):
        replacement_hooks(clt, layers=layers)
    with pytest.raises(InputError, match="layers"), replace_mlps(tiny_vit, clt, layers=layers):
        pass
    assert left_behind(tiny_vit) == []


@pytest.mark.parametrize("layers", [[3, 1], [-1, 1, 1], (1, -1), {1, 3}], ids=str)
def test_layers_in_any_form(layers: Iterable[int], tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    expected, _ = by_hand(tiny_vit, clt, images, [1, 3])
    with replace_mlps(tiny_vit, clt, layers=layers):
        close(tiny_vit(images), expected)


def test_rows_of_every_kind() -> None:
    assert [token_rows(kind) for kind in ("cls", "patch", "all")] == [
        slice(0, 1),
        slice(1, None),
        slice(None),
    ]
    rows = TokenRows(has_cls=True, n_registers=4, grid=(2, 3))
    axis = ["cls"] + ["register"] * 4 + ["patch"] * 6
    assert rows.n_tokens == len(axis)
    for kind in ("cls", "register", "patch"):
        assert axis[token_rows(kind, rows)] == [name for name in axis if name == kind]
    assert rows.kinds == ["cls", "register", "patch", "all"]
    assert rows.patch(1, 2) == len(axis) - 1


@pytest.mark.parametrize(
    ("tokens", "rows", "expected"),
    [
        ("cls", TokenRows(False, 0, (2, 2)), 'no class token, expected "patch" or "all"'),
        ("cls", TokenRows(False, 2, (2, 2)), 'expected "register" or "patch" or "all"'),
        ("register", None, "no register tokens"),
        ("register", TokenRows(False, 0, (2, 2)), "no register tokens"),
    ],
)
def test_rows_that_a_model_lacks_are_refused(
    tokens: str, rows: TokenRows | None, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        token_rows(tokens, rows)
    assert rows is None or tokens not in rows.kinds


@pytest.mark.parametrize(
    ("argument", "value"), [("tokens", "patches"), ("tokens", "CLS"), ("inputs", "live")]
)
def test_unknown_words_are_refused(
    argument: str, value: str, tiny_vit: HookedViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    clt = random_clt(tiny_vit)
    mode = {"layers": [0], argument: value}
    with pytest.raises(InputError, match=f'{argument} is "{value}"'):
        replacement_hooks(clt, **mode)
    with pytest.raises(InputError, match=value), replace_mlps(tiny_vit, clt, **mode):
        pass
    assert left_behind(tiny_vit) == []


def test_nested_replacements_are_refused(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    with replace_mlps(tiny_vit, clt, layers=[1]):
        expected = tiny_vit(images)
        with pytest.raises(InputError, match="nested"), replace_mlps(tiny_vit, clt, layers=[2]):
            pass
        assert torch.equal(tiny_vit(images), expected)
        assert "clt.1.hook_recon" in tiny_vit.hook_dict
    assert left_behind(tiny_vit) == []


@pytest.mark.parametrize(("n_layers", "d_model"), [(3, 16), (5, 16), (4, 8)])
def test_a_clt_of_another_shape_is_refused(
    n_layers: int, d_model: int, tiny_vit: HookedViT
) -> None:
    clt = CrossLayerTranscoder(CLTConfig(n_layers, d_model, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="expected 4 layers of width 16"):
        check_fits(tiny_vit, clt)
    with pytest.raises(InputError), replace_mlps(tiny_vit, clt, layers=[0]):
        pass


@pytest.mark.parametrize("field", ["activation", "hook_in", "hook_out", "weights_sha256"])
def test_a_clt_of_another_teacher_is_refused(field: str, tiny_vit: HookedViT) -> None:
    clt = random_clt(tiny_vit)
    teacher = tiny_vit.identity()
    clt.config = dataclasses.replace(clt.config, teacher=teacher)
    check_fits(tiny_vit, clt)
    other = dataclasses.replace(teacher, **{field: "something else"})
    clt.config = dataclasses.replace(clt.config, teacher=other)
    with pytest.raises(InputError, match=field), replace_mlps(tiny_vit, clt, layers=[0]):
        pass
    assert left_behind(tiny_vit) == []
    clt.forget_teacher()
    with replace_mlps(tiny_vit, clt, layers=[0]):
        pass


def test_a_clt_knows_its_teacher_by_its_weights(tiny_vit: HookedViT) -> None:
    clt = random_clt(tiny_vit)
    clt.config = dataclasses.replace(clt.config, teacher=tiny_vit.identity())
    check_fits(HookedViT(tiny_clip(), model="another name for the same weights"), clt)
    with pytest.raises(InputError, match="weights_sha256"):
        check_fits(HookedViT(tiny_clip(seed=1)), clt)


@pytest.mark.parametrize("grad", [False, True])
def test_error_nodes_are_exact_in_either_grad_mode(
    grad: bool, tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit).requires_grad_(True)
    with torch.set_grad_enabled(grad):
        expected = tiny_vit(images.requires_grad_(grad))
        with replace_mlps(tiny_vit, clt, layers=range(4), error_node=True):
            assert torch.equal(tiny_vit(images), expected)
