"""Readouts against the models' own forwards, which one is the default, and studies with each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from builders import noise, random_clt, tiny_clip, tiny_timm, tiny_timm_clip, tiny_transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vit_clt import Classifier, HeadClassifier, InputError, LinearClassifier, ZeroShot
from vit_clt.analysis import cascade, causal_effects, surrogate_faithfulness
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.readouts.choose import choose_classifier

NAMES = [f"class {c}" for c in range(5)]


@pytest.fixture(scope="module")
def timm_vit() -> HookedViT:
    return HookedViT(tiny_timm("vit_small_patch16_224"))


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return noise(60, 3, 16, 16).float()


def labelled(vit: HookedViT, pictures: Tensor, names: list[str] = NAMES) -> TensorImages:
    """The pictures with the head's own answers as labels, every fourth of them moved by one."""
    labels = vit.tower.classifier(vit(pictures)).argmax(-1)
    labels[::4] = (labels[::4] + 1) % len(NAMES)
    return TensorImages(pictures, labels, names)


# ---- the text tower -----------------------------------------------------------------------------


def words(texts: list[str]) -> Tensor:
    """Token ids of texts, for text towers that know no words."""
    return torch.tensor([[1 + (len(t) * (i + 3)) % 60 for i in range(8)] for t in texts])


@pytest.mark.parametrize(
    "make", [tiny_clip, lambda: tiny_timm_clip("vit_small_patch16_224", "avg", "linear")]
)
def test_text_logits_are_those_of_the_models_own_forward(make: Callable[[], torch.nn.Module]):
    clip = make().requires_grad_(False)
    vit = HookedViT(clip, tokenizer=words)
    pictures = noise(4, 3, *vit.cfg.image_size).float()
    zs = ZeroShot(vit, NAMES, ["a {}."])
    tokens = words([f"a {name}." for name in NAMES])
    own, _ = clip.get_logits(pictures, tokens)
    torch.testing.assert_close(zs.logits(vit(pictures)), own, rtol=1e-6, atol=1e-5)
    # the mean over one template rounds; with the model's own text embeddings every bit is the same
    zs.weights = clip.encode_text(tokens, normalize=True).T
    assert torch.equal(zs.logits(vit(pictures)), own)
    has_bias = getattr(clip, "logit_bias", None) is not None
    assert (zs.logit_bias is not None) == has_bias == (clip.__class__.__name__ != "CLIP")


@given(st.floats(-20, 20), st.integers(0, 1000))
def test_the_bias_of_a_sigmoid_model_cancels(bias: float, seed: int):
    zs = object.__new__(ZeroShot)
    zs.class_names, zs.weights = NAMES, noise(6, 5, seed=seed)
    zs.logit_scale, zs.logit_bias = torch.tensor(7.0, dtype=torch.float64), None
    embeddings, labels = noise(9, 6, seed=seed + 1), torch.arange(9) % 5
    plain = zs.read(embeddings, labels)
    zs.logit_bias = torch.tensor(bias, dtype=torch.float64)
    biased = zs.read(embeddings, labels)
    torch.testing.assert_close(biased.loss, plain.loss, rtol=1e-6, atol=1e-7)
    assert torch.equal(biased.top, plain.top)


def test_a_model_without_a_text_tower_has_no_zero_shot(timm_vit: HookedViT):
    with pytest.raises(InputError, match="has no text tower"):
        ZeroShot(timm_vit, NAMES)


# ---- the model's own head -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch16_224", {}),
        ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": True}),
        ("eva02_small_patch14_224", {}),
    ],
)
def test_head_logits_are_those_of_the_models_own_forward(
    name: str, options: dict[str, object], pictures: Tensor
):
    model = tiny_timm(name, **options)
    vit = HookedViT(model)
    head = HeadClassifier(vit, NAMES)
    own = model(pictures)
    assert torch.equal(head.logits(vit(pictures)), own)
    assert torch.equal(head.logits(vit(pictures).double()), own.double())
    labels = torch.arange(60) % 5
    outcome = head.read(vit(pictures), labels)
    expected = -own.double().log_softmax(-1)[torch.arange(60), labels]
    torch.testing.assert_close(outcome.loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(outcome.correct, own.argmax(-1) == labels)
    assert head.name == "head (5 classes)"
    assert HeadClassifier(vit).class_names == list("01234")


@pytest.mark.parametrize(
    "name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"]
)
def test_heads_of_transformers(name: str, pictures: Tensor):
    model = tiny_transformers(name)
    vit = HookedViT(model)
    assert torch.equal(HeadClassifier(vit).logits(vit(pictures)), model(pictures).logits)


