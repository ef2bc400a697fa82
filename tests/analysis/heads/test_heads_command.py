"""`vit-clt heads` on the digits, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import one_sentence, tells_itself
from builders import random_clt

from vit_clt import CrossLayerTranscoder, InputError, ZeroShot, load_data
from vit_clt.analysis import head_ablations, head_study
from vit_clt.analysis.heads.result import HeadStudy
from vit_clt.analysis.stats.donors import donors_of_other_labels
from vit_clt.cli import main
from vit_clt.data.images import ImageSubset, TensorImages
from vit_clt.hooks import HookedViT


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT) -> HeadStudy:
    data = load_data("digits", vit=digits_vit)
    zs = ZeroShot(digits_vit, data.class_names)
    clt = random_clt(digits_vit)
    return head_study(digits_vit, clt, data, zs, sample=8, strongest=3, drawn=2, fill="resample")


def test_a_study_tells_itself(study: HeadStudy, tmp_path: Path) -> None:
    context = tells_itself(study, tmp_path)
    assert [context[key] for key in ("data", "trajectory", "fill", "seed")] == [
        "digits (test)", "teacher", "resample", 0,
    ]  # fmt: skip
    heads = pd.read_csv(tmp_path / "heads.csv")
    assert len(heads) == 32
    layers = pd.read_csv(tmp_path / "terms_by_layer.csv")
    np.testing.assert_allclose(
        heads.groupby("layer")["term"].sum(), layers["heads"], rtol=1e-4, atol=1e-6
    )
    whole = layers["attention"].sum() + layers["mlp"].sum()
    terms = study.terms
    rest = terms.stream.mean() + terms.reader.mean()
    assert whole + rest == pytest.approx(terms.logit.mean(), abs=1e-4)
    strongest = heads.iloc[heads["beyond"].abs().argsort()[::-1][:3]]
    assert study.carried.heads == list(zip(strongest["layer"], strongest["head"], strict=True))
    assert len(pd.read_csv(tmp_path / "agreement.csv")) == 6
    page = study.page()
    for text in ("Attention heads beside MLPs", "Where the strongest heads read", "Which rows"):
        assert text in page
    read = pd.read_csv(tmp_path / "rows_read.csv")
    assert sorted(read["image"].unique()) == [example.number for example in study.examples]


def test_images_are_drawn_by_the_seed(study: HeadStudy, digits_vit: HookedViT) -> None:
    data = load_data("digits", vit=digits_vit)
    numbers = sorted(np.random.default_rng(0).choice(len(data), 8, replace=False).tolist())
    assert [example.number for example in study.examples] == [numbers[0], numbers[-1]]
    zs = ZeroShot(digits_vit, data.class_names)
    images, labels = data.batch(numbers)
    logits = zs.logits(digits_vit(images))
    contrast = logits[range(8), labels] - logits.mean(1)
    np.testing.assert_allclose(study.terms.logit, contrast, rtol=1e-3, atol=1e-4)
    # the ablations are those of causal --site head
    alone = head_ablations(digits_vit, ImageSubset(data, numbers), zs, fill="resample")
    np.testing.assert_allclose(alone.contrasts, study.ablations.contrasts, atol=1e-6)


def test_the_command(digits_clt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "heads"
    args = ["heads", "--clt", str(digits_clt), "--sample", "4", "--drawn", "1"]
    assert main([*args, "--strongest", "2", "--seed", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Do direct terms foretell ablations?" in printed
    document = json.loads((out / "metrics.json").read_text())
    assert document["context"]["seed"] == 3
    names = {metric["name"] for metric in document["metrics"]}
    assert {"term_7.3", "total_0.0", "attention_7", "mlp_7"} <= names
    assert (out / "head_ablations.csv").is_file()


def test_bad_input_is_refused(
    digits_vit: HookedViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data("digits", vit=digits_vit)
    zs = ZeroShot(digits_vit, data.class_names)
    clt = random_clt(digits_vit)
    for options, said in (
        ({"sample": 1}, "has 1 images to study"),
        ({"sample": 0}, "sample is 0; expected at least 1"),
        ({"sample": 4, "strongest": 0}, "strongest is 0"),
        ({"sample": 4, "drawn": -1}, "drawn is -1"),
    ):
        with pytest.raises(InputError, match=said) as error:
            head_study(digits_vit, clt, data, zs, **options)
        one_sentence(error)
    same = TensorImages(data.batch(range(4))[0], torch.zeros(4, dtype=torch.long))
    with pytest.raises(InputError, match="images of one label"):
        head_study(digits_vit, clt, same, zs, sample=4)
    skip = CrossLayerTranscoder(replace(clt.config, skip=True)).eval()
    with pytest.raises(InputError, match="skip connection"):
        head_study(digits_vit, skip, data, zs, sample=4)
    assert main(["heads", "--clt", "none", "--out", str(tmp_path / "out")]) == 2
    assert "--clt" in capsys.readouterr().err


def test_a_clt_whose_features_do_not_fire(digits_vit: HookedViT, tmp_path: Path) -> None:
    """Heads of layer 0, or of a silent CLT, carry no feature; the study is whole all the same."""
    data = load_data("digits", vit=digits_vit)
    zs = ZeroShot(digits_vit, data.class_names)
    clt = random_clt(digits_vit)
    for bias in clt.b_enc:
        bias.fill_(-1e4)  # relu_topk then has no positive pre-activation
    study = head_study(digits_vit, clt, data, zs, sample=3, strongest=40, drawn=9)
    assert len(study.carried.heads) == 32
    assert len(study.examples) == 3
    assert study.parts_table()["features active on CLS row"].tolist() == ["none"] * 32
    # the two key rows of every head on every image stand there, without a feature
    assert study.rows_table()["features carried from there"].tolist() == ["none"] * 2 * 32 * 3
    assert study.features_table().empty
    assert "nan" not in study.page().split("plotly")[0]
    tells_itself(study, tmp_path)


def test_floors_are_labels_of_other_classes() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    donors = donors_of_other_labels(labels, seed=3)
    assert (labels[donors] != labels).all()
    assert donors == donors_of_other_labels(labels, seed=3)
