"""C reads, E acts: the parts of both claims, on CLTs whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import close, one_sentence, tells_itself
from builders import random_clt, tiny_clip
from torch import Tensor

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK
from vit_clt.analysis.auditing import claims as claims_module
from vit_clt.analysis.auditing.claims import claims
from vit_clt.analysis.auditing.claims_result import Claim
from vit_clt.analysis.auditing.controls import ShuffledSources
from vit_clt.analysis.auditing.evidence import Condition
from vit_clt.analysis.auditing.removed_terms import removed_terms
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.readouts.base import Classifier

LAYERS, WIDTH, HIDDEN, CLASSES, N = 8, 16, 64, 3, 160


class Columns(Classifier):
    """A linear readout whose classes are noise."""

    def __init__(self, d_embed: int):
        self.class_names = [str(i) for i in range(CLASSES)]
        self.name, self.device = "noise", torch.device("cpu")
        generator = torch.Generator().manual_seed(3)
        self.weights = torch.randn(d_embed, CLASSES, generator=generator)

    def logits(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.weights


@pytest.fixture(scope="module")
def relu_vit() -> HookedViT:
    """A ViT of 8 layers whose MLPs are those of a transcoder: linear, ReLU, linear."""
    clip = tiny_clip(layers=LAYERS)
    for block in clip.visual.transformer.resblocks:
        block.mlp.gelu = torch.nn.ReLU()
    return HookedViT(clip)


@pytest.fixture(scope="module")
def exact_clt(relu_vit: HookedViT) -> CrossLayerTranscoder:
    """The model's own MLPs as a per-layer transcoder."""
    config = CLTConfig(LAYERS, WIDTH, HIDDEN, ReLUTopK(k=HIDDEN), cross_layer=False)
    clt = CrossLayerTranscoder(config).requires_grad_(False)
    for l in range(LAYERS):
        mlp = relu_vit.blocks[l].mlp
        clt.W_enc[l].copy_(mlp.c_fc.weight)
        clt.b_enc[l].copy_(mlp.c_fc.bias)
        clt.W_dec[l][0].copy_(mlp.c_proj.weight.T)
        clt.b_dec[l].copy_(mlp.c_proj.bias)
    return clt


@pytest.fixture(scope="module")
def readout() -> Columns:
    return Columns(12)


