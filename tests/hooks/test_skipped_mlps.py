"""A block whose every MLP row is overwritten leaves its MLP out, and nobody can tell."""

from __future__ import annotations

import pytest
import torch
from builders import random_clt

from vit_clt import JumpReLU
from vit_clt.hooks import replace_mlps, replacement_hooks


@pytest.fixture
def ran(tiny_vit, monkeypatch) -> list[int]:
    """Layers whose MLP was computed, in order; counts without a hook on the module."""
    layers: list[int] = []
    for l, block in enumerate(tiny_vit.blocks):
        inner = block.mlp.c_fc.forward

        def forward(x, l=l, inner=inner):
            layers.append(l)
            return inner(x)

        monkeypatch.setattr(block.mlp.c_fc, "forward", forward)
    return layers


@pytest.mark.parametrize("sparsifier", [None, JumpReLU()])
@pytest.mark.parametrize("layers", [[0, 1, 2, 3], [1, 3], [2]])
def test_replaced_blocks_skip_their_mlp_and_the_output_stays(
    tiny_vit, images, ran, layers, sparsifier
):
    clt = random_clt(tiny_vit, sparsifier)
    expected = tiny_vit.run_with_hooks(images, fwd_hooks=replacement_hooks(clt, layers=layers))
    assert ran == [0, 1, 2, 3]
    ran.clear()
    with replace_mlps(tiny_vit, clt, layers=layers):
        assert torch.equal(tiny_vit(images), expected)
    assert ran == [l for l in range(4) if l not in layers]
    ran.clear()
    tiny_vit(images)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("tokens", ["cls", "patch"])
def test_rows_that_stay_need_the_mlp(tiny_vit, images, ran, tokens):
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=range(4), tokens=tokens):
        tiny_vit(images)
    assert ran == [0, 1, 2, 3]


def test_the_clean_pass_of_an_error_node_computes_every_mlp(tiny_vit, images, ran):
    expected = tiny_vit(images)
    ran.clear()
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=range(4), error_node=True):
        assert torch.equal(tiny_vit(images), expected)
    assert ran == [0, 1, 2, 3]


def test_a_hook_that_comes_first_sees_the_real_output(tiny_vit, images, ran):
    name, seen = "blocks.2.hook_mlp_out", []
    _, cache = tiny_vit.run_with_cache(images, names_filter=name)
    real = cache[name]
    with tiny_vit.hooks(fwd_hooks=[(name, lambda y, hook: seen.append(y.clone()))]):
        ran.clear()
        with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=[2]):
            tiny_vit(images)
        assert ran == [0, 1, 2, 3]
    assert torch.equal(seen[0], real)


def test_a_hook_put_in_front_within_the_context_sees_the_real_output(tiny_vit, images, ran):
    name, seen = "blocks.2.hook_mlp_out", []
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=[2]):
        tiny_vit.hook_dict[name].add_hook(lambda y, hook: seen.append(y.clone()), prepend=True)
        tiny_vit(images)
    tiny_vit.reset_hooks()
    _, cache = tiny_vit.run_with_cache(images, names_filter=name)
    assert torch.equal(seen[0], cache[name])


def test_a_later_hook_sees_the_reconstruction(tiny_vit, images):
    clt, name = random_clt(tiny_vit), "blocks.2.hook_mlp_out"
    hooks = replacement_hooks(clt, layers=[2])
    with tiny_vit.hooks(fwd_hooks=hooks):
        _, expected = tiny_vit.run_with_cache(images, names_filter=name)
    with replace_mlps(tiny_vit, clt, layers=[2]):
        _, cache = tiny_vit.run_with_cache(images, names_filter=name)
    assert torch.equal(cache[name], expected[name])


def test_a_torch_hook_inside_the_mlp_keeps_it_running(tiny_vit, images):
    seen = []
    handle = tiny_vit.blocks[2].mlp.c_fc.register_forward_hook(lambda *_: seen.append(1))
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=[2]):
        tiny_vit(images)
    handle.remove()
    assert seen == [1]


def test_removed_hooks_bring_the_mlp_back(tiny_vit, images):
    expected = tiny_vit(images)
    with replace_mlps(tiny_vit, random_clt(tiny_vit), layers=range(4)):
        tiny_vit.reset_hooks()
        assert torch.equal(tiny_vit(images), expected)


def test_gradients_of_the_images_are_those_without_the_skip(tiny_vit, images):
    clt, grads = random_clt(tiny_vit), []
    for skip in (True, False):
        x = images.clone().requires_grad_()
        if skip:
            with replace_mlps(tiny_vit, clt, layers=[1, 2]):
                tiny_vit(x).square().sum().backward()
        else:
            hooks = replacement_hooks(clt, layers=[1, 2])
            tiny_vit.run_with_hooks(x, fwd_hooks=hooks).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])
