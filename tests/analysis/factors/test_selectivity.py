"""Which features tell of which factor: the analysis of variance, toys, and edits of features."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import tells_itself
from builders import random_clt, tiny_clip
from scipy.sparse import csr_array
from scipy.stats import binomtest, spearmanr

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK, ZeroShot
from vit_clt.analysis import clamp, selectivity, suppress
from vit_clt.analysis.factors.anova import Cells
from vit_clt.analysis.factors.clamping import Clamp
from vit_clt.analysis.factors.computing_features import ComputingFeatures
from vit_clt.analysis.factors.selectivity import Selectivity
from vit_clt.analysis.factors.selectivity_figure import selectivity_figure
from vit_clt.analysis.factors.sets import with_codes
from vit_clt.data.digits import adding_arrays
from vit_clt.data.forms import load_data
from vit_clt.data.images import ImageSubset, TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import Activations, capture
from vit_clt.hooks.rows import TokenRows, region_rows

VALUES = 4
TOYS = ("left 1", "right 2", "left 0 + right 1", "left 3 and right 2", "sum 2", "noise", "dead")


def groups(values: np.ndarray, member: np.ndarray) -> float:
    """Sum of squares between groups, by its definition."""
    own = [values[member == g] for g in np.unique(member)]
    return sum(len(v) * (v.mean() - values.mean()) ** 2 for v in own)


def test_sums_of_squares_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 150), rng.integers(5, 7, 150)
    values = rng.gamma(1, size=(150, 4)) * (rng.random((150, 4)) < 0.5) + np.eye(3)[a][:, [0]]
    cells = Cells(a, b, (a + b) % 3, ("left", "right"))
    sparse = csr_array(values)

    def additive_residuals(v: np.ndarray) -> np.ndarray:
        design = np.hstack([np.eye(3)[a], np.eye(2)[b - 5]])
        return v - design @ np.linalg.lstsq(design, v, rcond=None)[0]

    def partial(v: np.ndarray) -> float:
        """Interaction over interaction and within, from two regressions."""
        left = np.square(additive_residuals(v)).sum()
        within = np.square(v).sum() - len(v) * v.mean() ** 2 - groups(v, cells.cell)
        return (left - within) / left

    found = cells.sums(sparse)
    order = rng.permutation(150)
    permuted = cells.sums(sparse, order)
    signs = rng.choice([-1.0, 1.0], 150)
    wild = cells.wild_interaction(sparse, signs)
    for i, v in enumerate(values.T):
        assert found.total[i] == pytest.approx(((v - v.mean()) ** 2).sum())
        for name, member in (("a", a), ("b", b), ("label", (a + b) % 3), ("pair", cells.cell)):
            assert getattr(found, name)[i] == pytest.approx(groups(v, member))
            assert found.ratio(name)[i] == pytest.approx(groups(v, member) / found.total[i])
        assert found.ratio("inter")[i] == pytest.approx(partial(v))
        assert permuted.label[i] == pytest.approx(groups(v, ((a + b) % 3)[order]))
        assert wild[i] == pytest.approx(partial(signs * additive_residuals(v)))
    # permuted cells explain (groups - 1) / (images - 1) on average, whatever the values
    drawn = [cells.sums(sparse, rng.permutation(150)).ratio("pair") for _ in range(300)]
    assert np.allclose(np.mean(drawn, axis=0), 5 / 149, atol=0.006)


def test_cells_need_images_and_one_label() -> None:
    a, b = np.array([0, 0, 1, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 1])
    with pytest.raises(InputError, match="data has 1 images of left 1 and right 1"):
        Cells(a, b, a, ("left", "right"))
    a, b = np.tile([0, 0, 1, 1], 2), np.repeat([0, 1], 4)
    with pytest.raises(InputError, match=r"label of image . is .*expected one label a pair"):
        Cells(a, b, np.arange(8), ("left", "right"))


@pytest.fixture(scope="module")
def toys() -> Selectivity:
    """Features whose meaning is set by hand, at layer 0; noise alone at layer 1."""
    vit = HookedViT(tiny_clip())
    n = 400
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, VALUES, n), rng.integers(0, VALUES, n)
    label = (left + right) % VALUES
    x = np.zeros((4, n, 10, 16), np.float32)
    x[0, :, 0] = np.hstack(
        [np.eye(VALUES)[each] for each in (left, right, label)] + [np.zeros((n, 4))]
    )
    x[:, :, 0, 12:] = rng.normal(size=(4, n, 4))
    clt = CrossLayerTranscoder(CLTConfig(4, 16, len(TOYS), ReLUTopK(k=len(TOYS))))
    weights = np.zeros((len(TOYS), 16), np.float32)
    for i, reads in enumerate(([1], [6], [0, 5], [3, 6], [10], [12], [])):
        weights[i, reads] = 1
    weights[:5, 13] = 0.05  # nothing is without noise
    bias = np.array([0, 0, 0, -1, 0, 0, -9], np.float32)
    for s in range(4):
        own = weights if s == 0 else np.repeat(weights[[5]], len(TOYS), 0)
        clt.W_enc[s].data = torch.from_numpy(own)
        clt.b_enc.data[s] = torch.from_numpy(bias)
    data = TensorImages(torch.zeros(n, 3, 12, 12), torch.from_numpy(label), list("0123"), "toys")
    data.images[:, 0, 0, 0] = torch.arange(n)
    data.factors = {"left": torch.from_numpy(left), "right": torch.from_numpy(right)}

    def stand_in(vit: HookedViT, images: torch.Tensor) -> Activations:
        own = torch.from_numpy(x[:, images[:, 0, 0, 0].long().numpy()])
        return Activations(own, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys.modules["vit_clt.analysis.factors.selectivity_study"], "capture", stand_in
        )
        return selectivity(vit, clt.requires_grad_(False), data, layers=[0, 1], draws=60)


def test_toy_features_are_called_what_they_are(toys: Selectivity) -> None:
    found = toys.frame[toys.frame["layer"] == 0].set_index("feature")
    assert dict(zip(TOYS, found["kind"], strict=True)) == {
        "left 1": "left",
        "right 2": "right",
        "left 0 + right 1": "mixed",
        "left 3 and right 2": "pair",
        "sum 2": "label",
        "noise": "none",
        "dead": "rare",
    }
    # an AND of two values in four: 9/16 of its variance is beyond both, by hand
    share = found["share_inter"]
    assert share[3] == pytest.approx((3 / 16) / (5 / 16), abs=0.1)
    assert share[4] == pytest.approx(1, abs=0.05)
    assert found["share_label"][4] == pytest.approx(1, abs=0.05)
    assert np.abs(share[[0, 1, 2]]).max() < 0.05
    assert found["p_inter"][3] == found["p_a"][0] == 1 / 61
    # layer 1 is noise, and no family-wise floor is crossed by it
    assert set(toys.frame[toys.frame["layer"] == 1]["kind"]) <= {"none", "rare"}
    assert toys.counts()["label"].tolist() == [1, 0]
    assert {m.name: m.value for m in toys.metrics()}["layer_0_cls_pair"] == 1


def test_features_are_chosen_and_matched(toys: Selectivity, tmp_path: Path) -> None:
    assert {s: f.tolist() for s, f in toys.features("left", "pair").items()} == {0: [0, 3]}
    eta2 = toys.frame[toys.frame["layer"] == 0]["eta2_pair"]
    best = 0 if eta2[0] > eta2[3] else 3
    assert toys.features("left", "pair", most=1)[0].tolist() == [best]
    group = {0: torch.tensor([0, 4])}
    other = toys.matched(group, seed=1)
    assert len(set(other[0].tolist())) == 2
    assert not set(other[0].tolist()) & {0, 4, 6}
    assert set(toys.matched({0: torch.arange(6)}, apart=False)[0].tolist()) == set(range(6))
    for call, message in (
        (lambda: toys.matched({0: torch.arange(4)}), "layer 0 has 2 other features that fire"),
        (lambda: toys.features("left", most=0), "most is 0; expected at least 1"),
        (lambda: toys.features("foam"), 'kind is "foam"; expected one of "left", "right", "mixed"'),
        (
            lambda: toys.features("left", layers=[3]),
            r"layers contains 3; expected some of \[0, 1\]",
        ),
        (lambda: toys.features("left", layers=[1]), r"no feature of layers \[1\] is of kind left"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    context = tells_itself(toys, tmp_path / "selectivity")
    assert (context["tokens"], context["l0"], context["seed"]) == (toys.region, toys.l0, toys.seed)
    bars = {t.name: list(t.y) for t in selectivity_figure([toys]).data if t.type == "bar"}
    assert bars["mixed"] == toys.counts()["mixed"].tolist()


@pytest.mark.parametrize("region", ["cls", "patch", "right_half", "all"])
def test_values_are_the_strongest_codes_of_the_region(tiny_vit: HookedViT, region: str) -> None:
    generator = torch.Generator().manual_seed(3)
    data = TensorImages(torch.randn(30, 3, 12, 12, generator=generator), torch.arange(30) % 2)
    data.factors = {"left": torch.arange(30) % 2, "right": torch.arange(30) // 2 % 2}
    data.batch_size = 8
    clt = random_clt(tiny_vit, AbsTopK(k=5))
    found = selectivity(tiny_vit, clt, data, region=region, layers=[2], draws=20)
    rows = {"cls": [0], "patch": range(1, 10), "right_half": [3, 6, 9], "all": range(10)}[region]
    codes = (
        clt.encode(capture(tiny_vit, data.images).x[2][:, list(rows)], layer=2).to_dense().numpy()
    )
    strongest = np.abs(codes).argmax(1)[:, None]
    values = np.take_along_axis(codes, strongest, 1)[:, 0].astype(float)
    frame = found.frame.set_index("feature")
    assert np.allclose(frame["active"], (values != 0).mean(0))
    assert np.allclose(frame["rate"], (codes != 0).mean((0, 1)))
    assert found.l0 == pytest.approx((codes != 0).sum(2).mean())
    tested = frame.index[frame["active"] * 30 >= 20]
    assert len(tested) or region == "cls"
    for i in tested:
        v = values[:, i]
        expected = groups(v, np.arange(30) % 2) / ((v - v.mean()) ** 2).sum()
        assert frame["eta2_a"][i] == pytest.approx(expected, rel=1e-5)
    assert frame["eta2_a"].drop(tested).isna().all()


# ---- edits of features ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adding() -> tuple[HookedViT, CrossLayerTranscoder, TensorImages, TensorImages, ZeroShot]:
    """The shipped model, an untrained CLT, and images of zeros and ones."""
    vit = HookedViT.from_open_clip("adding")

    def zeros_and_ones(split: str, n: int) -> TensorImages:
        arrays = adding_arrays(split)
        rows = np.flatnonzero((arrays.left < 2) & (arrays.right < 2))[:n]
        some = ImageSubset(load_data("adding", vit=vit, split=split), rows.tolist())
        data = TensorImages(*some.batch(range(n)), some.class_names, some.name)
        data.factors = some.factors
        return data

    clt = random_clt(vit, n_features=40)
    data, source = zeros_and_ones("test", 24), zeros_and_ones("train", 16)
    return vit, clt, data, source, ZeroShot(vit, data.class_names, "single")


def edited(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: torch.Tensor,
    features: list[int],
    codes: torch.Tensor,
) -> torch.Tensor:
    """Codes of the last layer's CLS row changed: nothing but the stream's end moves."""
    end = vit.cfg.n_layers - 1
    _, cache = vit.run_with_cache(images)
    before = clt.encode(cache[f"blocks.{end}.ln2.hook_out"][:, 0], layer=end).to_dense()[
        :, features
    ]
    resid = cache[f"blocks.{end}.hook_resid_post"].clone()
    resid[:, 0] += (codes - before) @ clt.W_dec[end][0][features]
    return vit.head(resid)


def active(clt: CrossLayerTranscoder, vit: HookedViT, images: torch.Tensor) -> torch.Tensor:
    return clt.encode(capture(vit, images).x[7][:, 0], layer=7).to_dense()


def test_edited_codes_change_the_stream_and_nothing_else(adding) -> None:
    vit, clt, data, _, _ = adding
    group, rows = {7: torch.tensor([3, 1, 8, 5, 2])}, region_rows("cls", vit.cfg.rows)
    features = group[7].tolist()
    with torch.no_grad():
        unaltered = vit(data.images)
        own = active(clt, vit, data.images)[:, None, group[7]]
        lower = {**group, 2: torch.tensor([4, 0])}
        at_2 = clt.encode(capture(vit, data.images).x[2][:, :1], layer=2).to_dense()[:, :, lower[2]]
        kept = with_codes(vit, clt, data.images, lower, rows, {7: own, 2: at_2})
        assert torch.equal(kept, unaltered)
        value = torch.tensor([[0.5, -1.0, 2.0, 0.0, 1.0]])
        found = with_codes(vit, clt, data.images, group, rows, {7: value})
        expected = edited(vit, clt, data.images, features, value)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, unaltered, atol=1e-2)


def test_suppression_maps_what_breaks(adding, tmp_path: Path) -> None:
    vit, clt, data, _, zs = adding
    group, other = {7: torch.arange(0, 20)}, {7: torch.arange(20, 40)}
    result = suppress(vit, clt, data, zs, group, randoms=[other, group])
    with torch.no_grad():
        expected = zs.read(
            edited(vit, clt, data.images, list(range(20)), torch.zeros(20)), data.labels
        )
        fires = active(clt, vit, data.images)[:, :20].ne(0).sum(1).double()
    left, right = (data.factors[name] for name in ("left", "right"))
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = (left == a) & (right == b)
        assert result.counts[a, b] == cell.sum()
        assert result.loss["group"][a, b] == pytest.approx(
            expected.loss[cell].mean().item(), rel=1e-4
        )
        assert result.correct["group"][a, b] == pytest.approx(expected.correct[cell].float().mean())
        assert result.activity["group"][a, b] == pytest.approx(fires[cell].mean().item())
    frame = result.to_frame().set_index("features")
    assert frame.loc["group", "loss"] == frame.loc["random 1", "loss"]
    change = frame.loc["group", "loss"] - frame.loc["random 0", "loss"]
    assert result.group_minus_random() == pytest.approx(change / 2)
    rise = result.loss["group"] - result.loss["original"]
    expected_rho = spearmanr(result.activity["group"].ravel(), rise.ravel()).statistic
    assert frame.loc["group", "follows"] == pytest.approx(expected_rho)
    assert result.overlap == 0.5
    metric = {m.name: m for m in result.metrics()}["group_loss"]
    assert metric.floor == pytest.approx(frame.loc[["random 0", "random 1"], "loss"].mean())
    assert metric.baseline == frame.loc["original", "loss"]
    assert result.l0 == 5
    context = tells_itself(result, tmp_path / "suppression")
    assert (context["tokens"], context["l0"], context["data"]) == ("cls", 5, "adding (test)")
    maps = [t.z for t in result.figure().data]
    assert np.allclose(maps[1], 100 * result.correct["group"])


def test_clamped_answers_are_counted_from_the_labels(
    adding, toys: Selectivity, tmp_path: Path
) -> None:
    vit, clt, data, source, zs = adding
    group, other = {7: torch.arange(0, 20)}, {7: torch.arange(20, 40)}
    options = {"mean_data": source, "randoms": [other], "region": "cls"}
    result: Clamp = clamp(vit, clt, data, zs, group, **options)
    left, right = (data.factors[name] for name in ("left", "right"))
    assert result.origin.tolist() == left.tolist()
    assert result.target.tolist() == (1 - left).tolist()
    with torch.no_grad():
        codes = active(clt, vit, source.images)[:, :20]
        means = torch.stack([codes[source.factors["left"] == a].mean(0) for a in (0, 1)])
        for name, values in (("group", means[1 - left]), ("own", means[left])):
            embeddings = edited(vit, clt, data.images, list(range(20)), values)
            moved = zs.read(embeddings, 1 - left + right)
            assert result.moved[name].tolist() == moved.correct.tolist()
            assert np.allclose(result.moved_loss[name], moved.loss.numpy(), rtol=1e-3, atol=1e-4)
            stayed = zs.read(embeddings, left + right)
            assert result.stayed[name].tolist() == stayed.correct.tolist()
    assert result.stayed["original"].mean() > 0.8
    frame = result.to_frame().set_index("features")
    wilson = binomtest(int(result.stayed["original"].sum()), 24).proportion_ci(method="wilson")
    assert frame.loc["original", "stayed_low"] == pytest.approx(wilson.low)
    assert (result.n, result.n_pairs, result.chance) == (24, 2, 0.1)
    metric = {m.name: m for m in result.metrics()}["group_stayed"]
    assert metric.floor == frame.loc["random 0", "stayed"]
    heat = np.array(result.figure().data[-1].z, float)
    assert heat[0, 1] == pytest.approx(100 * result.moved["group"][result.origin == 0].mean())
    assert np.isnan(heat[0, 0])

    assert result.l0 == 5
    context = tells_itself(result, tmp_path / "clamp")
    assert (context["fill"], context["seed"]) == ("mean codes by left", 0)
    off = suppress(vit, clt, data, zs, group, randoms=[other])
    every = ComputingFeatures({"cls": toys}, {"a few": off}, {"a few": result}, "out/mine")
    context = tells_itself(every, tmp_path / "features")
    assert (context["tokens"], context["clt"]) == ("cls", "out/mine")
    assert context["chosen_on"] == f"{toys.data}, N = {toys.n}"
    assert {m.name for m in every.metrics()} >= {
        "suppressed_a_few_group_loss",
        "clamped_a_few_group_moved",
    }
    table = pd.read_csv(tmp_path / "features" / "clamped.csv").set_index("features")
    assert table.loc["group", "moved"] == frame.loc["group", "moved"]
    with pytest.raises(InputError, match="clamped is empty"):
        ComputingFeatures({"cls": toys}, {"a few": off}, {}, "out/mine")

    lacking = ImageSubset(source, np.flatnonzero(source.factors["left"].numpy() == 0).tolist())
    zeros = np.flatnonzero(data.factors["left"].numpy() == 0).tolist()
    one_value = ImageSubset(data, zeros)
    for changed, message in (
        ({"mean_data": lacking}, "mean_data has no image of left 1"),
        ({"randoms": []}, "randoms is empty"),
        ({"data": one_value}, "left is 0 in every image of adding"),
        ({"randoms": [{7: torch.tensor([40])}]}, "random 0 holds feature 7:40"),
        ({"factor": "up"}, r'factor is "up"; adding \(test\) knows left, right'),
    ):
        with pytest.raises(InputError, match=message):
            clamp(
                vit, clt, **{"data": data, "classifier": zs, "group": group, **options, **changed}
            )
    with pytest.raises(InputError, match="a grid of 1 column has no such patches"):
        region_rows("right_half", TokenRows(True, 0, (4, 1)))
    for bad, message in (
        ({}, "group is empty"),
        ({9: torch.tensor([1])}, "group holds layer 9; expected 0 to 7"),
        ({1: torch.tensor([1, 1])}, "group holds a feature of layer 1 twice"),
    ):
        with pytest.raises(InputError, match=message):
            suppress(vit, clt, data, zs, bad, randoms=[other])
    # before anything is run: the model refuses images of this size
    mixed = TensorImages(data.images[..., :8], data.labels.flip(0), data.class_names)
    mixed.factors = data.factors
    with pytest.raises(InputError, match="expected one label a pair"):
        suppress(vit, clt, mixed, zs, group, randoms=[other])
