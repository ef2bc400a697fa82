"""Total and direct effects against plain torch hooks on open_clip, and against float64 by hand."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from builders import tiny_clip
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, OverwrittenPass, token_rows

N, D = 4, 16
SCALE = 0.5
"""LayerScale; without it, as in the other tests, ls is the identity."""
TOKENS = ["cls", "patch", "all"]
SITES = ["mlp", "attn"]
SETS = [[0], [2], [3], [1, 3], [0, 1, 2, 3]]


def some_values(rows: slice, fill: str) -> dict[int, Tensor] | None:
    if fill == "zero":
        return None
    noise = torch.randn(N, 6, 10, D, generator=torch.Generator().manual_seed(3))
    return {l: each[0, rows] if fill == "mean" else each[:, rows] for l, each in enumerate(noise)}


def plain_forward(
    clip: nn.Module, images: Tensor, site: str, layers: list[int], rows: slice, values
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """open_clip's own forward, with torch hooks: embeddings, LN2 outputs, MLP outputs."""
    x, y = {}, {}

    def overwrite(out: Tensor, layer: int) -> Tensor:
        out = out.clone()
        out[:, rows] = 0 if values is None else values[layer]
        return out

    with ExitStack() as stack:
        for l, block in enumerate(clip.visual.transformer.resblocks):

            def mlp(module, args, out, l=l):
                y[l] = overwrite(out, l) if site == "mlp" and l in layers else out
                return y[l]

            def attn(module, args, out, l=l):
                return (overwrite(out[0], l), *out[1:]) if l in layers else out

            hooks = [
                block.ln_2.register_forward_hook(lambda m, a, out, l=l: x.__setitem__(l, out)),
                block.mlp.register_forward_hook(mlp),
            ]
            if site == "attn":
                hooks.append(block.attn.register_forward_hook(attn))
            for hook in hooks:
                stack.callback(hook.remove)
        return clip.encode_image(images), x, y


@torch.no_grad()
def test_unaltered_is_the_model_bit_for_bit(tiny_vit: HookedViT, images: Tensor) -> None:
    for site in SITES:
        clean = OverwrittenPass(tiny_vit, images, site=site, scored="patch")
        assert torch.equal(clean.embeddings, tiny_vit(images))
        _, cache = tiny_vit.run_with_cache(images)
        for l in range(N):
            assert torch.equal(clean.y[l], cache["mlp_out", l][:, 1:])
            torch.testing.assert_close(clean.x[l], cache[f"blocks.{l}.ln2.hook_out"][:, 1:])


@pytest.mark.parametrize("fill", ["zero", "mean", "others"])
@pytest.mark.parametrize("ablated", TOKENS)
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_total_effects_equal_plain_hooks_on_open_clip(
    images: Tensor, site: str, ablated: str, fill: str
) -> None:
    clip, rows = tiny_clip(ls_init_value=SCALE), token_rows(ablated)
    vit, values = HookedViT(copy.deepcopy(clip)), some_values(rows, fill)
    clean = OverwrittenPass(vit, images, site=site, ablated=ablated, scored="all")
    for layers in SETS:
        expected, x, y = plain_forward(clip, images, site, layers, rows, values)
        found = clean.total(layers, values)
        near(found.embeddings, expected)
        assert list(found.y) == list(found.x) == list(clean.readers(layers[0]))
        for l in found.y:
            near(found.x[l], x[l])
            near(found.y[l], y[l])
    assert not any(point.has_hooks() for point in vit.hook_dict.values())


def near(found: Tensor, expected: Tensor) -> None:
    """In norm: direct effects of a scaled block are small, and so must their errors be."""
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def ln64(ln: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), ln.weight.double(), ln.bias.double(), ln.eps)


