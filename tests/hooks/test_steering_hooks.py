"""Edits of features: the unedited model, a loop by hand, composition, and what is left behind."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from builders import random_clt
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.hooks import Edit, HookedViT, SteeredPass, replace_mlps, steer, steering_hooks

N = 4
TWO = Edit(0, 2, "clamp", 1)
SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2)]
each_sparsifier = pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)


def per_layer(vit: HookedViT) -> CrossLayerTranscoder:
    torch.manual_seed(0)
    config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 24, ReLUTopK(k=5), cross_layer=False)
    clt = CrossLayerTranscoder(config)
    clt.b_enc.data.normal_(std=0.3)
    return clt.eval().requires_grad_(False)


def clean_codes(vit: HookedViT, clt: CrossLayerTranscoder, images: Tensor, layer: int) -> Tensor:
    name = f"blocks.{layer}.ln2.hook_out"
    return clt.encode(vit.clean_cache(images, [name])[name], layer=layer).to_dense()


def busiest(vit: HookedViT, clt: CrossLayerTranscoder, images: Tensor, layer: int) -> list[int]:
    """Features of a layer, the one active on most rows first."""
    counts = clean_codes(vit, clt, images, layer).ne(0).flatten(0, 1).sum(0)
    return counts.argsort(descending=True, stable=True).tolist()


def steered_by_hand(
    vit: HookedViT, clt: CrossLayerTranscoder, images: Tensor, edits: list[Edit]
) -> Tensor:
    """y_l' = y_l + decode(codes' - codes), each MLP overwritten by one hook; no replacement."""
    names = [f"blocks.{l}.{p}" for l in range(N) for p in ("ln2.hook_out", "hook_mlp_out")]
    clean = vit.clean_cache(images, names)
    before = [clt.encode(clean[f"blocks.{s}.ln2.hook_out"], layer=s).to_dense() for s in range(N)]
    live: list[Tensor] = []

    def write(y: Tensor, hook: HookPoint) -> Tensor:
        l = int(hook.name.split(".")[1])
        x = vit.blocks[l].ln2(streams[l])
        codes = clt.encode(x, layer=l).to_dense()
        for edit in (e for e in edits if e.layer == l):
            rows = {"cls": [0], "patch": range(1, 10), "all": range(10)}.get(edit.tokens)
            for row in edit.tokens if rows is None else rows:
                for i in edit.features:
                    z = codes[:, row, i]
                    if edit.kind == "scale":
                        codes[:, row, i] = z * edit.value
                    else:
                        codes[:, row, i] = torch.where(
                            z.ne(0) | torch.tensor(not edit.only_active), float(edit.value), z
                        )
        live.append(codes)
        out = clean[f"blocks.{l}.hook_mlp_out"].clone()
        for s in range(l + 1) if clt.config.cross_layer else [l]:
            out += (live[s] - before[s]) @ clt.W_dec[s][l - s]
        return out

    streams: dict[int, Tensor] = {}

    def remember(resid: Tensor, hook: HookPoint) -> None:
        streams[int(hook.name.split(".")[1])] = resid

    hooks = [(f"blocks.{l}.hook_resid_mid", remember) for l in range(N)]
    hooks += [(f"blocks.{l}.hook_mlp_out", write) for l in range(N)]
    return vit.run_with_hooks(images, fwd_hooks=hooks)


@each_sparsifier
@torch.no_grad()
def test_an_edit_that_changes_nothing_is_the_model_bit_for_bit(
    tiny_vit: HookedViT, images: Tensor, sparsifier
) -> None:
    clt = random_clt(tiny_vit, sparsifier)
    plain = tiny_vit(images)
    edits = [Edit(s, tuple(busiest(tiny_vit, clt, images, s)[:3]), "scale", 1) for s in range(N)]
    with steer(tiny_vit, clt, edits):
        assert torch.equal(tiny_vit(images), plain)
    assert torch.equal(SteeredPass(tiny_vit, clt, images).steered(edits), plain)
    with steer(tiny_vit, clt, Edit(1, edits[1].features, "scale", 0)):
        assert not torch.allclose(tiny_vit(images), plain, atol=1e-4)


@each_sparsifier
@torch.no_grad()
def test_both_ways_to_steer_equal_a_loop_by_hand(
    tiny_vit: HookedViT, images: Tensor, sparsifier
) -> None:
    vit, images = tiny_vit.double(), images.double()
    cases = [(random_clt(vit, sparsifier), "sparse")]
    cases += [(per_layer(vit), "dense")] if sparsifier == ReLUTopK(k=5) else []
    for clt, backend in cases:
        clt = clt.double()
        clt.backend = backend
        a, b, *_, silent = busiest(vit, clt, images, 1)
        above = busiest(vit, clt, images, 2)[0]
        shared = SteeredPass(vit, clt, images)
        for edits in (
            [Edit(1, a, "scale", 0)],
            [Edit(1, (a, silent), "clamp", 2.5, "cls")],
            [Edit(1, b, "clamp", -1, "patch", only_active=True)],
            # two layers, the same feature on different rows
            [
                Edit(1, a, "scale", 3, (2, 5)),
                Edit(1, a, "clamp", 1, "cls"),
                Edit(2, above, "scale", 0),
            ],
            [Edit(3, 0, "clamp", 4)],
        ):
            expected = steered_by_hand(vit, clt, images, edits)
            with steer(vit, clt, edits):
                torch.testing.assert_close(vit(images), expected, rtol=1e-10, atol=1e-10)
            found = shared.steered(edits)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            assert not torch.allclose(found, vit(images), atol=1e-6)


@torch.no_grad()
def test_images_that_no_edit_touches_keep_their_embedding(
    tiny_vit: HookedViT, images: Tensor
) -> None:
    clt = random_clt(tiny_vit)
    active = clean_codes(tiny_vit, clt, images, 2).ne(0).any(1)
    rare = int(active.sum(0).where(active.any(0), torch.tensor(99)).argmin())
    edit = Edit(2, rare, "scale", 0)
    steered, plain = SteeredPass(tiny_vit, clt, images), tiny_vit(images)
    changed = (steered.steered([edit]) != plain).any(1)
    assert torch.equal(changed, active[:, rare])
    assert not changed.all()
    # the same object serves edits of any layer, in any order
    for layer in (3, 0, 2):
        edits = [Edit(layer, busiest(tiny_vit, clt, images, layer)[0], "scale", 2)]
        found = steered.steered(edits)
        with steer(tiny_vit, clt, edits):
            torch.testing.assert_close(found, tiny_vit(images))


@torch.no_grad()
def test_only_the_rows_and_features_named_are_edited(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit, AbsTopK(k=5))
    before = clean_codes(tiny_vit, clt, images, 1)
    first, second = busiest(tiny_vit, clt, images, 1)[:2]
    point = "clt.1.hook_codes"
    for edit, rows in (
        (Edit(1, (first, second), "clamp", 7.0, (3, 9)), [3, 9]),
        (Edit(1, (first, second), "scale", -2, "patch"), list(range(1, 10))),
    ):
        with steer(tiny_vit, clt, edit):
            _, cache = tiny_vit.run_with_cache(images, names_filter=[point, "clt.3.hook_codes"])
        expected = before.clone()
        at = torch.tensor(rows)[:, None], torch.tensor([first, second])
        expected[(slice(None), *at)] = (
            7.0 if edit.kind == "clamp" else -2 * before[(slice(None), *at)]
        )
        assert torch.equal(cache[point], expected)
        # codes downstream answer to the altered stream
        assert not torch.equal(cache["clt.3.hook_codes"], clean_codes(tiny_vit, clt, images, 3))
    # a clamp may exceed k, one of active rows alone never does
    with steer(tiny_vit, clt, Edit(1, tuple(range(24)), "clamp", 1)):
        assert tiny_vit.run_with_cache(images, names_filter=[point])[1][point].ne(0).all()
    with steer(tiny_vit, clt, Edit(1, tuple(range(24)), "clamp", 1, only_active=True)):
        codes = tiny_vit.run_with_cache(images, names_filter=[point])[1][point]
    assert torch.equal(codes, before.ne(0).to(codes.dtype))


@torch.no_grad()
def test_edits_compose_and_user_hooks_still_fire(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    edits = [Edit(0, 3, "clamp", 2), Edit(2, 5, "clamp", -1, "cls")]
    seen = []
    with replace_mlps(tiny_vit, clt, layers=range(N), error_node=True):
        hooks = [*steering_hooks(edits), ("clt.2.hook_codes", lambda z, hook: seen.append(z))]
        together = tiny_vit.run_with_hooks(images, fwd_hooks=hooks)
    assert (seen[0][:, 0, 5] == -1).all()
    with steer(tiny_vit, clt, edits[0]):
        # a hook of the user's after the edit, in place of the second edit
        def set_it(z: Tensor, hook: HookPoint) -> Tensor:
            z[:, 0, 5] = -1
            return z

        one_by_hand = tiny_vit.run_with_hooks(images, fwd_hooks=[("clt.2.hook_codes", set_it)])
    assert torch.equal(together, one_by_hand)
    with steer(tiny_vit, clt, edits[:1]):
        assert not torch.equal(tiny_vit(images), together)


def test_nothing_is_left_behind(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    plain = tiny_vit(images)
    with pytest.raises(RuntimeError, match="inside"), steer(tiny_vit, clt, Edit(1, 0, "scale", 0)):
        raise RuntimeError("inside")
    edits = steering_hooks(Edit(1, 0, "scale", 0, (11,)))
    with pytest.raises(InputError, match="row 11"), replace_mlps(tiny_vit, clt, layers=range(N)):
        tiny_vit.run_with_hooks(images, fwd_hooks=edits)
    assert not [name for name in tiny_vit.hook_dict if name.startswith("clt")]
    assert not [p for p in tiny_vit.hook_dict.values() if p.has_hooks()]
    assert torch.equal(tiny_vit(images), plain)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (lambda: [], "edits is empty"),
        (lambda: [Edit(4, 0, "scale", 0)], "layer 4; expected layers from 0 to 3"),
        (lambda: [Edit(-1, 0, "scale", 0)], "layer is -1"),
        (lambda: [Edit(0, 24, "scale", 0)], "feature is 24 at layer 0; expected features"),
        (lambda: [Edit(0, (), "scale", 0)], "feature is empty"),
        (lambda: [Edit(0, (1, 1), "scale", 0)], "feature holds a number twice"),
        (lambda: [Edit(0, -3, "scale", 0)], "feature holds -3"),
        (lambda: [Edit(0, 0, "drop", 0)], 'kind is "drop"'),
        (lambda: [Edit(0, 0, "clamp", float("nan"))], "value is nan"),
        (lambda: [Edit(0, 0, "clamp", 1, "words")], 'tokens is "words"'),
        (lambda: [Edit(0, 0, "clamp", 1, (2, 10))], "tokens hold row 10; expected rows 0 to 9"),
        (lambda: [Edit(0, 0, "clamp", 1, ())], "tokens is empty"),
        (lambda: [TWO, Edit(0, 2, "scale", 2, (4,))], "of layer 0 twice on row 4"),
        (lambda: [Edit(0, (1, 2), "scale", 1, "patch"), TWO], "2 of layer 0 twice on row 1"),
    ],
)  # fmt: skip
def test_edits_that_cannot_be_made(
    tiny_vit: HookedViT, edits, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    clt = random_clt(tiny_vit)
    with pytest.raises(InputError, match=message), steer(tiny_vit, clt, edits()):
        raise AssertionError
    assert not [name for name in tiny_vit.hook_dict if name.startswith("clt")]


def test_edits_that_could_change_nothing(tiny_vit: HookedViT) -> None:
    clt = random_clt(tiny_vit)
    edit = Edit(2, 0, "scale", 0, "patch")
    with pytest.raises(InputError, match="write to layer 2 to 3; expected one of them among the "):
        steer(tiny_vit, clt, edit, layers=[0, 1]).__enter__()
    with pytest.raises(InputError, match="write to layer 2; expected"):
        steer(tiny_vit, per_layer(tiny_vit), edit, layers=[3]).__enter__()
    with pytest.raises(InputError, match='tokens "patch"; expected rows that are replaced, "cls"'):
        steer(tiny_vit, clt, edit, tokens="cls").__enter__()
    # edits of one feature on rows that do not meet are two edits
    apart = [Edit(2, 0, "scale", 0, "cls"), Edit(2, 0, "scale", 2, "patch"), Edit(1, 0, "scale", 0)]
    assert [name for name, _ in steering_hooks(apart)] == ["clt.1.hook_codes", "clt.2.hook_codes"]
