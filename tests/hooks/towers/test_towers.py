"""Every family of ViTs gives the same hook points, bit-exact to the model's own forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from builders import TINY, random_clt, tiny_clip, tiny_timm, tiny_timm_clip, tiny_transformers
from torch import Tensor, nn

from vit_clt.hooks import HookedViT, replace_mlps, token_rows
from vit_clt.hooks.rows import TokenRows

L, GRID = 3, (4, 4)
POINTS = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]


def size(**vision: object) -> nn.Module:
    """A tiny open_clip model of the same size as the timm ones."""
    clip = tiny_clip(image_size=16, layers=L, width=16, **vision)
    return clip.requires_grad_(False)


def coca() -> nn.Module:
    """A tiny CoCa, whose visual tower gives tokens beside the embedding."""
    text = {**TINY["text_cfg"], "embed_cls": True, "output_tokens": True}
    vision = {**TINY["vision_cfg"], "image_size": 16, "layers": L, "width": 16}
    vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    model = open_clip.CoCa(12, {**text, "mlp_ratio": 2, "heads": 2, "width": 12}, text, vision)
    return model.eval().requires_grad_(False)


# by name: the model, and the rows it must have
FAMILIES: dict[str, tuple[Callable[[], nn.Module], TokenRows]] = {
    "open_clip": (lambda: size(ls_init_value=0.5), TokenRows(True, 0, GRID)),
    "open_clip with norms in attention and MLP": (
        lambda: size(block_type="custom", qk_norm=True, scale_fc=True, scale_attn=True),
        TokenRows(True, 0, GRID),
    ),
    "CoCa": (coca, TokenRows(True, 0, GRID)),
    "SigLIP": (
        lambda: tiny_timm_clip("vit_base_patch16_siglip_224", "map", "none"),
        TokenRows(False, 0, GRID),
    ),
    "EVA-02-CLIP": (
        lambda: tiny_timm_clip("eva02_base_patch16_clip_224", "token", None),
        TokenRows(True, 0, GRID),
    ),
    "timm CLIP with a projection": (
        lambda: tiny_timm_clip("vit_medium_patch16_gap_256", "", "linear"),
        TokenRows(False, 0, GRID),
    ),
    "Perception Encoder": (
        lambda: tiny_timm_clip("vit_pe_core_tiny_patch16_384", "map", None),
        TokenRows(True, 0, GRID),
    ),
    "ViT": (lambda: tiny_timm("vit_tiny_patch16_224"), TokenRows(True, 0, GRID)),
    "DeiT": (lambda: tiny_timm("deit_tiny_distilled_patch16_224"), TokenRows(True, 1, GRID)),
    "DeiT III": (lambda: tiny_timm("deit3_small_patch16_224"), TokenRows(True, 0, GRID)),
    "DINOv2": (lambda: tiny_timm("vit_small_patch14_dinov2"), TokenRows(True, 0, GRID)),
    "DINOv2 with registers": (
        lambda: tiny_timm("vit_small_patch14_reg4_dinov2"),
        TokenRows(True, 4, GRID),
    ),
    "DINOv2 with SwiGLU": (
        lambda: tiny_timm("vit_giant_patch14_dinov2", embed_dim=24),
        TokenRows(True, 0, GRID),
    ),
    "registers without a class token": (
        lambda: tiny_timm("vit_wee_patch16_reg1_gap_256"),
        TokenRows(False, 1, GRID),
    ),
    "norms of queries and keys": (
        lambda: tiny_timm("vit_intern300m_patch14_448"),
        TokenRows(True, 0, GRID),
    ),
    "DINOv3": (lambda: tiny_timm("vit_small_patch16_dinov3"), TokenRows(True, 4, GRID)),
    "rotary positions of each layer": (
        lambda: tiny_timm("vit_small_patch16_rope_mixed_224"),
        TokenRows(True, 0, GRID),
    ),
    "EVA": (lambda: tiny_timm("eva_giant_patch14_224"), TokenRows(True, 0, GRID)),
    "relative positions": (
        lambda: tiny_timm("vit_relpos_small_patch16_224"),
        TokenRows(False, 0, GRID),
    ),
    "relative positions that layers share": (
        lambda: tiny_timm("vit_srelpos_small_patch16_224"),
        TokenRows(False, 0, GRID),
    ),
    "BEiT": (lambda: tiny_timm("beit_base_patch16_224"), TokenRows(True, 0, GRID)),
}
# classes of transformers: options of the vision tower, and the rows
TRANSFORMERS: dict[str, tuple[dict[str, object], TokenRows]] = {
    "CLIPModel": ({}, TokenRows(True, 0, GRID)),
    "CLIPVisionModel": ({}, TokenRows(True, 0, GRID)),
    "CLIPVisionModelWithProjection": ({}, TokenRows(True, 0, GRID)),
    "CLIPForImageClassification": ({}, TokenRows(True, 0, GRID)),
    "SiglipModel": ({}, TokenRows(False, 0, GRID)),
    "SiglipVisionModel": ({}, TokenRows(False, 0, GRID)),
    "SiglipForImageClassification": ({}, TokenRows(False, 0, GRID)),
    "ViTModel": ({}, TokenRows(True, 0, GRID)),
    "ViTForImageClassification": ({}, TokenRows(True, 0, GRID)),
    "DeiTModel": ({}, TokenRows(True, 1, GRID)),
    "DeiTForImageClassification": ({}, TokenRows(True, 1, GRID)),
    "DeiTForImageClassificationWithTeacher": ({}, TokenRows(True, 1, GRID)),
    "Dinov2Model": ({"use_swiglu_ffn": True}, TokenRows(True, 0, GRID)),
    "Dinov2ForImageClassification": ({}, TokenRows(True, 0, GRID)),
    "Dinov2WithRegistersModel": ({"num_register_tokens": 3}, TokenRows(True, 3, GRID)),
    "Dinov2WithRegistersForImageClassification": ({}, TokenRows(True, 4, GRID)),
    "DINOv3ViTModel": (
        {"num_register_tokens": 4, "use_gated_mlp": True},
        TokenRows(True, 4, GRID),
    ),
}
for name, (options, rows) in TRANSFORMERS.items():
    FAMILIES[name] = partial(tiny_transformers, name, **options), rows
FAMILIES["transformers by eager attention"] = (
    partial(tiny_transformers, "Dinov2Model", attn_implementation="eager"),
    TokenRows(True, 0, GRID),
)
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plain(family: str) -> nn.Module:
    """The model itself, never wrapped."""
    return FAMILIES[family][0]()


@pytest.fixture
def vit(plain: nn.Module) -> HookedViT:
    return HookedViT(copy.deepcopy(plain))


def own(model: Any, images: Tensor) -> Tensor:
    """The embeddings by the model's own forward."""
    if is_of_transformers(model):
        return own_of_transformers(model, images)
    if hasattr(model, "encode_image"):
        return model.encode_image(images, normalize=False)  # CoCa normalises by default
    return model.forward_head(model.forward_features(images), pre_logits=True)


