"""Contribution scores against float64 recomputation from public tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from builders import random_clt, tiny_clip
from oracles.score_oracle import numpy_score, numpy_terms, r2
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import contribution_moments, contribution_scores, score
from vit_clt.analysis.contributions.moments import ContributionMoments
from vit_clt.analysis.contributions.scores import ALL_SCORES, ContributionScores
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT, replace_mlps

TOKENS = ("cls", "patch", "all")
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2)]


def in_batches(images: Tensor, batch_size: int) -> TensorImages:
    data = TensorImages(images)
    data.batch_size = batch_size
    return data


def assert_same(
    a: ContributionScores, b: ContributionScores, rtol: float = 1e-9, atol: float = 1e-9
) -> None:
    for found, expected in ((a.matrix, b.matrix), (a.bias, b.bias)):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    assert torch.equal(a.excluded, b.excluded)


@dataclass(frozen=True)
class Toy:
    vit: HookedViT
    images: Tensor
    clts: list[CrossLayerTranscoder]
    moments: list[ContributionMoments]
    """Gathered in several batches, one per CLT."""
    expected: list[tuple[list[np.ndarray], np.ndarray, np.ndarray]]
    """`numpy_terms`, one per CLT."""


@pytest.fixture(scope="module")
def toy() -> Toy:
    vit = HookedViT(tiny_clip())
    images = torch.randn(10, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    clts = [random_clt(vit, sparsifier) for sparsifier in SPARSIFIERS]
    return Toy(
        vit,
        images,
        clts,
        [contribution_moments(vit, clt, in_batches(images, 4)) for clt in clts],
        [numpy_terms(vit, clt, images) for clt in clts],
    )


@pytest.mark.parametrize("i", range(len(SPARSIFIERS)), ids=lambda i: SPARSIFIERS[i].name)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("kind", "reduce"), ALL_SCORES)
def test_scores_equal_float64_recomputation(
    toy: Toy, i: int, tokens: str, kind: str, reduce: str
) -> None:
    found = score(toy.moments[i], tokens=tokens, kind=kind, reduce=reduce)
    rows, b = ROWS[tokens], toy.clts[i].b_dec.double().numpy()
    terms, z, y = toy.expected[i]
    for l in range(4):
        shares, bias = numpy_score(terms[l][:, :, rows], b[l], y[l][:, rows], kind, reduce)
        np.testing.assert_allclose(found.matrix[l, : l + 1], shares, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(found.bias[l], bias, rtol=2e-5, atol=2e-6)
        assert found.matrix[l, l + 1 :].isnan().all()
    assert found.excluded.tolist() == [0, 0, 0, 0]
    assert found.l0 == pytest.approx((z[:, :, rows] != 0).sum(-1).mean())
    assert (found.kind, found.reduce, found.tokens, found.n_images) == (kind, reduce, tokens, 10)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("reduce", ["mean_of_ratios", "ratio_of_means"])
def test_projection_and_bias_sum_to_one(toy: Toy, tokens: str, reduce: str) -> None:
    found = score(toy.moments[0], tokens=tokens, reduce=reduce)
    total = found.matrix.nansum(1) + found.bias
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", ["centred", "norm"])
def test_centred_and_norm_sum_to_one_over_sources(toy: Toy, tokens: str, kind: str) -> None:
    found = score(toy.moments[0], tokens=tokens, kind=kind)
    total = found.matrix.nansum(1)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "reduce"), ALL_SCORES)
def test_batch_size_and_image_order_change_nothing(toy: Toy, kind: str, reduce: str) -> None:
    vit, clt = toy.vit.double(), toy.clts[0].double()
    try:
        images = toy.images.double()
        scores = [
            contribution_scores(vit, clt, data, tokens="all", kind=kind, reduce=reduce)
            for data in (
                in_batches(images, 64),
                in_batches(images, 1),
                in_batches(images, 3),
                in_batches(images.flip(0), 3),
            )
        ]
    finally:
        toy.vit.float(), toy.clts[0].float()
    for other in scores[1:]:
        assert_same(other, scores[0])


def test_tensor_batches_and_image_data_agree(toy: Toy) -> None:
    labels = torch.zeros(10, dtype=torch.long)
    forms = [
        toy.images,
        TensorImages(toy.images, labels, ["a"]),
        [toy.images[:4], toy.images[4:]],
        [(toy.images[:7], labels[:7]), (toy.images[7:], labels[7:])],
        (toy.images[i : i + 1] for i in range(10)),
    ]
    scores = [contribution_scores(toy.vit, toy.clts[0], form) for form in forms]
    for other in scores[1:]:
        assert other.n_images == 10
        assert_same(other, scores[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tokens", "kind", "reduce"),
    [("all", kind, reduce) for kind, reduce in ALL_SCORES]
    + [(tokens, "projection", "mean_of_ratios") for tokens in ("cls", "patch")],
)
def test_scores_are_those_of_moments_gathered_once(
    toy: Toy, tokens: str, kind: str, reduce: str
) -> None:
    options = {"tokens": tokens, "kind": kind, "reduce": reduce}
    direct = contribution_scores(toy.vit, toy.clts[0], in_batches(toy.images, 4), **options)
    assert_same(score(toy.moments[0], **options), direct, rtol=0, atol=0)


def test_projection_of_the_row_cls_is_the_default(toy: Toy) -> None:
    default = contribution_scores(toy.vit, toy.clts[0], in_batches(toy.images, 4))
    assert (default.tokens, default.kind, default.reduce) == ("cls", "projection", "mean_of_ratios")
    assert_same(default, score(toy.moments[0]), rtol=0, atol=0)


def sometimes_silent(vit: HookedViT) -> CrossLayerTranscoder:
    """No decoder bias, and so few features that all sources are silent on some rows."""
    clt = random_clt(vit, ReLUTopK(k=2), n_features=2)
    clt.b_dec.data.zero_()
    clt.b_enc.data.fill_(-0.8)
    return clt


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", ["projection", "norm"])
def test_rows_without_reconstruction_are_excluded_and_counted(
    toy: Toy, tokens: str, kind: str
) -> None:
    clt, rows = sometimes_silent(toy.vit), ROWS[tokens]
    images = torch.randn(30, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    found = contribution_scores(toy.vit, clt, in_batches(images, 4), tokens=tokens, kind=kind)
    terms, _, _ = numpy_terms(toy.vit, clt, images)
    for l in range(4):
        c = terms[l][:, :, rows].reshape(l + 1, -1, 16)
        live = np.square(c.sum(0)).sum(-1) > 0
        expected, bias = numpy_score(
            c[:, None, live], np.zeros(16), np.zeros((1, live.sum(), 16)), kind, "mean_of_ratios"
        )
        assert 0 < (~live).sum() < len(live), "the toy must have both sorts of rows"
        assert int(found.excluded[l]) == (~live).sum()
        np.testing.assert_allclose(found.matrix[l, : l + 1], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.bias[l], bias)


def test_order_of_images_does_not_decide_which_rows_are_excluded(toy: Toy) -> None:
    clt = sometimes_silent(toy.vit)
    clt.b_enc.data.fill_(-1.6)
    images = torch.randn(30, 3, 12, 12, generator=torch.Generator().manual_seed(4))
    terms, _, _ = numpy_terms(toy.vit, clt, images)
    silent = np.abs(terms[0]).max((0, 2, 3)) == 0
    assert 0 < silent.sum() < 30
    first, last = (images[np.argsort(key, kind="stable")] for key in (~silent, silent))
    scores = [
        contribution_scores(toy.vit, clt, in_batches(order, 1), tokens="all")
        for order in (first, last)
    ]
    assert scores[1].matrix[0, 0] == pytest.approx(1)
    assert_same(*scores, rtol=1e-5, atol=1e-6)


def test_target_without_any_reconstruction_has_no_scores(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    clt.b_dec.data[0] = 0
    clt.W_dec[0].data[0] = 0
    found = contribution_scores(toy.vit, clt, toy.images)
    assert found.matrix[0, 0].isnan()
    assert found.bias[0].isnan()
    assert found.excluded.tolist() == [10, 0, 0, 0]
    assert found.matrix[1, :2].isfinite().all()


@pytest.mark.parametrize("place", [0, 9])
@pytest.mark.parametrize(("size", "excluded"), [(1e-4, False), (1e-9, True)])
def test_nearly_vanishing_rows_are_excluded_never_clamped(
    toy: Toy, place: int, size: float, excluded: bool
) -> None:
    # one feature a source; on one image's CLS row y^ is a near-cancelling pair of tiny terms
    vit, images = HookedViT(tiny_clip().double()), toy.images.double()
    clt = random_clt(vit, AbsTopK(k=1), n_features=1).double()
    _, cache = vit.run_with_cache(images)
    clt.b_dec.data.zero_()
    clt.W_dec[2].data.zero_()
    clt.W_dec[1].data[1] = clt.W_dec[0].data[2]
    for s, value in enumerate((size, -0.6 * size)):
        clt.b_enc.data[s] = value - clt.W_enc[s] @ cache[f"blocks.{s}.ln2.hook_out"][place, 0]
    found = contribution_scores(vit, clt, in_batches(images, 1))
    terms, _, _ = numpy_terms(vit, clt, images)
    c = terms[2][:, :, :1]
    yy = np.square(c.sum(0)).sum(-1)
    assert yy[place] / yy.mean() == pytest.approx(size**2, rel=0.99)
    if excluded:
        c = np.delete(c, place, axis=1)
    shares, _ = numpy_score(c, np.zeros(16), np.zeros(c.shape[1:]), "projection", "mean_of_ratios")
    assert int(found.excluded[2]) == excluded
    np.testing.assert_allclose(found.matrix[2, :3], shares, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "reduce"), ALL_SCORES)
@pytest.mark.parametrize("source", range(4))
def test_planted_source_gets_the_whole_score(toy: Toy, source: int, kind: str, reduce: str) -> None:
    clt = random_clt(toy.vit)
    clt.b_dec.data.zero_()
    for s in range(4):
        if s != source:
            clt.W_dec[s].data[3 - s] = 0
    found = contribution_scores(toy.vit, clt, toy.images, kind=kind, reduce=reduce)
    others = [s for s in range(4) if s != source]
    assert found.matrix[3, others].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    if kind == "loo_r2":
        terms, _, y = numpy_terms(toy.vit, clt, toy.images)
        y, y_hat = y[3][:, :1], terms[3][source][:, :1]
        fall = r2(y, y_hat) - r2(y, 0 * y_hat)
        assert abs(fall - 1) > 0.01
        assert float(found.matrix[3, source]) == pytest.approx(fall, rel=1e-5)
    else:
        assert float(found.matrix[3, source]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("tokens", TOKENS)
def test_constant_term_counts_in_projection_but_not_centred(toy: Toy, tokens: str) -> None:
    clt = random_clt(toy.vit)
    clt.b_dec.data.zero_()
    clt.W_enc[1].data.zero_()
    clt.b_enc.data[1] = torch.linspace(1, 2, 24)
    both = {
        kind: contribution_scores(toy.vit, clt, toy.images, tokens=tokens, kind=kind).matrix[:, 1]
        for kind in ("projection", "centred")
    }
    assert (both["projection"][1:] > 0.2).all()
    torch.testing.assert_close(
        both["centred"][1:], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("tokens", TOKENS)
def test_hooks_on_the_model_do_not_change_scores(toy: Toy, tokens: str) -> None:
    plain = contribution_scores(toy.vit, toy.clts[0], toy.images, tokens=tokens, kind="loo_r2")
    with toy.vit.hooks(fwd_hooks=[("blocks.0.ln2.hook_out", lambda x, hook: 0 * x)]):
        hooked = contribution_scores(toy.vit, toy.clts[0], toy.images, tokens=tokens, kind="loo_r2")
    with replace_mlps(toy.vit, toy.clts[0], layers=range(4)):
        replaced = contribution_scores(
            toy.vit, toy.clts[0], toy.images, tokens=tokens, kind="loo_r2"
        )
    assert_same(hooked, plain, rtol=0, atol=0)
    assert_same(replaced, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "shapley"}, "shapley"),
        ({"reduce": "median"}, "median"),
        ({"tokens": "registers"}, "registers"),
    ],
)
def test_unknown_choices_are_refused(
    toy: Toy, change: dict[str, str], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        contribution_scores(toy.vit, toy.clts[0], toy.images, **change)


def test_centred_scores_of_one_image_are_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        contribution_scores(toy.vit, toy.clts[0], toy.images[:1], kind="centred")
    assert contribution_scores(toy.vit, toy.clts[0], toy.images[:1]).n_images == 1


def test_centred_scores_are_undefined_where_nothing_varies(toy: Toy) -> None:
    same = toy.images[:1].expand(5, -1, -1, -1)
    assert contribution_scores(toy.vit, toy.clts[0], same, kind="centred").matrix.isnan().all()
    bias_only = random_clt(toy.vit)
    bias_only.W_dec[0].data[0] = 0
    matrix = contribution_scores(toy.vit, bias_only, toy.images, kind="centred").matrix
    assert matrix[0].isnan().all()
    assert matrix[1, :2].isfinite().all()


@pytest.mark.parametrize("images", [torch.zeros(0, 3, 12, 12), []], ids=["tensor", "list"])
def test_no_images_are_refused(toy: Toy, images: object) -> None:
    with pytest.raises(InputError, match="empty"):
        contribution_scores(toy.vit, toy.clts[0], images)


def test_clt_of_another_shape_is_refused(toy: Toy) -> None:
    other = CrossLayerTranscoder(CLTConfig(3, 16, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="3 layers"):
        contribution_scores(toy.vit, other, toy.images)


@pytest.mark.parametrize("kind", ["projection", "norm"])
def test_frame_round_trips(toy: Toy, kind: str) -> None:
    scores = score(toy.moments[0], kind=kind)
    frame = scores.to_frame()
    assert len(frame) == 4 * 5 // 2 + 4
    table = frame.pivot(index="target", columns="source", values="score")
    assert table.columns.tolist() == [-1, 0, 1, 2, 3]
    np.testing.assert_array_equal(table.drop(columns=-1).to_numpy(), scores.matrix)
    np.testing.assert_array_equal(table[-1].to_numpy(), scores.bias)


@pytest.mark.parametrize(
    ("tokens", "kind", "title"),
    [
        ("cls", "projection", "CLS rows · projection (mean of ratios)"),
        ("patch", "centred", "patch rows · centred"),
        ("all", "norm", "all rows · norm (mean of ratios)"),
    ],
)
def test_figure_shows_the_matrix(toy: Toy, tokens: str, kind: str, title: str) -> None:
    scores = score(toy.moments[0], tokens=tokens, kind=kind)
    figure = scores.figure()
    assert isinstance(figure, go.Figure)
    (heatmap,) = figure.data
    shown = np.array(heatmap.z, dtype=float)
    np.testing.assert_array_equal(shown[:, :4], scores.matrix)
    np.testing.assert_array_equal(shown[:, 4], scores.bias)
    assert list(heatmap.x) == ["0", "1", "2", "3", "bias"]
    assert list(heatmap.y) == ["0", "1", "2", "3"]
    assert [a.text for a in figure.layout.annotations] == [title]
    assert "N = 10" in figure.layout.title.text
    assert f"L0 = {scores.l0:.1f}" in figure.layout.title.text