@pytest.fixture(scope="module")
def data(relu_vit: HookedViT, readout: Columns) -> TensorImages:
    """Noise, labelled by what the model itself says of it."""
    images = torch.randn(N, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    labels = readout.logits(relu_vit(images)).argmax(-1)
    return TensorImages(images, labels, readout.class_names, name="noise")


def holds(claim: Claim) -> dict[str, bool]:
    return {part.name: part.holds for part in claim.parts}


def test_the_models_own_mlps_act_and_add_nothing_to_depth_as_readings(
    relu_vit: HookedViT,
    exact_clt: CrossLayerTranscoder,
    data: TensorImages,
    readout: Columns,
    tmp_path: Path,
) -> None:
    x, y = (part[:, :4] for part in vars(capture(relu_vit, data.images)).values())
    close(exact_clt.decode(exact_clt.encode(x)), y)
    found = claims(relu_vit, exact_clt, data, readout, k=3)
    assert found.acts.verdict == "acts: supported", found.shown().to_string()
    # every y_l is its own layer's term alone, which is among the deepest
    expected = {"ranks": True, "above permuted": True, "above depth": True}
    assert holds(found.reads) == {**expected, "zero fill": False, "mean fill": False}
    assert found.reads.verdict == (
        "reads: unsupported (zero fill, mean fill), no better than depth"
    )
    numbers = {metric.name: metric for metric in found.metrics()}
    assert len(numbers) == len(found.metrics())
    assert numbers["reads_spearman"].value == pytest.approx(1)
    assert numbers["acts_spearman"].value > 0.9
    assert numbers["reads_zero_lead"].value == 0
    assert {metric.n for metric in numbers.values()} == {N // 2}
    context = tells_itself(found, tmp_path / "claims")
    assert context["claims"] == [found.reads.verdict, found.acts.verdict]
    assert set(context["n_by_part"].values()) == {N // 2}
    # an exact CLT of its own MLPs moves every y_l as the ViT's MLPs do, on one scale
    heatmaps, scale = found.figure().data[:3], found.figure().layout.coloraxis
    shown = [np.array(trace.z, dtype=float) for trace in heatmaps]
    below = np.tril(np.ones((LAYERS, LAYERS), bool), -1)
    np.testing.assert_array_equal(shown[0], found.scores.matrix)
    np.testing.assert_allclose(shown[1][below], shown[2][below], rtol=0.5)
    # titles stand above panels of about 250 pixels each, side by side
    titles = found.figure().layout.annotations[:3]
    for title in titles:
        assert max(map(len, title.text.split("<br>"))) * title.font.size <= 12 * 38
    # every source counts alike, however small its effects
    apart = [
        np.linalg.norm((shown[1] - shown[2])[s + 1 :, s]) / np.linalg.norm(shown[2][s + 1 :, s])
        for s in range(LAYERS - 1)
    ]
    error = numbers["acts_source_error"]
    assert error.value == pytest.approx(np.median(apart))
    assert error.low < error.high < error.floor == 1
    assert {trace.coloraxis for trace in heatmaps} == {"coloraxis"}
    assert scale.cmax == -scale.cmin == max(np.nanmax(np.abs(each)) for each in shown)


def test_a_clt_of_noise_does_not_act_and_dealt_terms_do_not_read(
    relu_vit: HookedViT, data: TensorImages, readout: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "MOST_IMAGES", 20)
    noise = random_clt(relu_vit)
    shuffled = ShuffledSources.of(noise)
    found = claims(relu_vit, shuffled, data, readout, k=3, seed=1)
    assert not found.acts.supported, found.shown().to_string()
    assert not found.reads.supported, found.shown().to_string()
    assert not holds(found.reads)["ranks"], found.shown().to_string()
    assert (found.reads.n, found.acts.n) == (N // 2, 20)
    # silencing a source is the same, however the terms are dealt
    own = claims(relu_vit, noise, data, readout, k=3, seed=1)
    assert own.acts == found.acts
    assert own.reads != found.reads


@pytest.mark.parametrize("skip", [False, True])
def test_the_rise_of_the_error_is_that_of_a_changed_reconstruction(
    relu_vit: HookedViT, data: TensorImages, skip: bool
) -> None:
    clt = random_clt(relu_vit)
    if skip:
        config = CLTConfig(LAYERS, WIDTH, 24, ReLUTopK(k=5), skip=True)
        clt = CrossLayerTranscoder(config).requires_grad_(False)
        assert clt.W_skip is not None
        clt.W_skip.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    data.batch_size = 70
    found = removed_terms(relu_vit, clt, data, tokens="patch")
    activations = capture(relu_vit, data.images)
    x, y = activations.x[:, :, 1:], activations.y[:, :, 1:].double()
    codes = clt.encode(x)
    for l in (0, 5):
        terms = clt.contributions(codes, target=l).double()
        y_hat = clt.decode(codes, target=l, x=x[l] if skip else None).double()
        about_mean = (y[l] - y[l].mean(0)).square().sum()
        for s in range(l + 1):
            without = y_hat - terms[s] + terms[s].mean(0)
            rise = (without - y[l]).square().sum() - (y_hat - y[l]).square().sum()
            assert found.matrix[l, s] == pytest.approx(float(rise / about_mean), rel=1e-4, abs=1e-6)
    # an image's own rise, which the bootstrap draws
    without = y_hat - terms[2] + terms[2].mean(0)
    rise = (without - y[5]).square().sum((1, 2)) - (y_hat - y[5]).square().sum((1, 2))
    close(torch.from_numpy(found.moved[:, 5, 2]), rise, 1e-4)
    above = torch.from_numpy(found.matrix).isnan()
    assert torch.equal(above, torch.ones(LAYERS, LAYERS).triu(1).bool())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 0}, "k is 0; layer 7 has 8 sources, expected 1 to 7."),
        ({"k": 3, "target": 2}, "k is 3; layer 2 has 3 sources, expected 1 to 2."),
        ({"tokens": "patch"}, "tokens is patch at the last layer, whose rows cannot reach"),
        ({"tokens": "register"}, "register"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_sentence(
    changes: dict[str, object],
    sentence: str,
    relu_vit: HookedViT,
    exact_clt: CrossLayerTranscoder,
    data: TensorImages,
    readout: Columns,
    unchecked: None,
) -> None:
    with pytest.raises(InputError) as error:
        claims(relu_vit, exact_clt, data, readout, **changes)
    assert sentence in one_sentence(error)


def test_a_verdict_names_what_fails() -> None:
    def verdict(*failed: str) -> str:
        names = ("ranks", "above depth", "output")
        parts = [Condition(name, name not in failed, "a number") for name in names]
        return Claim("acts", "E", parts, [], 8).verdict

    assert verdict() == "acts: supported"
    assert verdict("ranks", "above depth") == "acts: unsupported (ranks, above depth)"
    assert verdict("above depth") == "acts: unsupported (above depth), no better than depth"
