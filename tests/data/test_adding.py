"""The data whose class is a sum's last digit, and the shipped model that learned it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import chi2_contingency, chisquare

from vit_clt import ZeroShot, load_data
from vit_clt.analysis.fit.cascade_study import mean_mlp_outputs
from vit_clt.cli.options import ModelOptions
from vit_clt.data.digits import ADDING_CLASSES, N_PAIRS, adding_arrays, digits_arrays, side_by_side
from vit_clt.data.images import ImageSubset
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.hooks.interventions import overwrite_mlp_hooks
from vit_clt.hooks.rows import TokenRows
from vit_clt.teachers import SHIPPED, shipped_teacher

SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def adding_vit() -> HookedViT:
    return HookedViT.from_open_clip("adding")


def ink(image: np.ndarray) -> tuple[int, bytes]:
    """The first row with ink, and the rows from there to the last one with ink."""
    rows = image.any(1).nonzero()[0]
    return int(rows[0]), np.ascontiguousarray(image[rows[0] : rows[-1] + 1]).tobytes()


def inks(split: str) -> dict[bytes, tuple[int, int]]:
    """(first row, value) of the digits of a split, by their ink."""
    return {
        pixels: (row, int(value))
        for (row, pixels), value in zip(
            map(ink, digits_arrays(split)[0]), digits_arrays(split)[1], strict=True
        )
    }


# ---- the arrays -------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_both_halves_are_digits_of_the_split_and_the_label_is_their_sum(split: str) -> None:
    arrays = adding_arrays(split)
    own, other = (inks(s) for s in (split, next(s for s in SPLITS if s != split)))
    assert arrays.images.shape == (N_PAIRS[split], 16, 16)
    assert arrays.images.dtype == np.uint8
    for columns, values in ((slice(0, 8), arrays.left), (slice(8, 16), arrays.right)):
        found = [ink(image) for image in arrays.images[:, :, columns]]
        assert [own[pixels][1] for _, pixels in found] == values.tolist()
        assert not any(pixels in other for _, pixels in found)
        tops = np.array([row - own[pixels][0] for row, pixels in found])
        assert (tops.min(), tops.max()) == (0, 8)
        assert chisquare(np.bincount(tops)).pvalue > 1e-3
    assert np.array_equal(arrays.labels, (arrays.left + arrays.right) % 10)


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_drawn_evenly_and_apart(split: str) -> None:
    arrays = adding_arrays(split)
    shares = np.bincount(digits_arrays(split)[1]) / len(digits_arrays(split)[1])
    for values in (arrays.left, arrays.right):
        assert chisquare(np.bincount(values), shares * len(values)).pvalue > 1e-3
    # neither digit alone says anything about the class, which is what makes the task a sum
    for one, two in ((arrays.left, arrays.right), (arrays.left, arrays.labels)):
        table = np.zeros((10, 10))
        np.add.at(table, (one, two), 1)
        assert chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(
    ("split", "digest"),
    [
        ("train", "7bf67e103e78219f758cf88ecc6ba7368ad1c63d5faf43b1107e0a5e540437c3"),
        ("test", "1823351828e25951e21d457788073ebc1197fa3cfa14086b0e5fce14305ae06c"),
    ],
)
def test_every_call_gives_the_same_rows_in_the_same_order(split: str, digest: str) -> None:
    whole = hashlib.sha256()
    for values in adding_arrays(split):
        whole.update(values.astype("<i8").tobytes())
    assert whole.hexdigest() == digest


@given(st.tuples(st.integers(0, 8), st.integers(0, 8)), st.integers(0, 2**32 - 1))
def test_side_by_side_moves_pixels_and_nothing_else(tops: tuple[int, int], seed: int) -> None:
    digits = np.random.default_rng(seed).uniform(1, 2, (1, 2, 8, 8))
    [image] = side_by_side(digits, np.array([tops]))
    left, right = image[tops[0] : tops[0] + 8, :8], image[tops[1] : tops[1] + 8, 8:]
    assert np.array_equal(np.stack([left, right]), digits[0])
    assert np.count_nonzero(image) == 128


# ---- as a form of data ------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_images_labels_and_factors_share_their_rows(adding_vit: HookedViT, split: str) -> None:
    data = load_data("adding", vit=adding_vit, split=split)
    arrays = adding_arrays(split)
    rows = [7, 0, N_PAIRS[split] - 1]
    assert (data.name, data.split, len(data)) == (f"adding ({split})", split, N_PAIRS[split])
    assert data.class_names == ADDING_CLASSES
    images, labels = data.batch(rows)
    shown = [adding_vit.preprocess(Image.fromarray(arrays.images[row])) for row in rows]
    assert torch.equal(images, torch.stack(shown))
    assert labels.tolist() == arrays.labels[rows].tolist()
    assert data.factors is not None
    assert data.factors["left"].tolist() == arrays.left.tolist()
    assert data.factors["right"].tolist() == arrays.right.tolist()
    some = ImageSubset(data, rows)
    assert some.factors is not None
    sums = some.factors["left"] + some.factors["right"]
    assert torch.equal(sums % 10, some.batch(range(3))[1])


def test_the_limit_keeps_the_first_rows_of_everything(adding_vit: HookedViT) -> None:
    whole = load_data("adding", vit=adding_vit)
    few = load_data("adding", vit=adding_vit, limit=5, class_names=list("0123456789"))
    assert (few.name, len(few), few.class_names) == ("adding (test)", 5, list("0123456789"))
    assert torch.equal(few.batch(range(5))[0], whole.batch(range(5))[0])
    assert whole.factors is not None
    assert few.factors is not None
    assert torch.equal(few.factors["right"], whole.factors["right"][:5])


def test_other_forms_know_no_factors(digits_vit: HookedViT) -> None:
    assert load_data("digits", vit=digits_vit).factors is None


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("adding", {"split": "val"}, 'split is "val"; adding has "train" and "test"'),
        ("adding", {"class_names": ["a"] * 9}, "class_names holds 9 names; adding has 10 classes"),
        ("adding", {"limit": 0}, "limit is 0"),
        ("adding:here", {}, 'data is "adding:here"; expected one of digits, adding, cifar10'),
    ],
)
def test_bad_input_is_refused(
    digits_vit: HookedViT, form: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_data(form, vit=digits_vit, **options)


# ---- the model --------------------------------------------------------------------------------


def test_geometry_and_size_of_the_model(adding_vit: HookedViT) -> None:
    cfg = adding_vit.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads) == (8, 64, 4)
    assert (cfg.image_size, cfg.patch_grid, cfg.n_tokens) == ((16, 16), (4, 4), 17)
    assert (cfg.rows, cfg.pools_cls) == (TokenRows(True, 0, (4, 4)), True)
    assert (cfg.activation, cfg.model, cfg.pretrained) == ("QuickGELU", "adding", None)
    folder = Path(str(shipped_teacher("adding")).removeprefix("local-dir:"))
    weights = load_file(folder / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6


def test_the_model_adds_and_cannot_without_its_mlps(adding_vit: HookedViT) -> None:
    data = load_data("adding", vit=adding_vit, limit=400)
    images, labels = data.batch(range(len(data)))
    embeddings = adding_vit(images)
    single, zs = (ZeroShot(adding_vit, data.class_names, t) for t in ("single", "ensemble"))
    assert single.read(embeddings, labels).correct.float().mean() > 0.95
    unaltered = zs.read(embeddings, labels)
    means = mean_mlp_outputs(adding_vit, data)
    floor_hooks = overwrite_mlp_hooks(range(8), "all", dict(enumerate(means)))
    floor = zs.read(adding_vit.run_with_hooks(images, fwd_hooks=floor_hooks), labels)
    assert unaltered.correct.float().mean() > 0.95
    assert unaltered.loss.mean() < 0.25
    assert floor.correct.float().mean() < 0.2
    assert floor.loss.mean() > 2


@pytest.mark.parametrize("model", SHIPPED)
def test_shipped_models_bring_their_own_data(model: str) -> None:
    options = ModelOptions(model=model, limit=4)
    vit = options.load_vit("cpu")
    assert options.load_images(vit).name == f"{model} (test)"
    assert options.load_images(vit, "train").name == f"{model} (train)"


def test_no_other_name_is_a_shipped_model() -> None:
    with pytest.raises(InputError, match='pretrained is missing; model "addings"'):
        ModelOptions(model="addings").load_vit("cpu")
    with pytest.raises(InputError, match='model is "addings"'):
        HookedViT.from_open_clip("addings")
    with pytest.raises(InputError, match='model "adding" carries its own weights'):
        HookedViT.from_open_clip("adding", "openai")
    own = ModelOptions(model=shipped_teacher("adding"))
    with pytest.raises(InputError, match="data is missing"):
        own.load_images(own.load_vit("cpu"))
