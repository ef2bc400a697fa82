"""Heads in the frozen pass: exact splits, and hooks that zero a head on one path alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import noise
from einops import rearrange
from oracles.frozen_oracle import Held, double_vit
from torch import Tensor

from vit_clt.choices import Norms
from vit_clt.hooks import FrozenPass, Readout
from vit_clt.hooks.passes.carried import head_changes, head_readers, head_terms, key_terms
from vit_clt.hooks.passes.readout import Reader

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.7},
    "no ln_pre": {"no_ln_pre": True},
}
NORMS: list[Norms] = ["held", "differentiated"]


def readers(frozen: FrozenPass, norms: Norms) -> list[Reader]:
    rows = torch.tensor([0, 4])
    return [
        frozen.output_reader(noise(2, 12), norms),
        frozen.mlp_input_reader(2, rows, noise(2, 16), norms),
    ]


def constants(readout: Readout) -> Tensor:
    """The terms of all biases."""
    return readout.ln_pre_bias + readout.attention_bias.sum(-2) + readout.reader_bias


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_heads_carry_and_the_stream_alone_are_the_whole(
    kind: str, norms: Norms, images: Tensor
) -> None:
    frozen = FrozenPass(double_vit(**KINDS[kind]), images.double())
    for reader in readers(frozen, norms):
        whole = frozen.readout(reader)
        alone = frozen.readout(reader, attention=False)
        y, inputs, biases = alone.y.clone(), alone.inputs.clone(), constants(alone)
        for l in range(reader.n_attentions):
            carried = frozen.readout(head_readers(frozen, reader, l))
            assert carried.y.shape[:3] == (2, 2, l)
            y[:, :l] += carried.y.sum(0)
            inputs += carried.inputs.sum(0)
            biases = biases + constants(carried).sum(0)
        torch.testing.assert_close(y, whole.y, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(inputs, whole.inputs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(biases, constants(whole), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_logit_is_the_sum_of_direct_terms(kind: str, images: Tensor) -> None:
    vit = double_vit(**KINDS[kind])
    frozen = FrozenPass(vit, images.double())
    for reader in readers(frozen, "held"):
        alone, whole = frozen.readout(reader, attention=False), frozen.readout(reader)
        terms = head_terms(frozen, reader)
        assert terms.shape == (reader.n_attentions, 2, 2, len(images))

        def added(readout: Readout) -> Tensor:
            entering = frozen.positions.expand(len(images), -1, -1).clone()
            entering[:, 0] += frozen.class_token
            entering[:, 1:] += frozen.patches
            below = frozen.y[: readout.y.shape[-4]]
            mlps = (readout.y * below).sum((-4, -2, -1))
            return mlps + (readout.inputs * entering).sum((-2, -1)) + constants(readout)

        torch.testing.assert_close(added(alone) + terms.sum((0, 1)), added(whole))
        for l in range(reader.n_attentions):
            # what a head carries from everywhere is its own term
            carried = frozen.readout(head_readers(frozen, reader, l))
            torch.testing.assert_close(added(carried), terms[l], rtol=1e-9, atol=1e-12)
            by_key = key_terms(frozen, reader, l)
            torch.testing.assert_close(by_key.sum(-1), terms[l], rtol=1e-9, atol=1e-12)


def test_a_direct_term_is_what_a_hook_takes_away(images: Tensor) -> None:
    # norms held at their clean values are those of the oracle, which knows no heads
    vit = double_vit(ls_init_value=0.7)
    frozen, held = FrozenPass(vit, images.double()), Held(vit, images.double())
    direction = noise(12)
    terms = head_terms(frozen, frozen.output_reader(direction))
    clean = held.run(held.patches, held.y) @ direction
    for l, h in ((0, 1), (2, 0), (3, 1)):
        seen: list[Tensor] = []
        out_proj = held.blocks[l].attn.out_proj

        def record(module: Any, inputs: tuple[Tensor], seen: list[Tensor] = seen) -> None:
            seen.append(inputs[0])

        with out_proj.register_forward_pre_hook(record):
            held.run(held.patches, held.y)
        z = rearrange(seen[0], "batch query (head d) -> batch head query d", head=2)
        torch.testing.assert_close(frozen.attention[l].outputs(), z, rtol=1e-9, atol=1e-12)
        written = z[:, h] @ out_proj.weight[:, 8 * h : 8 * h + 8].T * held.blocks[l].ls_1.gamma
        # the final norm alone sees the head go: as if the last MLP put out that much less
        last = held.y[-1] - written / held.blocks[3].ls_2.gamma
        silenced = held.run(held.patches, [*held.y[:-1], last]) @ direction
        torch.testing.assert_close(clean - silenced, terms[l, h], rtol=1e-8, atol=1e-11)


def test_a_head_carries_what_its_hook_takes_from_a_source(images: Tensor) -> None:
    vit = double_vit()
    frozen, held = FrozenPass(vit, images.double()), Held(vit, images.double())
    direction, row, source = noise(12), 3, 1
    reader = frozen.output_reader(direction)
    change = noise(16, seed=7)
    y = [each.clone() for each in held.y]
    y[source][:, row] += change

    def head_output(y: list[Tensor], layer: int) -> Tensor:
        seen: list[Tensor] = []
        out_proj = held.blocks[layer].attn.out_proj
        hook = out_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        held.run(held.patches, y)
        hook.remove()
        return rearrange(seen[0], "batch query (head d) -> batch head query d", head=2)

    for l in (2, 3):
        carried = frozen.readout(head_readers(frozen, reader, l)).y[:, source, :, row] @ change
        moved = head_output(y, l) - head_output(held.y, l)
        at_heads = frozen.attention[l].at_heads(reader.stream)
        torch.testing.assert_close(
            (moved * at_heads).sum((-2, -1)).T, carried, rtol=1e-8, atol=1e-11
        )
    # nothing is carried by heads below the source
    assert frozen.readout(head_readers(frozen, reader, 1)).y.shape[1] == source


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_back_agree(kind: str, norms: Norms, images: Tensor) -> None:
    frozen = FrozenPass(double_vit(**KINDS[kind]), images[:1].double())
    n = 3
    inputs, y = noise(n, 1, 10, 16), noise(4, n, 1, 10, 16, seed=2)
    constant = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    z = list(head_changes(frozen, inputs, lambda l: y[l], constant, norms))
    for reader in readers(frozen, norms):
        for l in range(reader.n_attentions):
            carried = frozen.readout(head_readers(frozen, reader, l))
            back = torch.einsum("hdlbtm,lsbtm->hds", carried.y, y[:l]) if l else 0.0
            back = back + torch.einsum("hdbtm,sbtm->hds", carried.inputs, inputs)
            back = back + constants(carried)[..., 0, None] * constant
            at_heads = frozen.attention[l].at_heads(reader.stream)
            forward = torch.einsum("dbhqe,sbhqe->hds", at_heads, z[l])
            torch.testing.assert_close(forward, back, rtol=1e-9, atol=1e-11)
