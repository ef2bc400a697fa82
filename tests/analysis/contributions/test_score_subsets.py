"""Scores of a class, an image and a bootstrap draw, recomputed; CLTs beside each other."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assertions import tells_itself
from builders import random_clt, tiny_clip
from oracles.score_oracle import numpy_score, numpy_terms
from torch import Tensor

from vit_clt import AbsTopK, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import contribution_scores, score
from vit_clt.analysis.ablations.rankings import source_orders
from vit_clt.analysis.contributions import moments
from vit_clt.analysis.contributions.difference import ScoreDifference
from vit_clt.analysis.contributions.figure import contribution_figure, difference_figure
from vit_clt.analysis.contributions.moments import ContributionMoments, compared_moments
from vit_clt.analysis.contributions.scores import ALL_SCORES
from vit_clt.analysis.contributions.study import score_study
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT

ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
LABELS = torch.tensor([0, 1, 1, 0, 2, 1, 1, 2, 0, 1, 1, 2])
NAMES = ["ant", "bee", "cat", "dog"]
SPARSIFIERS = (ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2))


@dataclass(frozen=True)
class Toy:
    vit: HookedViT
    data: TensorImages
    clts: list[CrossLayerTranscoder]
    moments: list[ContributionMoments]
    oracles: list[tuple[list[np.ndarray], np.ndarray, np.ndarray]]
    """`numpy_terms`, one per CLT."""

    def expected(self, i: int, target: int, tokens: str, kind: str, reduce: str, images: Any):
        terms, _, y = self.oracles[i]
        rows, bias = ROWS[tokens], self.clts[i].b_dec[target].double().numpy()
        return numpy_score(
            terms[target][:, :, rows], bias, y[target][:, rows], kind, reduce, images
        )


def batches_of(images: Tensor, labels: Tensor, size: int) -> TensorImages:
    data = TensorImages(images, labels, NAMES)
    data.batch_size = size
    return data


@pytest.fixture(scope="module")
def toy() -> Toy:
    vit = HookedViT(tiny_clip())
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    data = batches_of(images, LABELS, 5)
    clts = [random_clt(vit, sparsifier) for sparsifier in SPARSIFIERS]
    oracles = [numpy_terms(vit, clt, images) for clt in clts]
    return Toy(vit, data, clts, compared_moments(vit, clts, data), oracles)


# ---- a class, an image --------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(3), ids=lambda i: SPARSIFIERS[i].name)
@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize(("kind", "reduce"), ALL_SCORES)
def test_a_class_and_an_image_keep_the_means_of_all_images(
    toy: Toy, i: int, tokens: str, kind: str, reduce: str
) -> None:
    for which, images, name in (
        ({"label": "bee"}, [1, 2, 5, 6, 9, 10], "class bee"),
        ({"label": 2}, [4, 7, 11], "class cat"),
        ({"image": 6}, [6], "image 6"),
    ):
        found = score(toy.moments[i], tokens=tokens, kind=kind, reduce=reduce, **which)
        assert (found.n_images, found.images.tolist()) == (len(images), images)
        assert found.data.endswith(name)
        assert name in found.label
        for l in range(4):
            shares, bias = toy.expected(i, l, tokens, kind, reduce, images)
            np.testing.assert_allclose(found.matrix[l, : l + 1], shares, rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(found.bias[l], bias, rtol=2e-5, atol=2e-6)
        active = (toy.oracles[i][1][:, images][:, :, ROWS[tokens]] != 0).sum(-1)
        assert found.l0 == pytest.approx(active.mean())


def test_mean_ratios_of_classes_average_to_those_of_all_images(toy: Toy) -> None:
    for tokens in ROWS:
        whole = score(toy.moments[0], tokens=tokens)
        of_class = [score(toy.moments[0], tokens=tokens, label=c) for c in range(3)]
        mean = sum(each.n_images * each.matrix for each in of_class) / 12
        torch.testing.assert_close(mean, whole.matrix, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("which", [{"label": "bee"}, {"image": 6}, {}], ids=str)
def test_other_rankings_score_the_same_images(toy: Toy, which: dict[str, Any]) -> None:
    scores = score(toy.moments[0], tokens="all", reduce="ratio_of_means", seed=3, **which)
    images = scores.images.tolist()
    rankings = ["projection", "centred", "norm", "loo", "loo_r2"]
    orders = {
        o.ranking: o.sources
        for o in source_orders(scores, [2, 3], rankings, rescored=scores.rescored)
    }
    for kind in rankings:
        for l in (2, 3):
            shares, _ = toy.expected(0, l, "all", kind, "ratio_of_means", images)
            assert orders[kind][l] == np.argsort(-shares).tolist(), (kind, l)
    whole = score(toy.moments[0], tokens="all", reduce="ratio_of_means")
    of_all = {
        o.ranking: o.sources
        for o in source_orders(whole, [2, 3], rankings[1:], rescored=whole.rescored)
    }
    # the subset must matter for this to say anything
    assert not which or any(orders[kind] != of_all[kind] for kind in of_all)
    other = scores.rescored("norm")
    assert (other.kind, other.reduce, other.seed) == ("norm", "ratio_of_means", 3)
    assert (other.data, other.images.tolist()) == (scores.data, images)
    # centred leaves no choice to pass on
    assert scores.rescored("centred").rescored("norm").reduce == "mean_of_ratios"


def test_one_call_scores_a_class(toy: Toy) -> None:
    direct = contribution_scores(toy.vit, toy.clts[1], toy.data, kind="centred", label="bee")
    expected = score(toy.moments[1], kind="centred", label="bee")
    torch.testing.assert_close(direct.matrix, expected.matrix, equal_nan=True)
    assert direct.matrix[3, 3] != pytest.approx(
        float(score(toy.moments[1], kind="centred").matrix[3, 3])
    )


def test_excluded_rows_are_those_of_the_scored_images(toy: Toy) -> None:
    clt = random_clt(toy.vit, ReLUTopK(k=2), n_features=2)
    clt.b_dec.data.zero_()
    clt.b_enc.data.fill_(-0.8)
    silent = (
        np.square(numpy_terms(toy.vit, clt, toy.data.batch(range(12))[0])[0][0]).sum((0, 3)) == 0
    )
    (found,) = compared_moments(toy.vit, [clt], toy.data)
    for c in range(3):
        expected = silent[c == LABELS].sum()
        assert int(score(found, tokens="all", label=c).excluded[0]) == expected
    assert 0 < silent[LABELS == 0].sum() < silent.sum()


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        ({"image": 12}, "image is 12; expected a row from 0 to 11"),
        ({"image": -1}, "image is -1"),
        (
            {"label": "eel"},
            'label is "eel", which fits no class name; expected one of ant, bee, cat',
        ),
        ({"label": "dog"}, "label is dog, which no image has"),
        ({"label": 9}, "label is 9, which no image has"),
        ({"label": "bee", "image": 1}, "expected one of them"),
    ],
)
def test_classes_and_images_that_are_not_there_are_refused(
    toy: Toy, which: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        score(toy.moments[0], **which)
    with pytest.raises(InputError, match=sentence):
        contribution_scores(toy.vit, toy.clts[0], toy.data, **which)


def test_a_named_class_of_images_without_names_is_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="there are no class names; expected some"):
        contribution_scores(toy.vit, toy.clts[0], toy.data.batch(range(3))[0], label="bee")


# ---- bootstrap ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize(("kind", "reduce"), ALL_SCORES)
def test_a_draw_is_the_score_of_the_images_drawn(
    toy: Toy, tokens: str, kind: str, reduce: str
) -> None:
    found = score(toy.moments[2], tokens=tokens, kind=kind, reduce=reduce, seed=5)
    drawn = np.random.default_rng(5).integers(0, 12, (100, 12))
    assert found.draws.shape == (1000, 4, 5)
    for draw in (0, 1, 57):
        for l in range(4):
            shares, bias = toy.expected(2, l, tokens, kind, reduce, drawn[draw])
            np.testing.assert_allclose(found.draws[draw, l, : l + 1], shares, rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(found.draws[draw, l, 4], bias, rtol=2e-5, atol=2e-6)
            assert np.isnan(found.draws[draw, l, l + 1 : 4]).all()


def test_a_classs_draws_are_of_its_own_images(toy: Toy) -> None:
    found = score(toy.moments[0], kind="centred", label="bee", seed=1)
    bees = np.array([1, 2, 5, 6, 9, 10])
    drawn = bees[np.random.default_rng(1).integers(0, 6, (100, 6))]
    shares, _ = toy.expected(0, 3, "cls", "centred", "ratio_of_means", drawn[8])
    np.testing.assert_allclose(found.draws[8, 3, :4], shares, rtol=2e-5, atol=2e-6)


def test_intervals_are_quantiles_of_the_draws(toy: Toy) -> None:
    found = score(toy.moments[0], tokens="patch")
    frame = found.to_frame().set_index(["target", "source"])
    for l, s in frame.index:
        low, high = np.quantile(found.draws[:, l, s], [0.025, 0.975])
        assert frame.loc[(l, s), "low"] == pytest.approx(low)
        assert frame.loc[(l, s), "high"] == pytest.approx(high)
        assert low <= frame.loc[(l, s), "score"] <= high
        assert float(found.low[l, s]) == pytest.approx(low)
        assert float(found.high[l, s]) == pytest.approx(high)
    assert found.low[0, 1].isnan()
    narrower = score(toy.moments[0], tokens="patch", seed=1)
    assert not torch.equal(found.low.nan_to_num(), narrower.low.nan_to_num())


def test_one_image_has_no_interval(toy: Toy) -> None:
    found = score(toy.moments[0], image=3, kind="centred")
    assert found.matrix[3].isfinite().all()
    assert found.low.isnan().all()
    assert found.to_frame()["high"].isna().all()


# ---- several CLTs -------------------------------------------------------------------------------


def test_codes_made_again_score_as_codes_kept(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    capture = moments.capture
    monkeypatch.setattr(moments, "capture", lambda *a: passes.append(1) or capture(*a))
    # room for all three batches, for the first alone (17 kB), and for none
    for room, expected in ((2**20, 3), (20_000, 5), (0, 6)):
        passes.clear()
        again = compared_moments(toy.vit, toy.clts[:1], toy.data, kept_bytes=room)[0]
        assert len(passes) == expected
        for tokens in ROWS:
            for kind in ("centred", "loo_r2"):
                a, b = (score(m, tokens=tokens, kind=kind).matrix for m in (again, toy.moments[0]))
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_clts_together_score_as_each_alone(toy: Toy) -> None:
    for clt, together in zip(toy.clts, toy.moments, strict=True):
        alone = contribution_scores(toy.vit, clt, toy.data, tokens="all", kind="centred")
        found = score(together, tokens="all", kind="centred")
        torch.testing.assert_close(found.matrix, alone.matrix, rtol=0, atol=0, equal_nan=True)


# ---- groups of images ---------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize(("kind", "reduce"), ALL_SCORES)
def test_scores_of_groups_are_those_of_single_images(
    toy: Toy, tokens: str, kind: str, reduce: str
) -> None:
    grouped = compared_moments(toy.vit, toy.clts, toy.data, max_groups=5, seed=2)
    for single, few in zip(toy.moments, grouped, strict=True):
        found, expected = (score(m, tokens=tokens, kind=kind, reduce=reduce) for m in (few, single))
        for name in ("matrix", "bias"):
            torch.testing.assert_close(
                getattr(found, name),
                getattr(expected, name),
                rtol=1e-12,
                atol=1e-14,
                equal_nan=True,
            )
        assert found.excluded.tolist() == expected.excluded.tolist()
        assert (found.n_images, found.l0) == (12, pytest.approx(expected.l0))
        assert found.facts().more["image_groups"] == 5
        assert "image_groups" not in expected.facts().more


def test_draws_of_groups_divide_the_sums_of_the_groups_drawn(toy: Toy) -> None:
    [found] = compared_moments(toy.vit, toy.clts[:1], toy.data, max_groups=5, seed=2)
    groups, drawn = found.groups.of, score(found, tokens="patch", kind="loo", seed=3).draws[0]
    picks = np.random.default_rng(3).integers(0, 5, (100, 5))[0]
    images = np.concatenate([(groups == g).nonzero()[:, 0].numpy() for g in picks])
    for l in range(4):
        shares, bias = toy.expected(0, l, "patch", "loo", "ratio_of_means", images)
        np.testing.assert_allclose(drawn[l, : l + 1], shares, rtol=2e-5)
        np.testing.assert_allclose(drawn[l, -1], bias, rtol=2e-5)


def test_excluded_rows_are_counted_in_groups_too(toy: Toy) -> None:
    clt = copy.deepcopy(toy.clts[0])
    clt.b_dec.data.zero_()
    for decoder in clt.W_dec:
        decoder.data.zero_()
    for most in (5, 12):
        [found] = compared_moments(toy.vit, [clt], toy.data, max_groups=most)
        assert score(found, tokens="patch").excluded.tolist() == [9 * 12] * 4


def test_memory_does_not_grow_with_images_beyond_the_groups(toy: Toy) -> None:
    def kept(n: int, most: int) -> int:
        images = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))
        data = batches_of(images, torch.zeros(n, dtype=torch.long), 16)
        [found] = compared_moments(toy.vit, toy.clts[:1], data, max_groups=most)
        tensors = [v for t in found.targets for v in vars(t).values() if isinstance(v, Tensor)]
        tensors += [*found.variation.values(), found.active]
        return sum(t.nbytes for t in tensors)

    assert kept(64, 8) == kept(32, 8)
    # one image each: (7 (1 + 2 + 3 + 4) + 6 * 4) * 3 sums at the targets, 3 * 4 and 4 * 3 more
    assert kept(64, 64) - kept(32, 64) == 32 * 8 * ((7 * 10 + 6 * 4) * 3 + 3 * 4 + 4 * 3)


@pytest.mark.parametrize("which", [{"label": "bee"}, {"image": 3}])
def test_a_class_or_an_image_of_a_group_is_refused(toy: Toy, which: dict[str, Any]) -> None:
    [field], [value] = which, which.values()
    sentence = (
        f"^{field} is {value}, but the 12 images are added up in 5 groups; expected max_groups of "
        r"12 or more\.$"
    )
    [grouped] = compared_moments(toy.vit, toy.clts[:1], toy.data, max_groups=5)
    with pytest.raises(InputError, match=sentence):
        score(grouped, **which)
    with pytest.raises(InputError, match=sentence):
        contribution_scores(toy.vit, toy.clts[0], toy.data, max_groups=5, **which)


@pytest.mark.parametrize("kind", ["projection", "centred", "norm"])
def test_differences_are_paired_by_image(toy: Toy, kind: str) -> None:
    a, b = (score(m, tokens="patch", kind=kind) for m in toy.moments[:2])
    found = ScoreDifference(a, b)
    torch.testing.assert_close(found.matrix[:, :4], a.matrix - b.matrix, equal_nan=True)
    low, high = np.quantile(a.draws - b.draws, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)
    np.testing.assert_array_equal(found.clear, (low > 0) | (high < 0))
    frame = found.to_frame().set_index(["target", "source"])
    for l, s in ((0, 0), (3, 1), (2, -1)):
        row = frame.loc[(l, s)]
        assert row["difference"] == pytest.approx(float(found.matrix[l, s]), nan_ok=True)
        assert row["low"] == pytest.approx(low[l, s], nan_ok=True)


def test_a_clt_does_not_differ_from_itself(toy: Toy) -> None:
    scores = score(toy.moments[0])
    found = ScoreDifference(scores, score(toy.moments[0]))
    assert found.matrix.nan_to_num().abs().max() == 0
    assert not found.clear.any()


def test_differences_of_unlike_scores_are_refused(toy: Toy) -> None:
    a = score(toy.moments[0])
    for other in ({"kind": "loo"}, {"tokens": "patch"}, {"seed": 1}, {"label": 1}):
        with pytest.raises(InputError, match="expected that of a"):
            ScoreDifference(a, score(toy.moments[1], **other))
    turned = batches_of(toy.data.batch(range(12))[0].flip(-1), LABELS, 5)
    elsewhere = score(compared_moments(toy.vit, toy.clts[1:2], turned)[0])
    with pytest.raises(InputError, match="other images"):
        ScoreDifference(a, elsewhere)


# ---- figures ------------------------------------------------------------------------------------


def test_grey_cells_are_those_whose_interval_holds_zero(toy: Toy) -> None:
    found = ScoreDifference(*(score(m, tokens="patch") for m in toy.moments[:2]))
    coloured, grey = difference_figure([[found]], [("a", "b")]).data
    filled = [np.array([[v is not None for v in row] for row in t.z]) for t in (coloured, grey)]
    np.testing.assert_array_equal(filled[0], found.clear)
    np.testing.assert_array_equal(filled[1], found.matrix.isfinite() & ~found.clear)
    assert filled[0].any()
    assert filled[1].any()
    assert len({colour for _, colour in grey.colorscale}) == 1
    low, high = float(found.low[3, 1]), float(found.high[3, 1])
    assert coloured.customdata[3][1] == f"{found.matrix[3, 1]:.4f} ({low:.4f} to {high:.4f})"


def test_clts_stand_side_by_side_on_one_scale(toy: Toy) -> None:
    grid = [[score(m, tokens=t) for m in toy.moments] for t in ("cls", "patch")]
    figure = contribution_figure(grid, ["a", "b", "c"])
    assert len(figure.data) == 6
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    top = max(float(s.matrix.nan_to_num().abs().max()) for row in grid for s in row)
    bias = max(float(s.bias.abs().max()) for row in grid for s in row)
    assert figure.layout.coloraxis.cmax == pytest.approx(max(top, bias))
    titles = [a.text for a in figure.layout.annotations]
    assert [t.split(" ")[0] for t in titles] == ["a", "b", "c"] * 2
    assert f"L0 {grid[0][2].l0:.1f}" in titles[2]
    assert ["CLS rows" in t for t in titles] == [True] * 3 + [False] * 3


def test_study_holds_every_score_and_difference(toy: Toy) -> None:
    clts = dict(zip("ab", toy.clts, strict=False))
    study = score_study(
        toy.vit, clts, toy.data, kinds=["norm"], tokens=["cls"], label="bee", seed=3
    )
    frame = study.to_frame()
    assert len(frame) == 2 * 7 * 14
    expected = score(toy.moments[1], kind="norm", label="bee", seed=3).to_frame()
    mine = frame.query("clt == 'b' and kind == 'norm' and reduce == 'mean_of_ratios'")
    for column in ("score", "low", "high"):
        np.testing.assert_allclose(mine[column], expected[column], rtol=1e-6)
    values = {metric.name: metric for metric in study.metrics()}
    both = [values[f"{name}_norm_cls_2_to_3"].value for name in "ab"]
    assert values["a_less_b_norm_cls_2_to_3"].value == pytest.approx(both[0] - both[1])
    assert values["b_norm_cls_2_to_3"].n == 6
    assert study.difference.to_frame()["b"].unique().tolist() == ["b"]
    assert len(study.figure().data) == 2
    assert len(study.difference.figure().data) == 2
    text = study.difference.shown().iloc[2, 1]
    assert text.startswith(f"{both[0] - both[1]:+.3f} (")


def test_study_of_one_image_in_all_needs_a_kind_it_defines(toy: Toy) -> None:
    one = TensorImages(toy.data.batch([0])[0])
    assert score_study(toy.vit, {"a": toy.clts[0]}, one).kinds == ["projection"]
    with pytest.raises(InputError, match='kind is "centred"'):
        score_study(toy.vit, {"a": toy.clts[0]}, one, kinds=["centred"])
    with pytest.raises(InputError, match="kind is empty"):
        score_study(toy.vit, {"a": toy.clts[0]}, one, kinds=[])


# ---- results tell what they were measured on ----------------------------------------------------


def test_a_study_names_its_images_rows_and_every_clts_l0(toy: Toy, tmp_path: Path) -> None:
    # of the jumping CLT, as its L0 differs between rows
    one = score_study(toy.vit, {"a": toy.clts[2]}, toy.data, label="bee", seed=3)
    context = tells_itself(one, tmp_path / "one")
    assert (context["data"], context["split"]) == ("tensor, class bee", None)
    assert (context["tokens"], context["trajectory"]) == ("cls patch", "teacher")
    assert (context["seed"], context["clts"], context["excluded_rows"]) == (3, ["a"], 0)
    l0 = {t: score(toy.moments[2], tokens=t, label="bee").l0 for t in ("cls", "patch")}
    assert context["l0"] == pytest.approx(l0)
    assert l0["cls"] != pytest.approx(l0["patch"])
    assert f"N = 6, teacher trajectory, L0 {l0['cls']:.1f} (CLS rows)" in one.caption()
    assert not (tmp_path / "one" / "difference.csv").exists()

    two = score_study(toy.vit, {"a": toy.clts[2], "b": toy.clts[0]}, toy.data, label="bee")
    context = tells_itself(two, tmp_path / "two")
    assert context["l0"]["a"] == pytest.approx(l0)
    assert context["l0"].keys() == {"a", "b"}
    assert (tmp_path / "two" / "difference.csv").exists()
    assert "a less another CLT" in two.difference.caption()
    # the differences, alone, have the values that stand among the study's
    of_study = {metric.name: metric for metric in two.metrics()}
    assert two.difference.metrics()
    assert all(of_study[metric.name] == metric for metric in two.difference.metrics())


def test_scores_show_every_share_and_tell_of_excluded_rows(toy: Toy, tmp_path: Path) -> None:
    found = score(toy.moments[0], tokens="patch", image=6, seed=2)
    context = tells_itself(found, tmp_path / "scores")
    assert context["data"] == "tensor, image 6"
    assert (context["tokens"], context["l0"], context["seed"]) == ("patch", found.l0, 2)
    assert (context["kind"], context["reduce"]) == ("projection", "mean_of_ratios")
    table = found.shown()
    assert table.iloc[2].tolist()[1:4] == [f"{share:.3f}" for share in found.matrix[2, :3]]
    assert table.iloc[2, 4] == ""
    assert table["bias"].tolist() == [f"{share:.3f}" for share in found.bias]
    assert [metric.value for metric in found.metrics()] == found.matrix[-1].tolist()
    assert found.metrics()[1].name == "projection_patch_1_to_3"
