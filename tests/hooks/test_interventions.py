"""Rows of the ViT's own MLP and attention outputs, overwritten."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from builders import random_clt, tiny_clip
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.errors import InputError
from vit_clt.hooks import (
    HookedViT,
    overwrite_attn_hooks,
    overwrite_mlp_hooks,
    replacement_hooks,
    token_rows,
)

TOKENS = ["cls", "patch", "all"]


def zeros(y: Tensor) -> Tensor | None:
    return None


def mean(y: Tensor) -> Tensor:
    return y.mean(0)


def others(y: Tensor) -> Tensor:
    return y.roll(1, 0)


def doubles(y: Tensor) -> Tensor:
    return y.double().mean(0)


@pytest.mark.parametrize("fill", [zeros, mean, others, doubles])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layers", [[0], [1, 3], range(4)], ids=str)
def test_the_chosen_rows_and_no_others(
    layers: list[int],
    tokens: str,
    fill: Callable[[Tensor], Tensor | None],
    images: Tensor,
) -> None:
    vit = HookedViT(tiny_clip(ls_init_value=0.5))
    rows = token_rows(tokens)
    _, clean = vit.run_with_cache(images)
    filled = {l: fill(clean["mlp_out", l][:, rows]) for l in layers}
    values = None if fill is zeros else filled
    with vit.hooks(fwd_hooks=overwrite_mlp_hooks(layers, tokens, values)):
        out, cache = vit.run_with_cache(images)

    for l, block in enumerate(vit.blocks):
        expected = block.mlp(cache[f"blocks.{l}.ln2.hook_out"])
        if l in layers:
            expected[:, rows] = 0 if filled[l] is None else filled[l].float()
        assert torch.equal(cache["mlp_out", l], expected)
        resid_post = cache["resid_mid", l] + block.native.ls_2(expected)
        assert torch.equal(cache["resid_post", l], resid_post)
    assert torch.equal(out, vit(cache["resid_post", 3], start_at_layer=4))
    assert not torch.equal(out, vit(images))


@pytest.mark.parametrize("fill", [zeros, mean, others])
@pytest.mark.parametrize("tokens", TOKENS)
def test_attention_outputs_alike(
    tokens: str, fill: Callable[[Tensor], Tensor | None], images: Tensor
) -> None:
    vit, rows, layers = HookedViT(tiny_clip(ls_init_value=0.5)), token_rows(tokens), [0, 2]
    _, clean = vit.run_with_cache(images)
    filled = {l: fill(clean["attn_out", l][:, rows]) for l in layers}
    hooks = overwrite_attn_hooks(layers, tokens, None if fill is zeros else filled)
    with vit.hooks(fwd_hooks=hooks):
        _, cache = vit.run_with_cache(images)
    for l, block in enumerate(vit.blocks):
        expected = block.attention(cache[f"blocks.{l}.ln1.hook_out"])
        if l in layers:
            expected[:, rows] = 0 if filled[l] is None else filled[l]
        assert torch.equal(cache["attn_out", l], expected)
        resid_mid = cache["resid_pre", l] + block.native.ls_1(expected)
        assert torch.equal(cache["resid_mid", l], resid_mid)
        assert torch.equal(cache["mlp_out", l], block.mlp(block.ln2(resid_mid)))


def test_zeros_are_zeros(tiny_vit: HookedViT, images: Tensor) -> None:
    with tiny_vit.hooks(fwd_hooks=overwrite_mlp_hooks([2], "patch")):
        _, cache = tiny_vit.run_with_cache(images)
    assert torch.equal(cache["resid_post", 2][:, 1:], cache["resid_mid", 2][:, 1:])
    assert not torch.equal(cache["resid_post", 2][:, 0], cache["resid_mid", 2][:, 0])


@pytest.mark.parametrize("tokens", TOKENS)
def test_own_values_change_nothing(tokens: str, tiny_vit: HookedViT, images: Tensor) -> None:
    expected, clean = tiny_vit.run_with_cache(images)
    values = {l: clean["mlp_out", l][:, token_rows(tokens)] for l in range(4)}
    hooks = overwrite_mlp_hooks(range(4), tokens, values)
    assert torch.equal(tiny_vit.run_with_hooks(images, fwd_hooks=hooks), expected)


def test_the_mlps_own_tensor_is_left_alone(tiny_vit: HookedViT, images: Tensor) -> None:
    kept = []
    keep = ("blocks.1.hook_mlp_out", lambda y, hook: kept.extend((y, y.clone())))
    tiny_vit.run_with_hooks(images, fwd_hooks=[keep, *overwrite_mlp_hooks([1], "all")])
    assert torch.equal(kept[0], kept[1])
    assert kept[0].abs().max() > 0


def test_lists_compose(tiny_vit: HookedViT, images: Tensor) -> None:
    cls, patch = overwrite_mlp_hooks([1, 2], "cls"), overwrite_mlp_hooks([1, 2], "patch")
    together = tiny_vit.run_with_hooks(images, fwd_hooks=[*cls, *patch])
    assert torch.equal(
        together, tiny_vit.run_with_hooks(images, fwd_hooks=overwrite_mlp_hooks([1, 2], "all"))
    )
    values = {1: torch.ones(1, 16)}
    later = overwrite_mlp_hooks([1], "cls", values)
    with tiny_vit.hooks(fwd_hooks=[*cls, *later]):
        _, cache = tiny_vit.run_with_cache(images)
    assert torch.equal(cache["mlp_out", 1][:, 0], torch.ones(6, 16))
    assert torch.equal(cache["mlp_out", 2][:, 0], torch.zeros(6, 16))


def test_a_later_edit_sees_the_overwritten_rows(tiny_vit: HookedViT, images: Tensor) -> None:
    seen = []

    def look(y: Tensor, hook: HookPoint) -> None:
        seen.append(y)

    hooks = [*overwrite_mlp_hooks([3], "cls"), ("blocks.3.hook_mlp_out", look)]
    tiny_vit.run_with_hooks(images, fwd_hooks=hooks)
    assert seen[0][:, 0].abs().max() == 0
    assert seen[0][:, 1:].abs().max() > 0


def test_composes_with_a_replacement(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    hooks = [*overwrite_mlp_hooks([0], "patch"), *replacement_hooks(clt, layers=[2], tokens="cls")]
    with tiny_vit.hooks(fwd_hooks=hooks):
        _, cache = tiny_vit.run_with_cache(images)
    assert cache["mlp_out", 0][:, 1:].abs().max() == 0
    codes = [clt.encode(cache[f"blocks.{s}.ln2.hook_out"], layer=s) for s in range(3)]
    expected = clt.decode(codes, target=2)
    torch.testing.assert_close(cache["mlp_out", 2][:, 0], expected[:, 0], rtol=1e-5, atol=1e-5)


def test_unknown_rows_and_layers_are_refused(
    tiny_vit: HookedViT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"blocks\.4"):
        tiny_vit.run_with_hooks(images, fwd_hooks=overwrite_mlp_hooks([4], "all"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match='tokens is "patches"'):
        overwrite_mlp_hooks([1], "patches")
