"""The frozen pass: its gradients by autograd of a second implementation, and sums to the logit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import tiny_clip
from oracles.frozen_oracle import Held, double_vit
from torch import Tensor

from vit_clt import InputError
from vit_clt.hooks import FrozenPass, HookedViT, Readout

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.7},
    "no ln_pre": {"no_ln_pre": True},
    "norm after pooling": {"final_ln_after_pool": True},
}


def total(frozen: FrozenPass, readout: Readout) -> Tensor:
    """Everything a readout adds up to, "*direction batch"."""
    below = readout.y.shape[-4]
    entering = frozen.positions.expand(len(frozen.patches), -1, -1).clone()
    entering[:, 0] += frozen.class_token
    entering[:, 1:] += frozen.patches
    return (
        (readout.y * frozen.y[:below]).sum((-4, -2, -1))
        + (readout.inputs * entering).sum((-2, -1))
        + readout.ln_pre_bias
        + readout.attention_bias.sum(-2)
        + readout.reader_bias
    )


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_autograds(kind: str, images: Tensor, random: torch.Generator) -> None:
    vit = double_vit(**KINDS[kind])
    frozen, held = FrozenPass(vit, images.double()), Held(vit, images.double())
    directions = torch.randn(2, 12, dtype=torch.float64, generator=random)
    patches = held.patches.clone().requires_grad_()
    y = [each.clone().requires_grad_() for each in held.y]
    output = held.run(patches, y)
    torch.testing.assert_close(output * held.held["norm"], vit(images.double()))
    readout = frozen.read_output(directions)
    torch.testing.assert_close(frozen.gradients(directions[0]), readout.y[0])
    for i, direction in enumerate(directions):
        grads = torch.autograd.grad((output @ direction).sum(), [patches, *y], retain_graph=True)
        torch.testing.assert_close(readout.inputs[i, :, 1:], grads[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(readout.y[i], torch.stack(grads[1:]), rtol=1e-9, atol=1e-12)
    logits = F.normalize(vit(images.double()), dim=-1) @ directions.T
    torch.testing.assert_close(total(frozen, readout), logits.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "layer scale"])
def test_norms_can_be_differentiated(kind: str, images: Tensor, random: torch.Generator) -> None:
    vit = double_vit(**KINDS[kind])
    frozen, held = FrozenPass(vit, images.double()), Held(vit, images.double())
    direction = torch.randn(12, dtype=torch.float64, generator=random)
    patches = held.patches.clone().requires_grad_()
    y = [each.clone().requires_grad_() for each in held.y]
    output = held.run(patches, y, norms=False)
    grads = torch.autograd.grad((output @ direction).sum(), [patches, *y])
    readout = frozen.read_output(direction, norms="differentiated")
    torch.testing.assert_close(readout.inputs[:, 1:], grads[0], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(readout.y, torch.stack(grads[1:]), rtol=1e-8, atol=1e-11)
    assert torch.equal(frozen.gradients(direction, norms="differentiated"), readout.y)


@pytest.mark.parametrize("kind", ["plain", "layer scale"])
def test_readings_of_mlp_inputs_are_autograds(
    kind: str, images: Tensor, random: torch.Generator
) -> None:
    vit = double_vit(**KINDS[kind])
    frozen, held = FrozenPass(vit, images.double()), Held(vit, images.double())
    rows, vectors = (
        torch.tensor([0, 4, 4]),
        torch.randn(3, 16, dtype=torch.float64, generator=random),
    )
    for layer in (0, 2):
        patches = held.patches.clone().requires_grad_()
        y = [each.clone().requires_grad_() for each in held.y[:layer]]
        x = held.run(patches, y, read=layer)
        torch.testing.assert_close(x, frozen.x[layer], rtol=1e-9, atol=1e-12)
        readout = frozen.read_mlp_input(layer, rows, vectors)
        assert readout.y.shape == (3, layer, *frozen.x.shape[1:])
        for i, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
            grads = torch.autograd.grad(
                (x[:, row] @ vector).sum(), [patches, *y], retain_graph=True
            )
            torch.testing.assert_close(readout.inputs[i, :, 1:], grads[0], rtol=1e-9, atol=1e-12)
            for l in range(layer):
                torch.testing.assert_close(readout.y[i, l], grads[1 + l], rtol=1e-9, atol=1e-12)
        wanted = torch.einsum("bid,id->ib", frozen.x[layer][:, rows], vectors)
        torch.testing.assert_close(total(frozen, readout), wanted, rtol=1e-10, atol=1e-12)


def test_what_is_recorded_is_the_models_own(
    tiny_vit: HookedViT, images: Tensor, random: torch.Generator
) -> None:
    frozen = FrozenPass(tiny_vit, images)
    assert torch.equal(frozen.embeddings, tiny_vit(images))
    tiny_vit.set_use_attn_pattern(True)
    names = [f"blocks.{l}.attn.hook_pattern" for l in range(4)]
    _, cache = tiny_vit.run_with_cache(images, names_filter=names)
    torch.testing.assert_close(frozen.pattern, torch.stack([cache[name] for name in names]))
    direction = torch.randn(12, generator=random)
    logits = F.normalize(tiny_vit(images), dim=-1) @ direction
    torch.testing.assert_close(
        total(frozen, frozen.read_output(direction)), logits, rtol=1e-5, atol=1e-5
    )


def test_wrong_arguments_are_refused(tiny_vit: HookedViT, images: Tensor) -> None:
    with pytest.raises(InputError, match="expected one that pools CLS"):
        FrozenPass(HookedViT(tiny_clip(pool_type="avg")), images)
    frozen = FrozenPass(tiny_vit, images)
    with pytest.raises(InputError, match="direction has width 16"):
        frozen.gradients(torch.zeros(16))
    with pytest.raises(InputError, match="layer is 4"):
        frozen.read_mlp_input(4, torch.tensor([0]), torch.zeros(1, 16))
    with pytest.raises(InputError, match="rows run from 0 to 10"):
        frozen.read_mlp_input(0, torch.tensor([0, 10]), torch.zeros(2, 16))
