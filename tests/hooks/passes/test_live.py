"""Passes with a source's terms changed, and their gradients, against whole replaced passes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from builders import KINDS, random_clt, tiny_clip
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.passes.live import LivePass
from vit_clt.hooks.passes.tangent import TangentPass

N = 4
SPARSIFIERS = dict(zip(KINDS, (ReLUTopK(k=5), AbsTopK(k=5), JumpReLU()), strict=True))


def clt_of(vit: HookedViT, kind: str, **options: object) -> CrossLayerTranscoder:
    """A random transcoder of one sparsifier, per layer or with a skip connection as asked."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 24, SPARSIFIERS[kind], **options)
        clt = CrossLayerTranscoder(config)
        for parameter in (clt.b_enc, clt.b_dec, *([clt.W_skip] if config.skip else [])):
            parameter.data.normal_(std=0.3)
    return clt.eval()


@pytest.mark.parametrize("options", [{}, {"cross_layer": False}, {"skip": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_change_it_is_the_model_bit_for_bit(
    tiny_vit: HookedViT, images: Tensor, kind: str, options: dict[str, bool]
) -> None:
    live = LivePass(tiny_vit, clt_of(tiny_vit, kind, **options), images)
    expected = tiny_vit(images)
    for s in range(N):
        nothing = {s: torch.zeros_like(live.y(s))}
        found = live.changed(s, nothing, slice(None))
        assert torch.equal(found.embeddings, expected)
        assert sorted(found.moved) == list(range(s, N))
        assert not any(moved.any() for moved in found.moved.values())


@pytest.mark.parametrize("options", [{}, {"cross_layer": False}, {"skip": True}])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_change_is_that_of_a_whole_replaced_pass(
    kind: str, options: dict[str, bool], images: Tensor
) -> None:
    vit = HookedViT(tiny_clip()).double()
    clt, images, rows = clt_of(vit, kind, **options).double(), images.double(), slice(1, 7)
    live = LivePass(vit, clt, images)
    for s in range(N):
        dz = torch.randn(
            *live.codes[s].at_rows(rows).to_dense().shape,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(s),
        )
        seen: dict[int, Tensor] = {}

        def edit(codes: Tensor, hook: object, dz: Tensor = dz) -> Tensor:
            codes = codes.clone()
            codes[:, rows] += dz
            return codes

        def keep(y: Tensor, hook: object, l: int, seen: dict[int, Tensor] = seen) -> None:
            seen[l] = y

        hooks = [(f"clt.{s}.hook_codes", edit)]
        hooks += [(f"blocks.{l}.hook_mlp_out", partial(keep, l=l)) for l in range(N)]
        with replace_mlps(vit, clt, layers=range(N), error_node=True), vit.hooks(fwd_hooks=hooks):
            expected = vit(images)
        change = {l: dz @ clt.decoder(s, l) for l in clt.config.targets(s)}
        found = live.changed(s, change, rows)
        torch.testing.assert_close(found.embeddings, expected, rtol=1e-10, atol=1e-10)
        for l in range(s, N):
            moved = seen[l] - live.y(l)
            torch.testing.assert_close(found.moved[l], moved, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_direct_change_reaches_the_head_alone(images: Tensor) -> None:
    vit = HookedViT(tiny_clip(ls_init_value=0.5)).double()
    clt, images = random_clt(vit).double(), images.double()
    live, change = LivePass(vit, clt, images), {1: 0.3, 3: -0.2}
    given = {l: torch.full_like(live.y(l)[:, :1], value) for l, value in change.items()}
    found = live.direct_on_output(given, slice(0, 1))
    resid = vit(images, stop_at_layer=N)
    resid[:, 0] += sum(vit.blocks[l].gamma2 * value for l, value in change.items())
    torch.testing.assert_close(found, vit.head(resid))


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("options", [{}, {"cross_layer": False}, {"skip": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_first_order_of_small_changes(
    kind: str, options: dict[str, bool], backend: str, images: Tensor
) -> None:
    vit = HookedViT(tiny_clip()).double()
    clt, images = clt_of(vit, kind, **options).double(), images.double()
    clt.backend = backend
    tangent, live = TangentPass(vit, clt, images), LivePass(vit, clt, images)
    torch.testing.assert_close(tangent.embeddings, live.embeddings, rtol=1e-9, atol=1e-9)
    assert all(parameter.requires_grad for parameter in clt.parameters())
    weights = torch.randn(2, generator=torch.Generator().manual_seed(0)).double()
    at_output = tangent.gradients((tangent.embeddings @ torch.ones(12).double()).sum())
    at_last = tangent.gradients((tangent.y[-1] * weights[0]).sum())
    at_head = tangent.direct_gradients(tangent.embeddings.sum())
    scale, row = 1e-7, slice(2, 3)
    for s in range(N):
        unit = torch.randn(
            6, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5 + s)
        )
        change = {l: unit * (1 + l) for l in clt.config.targets(s)}
        small = {l: scale * value for l, value in change.items()}
        altered = live.changed(s, small, row)
        moved = (altered.embeddings - live.embeddings).sum() / scale
        expected = sum((at_output[l][:, row] * value).sum() for l, value in change.items())
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)
        moved = altered.moved[N - 1].sum() * weights[0] / scale
        expected = sum((at_last[l][:, row] * value).sum() for l, value in change.items())
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)
        cls = slice(0, 1)
        direct = live.direct_on_output(small, cls)
        moved = (direct - live.embeddings).sum() / scale
        expected = sum((at_head[l][:, cls] * value).sum() for l, value in change.items())
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)


def test_a_hooked_model_is_refused(tiny_vit: HookedViT, images: Tensor) -> None:
    clt = random_clt(tiny_vit)
    with tiny_vit.hooks(fwd_hooks=[("hook_input", lambda x, hook: None)]):
        for kind in (LivePass, TangentPass):
            with pytest.raises(InputError, match='has a hook at "hook_input"'):
                kind(tiny_vit, clt, images)
