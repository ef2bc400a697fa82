"""TransformerLens' methods of an activation cache: right for a ViT, or one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from assertions import close, one_sentence
from builders import tiny_clip

from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    """A ViT with LayerScale, whose outputs do not add up unless they are scaled."""
    vit = HookedViT(tiny_clip(ls_init_value=0.5))
    for block in vit.blocks:
        block.gamma1.uniform_(0.5, 2)
        block.gamma2.uniform_(0.5, 2)
    return vit


@pytest.fixture
def cache(vit: HookedViT) -> Any:
    return vit.run_with_cache(IMAGES)[1]


@pytest.mark.parametrize("layer", [0, 1, 3, -1, None])
@pytest.mark.parametrize("mlp_input", [False, True])
def test_components_sum_to_the_residual_stream(
    layer: int | None, mlp_input: bool, cache: Any
) -> None:
    last = layer in (-1, None)
    if last and mlp_input:
        with pytest.raises(InputError, match="layer"):
            cache.decompose_resid(layer, mlp_input=True)
        return
    name = ("resid_post", 3) if last else ("resid_mid" if mlp_input else "resid_pre", layer)
    stack, labels = cache.decompose_resid(layer, mlp_input=mlp_input, return_labels=True)
    close(stack.sum(0), cache[name])
    n = 4 if last else layer
    assert labels[0] == "embed"
    assert len(labels) == len(stack) == 1 + 2 * n + mlp_input


def test_parts_of_the_components(cache: Any) -> None:
    attn = cache.decompose_resid(2, mode="attn", incl_embeds=False)
    mlp, labels = cache.decompose_resid(2, mode="mlp", incl_embeds=False, return_labels=True)
    assert labels == ["0_mlp_out", "1_mlp_out"]
    both = cache.decompose_resid(2, incl_embeds=False)
    close(attn.sum(0) + mlp.sum(0), both.sum(0))
    cls = cache.decompose_resid(2, pos_slice=0)
    assert torch.equal(cls, cache.decompose_resid(2)[:, :, 0])


def test_streams_and_activations_are_stacked(cache: Any) -> None:
    streams, labels = cache.accumulated_resid(-1, incl_mid=True, return_labels=True)
    assert labels[-1] == "final_post"
    assert torch.equal(streams[0], cache["resid_pre", 0])
    assert torch.equal(streams[-1], cache["blocks.3.hook_resid_post"])
    assert torch.equal(cache.stack_activation("mlp_out")[2], cache["mlp_out", 2])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.stack_head_results(-1), "no results of single heads"),
        (lambda c: c.compute_head_results(), "no results of single heads"),
        (lambda c: c.get_full_resid_decomposition(), "no results of single heads"),
        (lambda c: c.stack_neuron_results(-1), "no results of single neurons"),
        (lambda c: c.get_neuron_results(0), "no results of single neurons"),
        (lambda c: c.logit_attrs(c.accumulated_resid(-1), 0), "no vocabulary"),
        (lambda c: c.logit_lens(), "no vocabulary"),
        (lambda c: c.apply_ln_to_stack(c.accumulated_resid(-1)), "no scales of LayerNorm"),
        (lambda c: c.accumulated_resid(-1, apply_ln=True), "no scales of LayerNorm"),
        (lambda c: c.decompose_resid(-1, apply_ln=True), "no scales of LayerNorm"),
    ],
)
def test_what_a_vit_lacks_is_one_sentence(call: Any, said: str, cache: Any) -> None:
    with pytest.raises(InputError, match=said) as error:
        call(cache)
    one_sentence(error)


def test_other_outputs_and_names_are_refused(vit: HookedViT, cache: Any) -> None:
    with pytest.raises(InputError, match="return_type is None; expected none"):
        vit.run_with_cache(IMAGES, return_type=None)
    with pytest.raises(KeyError, match=r"blocks\.0\.attn\.hook_z.*vit\.hook_dict"):
        cache.stack_activation("z")


def test_a_slice_of_images_keeps_the_methods(cache: Any) -> None:
    one = cache.apply_slice_to_batch_dim(0)
    assert torch.equal(one.decompose_resid(2), cache.decompose_resid(2)[:, 0])
    with pytest.raises(InputError, match="single heads"):
        one.stack_head_results()