@pytest.mark.parametrize("scored", TOKENS)
@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_direct_effects_by_hand_in_float64(images: Tensor, site: str, scored: str) -> None:
    vit = HookedViT(tiny_clip(ls_init_value=SCALE))
    ablated, rows = token_rows("all"), token_rows(scored)
    values = some_values(ablated, "others")
    clean = OverwrittenPass(vit, images, site=site, scored=scored)
    _, cache = vit.run_with_cache(images)
    cache = {name: value.double() for name, value in cache.items()}
    out = "hook_mlp_out" if site == "mlp" else "hook_attn_out"
    change = [SCALE * (values[l].double() - cache[f"blocks.{l}.{out}"]) for l in range(N)]
    for source in range(N):
        for target in clean.readers(source):
            block = vit.blocks[target]
            mlp = copy.deepcopy(block.mlp).double()
            mid = cache[f"blocks.{target}.hook_resid_mid"]
            x, x_clean = ln64(block.ln2, mid + change[source]), ln64(block.ln2, mid)
            dx, dy = clean.direct_on_mlp(source, target, values)
            near(dx, (x - x_clean)[:, rows])
            near(dy, (mlp(x) - mlp(x_clean))[:, rows])
    visual = vit.model.visual
    for layers in SETS:
        end = cache[f"blocks.{N - 1}.hook_resid_post"] + sum(change[l] for l in layers)
        expected = ln64(visual.ln_post, end)[:, 0] @ visual.proj.double()
        near(clean.direct_on_output(layers, values), expected)


@torch.no_grad()
def test_what_cannot_change_is_exactly_zero(tiny_vit: HookedViT, images: Tensor) -> None:
    own = tiny_vit.run_with_cache(images)[1]
    kept = {l: own["mlp_out", l][:, 1:] for l in range(N)}
    for scored in TOKENS:
        clean = OverwrittenPass(tiny_vit, images, ablated="patch", scored=scored)
        moved = clean.direct_on_mlp(0, 2)
        assert all(bool(d.any()) == (scored != "cls") for d in moved)
        assert not any(d.any() for d in clean.direct_on_mlp(0, 2, kept))
        altered = clean.total(1, kept)
        for l in (2, 3):
            assert torch.equal(altered.y[l], clean.y[l])
        assert torch.equal(altered.embeddings, clean.embeddings)
        # patch rows of the last MLP reach nothing
        assert torch.equal(clean.total(3).embeddings, clean.embeddings)
        assert torch.equal(clean.direct_on_output(range(N), kept), clean.embeddings)
        assert torch.equal(clean.direct_on_output(0), clean.embeddings)


@torch.no_grad()
def test_the_last_mlp_has_no_indirect_path(tiny_vit: HookedViT, images: Tensor) -> None:
    mlp = OverwrittenPass(tiny_vit, images)
    near(mlp.direct_on_output(3), mlp.total(3).embeddings)
    attn = OverwrittenPass(tiny_vit, images, site="attn")
    difference = attn.direct_on_output(3) - attn.total(3).embeddings
    assert difference.norm() > 1e-2 * attn.embeddings.norm()


def test_bad_input(tiny_vit: HookedViT, images: Tensor, monkeypatch) -> None:
    clean = OverwrittenPass(tiny_vit, images)
    with pytest.raises(InputError, match=r"target is 1, whose MLP does not read the mlp .* from 2"):
        clean.direct_on_mlp(1, 1)
    with pytest.raises(InputError, match="layers contains 4"):
        clean.total([1, 4])
    with pytest.raises(InputError, match="layers contains 4"):
        clean.direct_on_output(4)
    wrong = dict.fromkeys(range(N), torch.zeros(9, D))
    for run in (clean.total, clean.direct_on_output):
        with pytest.raises(InputError, match=r"values have 9 rows at blocks\.2\.hook_mlp_out"):
            run(2, wrong)
    hook = [("blocks.1.hook_mlp_out", lambda y, hook: None)]
    with (
        tiny_vit.hooks(fwd_hooks=hook),
        pytest.raises(InputError, match=r'hook at "blocks\.1\.hook_mlp_out"'),
    ):
        OverwrittenPass(tiny_vit, images)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match='site is "neuron"'):
        OverwrittenPass(tiny_vit, images, site="neuron")
    with pytest.raises(InputError, match='tokens is "words"'):
        OverwrittenPass(tiny_vit, images, scored="words")
