"""Ranges on a shared prefix against whole passes through `replace_mlps` and overwriting hooks."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from assertions import close
from builders import random_clt, tiny_clip
from torch import Tensor

from vit_clt import AbsTopK, JumpReLU, ReLUTopK
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, SharedPrefix, overwrite_mlp_hooks, replace_mlps, token_rows

N = 4
TOKENS = ["cls", "patch", "all"]
SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2)]


def test_unaltered_equals_the_model_bit_for_bit(tiny_vit: HookedViT, images: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(SharedPrefix(tiny_vit, images).embeddings, tiny_vit(images))


@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
@torch.no_grad()
def test_every_range_equals_a_whole_replaced_pass(
    tiny_vit: HookedViT,
    images: Tensor,
    sparsifier,
    dtype: torch.dtype,
    backend: str,
    tokens: str,
    inputs: str,
) -> None:
    tiny_vit, images = tiny_vit.to(dtype), images.to(dtype)
    clt = random_clt(tiny_vit, sparsifier).to(dtype)
    clt.backend = backend
    plain, rows = tiny_vit(images), token_rows(tokens)
    found = list(SharedPrefix(tiny_vit, images).replaced(clt, range(N), tokens, inputs))
    assert [each.first for each in found] == list(range(N))
    for each in found:
        layers = range(each.first, N)
        with replace_mlps(tiny_vit, clt, layers=layers, tokens=tokens, inputs=inputs):
            close(each.embeddings, tiny_vit(images))
            # all codes the last layer reads, as the whole pass has them
            names = [f"clt.{s}.hook_codes" for s in range(N)]
            _, cache = tiny_vit.run_with_cache(images, names_filter=names)
        active = [cache[name][:, rows].ne(0).sum(-1).double().mean() for name in names]
        assert each.l0 == pytest.approx(float(torch.stack(active).mean()), rel=1e-6)
        reaches_output = tokens != "patch" or each.first < N - 1
        assert torch.equal(each.embeddings, plain) != reaches_output


@torch.no_grad()
def test_any_subset_gives_what_all_ranges_give(tiny_vit: HookedViT, images: Tensor) -> None:
    clt, prefix = random_clt(tiny_vit), SharedPrefix(tiny_vit, images)
    for inputs in ("stream", "teacher"):
        every = {r.first: r.embeddings for r in prefix.replaced(clt, range(N), "all", inputs)}
        some = {r.first: r.embeddings for r in prefix.replaced(clt, [-1, 1], "all", inputs)}
        assert sorted(some) == [1, 3]
        for first, embeddings in some.items():
            assert torch.equal(embeddings, every[first])


@pytest.mark.parametrize("values", ["zero", "mean", "per image"])
@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_overwritten_ranges_equal_whole_passes(
    tiny_vit: HookedViT, images: Tensor, tokens: str, values: str
) -> None:
    rows, written = token_rows(tokens), None
    if values != "zero":
        noise = torch.randn(N, len(images), 10, 16, generator=torch.Generator().manual_seed(3))
        written = {l: noise[l][:, rows] for l in range(N)}
        if values == "mean":
            written = {l: each.mean(0) for l, each in written.items()}
    prefix = SharedPrefix(tiny_vit, images)
    for first in range(N):
        hooks = overwrite_mlp_hooks(range(first, N), tokens, written)
        expected = tiny_vit.run_with_hooks(images, fwd_hooks=hooks)
        close(prefix.overwritten(first, tokens, written), expected)


@torch.no_grad()
def test_layer_scale_is_applied(images: Tensor) -> None:
    vit = HookedViT(tiny_clip(ls_init_value=0.4))
    clt = random_clt(vit)
    for each in SharedPrefix(vit, images).replaced(clt, range(N), "all"):
        with replace_mlps(vit, clt, layers=range(each.first, N)):
            close(each.embeddings, vit(images))


def test_replaced_blocks_skip_their_mlp(tiny_vit: HookedViT, images: Tensor, monkeypatch) -> None:
    ran: list[int] = []
    for l, block in enumerate(tiny_vit.blocks):
        inner = block.mlp.c_fc.forward
        monkeypatch.setattr(
            block.mlp.c_fc, "forward", lambda x, l=l, inner=inner: (ran.append(l), inner(x))[1]
        )
    prefix = SharedPrefix(tiny_vit, images)
    assert ran == [0, 1, 2, 3]
    ran.clear()
    list(prefix.replaced(random_clt(tiny_vit), range(N), "all"))
    prefix.overwritten(1, "all")
    assert ran == []
    # rows that stay need the MLPs behind the first, whose output is known
    prefix.overwritten(1, "cls")
    assert ran == [2, 3]


def test_no_hook_is_left_behind_also_by_a_range_nobody_finished(
    tiny_vit: HookedViT, images: Tensor
) -> None:
    ranges = SharedPrefix(tiny_vit, images).replaced(random_clt(tiny_vit), range(N), "all")
    next(ranges)
    assert not any(point.has_hooks() for point in tiny_vit.hook_dict.values())
    assert all(block.mlp_is_overwritten is None for block in tiny_vit.blocks)


def test_only_the_activations_asked_for_are_kept(tiny_vit: HookedViT, images: Tensor) -> None:
    seen: list[int] = []
    kept = tiny_vit._recorder.__class__.__call__

    def call(self, point, tensor):
        out = kept(self, point, tensor)
        seen.append(len(self.values or ()))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny_vit._recorder), "__call__", call)
        tiny_vit.clean_cache(images, ["blocks.1.hook_mlp_out"])
    assert max(seen) == 1


def test_bad_input(tiny_vit: HookedViT, images: Tensor, monkeypatch) -> None:
    with (
        tiny_vit.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda y, hook: None)]),
        pytest.raises(InputError, match=r'hook at "blocks\.1\.hook_mlp_out"'),
    ):
        SharedPrefix(tiny_vit, images)
    prefix, clt = SharedPrefix(tiny_vit, images), random_clt(tiny_vit)
    with pytest.raises(InputError, match="layers contains 4"):
        list(prefix.replaced(clt, [4], "all"))
    with pytest.raises(InputError, match="layers contains 4"):
        prefix.overwritten(4, "all")
    with pytest.raises(InputError, match=r"values have 9 rows at blocks\.2\.hook_mlp_out"):
        prefix.overwritten(2, "all", dict.fromkeys(range(N), torch.zeros(9, 16)))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match='inputs is "oracle"'):
        list(prefix.replaced(clt, [0], "all", "oracle"))