def is_of_transformers(model: nn.Module) -> bool:
    return type(model).__module__.startswith("transformers.")


def own_of_transformers(model: Any, images: Tensor) -> Tensor:
    """What the model pools, or what its classifiers read."""
    names = ("classifier", "cls_classifier", "distillation_classifier")
    heads = [getattr(model, name) for name in names if hasattr(model, name)]
    read: list[Tensor] = []
    handles = [head.register_forward_pre_hook(lambda m, a: read.append(a[0])) for head in heads]
    forward = getattr(model, "get_image_features", model)
    out = forward(pixel_values=images)
    for handle in handles:
        handle.remove()
    if read:
        return torch.cat(read, dim=-1)
    return out.image_embeds if "image_embeds" in out else out.pooler_output


def own_blocks(model: Any) -> Any:
    if is_of_transformers(model):
        towers = (part for part in model.modules() if hasattr(part, "embeddings"))
        vision = getattr(model, "vision_model", None) or next(towers)
        return next(part for part in vision.modules() if isinstance(part, nn.ModuleList))
    visual = getattr(model, "visual", model)
    if hasattr(visual, "transformer"):
        return visual.transformer.resblocks
    return getattr(visual, "trunk", visual).blocks


@each_family
@pytest.mark.parametrize("grad", [False, True])
def test_equals_the_models_own_forward_bit_for_bit(
    family: str, grad: bool, plain: nn.Module, vit: HookedViT, images: Tensor
) -> None:
    with torch.set_grad_enabled(grad):
        ours, theirs = (images.clone().requires_grad_(grad) for _ in range(2))
        expected = own(plain, theirs)
        cached, _ = vit.run_with_cache(ours)
        found = vit(ours)
        assert torch.equal(found, expected)
        assert torch.equal(cached, expected)
        assert torch.equal(own(vit.model, theirs), expected)
        assert found.shape == (3, vit.cfg.d_embed)
    if grad:
        for out in (found, expected):
            out.square().sum().backward()
        assert torch.equal(ours.grad, theirs.grad)


