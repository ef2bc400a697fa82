"""The hooked ViT is open_clip's own tower, bit for bit, and its hooks do what they say."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import open_clip
import pytest
import torch
from builders import TINY, random_clt, tiny_clip
from open_clip.transformer import ResidualAttentionBlock
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.rows import TokenRows

VARIANTS = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.3},
    "avg_pool": {"pool_type": "avg"},
    "no_ln_pre": {"no_ln_pre": True},
    "attn_pool": {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
    "sin_cos": {"pos_embed_type": "sin_cos_2d"},
    "norm_after_pool": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "patch_dropout": {"patch_dropout": 0.5},
    "custom": {"block_type": "custom", "qk_norm": True, "scale_fc": True, "scale_attn": True},
}
BLOCK_NAMES = [
    "hook_resid_pre",
    "ln1.hook_out",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_out",
    "mlp.hook_in",
    "hook_mlp_out",
    "hook_resid_post",
]


def plain_and_hooked(**vision: object) -> tuple[nn.Module, HookedViT]:
    """An untouched model and a HookedViT of its copy.

    Both frozen: whether weights require gradients decides which matmul torch picks, and so bits.
    """
    clip = tiny_clip(**vision).requires_grad_(False)
    return clip, HookedViT(copy.deepcopy(clip))


def left_behind(vit: HookedViT) -> list[str | None]:
    """Names of all hook points that hold a hook."""
    points = [m for m in vit.modules() if isinstance(m, HookPoint)]
    return [p.name for p in points if p.has_hooks() or p._forward_hooks or p._backward_hooks]


# ---- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_open_clip_bit_for_bit(variant: str, grad: bool, batch: int, images: Tensor) -> None:
    clip, vit = plain_and_hooked(**VARIANTS[variant])
    with torch.set_grad_enabled(grad):
        images = images[:batch].requires_grad_(grad)
        expected = clip.encode_image(images)
        cached, _ = vit.run_with_cache(images)
        assert torch.equal(vit(images), expected)
        assert torch.equal(vit.encode_image(images), expected)
        assert torch.equal(cached, expected)
    assert expected.requires_grad == grad


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16"])
def test_equals_open_clip_at_full_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_clip.get_model_config(name) | {"text_cfg": TINY["text_cfg"]}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    vit = HookedViT.from_open_clip(name)
    with torch.device("meta"):
        clip = open_clip.CLIP(**config).eval()
    clip.load_state_dict(vit.state_dict(), assign=True)
    clip.requires_grad_(False)
    assert type(clip.visual.transformer.resblocks[0]) is ResidualAttentionBlock
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = clip.encode_image(images)
    cached, cache = vit.run_with_cache(images)
    assert torch.equal(vit(images), expected)
    assert torch.equal(cached, expected)
    assert len(cache) == 1 + 12 * len(BLOCK_NAMES)
    assert vit.cfg.activation == ("QuickGELU" if name.endswith("quickgelu") else "GELU")


def test_state_dict_is_open_clips_own() -> None:
    clip, vit = plain_and_hooked()
    expected, found = clip.state_dict(), vit.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_loads_an_open_clip_state_dict(images: Tensor) -> None:
    vit, other = HookedViT(tiny_clip(seed=0)), tiny_clip(seed=1).requires_grad_(False)
    vit.load_state_dict(other.state_dict())
    assert torch.equal(vit(images), other.encode_image(images))


def test_frozen_and_in_eval_mode() -> None:
    clip = tiny_clip().train()
    vit = HookedViT(clip)
    towers = [module for module in vit.model.modules() if not isinstance(module, HookPoint)]
    assert not any(module.training for module in towers)
    assert not any(parameter.requires_grad for parameter in vit.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_mlp_of_hook_in_is_hook_out(variant: str, images: Tensor) -> None:
    vit = HookedViT(tiny_clip(**VARIANTS[variant]))
    with torch.no_grad():
        _, cache = vit.run_with_cache(images)
        for l, block in enumerate(vit.blocks):
            x = cache[f"blocks.{l}.ln2.hook_out"]
            assert torch.equal(x, block.ln2(cache[f"blocks.{l}.hook_resid_mid"]))
            assert torch.equal(x, cache[f"blocks.{l}.mlp.hook_in"])
            assert torch.equal(block.mlp(x), cache[f"blocks.{l}.hook_mlp_out"])


def test_the_residual_stream_adds_up(images: Tensor) -> None:
    vit = HookedViT(tiny_clip(ls_init_value=0.3))
    with torch.no_grad():
        _, cache = vit.run_with_cache(images)
        for l, block in enumerate(vit.blocks):
            pre, mid, post = (cache[f"blocks.{l}.hook_resid_{at}"] for at in ("pre", "mid", "post"))
            assert torch.equal(mid, pre + block.native.ls_1(cache[f"blocks.{l}.hook_attn_out"]))
            assert torch.equal(post, mid + block.native.ls_2(cache[f"blocks.{l}.hook_mlp_out"]))


# ---- hooks and caches ---------------------------------------------------------------------------


def test_hook_names_in_order_of_firing(tiny_vit: HookedViT, images: Tensor) -> None:
    expected = ["hook_input"] + [f"blocks.{l}.{name}" for l in range(4) for name in BLOCK_NAMES]
    _, cache = tiny_vit.run_with_cache(images)
    assert list(tiny_vit.hook_dict) == expected
    assert list(cache.keys()) == expected


def test_lookups_in_transformer_lens_style(tiny_vit: HookedViT, images: Tensor) -> None:
    _, cache = tiny_vit.run_with_cache(images)
    assert torch.equal(cache["mlp_out", 1], cache["blocks.1.hook_mlp_out"])
    assert torch.equal(cache["resid_post", -1], cache["blocks.3.hook_resid_post"])
    assert cache.accumulated_resid(layer=2).shape == (3, 6, 10, 16)


@pytest.mark.parametrize(
    ("names_filter", "expected"),
    [
        ("blocks.2.hook_mlp_out", ["blocks.2.hook_mlp_out"]),
        (["blocks.0.mlp.hook_in", "hook_input"], ["blocks.0.mlp.hook_in", "hook_input"]),
        (lambda name: name.endswith("mlp_out"), [f"blocks.{l}.hook_mlp_out" for l in range(4)]),
    ],
)
def test_names_filter(
    names_filter: object, expected: list[str], tiny_vit: HookedViT, images: Tensor
) -> None:
    _, cache = tiny_vit.run_with_cache(images, names_filter=names_filter)
    assert sorted(cache.keys()) == sorted(expected)


@pytest.mark.parametrize(
    "names_filter",
    [
        "blocks.0.mlp_out",
        ["blocks.0.hook_mlp_out", "blocks.4.hook_mlp_out"],
        [],
        lambda name: "hook_scale" in name,
        "blocks.0.attn.hook_pattern",
        "blocks.0.ln2.hook_normalized",
    ],
)
def test_filters_that_match_nothing_are_refused(
    names_filter: object, tiny_vit: HookedViT, images: Tensor
) -> None:
    with pytest.raises(InputError):
        tiny_vit.run_with_cache(images, names_filter=names_filter)
    assert left_behind(tiny_vit) == []


def test_a_filter_that_this_forward_never_reaches_is_refused(
    tiny_vit: HookedViT, images: Tensor
) -> None:
    with pytest.raises(InputError):
        tiny_vit.run_with_cache(images, names_filter="blocks.3.hook_mlp_out", stop_at_layer=2)
    assert left_behind(tiny_vit) == []


@pytest.mark.parametrize("direction", ["fwd_hooks", "bwd_hooks"])
def test_unknown_hook_names_are_refused(
    direction: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    hooks = [("blocks.0.hook_mlp_out", lambda x, hook: None), ("blocks.9.nope", lambda x, hook: x)]
    with pytest.raises(InputError, match=r"blocks\.9\.nope"), tiny_vit.hooks(**{direction: hooks}):
        pass
    with pytest.raises(InputError, match=r"blocks\.9\.nope"):
        tiny_vit.run_with_hooks(images, fwd_hooks=hooks)
    assert left_behind(tiny_vit) == []


def test_no_hook_outlives_an_exception(tiny_vit: HookedViT, images: Tensor) -> None:
    def fail(x: Tensor, hook: HookPoint) -> None:
        raise RuntimeError("a user's bug")

    with pytest.raises(RuntimeError, match="a user's bug"):
        tiny_vit.run_with_hooks(images, fwd_hooks=[("blocks.1.hook_mlp_out", fail)])
    assert left_behind(tiny_vit) == []


def test_edits_of_resid_mid_reach_the_mlp_and_the_skip(images: Tensor) -> None:
    vit = HookedViT(tiny_clip(ls_init_value=0.3))
    shift = torch.linspace(-1, 1, 16)
    edit = ("blocks.1.hook_resid_mid", lambda mid, hook: mid + shift)
    with torch.no_grad():
        _, clean = vit.run_with_cache(images)
        with vit.hooks(fwd_hooks=[edit]):
            out, cache = vit.run_with_cache(images)
        block = vit.blocks[1]
        mid = clean["blocks.1.hook_resid_mid"] + shift
        x = block.ln2(mid)
        post = mid + block.native.ls_2(block.mlp(x))
        assert torch.equal(cache["blocks.1.ln2.hook_out"], x)
        assert torch.equal(cache["blocks.1.hook_resid_post"], post)
        assert torch.equal(out, vit(post, start_at_layer=2))


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_an_edit_at_any_point_changes_the_output(
    name: str, tiny_vit: HookedViT, images: Tensor
) -> None:
    edit = (f"blocks.1.{name}", lambda x, hook: x + torch.linspace(-1, 1, 16))
    assert not torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=[edit]), tiny_vit(images))


def test_an_edit_of_the_input_is_an_edit_of_the_images(tiny_vit: HookedViT, images: Tensor) -> None:
    edited = tiny_vit.run_with_hooks(images, fwd_hooks=[("hook_input", lambda x, hook: -x)])
    assert torch.equal(edited, tiny_vit(-images))


def test_backward_hooks_and_gradients(images: Tensor) -> None:
    clip, vit = plain_and_hooked()
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    grads = {}
    name = "blocks.2.hook_mlp_out"
    with vit.hooks(bwd_hooks=[(name, lambda g, hook: grads.update({hook.name: g.clone()}))]):
        vit(ours).square().sum().backward()
    clip.encode_image(theirs).square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)

    kept = []
    keep = (name, lambda y, hook: kept.append(y))
    out = vit.run_with_hooks(images.clone().requires_grad_(), fwd_hooks=[keep])
    (expected,) = torch.autograd.grad(out.square().sum(), kept)
    assert torch.equal(grads[name], expected)
    assert left_behind(vit) == []


@pytest.mark.parametrize("stop", [0, 2, 4, -1])
def test_stop_and_start_compose(stop: int, tiny_vit: HookedViT, images: Tensor) -> None:
    with torch.no_grad():
        expected, cache = tiny_vit.run_with_cache(images)
        resid = tiny_vit(images, stop_at_layer=stop)
        if stop < 4:
            assert torch.equal(resid, cache["resid_pre", stop % 4])
        else:
            assert torch.equal(resid, cache["resid_post", 3])
        assert torch.equal(tiny_vit(resid, start_at_layer=stop), expected)


def test_start_and_stop_in_one_call(tiny_vit: HookedViT, images: Tensor) -> None:
    with torch.no_grad():
        _, cache = tiny_vit.run_with_cache(images)
        resid = tiny_vit(cache["resid_pre", 1], start_at_layer=-3, stop_at_layer=3)
        assert torch.equal(resid, cache["resid_pre", 3])


def test_clean_cache_is_deaf_to_hooks(tiny_vit: HookedViT, images: Tensor) -> None:
    names = ["blocks.3.hook_mlp_out", "blocks.0.ln2.hook_out", "hook_input"]
    _, expected = tiny_vit.run_with_cache(images, names_filter=names)
    fired = []

    def spoil(x: Tensor, hook: HookPoint) -> Tensor:
        fired.append(hook.name)
        return x * 0

    with tiny_vit.hooks(fwd_hooks=[(lambda name: True, spoil)]):
        clean = tiny_vit.clean_cache(images, names)
        assert fired == []
        tiny_vit(images)
    assert len(fired) == len(tiny_vit.hook_dict)
    assert list(clean) == names
    assert all(torch.equal(clean[name], expected[name]) for name in names)


def test_hooks_fire_again_after_a_failed_clean_cache(tiny_vit: HookedViT, images: Tensor) -> None:
    with pytest.raises(InputError):
        tiny_vit.clean_cache(images, ["blocks.0.nope"])
    with pytest.raises(InputError):
        tiny_vit.clean_cache(images[..., :8], ["blocks.0.hook_mlp_out"])
    out = tiny_vit.run_with_hooks(images, fwd_hooks=[("hook_input", lambda x, hook: -x)])
    assert torch.equal(out, tiny_vit(-images))


# ---- attention patterns -------------------------------------------------------------------------


def test_attention_pattern_on_request(tiny_vit: HookedViT, images: Tensor) -> None:
    expected = tiny_vit(images)
    with pytest.raises(InputError, match="set_use_attn_pattern"):
        tiny_vit.run_with_cache(images, names_filter="blocks.1.attn.hook_pattern")
    tiny_vit.set_use_attn_pattern(True)
    out, cache = tiny_vit.run_with_cache(images)
    pattern = cache["pattern", 1]
    assert pattern.shape == (6, 2, 10, 10)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(6, 2, 10))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    tiny_vit.set_use_attn_pattern(False)
    assert "blocks.1.attn.hook_pattern" not in tiny_vit.hook_dict
    assert torch.equal(tiny_vit(images), expected)


def test_attention_pattern_equals_torchs_weights(tiny_vit: HookedViT, images: Tensor) -> None:
    tiny_vit.set_use_attn_pattern(True)
    _, cache = tiny_vit.run_with_cache(images)
    x = cache["blocks.2.ln1.hook_out"]
    _, expected = tiny_vit.blocks[2].native.attn(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(cache["pattern", 2], expected, rtol=1e-5, atol=1e-6)


def test_attention_pattern_can_be_edited(tiny_vit: HookedViT, images: Tensor) -> None:
    tiny_vit.set_use_attn_pattern(True)
    eye = ("blocks.1.attn.hook_pattern", lambda pattern, hook: torch.eye(10).expand_as(pattern))
    with tiny_vit.hooks(fwd_hooks=[eye]):
        _, cache = tiny_vit.run_with_cache(images)
    attn = tiny_vit.blocks[1].native.attn
    value = nn.functional.linear(
        cache["blocks.1.ln1.hook_out"], attn.in_proj_weight[32:], attn.in_proj_bias[32:]
    )
    torch.testing.assert_close(cache["attn_out", 1], attn.out_proj(value), rtol=1e-5, atol=1e-5)


# ---- copies -------------------------------------------------------------------------------------


def pickled(vit: HookedViT) -> HookedViT:
    return pickle.loads(pickle.dumps(vit))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled])
def test_copies_are_independent(
    make_copy: Callable[[HookedViT], HookedViT], tiny_vit: HookedViT, images: Tensor
) -> None:
    twin = make_copy(tiny_vit)
    expected = tiny_vit(images)
    zero = [("blocks.1.hook_mlp_out", lambda y, hook: y * 0)]
    for hooked_one, other in ((twin, tiny_vit), (tiny_vit, twin)):
        assert torch.equal(other(images), expected)
        with hooked_one.hooks(fwd_hooks=zero):
            assert torch.equal(other(images), expected)
            assert not torch.equal(hooked_one(images), expected)
            clean = hooked_one.clean_cache(images, ["blocks.1.hook_mlp_out"])
            assert clean["blocks.1.hook_mlp_out"].abs().max() > 0
    twin.blocks[0].mlp.c_fc.weight.data.zero_()
    assert not torch.equal(twin(images), expected)
    assert torch.equal(tiny_vit(images), expected)


# ---- text, geometry, identity -------------------------------------------------------------------


def test_text_tower_and_logit_scale() -> None:
    clip, vit = plain_and_hooked()
    tokens = torch.randint(1, 64, (3, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(vit.encode_text(tokens), clip.encode_text(tokens))
    assert torch.equal(vit.logit_scale, clip.logit_scale.exp())


def test_digits_brings_tokenizer_and_preprocess(digits_vit: HookedViT) -> None:
    tokens = digits_vit.tokenizer(["a photo of a three."])
    assert tokens.shape == (1, 16)
    assert digits_vit.encode_text(tokens).shape == (1, digits_vit.cfg.d_embed)
    pixels = digits_vit.preprocess(Image.new("RGB", (30, 20), (255, 255, 255)))
    assert torch.equal(pixels, torch.ones(3, 8, 8))
    assert digits_vit(pixels[None]).shape == (1, 64)


def test_geometry_of_digits(digits_vit: HookedViT) -> None:
    cfg = digits_vit.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_embed) == (8, 64, 4, 64)
    assert (cfg.image_size, cfg.patch_grid, cfg.n_tokens) == ((8, 8), (4, 4), 17)
    assert (cfg.rows, cfg.pools_cls) == (TokenRows(True, 0, (4, 4)), True)
    assert (cfg.activation, cfg.model, cfg.pretrained) == ("QuickGELU", "digits", None)


def test_geometry_of_oblong_images() -> None:
    vit = HookedViT(tiny_clip(image_size=(8, 12)))
    assert (vit.cfg.image_size, vit.cfg.patch_grid, vit.cfg.n_tokens) == ((8, 12), (2, 3), 7)
    assert vit(torch.zeros(1, 3, 8, 12)).shape == (1, 12)
    with pytest.raises(InputError):
        vit(torch.zeros(1, 3, 12, 8))


def test_token_rows_follow_the_patch_grid(tiny_vit: HookedViT) -> None:
    plain = torch.zeros(1, 3, 12, 12)
    marked = plain.clone()
    marked[:, :, 4:8, 8:12] = 1  # patch (1, 2)
    changed = (tiny_vit(marked, stop_at_layer=0) - tiny_vit(plain, stop_at_layer=0)).abs().sum(-1)
    assert changed[0].nonzero().flatten().tolist() == [1 + 1 * 3 + 2]


@pytest.mark.parametrize(
    ("variant", "pools_cls"), [("plain", True), ("avg_pool", False), ("attn_pool", False)]
)
def test_pools_cls(variant: str, pools_cls: bool, images: Tensor) -> None:
    vit = HookedViT(tiny_clip(**VARIANTS[variant]))
    resid = vit(images, stop_at_layer=4)
    patches_gone = resid.clone()
    patches_gone[:, 1:] = 0
    unmoved = torch.equal(vit(patches_gone, start_at_layer=4), vit(resid, start_at_layer=4))
    assert (vit.cfg.pools_cls, unmoved) == (pools_cls, pools_cls)


@pytest.mark.parametrize("variant", VARIANTS)
def test_head_is_what_follows_the_last_block(variant: str, images: Tensor) -> None:
    clip, vit = plain_and_hooked(**VARIANTS[variant])
    resid = vit(images, stop_at_layer=4)
    assert torch.equal(vit.head(resid), clip.encode_image(images))
    if vit.cfg.pools_cls:
        torch.testing.assert_close(vit.head(resid[:, :1]), vit(images), rtol=1e-6, atol=1e-6)


def test_identity_follows_the_weights() -> None:
    first, same, other = (HookedViT(tiny_clip(seed=seed)) for seed in (0, 0, 1))
    identity = first.identity()
    assert identity == same.identity()
    assert identity.weights_sha256 != other.identity().weights_sha256
    assert (identity.activation, identity.hook_in, identity.hook_out) == (
        "QuickGELU",
        "blocks.{l}.ln2.hook_out",
        "blocks.{l}.hook_mlp_out",
    )
    same.blocks[3].mlp.c_proj.bias.data[0] += 1e-3
    assert identity.weights_sha256 != same.identity().weights_sha256
    same.blocks[3].mlp.c_proj.bias.data.copy_(first.blocks[3].mlp.c_proj.bias)
    assert identity == same.identity()
    same.model.text_projection.data += 1
    assert identity == same.identity()


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(3, 12, 12), (2, 1, 12, 12), (2, 3, 12, 8), (2, 3, 24, 24), (2, 10, 16)]
)
def test_wrong_image_shapes_are_refused(
    shape: tuple[int, ...], tiny_vit: HookedViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for run in (tiny_vit, tiny_vit.encode_image, tiny_vit.run_with_cache):
        with pytest.raises(InputError, match=r"expected \(batch, 3, 12, 12\)"):
            run(torch.zeros(shape))


def test_images_of_whole_numbers_are_refused(
    tiny_vit: HookedViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match="uint8"):
        tiny_vit(torch.zeros(2, 3, 12, 12, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(2, 3, 12, 12), (2, 9, 16), (2, 10, 8)])
def test_wrong_streams_are_refused(shape: tuple[int, ...], tiny_vit: HookedViT) -> None:
    with pytest.raises(InputError, match="expected"):
        tiny_vit(torch.zeros(shape), start_at_layer=1)


def test_a_hooked_vit_is_refused(tiny_vit: HookedViT) -> None:
    with pytest.raises(InputError, match="is a HookedViT already"):
        HookedViT(tiny_vit)


def test_a_model_may_be_hooked_again(tiny_vit: HookedViT, images: Tensor) -> None:
    twice, name = HookedViT(tiny_vit.model), "blocks.1.hook_mlp_out"
    expected = tiny_vit(images)
    with tiny_vit.hooks(fwd_hooks=[(name, lambda y, hook: y * 0)]):
        assert torch.equal(twice(images), expected)
        assert not torch.equal(tiny_vit(images), expected)


def test_the_models_own_forward_does_not_pass_by_hooks(tiny_vit: HookedViT, images: Tensor) -> None:
    expected, clip = tiny_vit(images), tiny_vit.model
    assert torch.equal(clip.encode_image(images), expected)
    edit = ("blocks.1.hook_mlp_out", lambda y, hook: y * 0)
    with tiny_vit.hooks(fwd_hooks=[edit]), pytest.raises(InputError, match=r"blocks\.1\.hook_mlp"):
        clip.encode_image(images)
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=2), pytest.raises(InputError):
        clip.encode_image(images)
    assert torch.equal(clip.encode_image(images), expected)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda clip: clip.visual])
def test_what_wraps_the_tower_does_not_matter(
    wrap: Callable[[nn.Module], nn.Module], tiny_vit: HookedViT, images: Tensor
) -> None:
    vit = HookedViT(wrap(tiny_clip()))
    assert torch.equal(vit(images), tiny_vit(images))
    assert vit.identity() == tiny_vit.identity()


@pytest.mark.parametrize(
    "pooling", [{"pool_type": "none"}, {"attentional_pool": "cascade", "attn_pooler_heads": 2}]
)
def test_an_embedding_a_token_is_refused(pooling: dict[str, object]) -> None:
    with pytest.raises(InputError, match="an embedding for every token"):
        HookedViT(tiny_clip(**pooling))


def test_a_tower_without_texts_says_so(tiny_vit: HookedViT) -> None:
    vit = HookedViT(tiny_clip().visual)
    with pytest.raises(InputError, match="no text tower"):
        vit.encode_text(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(InputError, match="no text tower"):
        _ = vit.logit_scale


def test_other_vision_towers_are_refused() -> None:
    clip = tiny_clip(layers=[1, 1, 1, 1], width=8, image_size=32)
    with pytest.raises(InputError, match="ModifiedResNet"):
        HookedViT(clip)


# ---- loading ------------------------------------------------------------------------------------


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small architecture that open_clip knows for the length of a test."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / "tiny-test-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-test-clip.json")
    return "tiny-test-clip"


def write_local_dir(folder: Path, clip: nn.Module) -> str:
    folder.mkdir()
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def test_local_dir_loads_exactly(tmp_path: Path, images: Tensor) -> None:
    clip = tiny_clip(seed=3).requires_grad_(False)
    name = write_local_dir(tmp_path / "teacher", clip)
    vit = HookedViT.from_open_clip(name)
    assert torch.equal(vit(images), clip.encode_image(images))
    white = vit.preprocess(Image.new("RGB", (12, 12), (255, 255, 255)))
    assert torch.equal(white, torch.full((3, 12, 12), 2.0))
    assert vit.cfg.model == name
    assert vit.identity().weights_sha256 == HookedViT(clip).identity().weights_sha256


@pytest.mark.parametrize("form", ["pt", "state_dict.pt", "safetensors"])
def test_weight_files_load_exactly(
    form: str, registered: str, tmp_path: Path, images: Tensor
) -> None:
    clip = tiny_clip(seed=4).requires_grad_(False)
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(clip.state_dict(), path)
    else:
        torch.save({"state_dict": clip.state_dict()} if "dict" in form else clip.state_dict(), path)
    vit = HookedViT.from_open_clip(registered, pretrained=str(path))
    assert torch.equal(vit(images), clip.encode_image(images))
    assert (vit.cfg.model, vit.cfg.pretrained) == (registered, str(path))


def test_fp16_weights_load_as_fp32(registered: str, tmp_path: Path, images: Tensor) -> None:
    clip = tiny_clip(seed=4).requires_grad_(False).half()
    save_file(clip.state_dict(), tmp_path / "half.safetensors")
    vit = HookedViT.from_open_clip(registered, pretrained=str(tmp_path / "half.safetensors"))
    assert {parameter.dtype for parameter in vit.parameters()} == {torch.float32}
    assert torch.equal(vit(images), clip.float().encode_image(images))


@pytest.mark.parametrize("tag", ["openai", "OpenAI", "metaclip_400m"])
def test_gelu_with_quickgelu_weights_is_refused_before_any_download(
    tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: object, **kwargs: object) -> None:
        pytest.fail("began to load")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", download)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    with pytest.raises(InputError, match="ViT-B-32-quickgelu"):
        HookedViT.from_open_clip("ViT-B-32", pretrained=tag)


def is_one_line(error: InputError) -> bool:
    text = str(error)
    return 20 < len(text) < 500 and "\n" not in text


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [
        ("ViT-Z-99", None),
        ("ViT-B-32", "no-such-tag"),
        ("ViT-B-32", "/no/such/weights.pt"),
        ("local-dir:/no/such/folder", None),
    ],
)
def test_unknown_names_are_refused(model: str, pretrained: str | None) -> None:
    with pytest.raises(InputError) as caught:
        HookedViT.from_open_clip(model, pretrained)
    assert model in str(caught.value)
    assert is_one_line(caught.value)


class Arbitrary:
    """An object that a safe unpickler must refuse."""


FAULTS = ["truncated.pt", "truncated.safetensors", "text.pt", "text.safetensors", "empty.pt"]


@pytest.mark.parametrize("fault", [*FAULTS, "object.pt"])
def test_unreadable_weights_are_refused(fault: str, registered: str, tmp_path: Path) -> None:
    path = tmp_path / fault
    if fault == "object.pt":
        torch.save({"epoch": 1, "args": Arbitrary()}, path)
    elif fault.startswith("truncated"):
        state = tiny_clip().state_dict()
        (save_file if fault.endswith("safetensors") else torch.save)(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(b"not weights at all" * (0 if fault == "empty.pt" else 50))
    with pytest.raises(InputError) as caught:
        HookedViT.from_open_clip(registered, pretrained=str(path))
    assert str(path) in str(caught.value)
    assert is_one_line(caught.value)


@pytest.mark.parametrize("fault", ["missing tensor", "extra tensor", "other width"])
def test_weights_of_another_model_are_refused(fault: str, registered: str, tmp_path: Path) -> None:
    state = tiny_clip(**({"width": 32} if fault == "other width" else {})).state_dict()
    if fault == "missing tensor":
        del state["visual.ln_post.weight"]
    elif fault == "extra tensor":
        state["visual.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InputError) as caught:
        HookedViT.from_open_clip(registered, pretrained=str(tmp_path / "weights.pt"))
    assert is_one_line(caught.value)


@pytest.mark.parametrize("config", ["{", "{}", '{"model_cfg": {"embed_dim": 4}}', None])
def test_broken_local_dirs_are_refused(config: str | None, tmp_path: Path) -> None:
    name = write_local_dir(tmp_path / "teacher", tiny_clip())
    path = tmp_path / "teacher" / "open_clip_config.json"
    path.unlink()
    if config is not None:
        path.write_text(config)
    with pytest.raises(InputError) as caught:
        HookedViT.from_open_clip(name)
    assert is_one_line(caught.value)


def test_config_is_frozen(tiny_vit: HookedViT) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_vit.cfg.n_layers = 3


# ---- what people do with a model ----------------------------------------------------------------


def wrapped(clip: nn.Module) -> nn.Module:
    """As DDP wraps a model, without its processes."""
    outer = nn.Module()
    outer.module = clip
    return outer


@pytest.mark.parametrize("again", [lambda clip: clip, wrapped, torch.compile])
def test_a_model_is_wrapped_a_second_time(
    again: Callable[[nn.Module], nn.Module], images: Tensor
) -> None:
    clip = tiny_clip()
    first = HookedViT(clip)
    expected = first(images)
    second = HookedViT(again(clip))
    assert torch.equal(second(images), expected)
    assert second.identity() == first.identity()
    assert second.state_dict().keys() == first.state_dict().keys()
    edit = [("blocks.1.hook_mlp_out", lambda y, hook: y * 0)]
    assert torch.equal(
        second.run_with_hooks(images, fwd_hooks=edit), first.run_with_hooks(images, fwd_hooks=edit)
    )


def test_a_coca_is_embedded_as_it_says_without_normalising() -> None:
    text = {**TINY["text_cfg"], "width": 12, "embed_cls": True, "output_tokens": True}
    vision = {**TINY["vision_cfg"], "output_tokens": True}
    multimodal = {**text, "context_length": 7, "attn_pooler_heads": 1}
    coca = open_clip.CoCa(12, multimodal, text, vision).eval().requires_grad_(False)
    images = torch.randn(2, 3, 12, 12)
    embeddings = HookedViT(coca)(images)
    assert torch.equal(embeddings, coca.encode_image(images, normalize=False))
    assert torch.equal(nn.functional.normalize(embeddings, dim=-1), coca.encode_image(images))
