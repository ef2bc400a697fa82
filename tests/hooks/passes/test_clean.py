"""A clean pass is the model itself, and going on from it unaltered changes no bit."""

from __future__ import annotations

import pytest
import torch
from builders import tiny_clip
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, overwrite_mlp_hooks
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, RESID_MID, RESID_POST, RESID_PRE
from vit_clt.hooks.rows import rows_unread

N = 4
MODELS = [{}, {"ls_init_value": 0.4}, {"pool_type": "avg"}]
POINTS = (RESID_PRE, RESID_MID, HOOK_IN, HOOK_OUT, RESID_POST)


@pytest.fixture(params=MODELS, ids=["plain", "layer scale", "average pooling"])
def vit(request: pytest.FixtureRequest) -> HookedViT:
    return HookedViT(tiny_clip(**request.param))


def keep(*points: str) -> dict[str, range]:
    return dict.fromkeys(points, range(N))


@torch.no_grad()
def test_it_is_the_model_bit_for_bit_whatever_is_attached(vit: HookedViT, images: Tensor) -> None:
    embeddings, cache = vit.run_with_cache(images)
    with vit.hooks(fwd_hooks=overwrite_mlp_hooks(range(N), "all")):
        clean = CleanPass(vit, images, keep(*POINTS))
    assert torch.equal(clean.embeddings, embeddings)
    for point in POINTS:
        for l in range(N):
            assert torch.equal(clean.at(point, l), cache[point.format(l=l)])


@torch.no_grad()
def test_going_on_unaltered_gives_the_same_bits(vit: HookedViT, images: Tensor) -> None:
    clean = CleanPass(vit, images, keep(*POINTS))
    for l in range(N):
        for found in (
            clean.from_layer(l, clean.at(RESID_PRE, l)),
            clean.from_layer(l + 1, clean.at(RESID_POST, l)),
            clean.from_mlp(l, clean.at(HOOK_OUT, l)),
        ):
            assert torch.equal(found, clean.embeddings)


@torch.no_grad()
def test_several_versions_go_on_as_each_alone_does(vit: HookedViT, images: Tensor) -> None:
    clean = CleanPass(vit, images, keep(RESID_MID, HOOK_OUT))
    for l in range(N):
        y = clean.at(HOOK_OUT, l)
        versions = [y, torch.zeros_like(y), y.flip(0)]
        expected = torch.cat([clean.from_mlp(l, each) for each in versions])
        torch.testing.assert_close(clean.from_mlp(l, torch.cat(versions)), expected)
        by_hooks = vit.run_with_hooks(images, fwd_hooks=overwrite_mlp_hooks([l], "all"))
        torch.testing.assert_close(expected[len(images) : 2 * len(images)], by_hooks)


@torch.no_grad()
def test_it_keeps_what_was_asked_for_alone(tiny_vit: HookedViT, images: Tensor) -> None:
    stream = len(images) * tiny_vit.cfg.n_tokens * tiny_vit.cfg.d_model * 4
    clean = CleanPass(tiny_vit, images, {HOOK_IN: range(2), RESID_MID: [3], HOOK_OUT: [3]})
    assert clean.nbytes == 4 * stream
    part = clean.at_rows(slice(0, 1), {RESID_MID: [3], HOOK_OUT: [3]})
    # a copy of one row, not a view that holds them all
    assert part.at(HOOK_OUT, 3).untyped_storage().nbytes() == stream // tiny_vit.cfg.n_tokens
    assert part.nbytes == 2 * stream // tiny_vit.cfg.n_tokens
    assert clean.nbytes == 4 * stream
    # no other row of the last block is read
    assert torch.equal(part.from_mlp(3, part.at(HOOK_OUT, 3)), clean.embeddings)


@torch.no_grad()
def test_hooks_fire_from_the_layer_on_and_idle_mlps_do_not_run(
    tiny_vit: HookedViT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = CleanPass(tiny_vit, images, keep(RESID_PRE))
    ran: list[int] = []
    for l, block in enumerate(tiny_vit.blocks):
        inner = block.mlp.c_fc.forward
        monkeypatch.setattr(
            block.mlp.c_fc, "forward", lambda x, l=l, inner=inner: (ran.append(l), inner(x))[1]
        )
    hooks = overwrite_mlp_hooks([2, 3], "all")
    expected = tiny_vit.run_with_hooks(images, fwd_hooks=hooks)
    ran.clear()
    assert torch.equal(clean.from_layer(1, clean.at(RESID_PRE, 1), hooks), expected)
    assert ran == [1, 2, 3]
    ran.clear()
    assert torch.equal(clean.from_layer(1, clean.at(RESID_PRE, 1), hooks, idle=[2, 3]), expected)
    assert ran == [1]
    assert not any(point.has_hooks() for point in tiny_vit.hook_dict.values())


@pytest.mark.parametrize("layer", [1, N])
def test_a_hook_that_would_fire_in_some_passes_only_is_refused(
    tiny_vit: HookedViT, images: Tensor, layer: int
) -> None:
    clean = CleanPass(tiny_vit, images, keep(RESID_PRE, RESID_POST))
    with (
        tiny_vit.hooks(fwd_hooks=overwrite_mlp_hooks([1], "cls")),
        pytest.raises(InputError, match=r'vit has a hook at "blocks\.1\.hook_mlp_out"'),
    ):
        clean.from_layer(layer, clean.at(RESID_POST, layer - 1))


@torch.no_grad()
def test_patch_rows_are_unread_where_they_change_nothing(vit: HookedViT, images: Tensor) -> None:
    clean = CleanPass(vit, images, keep(RESID_MID, HOOK_OUT))
    for l in range(N):
        y = clean.at(HOOK_OUT, l).clone()
        y[:, 1:] += 1 + torch.arange(y.shape[-1])
        same = torch.equal(clean.from_mlp(l, y), clean.embeddings)
        assert same == rows_unread("patch", l, N, vit.cfg.pools_cls)
    assert rows_unread("patch", N - 1, N, vit.cfg.pools_cls) == vit.cfg.pools_cls