@each_family
def test_state_dict_is_the_models_own(family: str, plain: nn.Module, vit: HookedViT) -> None:
    expected, found = plain.state_dict(), vit.state_dict()
    assert list(found) == list(expected)
    # CoCa leaves its text projection uninitialised, which may be NaN
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert vit.identity() == HookedViT(plain).identity()


@each_family
def test_hook_points_hold_what_the_blocks_compute(
    family: str, plain: nn.Module, vit: HookedViT, images: Tensor
) -> None:
    expected: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, out: expected.update({f"{name} in": args[0], name: out})

    for l, block in enumerate(own_blocks(plain)):
        block.register_forward_hook(note(f"block {l}"))
        block.mlp.register_forward_hook(note(f"mlp {l}"))
    own(plain, images)
    _, cache = vit.run_with_cache(images)
    assert list(vit.hook_dict)[1:9] == [
        *("blocks.0.hook_resid_pre", "blocks.0.ln1.hook_out", "blocks.0.hook_attn_out"),
        *("blocks.0.hook_resid_mid", "blocks.0.ln2.hook_out", "blocks.0.mlp.hook_in"),
        *("blocks.0.hook_mlp_out", "blocks.0.hook_resid_post"),
    ]
    for l in range(L):
        assert torch.equal(cache["resid_pre", l], expected[f"block {l} in"])
        assert torch.equal(cache[f"blocks.{l}.ln2.hook_out"], expected[f"mlp {l} in"])
        assert torch.equal(cache[f"blocks.{l}.mlp.hook_in"], expected[f"mlp {l} in"])
        assert torch.equal(cache["mlp_out", l], expected[f"mlp {l}"])
        assert torch.equal(cache["resid_post", l], expected[f"block {l}"])
    shape = (3, vit.cfg.n_tokens, vit.cfg.d_model)
    assert all(cache[f"blocks.1.hook_{point}"].shape == shape for point in POINTS)


@each_family
def test_rows_are_class_token_registers_and_patches(
    family: str, vit: HookedViT, images: Tensor
) -> None:
    rows = vit.cfg.rows
    assert rows == FAMILIES[family][1]
    if "DeiT" not in family:  # DeiT's distillation token
        names = [name.rpartition(".")[2] for name, _ in vit.tower.visual.named_parameters()]
        assert (rows.n_registers > 0) == bool({"reg_token", "register_tokens"} & {*names})
    marked = images.clone()
    marked[:, :, 4:8, 8:12] += 1  # patch (1, 2)
    before, after = (vit(x, stop_at_layer=0) for x in (images, marked))
    changed = (before - after).abs().sum((0, 2)).nonzero().flatten().tolist()
    assert changed == [rows.patch(1, 2)]
    prefix = before[:, : rows.first_patch]
    assert torch.equal(prefix, prefix[:1].expand_as(prefix))


@each_family
def test_pools_cls_is_true_if_no_other_row_reaches_the_embedding(
    family: str, vit: HookedViT, images: Tensor
) -> None:
    resid = vit(images, stop_at_layer=L)
    gone = resid.clone()
    gone[:, 1:] = 0
    unmoved = torch.equal(vit.head(gone), vit.head(resid))
    assert unmoved == vit.cfg.pools_cls
    if vit.cfg.pools_cls:
        torch.testing.assert_close(vit.head(resid[:, :1]), vit.head(resid))
    assert torch.equal(vit.head(resid), vit(images))


