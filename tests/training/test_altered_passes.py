"""Training on passes in which outputs of the ViT's own MLPs are overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from builders import tiny_clip
from torch import Tensor

from vit_clt import CLTConfig, InputError, ReLUTopK, TrainConfig, train
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.training.batches import GroupActivations, Stopwatch, ViTReader
from vit_clt.training.interventions import (
    InterventionReader,
    capture_intervened,
    draw_interventions,
    intervened,
)

L, D, N = 4, 16, 40


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    return HookedViT(tiny_clip())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(N, 3, 12, 12, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def clean(vit, images) -> GroupActivations:
    found = capture(vit, images)
    return GroupActivations(found.x, found.y, torch.arange(N) != 7)


def drawn_with(clean: GroupActivations, share: float, seed: int = 0):
    return draw_interventions(clean, share, torch.Generator().manual_seed(seed))


def test_what_is_drawn(clean):
    drawn = drawn_with(clean, 0.5)
    assert len(drawn.images) == len(set(drawn.images)) == 20  # half of 39, rounded
    assert 7 not in drawn.images
    readable = [i for i in range(N) if i != 7]
    mean = clean.y[:, readable].mean(1)
    to_mean = 0
    for i, image in enumerate(drawn.images):
        layers = drawn.layers[:, i].nonzero()[:, 0].tolist()
        assert layers == list(range(layers[0], layers[-1] + 1))
        is_mean = torch.equal(drawn.fill[:, i], mean)
        donors = [j for j in readable if torch.equal(drawn.fill[:, i], clean.y[:, j])]
        assert is_mean or (len(donors) == 1 and donors != [image])
        to_mean += is_mean
    assert 0 < to_mean < 20


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_is_kept(clean, share):
    assert len(drawn_with(clean, share).images) == round(39 * share)


def test_one_image_has_no_other(clean):
    alone = replace(clean, readable=torch.arange(N) == 3)
    assert not drawn_with(alone, 1.0).images


def test_outputs_are_the_models_own_and_inputs_the_altered_ones(vit, images, clean):
    drawn = drawn_with(clean, 0.4)
    found = intervened(vit, drawn, images[drawn.images])
    with torch.no_grad():
        own = torch.stack([vit.blocks[l].mlp(found.x[l]) for l in range(L)])
    torch.testing.assert_close(found.y, own, rtol=1e-5, atol=1e-5)
    for i, image in enumerate(drawn.images):
        first = int(drawn.layers[:, i].nonzero()[0])
        # nothing is altered up to the first layer that is overwritten, everything above it is
        torch.testing.assert_close(found.x[: first + 1, i], clean.x[: first + 1, image])
        if first + 1 < L:
            gap = (found.x[first + 1 :, i] - clean.x[first + 1 :, image]).flatten(1).norm(dim=1)
            assert gap.min() > 1e-2


def test_each_layer_is_what_one_hand_made_hook_gives(vit, images, clean):
    drawn = drawn_with(clean, 1.0, seed=5)
    found = intervened(vit, drawn, images[drawn.images])
    for i in (0, 11):
        layers = drawn.layers[:, i].nonzero()[:, 0].tolist()
        fill = drawn.fill[:, i : i + 1]
        hooks = [
            (f"blocks.{l}.hook_mlp_out", lambda value, hook, y=fill[l]: y.clone()) for l in layers
        ]
        with vit.hooks(fwd_hooks=hooks):
            _, cache = vit.run_with_cache(images[drawn.images[i]][None])
        for l in range(L):
            x = cache[f"blocks.{l}.ln2.hook_out"][0]
            torch.testing.assert_close(found.x[l, i], x, rtol=1e-5, atol=1e-5)


class Counted:
    """A reader that says how often it was read."""

    def __init__(self, reader: ViTReader):
        self.reader, self.skipped = reader, reader.skipped

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        return self.reader.read(groups)


def test_a_reader_alters_the_same_images_in_the_same_way(vit, images):
    data = TensorImages(images)
    inner = Counted(ViTReader(vit, data, 0, False, Stopwatch()))
    groups = [list(range(10)), list(range(10, 30))]

    def read(share: float, seed: int = 0) -> list[GroupActivations]:
        return list(InterventionReader(inner, vit, data, share, seed).read(groups))

    unaltered, first, again, other = read(0.0), read(0.3), read(0.3), read(0.3, 1)
    for a, b, c in zip(unaltered, first, again, strict=True):
        assert torch.equal(b.x, c.x)
        assert torch.equal(b.y, c.y)
        changed = (a.x != b.x).flatten(2).any(2).any(0)
        assert 0 < int(changed.sum()) <= round(0.3 * len(changed))  # the last layer alone: no x
    assert not torch.equal(first[0].x, other[0].x)
    reader = InterventionReader(inner, vit, data, 0.3, 0)
    reader.skipped = {4}
    assert inner.skipped == reader.skipped == {4}


def test_every_image_of_a_batch_is_altered_in_its_place(vit, images):
    clean, altered = capture(vit, images), capture_intervened(vit, images, seed=0)
    # x of layer 0 comes before every MLP
    assert torch.equal(altered.x[0], clean.x[0])
    assert not torch.equal(altered.x[-1], clean.x[-1])
    for l in range(L):
        torch.testing.assert_close(altered.y[l], vit.blocks[l].mlp(altered.x[l]))
    again, other = (capture_intervened(vit, images, seed=seed) for seed in (0, 1))
    assert torch.equal(altered.x, again.x)
    assert not torch.equal(altered.x, other.x)
    with pytest.raises(InputError, match="a batch of 1 image, which has no donor"):
        capture_intervened(vit, images[:1], seed=0)


def test_a_run_with_them_fits_altered_passes_better(vit, images, clean):
    config = CLTConfig(L, D, 32, ReLUTopK(4))
    drawn = drawn_with(clean, 1.0, seed=9)
    altered = intervened(vit, drawn, images[drawn.images])
    errors = []
    for share in (0.0, 0.5):
        settings = TrainConfig(
            lr=3e-3, epochs=40, batch_size=100, start="centred", interventions=share
        )
        clt = train(vit, TensorImages(images), config, settings, progress=False)
        with torch.no_grad():
            errors.append(float((clt(altered.x) - altered.y).square().sum()))
    assert errors[1] < 0.95 * errors[0]
