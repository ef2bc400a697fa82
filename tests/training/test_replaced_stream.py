"""The last steps of a run: x of the stream with every MLP replaced, y of the unaltered pass."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from builders import noise, tiny_clip
from torch import Tensor

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK, TrainConfig, train
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.activations import capture
from vit_clt.hooks.points import HOOK_IN
from vit_clt.training.batches import Stopwatch
from vit_clt.training.replaced import ReplacedReader, StandIn, image_batches, replaced_inputs

L, D, TOKENS = 4, 16, 10


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    return HookedViT(tiny_clip())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=[False, True], ids=["plain", "skip"])
def clt(request: pytest.FixtureRequest) -> CrossLayerTranscoder:
    """In normalised space."""
    torch.manual_seed(0)
    clt = CrossLayerTranscoder(CLTConfig(L, D, 24, ReLUTopK(4), skip=request.param))
    with torch.no_grad():
        for i, parameter in enumerate(clt.parameters()):
            parameter.add_(0.1 * noise(*parameter.shape, seed=i))
    return clt.requires_grad_(False)


SCALES = noise(L, seed=3).exp(), noise(L, seed=4).exp()


def in_raw_units(clt: CrossLayerTranscoder) -> CrossLayerTranscoder:
    raw = copy.deepcopy(clt)
    raw.rescale_(*SCALES)
    return raw


def test_inputs_are_those_of_the_replacement_in_raw_units(vit, images, clt):
    found = replaced_inputs(vit, StandIn(clt, *SCALES), images)
    with torch.no_grad(), replace_mlps(vit, in_raw_units(clt), layers=range(L)):
        _, cache = vit.run_with_cache(images)
    for l in range(L):
        torch.testing.assert_close(found[l], cache[HOOK_IN.format(l=l)], rtol=1e-4, atol=1e-4)
    # the first layer has no MLP before it, the last has others in place of three
    clean = capture(vit, images)
    assert torch.equal(found[0], clean.x[0])
    assert (found[-1] - clean.x[-1]).norm() > 0.05 * clean.x[-1].norm()


def test_the_model_is_left_as_it_was(vit, images, clt):
    before = vit(images)
    replaced_inputs(vit, StandIn(clt, *SCALES), images)
    assert torch.equal(vit(images), before)
    assert not any(point.fwd_hooks for point in vit.hook_dict.values())


def test_a_reader_gives_the_clean_outputs(vit, images, clt):
    data = TensorImages(images)
    stand_in = StandIn(clt, *SCALES)
    reader = ReplacedReader(lambda: stand_in, vit, data, 0, False, Stopwatch())
    [group] = reader.read([[5, 2]])
    assert torch.equal(group.y, capture(vit, images[[5, 2]]).y)
    assert torch.equal(group.x, replaced_inputs(vit, stand_in, images[[5, 2]]))


def test_a_part_of_the_replacement_moves_the_outputs_by_that_part(vit, images, clt):
    clean = capture(vit, images)
    nothing = replaced_inputs(vit, StandIn(clt, *SCALES, 0.0), images)
    torch.testing.assert_close(nothing, clean.x)
    # x_1 reads y_0 alone: its stream moves by the part
    with torch.no_grad():
        y_hat = in_raw_units(clt)(clean.x)[0]
    mixed = clean.y[0] + 0.25 * (y_hat - clean.y[0])
    with vit.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: mixed)]):
        _, cache = vit.run_with_cache(images)
    found = replaced_inputs(vit, StandIn(clt, *SCALES, 0.25), images)
    torch.testing.assert_close(found[1], cache[HOOK_IN.format(l=1)], rtol=1e-4, atol=1e-4)


def test_batches_pass_over_all_images_and_need_none_before_them():
    images = list(range(100, 107))
    batches = list(image_batches(3, images, 3, range(14)))
    counts = Counter(image for batch in batches for image in batch)
    assert set(counts) == set(images)
    assert set(counts.values()) == {6}
    assert list(image_batches(3, images, 3, range(5, 14))) == batches[5:]
    assert batches[:7] != batches[7:]
    assert list(image_batches(4, images, 3, range(14))) != batches


def run(vit: HookedViT, images: Tensor, **settings) -> CrossLayerTranscoder:
    how = {"lr": 3e-3, "epochs": 30, "batch_size": 40, "start": "centred"} | settings
    config = CLTConfig(L, D, 32, ReLUTopK(4))
    return train(vit, TensorImages(images), config, TrainConfig(**how), progress=False)


def stream_error(vit: HookedViT, clt: CrossLayerTranscoder, images: Tensor) -> float:
    """Squared error of y^ in the replaced stream, over the power of y."""
    clean = capture(vit, images).y
    ones = torch.ones(L)
    x = replaced_inputs(vit, StandIn(clt, ones, ones), images)
    with torch.no_grad():
        return float((clt(x) - clean).square().sum() / clean.square().sum())


def test_steps_on_the_replaced_stream_lower_the_error_there(vit, images):
    plain, replaced = run(vit, images), run(vit, images, stream_share=0.5)
    assert stream_error(vit, replaced, images) < 0.97 * stream_error(vit, plain, images)


def test_only_the_last_share_of_the_steps_reads_it(vit, images, monkeypatch):
    read = []
    monkeypatch.setattr(
        ReplacedReader,
        "activations",
        lambda self, pixels: read.append(len(pixels)) or self.clean(pixels),
    )
    run(vit, images, epochs=4, stream_share=0.25)  # 3 steps an epoch
    assert read == [4, 4, 4]  # as many whole images as fit in 40 rows
