"""A skip connection in the running model, against plain torch hooks on the model's own modules."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from assertions import close
from builders import noise, random_clt, tiny_clip
from torch import Tensor

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.hooks import Edit, HookedViT, SharedPrefix, SteeredPass, replace_mlps, steer

N = 4
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}


@pytest.fixture
def vit() -> HookedViT:
    return HookedViT(tiny_clip()).double()


@pytest.fixture
def clt(vit: HookedViT) -> CrossLayerTranscoder:
    """In float64; its skip moves the embeddings."""
    return with_skip(random_clt(vit).double())


def with_skip(clt: CrossLayerTranscoder, cross_layer: bool = True) -> CrossLayerTranscoder:
    config = CLTConfig(N, 16, 24, ReLUTopK(k=5), cross_layer=cross_layer, skip=True)
    found = CrossLayerTranscoder(config).double()
    tensors = {"W_skip": 0.3 * noise(N, 16, 16, seed=9), **clt.state_dict()}
    if not cross_layer:
        tensors |= {f"W_dec.{s}": clt.W_dec[s][:1] for s in range(N)}
    found.load_state_dict(tensors)
    return found.eval().requires_grad_(False)


def by_hooks(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: Tensor,
    layers: Iterable[int],
    tokens: str,
    inputs: str,
) -> Tensor:
    """Embeddings of the model itself, with a hook on each of its own MLPs."""
    blocks = vit.model.visual.transformer.resblocks
    read: dict[int, Tensor] = {}

    def record(layer: int):
        return lambda module, given, out: read.update({layer: given[0]})

    def write(layer: int):
        def hook(module, given, out: Tensor) -> Tensor:
            if inputs == "stream":
                read[layer] = given[0]
            if layer not in layers:
                return out
            y_hat = clt.b_dec[layer] + read[layer] @ clt.W_skip[layer].T
            for s in clt.config.sources(layer):
                a = (read[s] @ clt.W_enc[s].T + clt.b_enc[s]).relu()
                z = torch.where(a >= a.topk(5).values[..., -1:], a, 0.0)
                y_hat = y_hat + z @ clt.W_dec[s][layer - s]
            out = out.clone()
            out[:, ROWS[tokens]] = y_hat[:, ROWS[tokens]]
            return out

        return hook

    passes = [record, write] if inputs == "teacher" else [write]
    for make in passes:
        held = [block.mlp.register_forward_hook(make(l)) for l, block in enumerate(blocks)]
        embeddings = vit.model.visual(images)
        for handle in held:
            handle.remove()
    return embeddings


@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@torch.no_grad()
def test_replaced_in_the_model_and_on_a_shared_prefix(vit, clt, images, inputs, cross_layer):
    images, clt = images.double(), clt if cross_layer else with_skip(clt, cross_layer=False)
    for tokens in ROWS:
        for found in SharedPrefix(vit, images).replaced(clt, range(N), tokens, inputs):
            layers = range(found.first, N)
            expected = by_hooks(vit, clt, images, layers, tokens, inputs)
            with replace_mlps(vit, clt, layers=layers, tokens=tokens, inputs=inputs):
                close(vit(images), expected)
            close(found.embeddings, expected)
        expected = by_hooks(vit, clt, images, [0, 2], tokens, inputs)
        with replace_mlps(vit, clt, layers=[0, 2], tokens=tokens, inputs=inputs):
            close(vit(images), expected)
    assert not torch.allclose(expected, vit(images), atol=1e-3)


@torch.no_grad()
def test_with_error_nodes_the_skip_carries_an_edit_on(vit, clt, images):
    images = images.double()
    with replace_mlps(vit, clt, layers=range(N), error_node=True):
        close(vit(images), vit.run_clean(images, [])[0])
    edits = [Edit(1, (0, 3), "clamp", 2.0), Edit(2, 5, "clamp", -1.0, "patch")]
    with steer(vit, clt, edits):
        live = vit(images)
    close(SteeredPass(vit, clt, images).steered(edits), live)
    # without the skip the same edits end elsewhere
    clt.W_skip.zero_()
    assert not torch.allclose(SteeredPass(vit, clt, images).steered(edits), live, atol=1e-3)
