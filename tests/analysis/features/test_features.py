"""Feature statistics, pages, selection and effects, each against a dense recomputation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from builders import random_clt, tiny_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import Compose, Normalize

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import feature_statistics
from vit_clt.analysis.features.choice import RULES, select_features
from vit_clt.analysis.features.effects import class_effects
from vit_clt.analysis.features.figure import activation_picture
from vit_clt.analysis.features.page import QUARTERS, activations_at, nearest_features
from vit_clt.analysis.features.purity import purity, purity_by_chance
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.features.summary import summary, summary_metrics
from vit_clt.analysis.features.tally import BINS, FoldingHistograms
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.hooks.passes.frozen import FrozenPass
from vit_clt.readouts.zero_shot import ZeroShot

SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.3)]
CLASSES = ["red thing", "green thing", "blue thing"]
N = 20


def tiny(**vision: object) -> HookedViT:
    """With what pictures and prompts need."""
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])

    def tokens(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[(7 * i + len(t)) % 63 for i in range(8)] for t in texts])

    return HookedViT(tiny_clip(**vision), preprocess=steps, tokenizer=tokens)


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    return tiny()


@pytest.fixture(scope="module")
def data() -> TensorImages:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(N, 3, 12, 12, generator=generator)
    found = TensorImages(images, torch.arange(N) % 3, CLASSES, name="noise")
    found.batch_size = 7
    return found


@pytest.fixture(scope="module", params=[*SPARSIFIERS, "per layer"], ids=str)
def stats(vit: HookedViT, data: TensorImages, request: pytest.FixtureRequest) -> FeatureStatistics:
    if request.param == "per layer":
        config = CLTConfig(4, 16, 24, ReLUTopK(k=5), cross_layer=False)
        clt = CrossLayerTranscoder(config).eval().requires_grad_(False)
    else:
        clt = random_clt(vit, request.param)
    zs = ZeroShot(vit, CLASSES, "single")
    return feature_statistics(vit, clt, data, zs=zs, effect_images=9, top=4, seed=5)


@pytest.fixture(scope="module")
def plain(vit: HookedViT, data: TensorImages) -> FeatureStatistics:
    zs = ZeroShot(vit, CLASSES, "single")
    return feature_statistics(vit, random_clt(vit), data, zs=zs, effect_images=9, top=4, seed=5)


def dense(stats: FeatureStatistics) -> np.ndarray:
    """z "layer image token feature" in float64."""
    x = capture(stats.vit, stats.data.images).x
    return stats.clt.encode(x).to_dense().double().numpy()


def of_images(z: np.ndarray) -> np.ndarray:
    """Signed z of largest |z| over the token axis."""
    at = np.abs(z).argmax(-2, keepdims=True)
    return np.take_along_axis(z, at, -2).squeeze(-2)


def test_counts_rates_and_sizes(stats: FeatureStatistics):
    z = dense(stats)
    frame = stats.to_frame()
    assert len(frame) == 4 * 24
    for s in range(4):
        rows = frame[frame["layer"] == s]
        active = z[s] != 0
        np.testing.assert_allclose(rows["image_rate"], active.any(1).mean(0))
        np.testing.assert_allclose(rows["cls_rate"], active[:, 0].mean(0))
        np.testing.assert_allclose(rows["patch_rate"], active[:, 1:].mean((0, 1)))
        masked = np.ma.masked_array(np.abs(z[s]), ~active)
        for name, chosen in (("mean_cls", slice(0, 1)), ("mean_patch", slice(1, None))):
            expected = masked[:, chosen].mean((0, 1)).filled(np.nan)
            np.testing.assert_allclose(rows[name], expected, rtol=1e-5)
        peak = z[s].reshape(-1, 24)
        expected = np.take_along_axis(peak, np.abs(peak).argmax(0)[None], 0)[0]
        np.testing.assert_allclose(rows["peak"], expected, rtol=1e-5)
        assert rows["l0"].iloc[0] == pytest.approx(active.sum(-1).mean())


def test_pages_show_the_images_they_say(stats: FeatureStatistics):
    z = dense(stats)
    values = of_images(z)
    active = [(s, i) for s in (1, 3) for i in range(24) if values[s, :, i].any()]
    signs = set()
    for (s, i), page in zip(active, stats.feature_pages(active), strict=True):
        mine = values[s, :, i]
        order = np.lexsort((np.arange(N), -np.abs(mine).astype(np.float32)))
        expected = [row for row in order.tolist() if mine[row]][:4]
        assert [each.row for each in page.top] == expected
        assert page.active_images == (mine != 0).sum()
        # fewer than 64 active images: the sample is all of them, and its quantiles exact
        sizes = np.sort(np.abs(mine[mine != 0]))
        for (low, high), part in zip(QUARTERS, page.ranges, strict=True):
            inside = sizes[round(low * len(sizes)) : round(high * len(sizes))]
            assert len(part.examples) == min(3, len(inside))
            assert len({each.row for each in part.examples}) == len(part.examples)
            for each in part.examples:
                assert inside[0] * (1 - 1e-5) <= abs(each.value) <= inside[-1] * (1 + 1e-5)
        for each in [*page.top, *page.ranges[-1].examples]:
            shown = np.concatenate([[each.cls], each.patches.ravel()])
            np.testing.assert_allclose(shown, z[s, each.row, :, i], rtol=1e-4, atol=1e-6)
            assert each.value == pytest.approx(mine[each.row], rel=1e-4)
            assert each.label == each.row % 3
        signs |= set(np.sign(mine))
        for kind, rows in enumerate((slice(0, 1), slice(1, None))):
            entries = z[s][:, rows, i]
            counted, _ = np.histogram(entries[entries != 0].astype(np.float32), page.edges)
            np.testing.assert_array_equal(page.counts[kind], counted)
            assert page.counts[kind].sum() == (entries != 0).sum()
    assert (-1 in signs) == isinstance(stats.clt.config.sparsifier, AbsTopK)


def test_write_strength(stats: FeatureStatistics):
    z = dense(stats)
    y = capture(stats.vit, stats.data.images).y.double().numpy()
    s, i = 1, int(np.abs(z[1]).sum((0, 1)).argmax())
    writes = stats.feature_page(s, i).writes
    assert list(writes) == list(stats.clt.config.targets(s))
    for j, (l, strengths) in enumerate(writes.items()):
        norm = np.linalg.norm(stats.clt.W_dec[s][j, i].double().numpy())
        for found, rows in zip(strengths, (slice(0, 1), slice(1, None)), strict=True):
            mine = np.abs(z[s][:, rows, i])
            scale = np.sqrt((y[l][:, rows] ** 2).sum(-1).mean())
            expected = mine[mine > 0].mean() * norm / scale if mine.any() else np.nan
            np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_effects_are_those_of_each_image_alone(stats: FeatureStatistics):
    vit, clt = stats.vit, stats.clt
    zs = ZeroShot(vit, CLASSES, "single")
    z = dense(stats)[:, :9]
    expected = np.zeros((4, 24, 3))
    for image in range(9):
        frozen = FrozenPass(vit, stats.data.images[image : image + 1])
        g = frozen.gradients((zs.logit_scale * zs.weights).T, norms="differentiated")
        g = g[:, :, 0].double()
        for s in range(4):
            targets = clt.config.targets(s)
            at_targets = g[:, targets.start : targets.stop]
            per_entry = torch.einsum("lfd,cltd->tfc", clt.W_dec[s].double(), at_targets)
            expected[s] += (z[s, image][..., None] * per_entry.numpy()).sum(0)
    active = (z != 0).any(2).sum(1)
    effects = stats.effects
    assert effects is not None
    for s in range(4):
        np.testing.assert_array_equal(effects.images[s], active[s])
        mean = np.where(active[s][:, None] > 0, expected[s] / active[s].clip(1)[:, None], np.nan)
        np.testing.assert_allclose(effects.mean(s), mean, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(np.nansum(effects.centred(s), 1), 0, atol=1e-9)
    frame = stats.to_frame().query("layer == 2 and effect_images > 0")
    best = effects.centred(2)[frame["feature"]]
    assert frame["raised"].tolist() == [CLASSES[c] for c in best.argmax(1)]
    np.testing.assert_allclose(frame["effect"], best.max(1))


def test_effects_on_more_classes_than_dimensions_are_those_class_by_class(
    vit: HookedViT, data: TensorImages
) -> None:
    """Their sums go over the dimensions of the embedding; each logit is read by its own."""
    clt, names = random_clt(vit), [f"thing {'x' * i}" for i in range(30)]
    assert len(names) > vit.cfg.d_embed
    zs = ZeroShot(vit, names, "single")
    found = class_effects(vit, clt, data, zs, [0, 2], n_images=9)
    for part in (range(10), range(10, 20), range(20, 30)):
        few = ZeroShot(vit, [names[c] for c in part], "single")
        expected = class_effects(vit, clt, data, few, [0, 2], n_images=9)
        for s in (0, 2):
            size = np.abs(expected.sums[s]).max()
            np.testing.assert_allclose(
                found.sums[s][:, part], expected.sums[s], rtol=1e-4, atol=1e-5 * size
            )
            np.testing.assert_array_equal(found.images[s], expected.images[s])
    for feature in (0, 7):
        rows = np.stack([found.centred(2)[feature], found.mean(2)[feature]])
        np.testing.assert_allclose(found.of(2, feature), rows, rtol=1e-12, atol=1e-15)


def test_patches_of_the_last_layer_reach_no_logit(plain: FeatureStatistics):
    """An exact zero, which raises no class: with CLS pooling only row 0 of y_{L-1} is read."""
    z = dense(plain)[3, :9]
    silent_on_cls = (z != 0).any((0, 1)) & ~(z[:, 0] != 0).any(0)
    assert silent_on_cls.any()
    assert not np.abs(plain.effects.mean(3)[silent_on_cls]).any()
    rows = plain.to_frame().query("layer == 3").set_index("feature")
    assert (rows.loc[silent_on_cls, "raised"] == "").all()
    assert (rows.loc[silent_on_cls, "effect"] == 0).all()
    assert (rows.loc[rows["effect"] > 0, "raised"] != "").all()


def test_batches_and_layers_do_not_matter(vit: HookedViT, data: TensorImages, plain):
    whole = TensorImages(data.images, data.labels, CLASSES, name="noise")
    zs = ZeroShot(vit, CLASSES, "single")
    again = feature_statistics(
        vit, plain.clt, whole, layers=[2], zs=zs, effect_images=9, top=4, seed=5
    )
    expected = plain.to_frame().query("layer == 2").reset_index(drop=True)
    found = again.to_frame()
    for column in expected.columns:
        if expected[column].dtype.kind == "f":
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-4, atol=1e-7)
        else:
            assert found[column].tolist() == expected[column].tolist()
    feature = int(expected["active_images"].argmax())
    pages = [each.feature_page(2, feature) for each in (plain, again)]
    rows = [[e.row for r in page.ranges for e in r.examples] for page in pages]
    assert rows[0] == rows[1]
    other_seed = replace(plain, seed=6).feature_page(2, feature)
    assert [e.row for r in other_seed.ranges for e in r.examples] != rows[0]


def test_near_features(stats: FeatureStatistics):
    clt, z = stats.clt, dense(stats)
    s, i = 2, int((z[2] != 0).any(1).sum(0).argmax())
    page = stats.feature_page(s, i)
    found = []
    for other in range(4):
        shared = sorted(set(clt.config.targets(s)) & set(clt.config.targets(other)))
        for j in range(24) if shared else ():
            if (other, j) != (s, i):
                a, b = (
                    torch.cat([clt.W_dec[o][l - o, f] for l in shared]).double().numpy()
                    for o, f in ((s, i), (other, j))
                )
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                found.append((cosine, -other, -j, len(shared)))
    best = sorted(found, reverse=True)[:5]
    assert [(n.layer, n.feature, n.n_targets) for n in page.near] == [
        (-other, -j, shared) for _, other, j, shared in best
    ]
    np.testing.assert_allclose([n.cosine for n in page.near], [b[0] for b in best], rtol=1e-6)
    active = (z != 0).any(2)
    for near, together in zip(page.near, page.together, strict=True):
        a, b = active[s, :, i], active[near.layer, :, near.feature]
        np.testing.assert_allclose(together, (a & b).sum() / (a | b).sum())


def test_a_feature_alone_has_no_near_ones(vit: HookedViT):
    config = CLTConfig(4, 16, 1, ReLUTopK(k=1), cross_layer=False)
    assert nearest_features(CrossLayerTranscoder(config), [(1, 0)]) == {(1, 0): []}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32).filter(bool), min_size=1), st.integers(1, 9))
def test_folding_histograms(values: list[float], step: int):
    """Whatever the batches: exact counts over even bins, at least half of them in range."""
    found = FoldingHistograms(1, 2)
    for start in range(0, len(values), step):
        some = torch.tensor(values[start : start + step])
        found.add(torch.zeros(len(some)).long(), torch.ones(len(some)).long(), some)
    edges, counts = found.of(1)
    expected, _ = np.histogram(values, edges)
    # bins are open at the other end on the negative side: edges themselves may move by one bin
    assert counts.sum() == len(values)
    if not set(np.abs(values)) & set(np.abs(edges)):
        np.testing.assert_array_equal(counts[0], expected)
    assert edges[0] <= min(values)
    assert max(values) <= edges[-1]
    assert np.abs(edges).max() <= 2 * np.abs(values).max() + np.diff(edges)[0]
    assert len(edges) - 1 >= BINS / 2
    assert not found.of(0)[1].any()


def test_purity():
    labels = np.array([0, 0, 1, 1, 2, -1])
    rows = np.array([[2, 3, 0], [4, -1, -1], [5, -1, -1], [-1, -1, -1]])
    chance = purity_by_chance(labels, 3, 0)
    found = purity(rows, labels, chance)
    assert found["label"].tolist() == [1, 2, -1, -1]
    np.testing.assert_allclose(found["purity"], [2 / 3, 1, np.nan, np.nan])
    np.testing.assert_allclose(found["base"], [2 / 5, 1 / 5, np.nan, np.nan])
    np.testing.assert_allclose(found["purity_by_chance"], [chance[3], 1, np.nan, np.nan])
    # 2 of 10 pairs are of one class: the mean of 1 and 1/2
    assert chance[2] == pytest.approx(0.2 + 0.8 / 2, abs=0.03)
    assert np.isnan(purity_by_chance(np.array([-1]), 2, 0)).all()
    assert np.isnan(purity(rows, np.full(6, -1), chance)["purity"]).all()


def test_selection(plain: FeatureStatistics):
    frame = plain.to_frame().set_index(["layer", "feature"])
    active = frame[frame["active_images"] > 0]
    for rule in RULES:
        chosen = select_features(plain, rule, 3)
        assert len(set(chosen)) == len(chosen)
        assert all(each in active.index for each in chosen)
        assert [sum(s == l for s, _ in chosen) for l in range(4)] == [3] * 4
        assert chosen == select_features(plain, rule, 3)
    own = active.loc[2]
    by_rate = own.sort_values("active_images", ascending=False, kind="stable")
    pick = [i for s, i in select_features(plain, "rate", 3) if s == 2]
    assert pick == by_rate.index[:3].tolist()
    groups = np.array_split(by_rate.index.to_numpy(), 3)
    spread = [i for s, i in select_features(plain, "spread", 3) if s == 2]
    assert all(i in group for i, group in zip(spread, groups, strict=True))
    purest = [own.loc[i, "purity"] for s, i in select_features(plain, "purity", 3) if s == 2]
    assert purest == sorted(own.query("active_images >= 4")["purity"], reverse=True)[:3]
    totals = np.nan_to_num(plain.effects.centred(2)) * plain.effects.images[2][:, None]
    strongest = [i for s, i in select_features(plain, "effect", 3) if s == 2]
    assert strongest == np.argsort(-np.abs(totals).max(1), kind="stable")[:3].tolist()
    raising = [i for s, i in select_features(plain, "effect", 3, class_name="GREEN") if s == 2]
    assert raising == np.argsort(-totals[:, 1], kind="stable")[:3].tolist()
    everything = select_features(plain, "random", 99)
    assert sorted(everything) == sorted(active.index)


def test_refused(vit: HookedViT, data: TensorImages, plain: FeatureStatistics):
    clt = plain.clt
    for chosen, text in (
        ([(4, 0)], "feature is 4:0; expected one of the layers looked at, 0, 1, 2, 3"),
        ([(0, 24)], "feature is 0:24; expected features from 0 to 23"),
        ([], "feature is empty"),
    ):
        with pytest.raises(InputError, match=text):
            plain.feature_pages(chosen)
    silent = plain.to_frame().query("active_images == 0").iloc[0]
    with pytest.raises(InputError, match="active on none of the 20 images of noise"):
        plain.feature_page(int(silent["layer"]), int(silent["feature"]))
    with pytest.raises(InputError, match="images is empty"):
        feature_statistics(vit, clt, data.images[:0])
    with pytest.raises(InputError, match="top is 0"):
        feature_statistics(vit, clt, data, top=0)
    with pytest.raises(InputError, match="layers contains 4"):
        feature_statistics(vit, clt, data, layers=[4])
    with pytest.raises(InputError, match="effect_images is 0"):
        class_effects(vit, clt, data, ZeroShot(vit, CLASSES, "single"), [0], n_images=0)
    other = random_clt(tiny(layers=3))
    with pytest.raises(InputError, match="3 layers"):
        feature_statistics(vit, other, data)
    with pytest.raises(InputError, match="count is 0"):
        select_features(plain, count=0)
    with pytest.raises(InputError, match='expected rule "effect"'):
        select_features(plain, "rate", class_name="red thing")
    with pytest.raises(
        InputError, match='class_name is "purple", which fits no class name; expected one of red'
    ):
        select_features(plain, "effect", class_name="purple")
    with pytest.raises(InputError, match='class_name is "thing", which fits 3 class names'):
        select_features(plain, "effect", class_name="thing")
    with pytest.raises(InputError, match="fits no feature"):
        select_features(replace(plain, n_top=N + 1), "purity")


def test_without_classes(vit: HookedViT, data: TensorImages, plain: FeatureStatistics):
    stats = feature_statistics(vit, plain.clt, data.images, layers=[3], top=4)
    frame = stats.to_frame()
    assert frame["purity"].isna().all()
    assert "effect" not in frame
    page = stats.feature_page(3, int(frame["active_images"].argmax()))
    assert (page.label, page.effects, page.effect_images) == (-1, None, 0)
    assert all(np.isnan(t) == (n.layer != 3) for n, t in zip(page.near, page.together, strict=True))
    with pytest.raises(InputError, match="no effects are measured"):
        select_features(stats, "effect")
    metrics = {m.name: m for m in summary_metrics(summary(frame, stats.n_top), N)}
    assert metrics["active_features_3"].value == (frame["active_images"] > 0).mean()
    assert stats.feature_figure(3, page.feature).data
    assert repr(stats) == f"FeatureStatistics({stats.caption()}, layers 3)"


def test_pure_features_that_raise_the_class_they_fire_on():
    rows = [  # active images, purity, class of the top images, class raised most
        (5, 1.0, "red", "red"),
        (5, 0.75, "red", "blue"),
        (4, 1.0, "blue", "blue"),
        (5, 0.8, "green", "red"),
        (3, 1.0, "red", "red"),  # too few images
        (5, 0.7, "red", "red"),  # not pure
        (5, 1.0, "red", ""),  # effects that are all 0
    ]
    columns = ["active_images", "purity", "class", "raised"]
    frame = pd.DataFrame(rows, columns=columns).assign(
        layer=2, image_rate=0.5, purity_by_chance=0.4, effect=0.1, l0=3.0
    )
    found = summary(frame, top=4).loc[0]
    assert (found["pure"], found["raise_own"]) == (4, 0.5)
    # of the four 2 red, 1 blue, 1 green on top; 2 raise red, 2 blue
    assert found["raise_own_by_chance"] == pytest.approx((2 * 2 + 1 * 2) / 16)
    metric = {m.name: m for m in summary_metrics(summary(frame, top=4), 9)}[
        "pure_raise_own_class_2"
    ]
    assert (metric.value, metric.floor) == (0.5, found["raise_own_by_chance"])
    none = summary(frame.drop(columns="raised"), top=4).loc[0]
    assert none["pure"] == 0
    assert np.isnan(none["raise_own"])


def test_activations_keep_the_order_asked_for(plain: FeatureStatistics):
    wanted = {(2, 3): [9, 1, 17], (0, 5): [4], (2, 0): [1, 9]}
    found = activations_at(plain.vit, plain.clt, plain.data, wanted)
    z = dense(plain)
    for (s, i), rows in wanted.items():
        np.testing.assert_allclose(found[s, i], z[s][rows, :, i], rtol=1e-4, atol=1e-6)


def test_figure(plain: FeatureStatistics):
    feature = int(plain.tallies[2].counts.images.argmax())
    page = plain.feature_page(2, feature)
    figure = plain.feature_figure(2, feature)
    title = figure.layout.title.text
    for text in (f"Feature 2:{feature}", "noise, N = 20", "teacher trajectory", "seed 5"):
        assert text in title
    assert len(figure.layout.images) == len(page.top)
    captions = [a.text for a in figure.layout.annotations if "(row" in a.text]
    assert captions[0].startswith(f"z {page.top[0].value:.3g}, CLS {page.top[0].cls:.3g}<br>")
    bars = [t for t in figure.data if t.type == "bar"]
    assert list(bars[0].y) == pytest.approx(
        (100 * page.counts[0] / max(1, page.counts[0].sum())).tolist()
    )
    effects = next(t for t in bars if t.orientation == "h")
    assert sorted(effects.x) == pytest.approx(sorted(page.effects[0]))


def test_activation_picture():
    image = np.full((12, 12, 3), 100, np.uint8)
    patches = np.zeros((3, 3), np.float32)
    patches[0, 0], patches[1, 2], patches[2, 2] = 1.0, 0.5, -1.0
    large = activation_picture(image, patches, 1.0).astype(int)
    assert large.shape[0] == large.shape[1] >= 200
    size = large.shape[0] // 3
    mid = [large[i * size + size // 2, j * size + size // 2] for i, j in ((0, 0), (1, 2), (2, 2))]
    changes = [np.abs(each - 100).sum() for each in mid]
    assert changes[0] > changes[1] > 0
    assert mid[0][0] > 100 > mid[0][2]  # orange
    assert mid[2][2] > 100 > mid[2][0]  # blue
    assert (large[size : 2 * size, : 2 * size] == 100).all()
    rows = [large[size // 2, k].sum() for k in (0, size // 2)]
    assert all(a != b for a, b in pairwise(rows))  # the frame stands out