@each_family
def test_an_edit_of_x_reaches_the_mlp_and_the_clt(
    family: str, plain: nn.Module, vit: HookedViT, images: Tensor
) -> None:
    shift, seen = torch.linspace(-1, 1, vit.cfg.d_model), []
    edit = ("blocks.1.ln2.hook_out", lambda x, hook: x + shift)
    mlp = own_blocks(plain)[1].mlp
    mlp.register_forward_pre_hook(lambda module, args: (args[0] + shift,))
    assert torch.equal(vit.run_with_hooks(images, fwd_hooks=[edit]), own(plain, images))
    clt = random_clt(vit)
    _, cache = vit.run_with_cache(images)
    with replace_mlps(vit, clt, layers=[1]), vit.hooks(fwd_hooks=[edit]):
        see = ("clt.1.hook_codes", lambda codes, hook: seen.append(codes.clone()))
        vit.run_with_hooks(images, fwd_hooks=[see])
    x = cache["blocks.1.ln2.hook_out"] + shift
    torch.testing.assert_close(seen[0], clt.encode(x, layer=1).to_dense())


@each_family
def test_replacement_equals_torch_hooks_on_the_model_itself(
    family: str, plain: nn.Module, vit: HookedViT, images: Tensor
) -> None:
    for tokens in vit.cfg.rows.kinds:
        model, clt, codes = copy.deepcopy(plain), random_clt(vit), {}
        rows = token_rows(tokens, vit.cfg.rows)

        def write(module: nn.Module, args: Any, out: Tensor, l: int) -> Tensor:
            codes[l] = clt.encode(args[0], layer=l)  # noqa: B023
            if l == 0:
                return out
            out = out.clone()
            out[:, rows] = clt.decode(codes, target=l)[:, rows]  # noqa: B023
            return out

        for l, block in enumerate(own_blocks(model)):
            block.mlp.register_forward_hook(
                lambda module, args, out, l=l, write=write: write(module, args, out, l)
            )
        with replace_mlps(vit, clt, layers=[1, 2], tokens=tokens):
            found = vit(images)
        torch.testing.assert_close(found, own(model, images), rtol=1e-4, atol=1e-5)
        assert not torch.equal(found, vit(images))


@each_family
def test_the_attention_pattern_can_be_read_and_edited(
    family: str, vit: HookedViT, images: Tensor
) -> None:
    _, clean = vit.run_with_cache(images)
    vit.set_use_attn_pattern(True)
    _, cache = vit.run_with_cache(images)
    n = vit.cfg.n_tokens
    assert cache["pattern", 1].shape == (3, vit.cfg.n_heads, n, n)
    torch.testing.assert_close(cache["pattern", 1].sum(-1), torch.ones(3, vit.cfg.n_heads, n))
    torch.testing.assert_close(cache["attn_out", 1], clean["attn_out", 1], rtol=1e-4, atol=1e-5)
    uniform = ("blocks.1.attn.hook_pattern", lambda pattern, hook: torch.full_like(pattern, 1 / n))
    with vit.hooks(fwd_hooks=[uniform]):
        _, edited = vit.run_with_cache(images)
    spread = edited["attn_out", 1].std(1).max()
    assert spread < 1e-5 < cache["attn_out", 1].std(1).max()


@each_family
def test_copies_are_independent(family: str, vit: HookedViT, images: Tensor) -> None:
    twin, expected = copy.deepcopy(vit), vit(images)
    zero = [("blocks.1.hook_mlp_out", lambda y, hook: y * 0)]
    with twin.hooks(fwd_hooks=zero):
        assert torch.equal(vit(images), expected)
        assert not torch.equal(twin(images), expected)
    for parameter in twin.blocks[0].mlp.parameters():
        parameter.zero_()
    assert torch.equal(vit(images), expected)
    assert not torch.equal(twin(images), expected)


@each_family
def test_a_classifier_reads_the_embeddings(
    family: str, plain: nn.Module, vit: HookedViT, images: Tensor
) -> None:
    if is_of_transformers(plain):
        assert (vit.tower.classifier is not None) == ("Classification" in family)
        if vit.tower.classifier is not None:
            assert torch.equal(vit.tower.classifier(vit(images)), plain(images).logits)
        return
    is_timm = not hasattr(plain, "visual")
    assert (vit.tower.classifier is not None) == (is_timm and family != "DeiT")
    if vit.tower.classifier is not None:
        assert torch.equal(vit.tower.classifier(vit(images)), plain(images))
        bare = copy.deepcopy(plain)
        bare.reset_classifier(0)
        assert HookedViT(bare).identity() == vit.identity()
