"""Zero-shot classification against its equation."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from builders import tiny_clip

from vit_clt import InputError, ZeroShot
from vit_clt.data.images import ImageData
from vit_clt.data.prompts import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR_TEMPLATES, SINGLE_TEMPLATE
from vit_clt.hooks import HookedViT
from vit_clt.readouts.class_names import class_number

CLASSES = ["handwritten three", "handwritten eight", "handwritten zero"]


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(9, 64, generator=torch.Generator().manual_seed(0)) * 3


def by_hand(vit: HookedViT, embeddings: torch.Tensor, templates: list[str]) -> torch.Tensor:
    """exp(logit_scale) * cos(image, class); a class is the mean of its unit text embeddings."""
    columns = []
    for name in CLASSES:
        texts = vit.encode_text(vit.tokenizer([t.format(name) for t in templates])).double()
        columns.append((texts / texts.norm(dim=-1, keepdim=True)).mean(0))
    classes = torch.stack(columns)
    cosine = F.cosine_similarity(embeddings.double()[:, None], classes[None], dim=-1)
    return vit.model.logit_scale.double().exp() * cosine


@pytest.mark.parametrize(
    ("templates", "texts", "name"),
    [
        ("single", SINGLE_TEMPLATE, "text tower (templates: single)"),
        ("ensemble", CIFAR_TEMPLATES, "text tower (templates: ensemble)"),
        (["a {}.", "the {} there."], ["a {}.", "the {} there."], "text tower (2 templates)"),
    ],
)
def test_logits_are_scaled_cosines(
    digits_vit: HookedViT,
    embeddings: torch.Tensor,
    templates: str | list[str],
    texts: list[str],
    name: str,
) -> None:
    zs = ZeroShot(digits_vit, CLASSES, templates)
    expected = by_hand(digits_vit, embeddings, texts)
    torch.testing.assert_close(zs.logits(embeddings).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(zs.logits(100 * embeddings), zs.logits(embeddings))
    assert zs.name == name
    assert zs.class_names == CLASSES
    assert zs.logit_scale == pytest.approx(math.exp(digits_vit.model.logit_scale))


def test_ensemble_is_the_default_and_differs_from_single(
    digits_vit: HookedViT, embeddings: torch.Tensor
) -> None:
    default, ensemble, single = (
        ZeroShot(digits_vit, CLASSES, *templates).logits(embeddings)
        for templates in ((), ("ensemble",), ("single",))
    )
    assert torch.equal(default, ensemble)
    assert (ensemble - single).abs().max() > 0.01


def test_prompts_are_the_published_ones() -> None:
    assert SINGLE_TEMPLATE == ["a photo of a {}."]
    assert len(CIFAR_TEMPLATES) == len(set(CIFAR_TEMPLATES)) == 18
    assert {t.replace(" of the ", " of a ") for t in CIFAR_TEMPLATES[9:]} == set(
        CIFAR_TEMPLATES[:9]
    )
    assert len(CIFAR10_CLASSES) == len(set(CIFAR10_CLASSES)) == 10
    assert len(CIFAR100_CLASSES) == len(set(CIFAR100_CLASSES)) == 100


def test_loss_is_cross_entropy_in_nats(digits_vit: HookedViT, embeddings: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2] * 3)
    zs = ZeroShot(digits_vit, CLASSES, "single")
    outcome = zs.read(embeddings, labels)
    logits = by_hand(digits_vit, embeddings, SINGLE_TEMPLATE)
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(outcome.loss.double(), expected, rtol=1e-5, atol=1e-4)
    assert outcome.correct.tolist() == (logits.argmax(-1) == labels).tolist()
    assert outcome.top.tolist() == logits.argmax(-1).tolist()
    assert 0 < outcome.correct.sum() < 9
    exact = zs.logits(embeddings).double()
    torch.testing.assert_close(
        outcome.loss, F.cross_entropy(exact, labels, reduction="none").float(), rtol=0, atol=0
    )


@pytest.mark.parametrize("label", [-1, 3])
def test_label_without_a_class_name_is_refused(
    digits_vit: HookedViT, embeddings: torch.Tensor, label: int
) -> None:
    zs = ZeroShot(digits_vit, CLASSES, "single")
    low, high = min(0, label), max(0, label)
    with pytest.raises(InputError, match=f"labels run from {low} to {high}; expected 0 to 2"):
        zs.read(embeddings[:2], torch.tensor([0, label]))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], "single", "class_names is empty"),
        (CLASSES, [], "templates is empty"),
        (CLASSES, "many", 'templates is "many"'),
        (CLASSES, ["a {}.", "a photo"], 'templates holds "a photo"; expected "{}" once'),
        (CLASSES, ["a {} and a {}."], 'templates holds "a {} and a {}."; expected "{}" once'),
    ],
)
def test_bad_names_and_templates_are_refused(
    digits_vit: HookedViT, names: list[str], templates: str | list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ZeroShot(digits_vit, names, templates)


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (CLASSES, "handwritten eight", 1),
        (CLASSES, "2", 2),
        (CLASSES, 2, 2),
        (CLASSES, "EIGHT", 1),
        (["twenty two", "two", "Two"], "Two", 2),  # exactly so, before any other
        (["twenty two", "two"], "TWO", 1),  # a whole name, before a part of one
        (["7", "3", "9"], "3", 1),  # a name that is a number, before the number
        (["2", "1", "0"], 2, 2),  # a number is never a name
        (["A300", "DC-10", "737-800"], "800", 2),  # no such number
        (["bat", "bat"], 1, 1),
    ],
)
def test_a_class_by_name_or_number(names: list[str], wanted: str | int, expected: int) -> None:
    assert class_number(names, wanted) == expected


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (CLASSES, "handwritten", '"handwritten", which fits 3 class names; expected one of hand'),
        (["ant", "cat", "rat"], "at", "fits 2 class names; expected one of cat, rat, or a number"),
        (["bat", "bat"], "bat", "fits 2 class names"),
        (CLASSES, "whale", "fits no class name; expected one of .*, or a number from 0 to 2."),
        (CLASSES, 3, 'is "3", which fits no class name'),
        (["10 to 20", "other"], 10, "fits no class name"),
        (CLASSES, -1, "fits no class name"),
        (CLASSES, "", "fits no class name"),
        (["only one"], "", "fits no class name"),
        (CIFAR100_CLASSES, "unicorn", "bear, beaver, .*bottle, ..., or"),
        ([], "three", 'is "three", but there are no class names'),
    ],
)
def test_no_class_or_several_are_refused(names: list[str], wanted: str | int, message: str) -> None:
    with pytest.raises(InputError, match=f"^raises .*{message}"):
        class_number(names, wanted, "raises")


def test_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        ZeroShot(HookedViT(tiny_clip()), CLASSES)


@pytest.mark.parametrize("templates", ["single", "ensemble"])
def test_digits_teacher_reads_held_out_digits(
    digits_vit: HookedViT, digits_test: ImageData, templates: str
) -> None:
    zs = ZeroShot(digits_vit, digits_test.class_names, templates)
    correct = torch.cat(
        [zs.read(digits_vit(images), labels).correct for images, labels in digits_test]
    )
    assert len(correct) == 360
    assert correct.double().mean() >= 0.95