def test_heads_that_do_not_fit(timm_vit: HookedViT, tiny_vit: HookedViT):
    with pytest.raises(InputError, match="has 5 classes where the data have 2"):
        HeadClassifier(timm_vit, ["a", "b"])
    with pytest.raises(InputError, match='is "head"; model in memory has none'):
        HeadClassifier(tiny_vit, NAMES)
    single = HookedViT(tiny_timm("vit_small_patch16_224", num_classes=1))
    with pytest.raises(InputError, match="which has one class"):
        HeadClassifier(single, ["a"])


def test_class_names_must_agree(timm_vit: HookedViT, pictures: Tensor):
    data = labelled(timm_vit, pictures)
    with pytest.raises(InputError, match="train_data has other class names than the data"):
        LinearClassifier.of_images(timm_vit, data, NAMES[::-1])


# ---- the default --------------------------------------------------------------------------------


def test_the_default_is_the_first_that_is_there(
    timm_vit: HookedViT, pictures: Tensor, digits_vit: HookedViT, digits_test: TensorImages
):
    def never() -> TensorImages:
        raise AssertionError("loaded")

    def missing() -> TensorImages:
        raise InputError("split", "is train; expected test.")

    data = labelled(timm_vit, pictures)
    assert isinstance(choose_classifier(digits_vit, digits_test, never), ZeroShot)
    assert isinstance(choose_classifier(timm_vit, data, never), HeadClassifier)
    two = TensorImages(pictures, torch.arange(60) % 2, ["a", "b"])
    assert isinstance(choose_classifier(timm_vit, two, lambda: two), LinearClassifier)
    assert isinstance(choose_classifier(timm_vit, data, lambda: data, "linear"), LinearClassifier)
    with pytest.raises(InputError) as refusal:
        choose_classifier(timm_vit, two, missing)
    assert str(refusal.value) == (
        "readout has no default: in memory has no text tower and a head of 5 classes for 2 class "
        "names, and for a linear one split is train; expected test."
    )
    with pytest.raises(InputError, match=r"^split is train"):
        choose_classifier(timm_vit, two, missing, "linear")


# ---- through studies ----------------------------------------------------------------------------


def classifiers(vit: HookedViT, data: TensorImages) -> list[Classifier]:
    return [
        HeadClassifier(vit, NAMES),
        LinearClassifier.of_images(vit, data, NAMES, seed=1),
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_studies_take_any_readout(timm_vit: HookedViT, pictures: Tensor, number: int):
    data = labelled(timm_vit, pictures)
    classifier = classifiers(timm_vit, data)[number]
    clt = random_clt(timm_vit)
    outcome = classifier.read(timm_vit(pictures), data.labels)
    replaced = cascade(timm_vit, clt, data, classifier, tokens="all", first_layers=[1])
    original = replaced.readings["original"]
    assert original.top1 == pytest.approx(float(outcome.correct.double().mean()))
    assert original.loss == pytest.approx(float(outcome.loss.double().mean()), rel=1e-6)
    assert classifier.name in replaced.caption()
    assert replaced.facts().context()["readout"] == classifier.name
    effects = causal_effects(timm_vit, data, classifier, tokens="cls")
    assert effects.readings["original"].top1 == original.top1
    faithful = surrogate_faithfulness(timm_vit, clt, data, classifier, tokens="all")
    assert float(faithful.at("top1", "original")) == pytest.approx(float(original.top1))
    assert not [m.name for m in faithful.measures if "prompt" in m.name]
    assert "Prompt by prompt" not in faithful.page()
