"""The fit gate says what `reconstruction` measures, and names every place below the mean."""

from __future__ import annotations

import json
import math

import pytest
import torch
from builders import random_clt, tiny_clip, tiny_timm

from vit_clt.analysis import measure_fit, measure_fits, reconstruction
from vit_clt.analysis.fit.gate import Fit
from vit_clt.data.images import ImageSubset, TensorImages
from vit_clt.hooks import HookedViT

NAN = float("nan")


def images(n: int, size: int = 12) -> TensorImages:
    pixels = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))
    data = TensorImages(pixels, name="toy")
    data.batch_size = 5
    return data


def some_fit(cls: tuple[float, ...], patch: tuple[float, ...]) -> Fit:
    n = len(patch)
    return Fit("CLT", "toy", "test", 8, 9, {"cls": cls, "patch": patch}, (4.0,) * n, (0.25,) * n)


def test_equals_the_reconstruction_of_evenly_spaced_images_to_the_last_digit() -> None:
    vit = HookedViT(tiny_clip())
    clt, data = random_clt(vit), images(13)
    spaced = ImageSubset(data, [0, 1, 3, 5, 6, 8, 10, 12])
    spaced.batch_size = 5
    fit = measure_fit(vit, clt, data, n_images=8)
    frame = reconstruction(vit, clt, spaced).frame.set_index("tokens")
    assert list(fit.r2) == ["cls", "patch"]
    for kind, values in fit.r2.items():
        assert list(values) == frame.loc[kind, "r2"].tolist()
    assert list(fit.l0) == frame.loc["all", "l0"].tolist()
    assert list(fit.dead) == frame.loc["all", "dead"].tolist()
    assert (fit.n_images, fit.of_images) == (8, 13)
    assert "toy, 8 of 13 images, evenly spaced: R2" in fit.line()
    assert "toy, 13 images" in measure_fit(vit, clt, data).line()


def test_several_clts_are_named_and_measured_as_alone() -> None:
    vit = HookedViT(tiny_clip())
    clts = {"a": random_clt(vit), "b": random_clt(vit, seed=1)}
    fits = measure_fits(vit, clts, images(6))
    assert [fit.clt for fit in fits] == ["a", "b"]
    for fit in fits:
        assert fit.r2 == measure_fit(vit, clts[fit.clt], images(6)).r2


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("vit_small_patch16_dinov3", ["cls", "register", "patch"]),
        ("vit_base_patch16_siglip_224", ["patch"]),
    ],
)
def test_rows_are_those_that_the_model_has(name: str, kinds: list[str]) -> None:
    vit = HookedViT(tiny_timm(name))
    fit = measure_fit(vit, random_clt(vit), images(4, 16))
    assert list(fit.r2) == kinds
    assert ("registers" in fit.line(), "CLS" in fit.line()) == ("register" in kinds, "cls" in kinds)
    json.dumps(fit.to_json(), allow_nan=False)


def test_names_where_it_is_worse_than_the_mean() -> None:
    fit = some_fit((0.5, -0.1, 0.2, -0.004), (0.9, 0.8, -2.0, NAN))
    assert fit.worse_than_mean() == [(1, "cls"), (3, "cls"), (2, "patch")]
    assert fit.line() == (
        "Fit of CLT on toy, 8 of 9 images, evenly spaced: R2 CLS 0.15 (least -0.10 at layer 1), "
        "patches -0.10 (least -2.00 at layer 2), L0 4.0, 25% of features are silent on them. "
        "Worse than the mean at layers 1 and 3 (CLS rows) and at layer 2 (patch rows): do not read "
        "their scores."
    )
    assert fit.by_layer()["R2 CLS rows"].tolist() == ["0.50", "-0.10", "0.20", "-0.004"]


def test_all_layers_are_not_listed() -> None:
    fit = some_fit((-0.5, -0.1), (0.9, -0.2))
    assert "mean at every layer (CLS rows) and at layer 1 (patch rows): do not" in fit.line()


def test_what_does_not_vary_is_undefined_and_no_warning() -> None:
    fit = some_fit((NAN, NAN), (NAN, 0.0))
    assert fit.worse_than_mean() == []
    assert "CLS undefined, patches 0.00 (least 0.00 at layer 1)" in fit.line()
    assert "Worse" not in fit.line()
    assert math.isnan(fit.mean_r2("cls"))
    assert fit.to_json()["r2"] == {"cls": [None, None], "patch": [None, 0.0]}
    json.dumps(fit.to_json(), allow_nan=False)
