"""Reconstruction measures against numpy in float64 and scikit-learn's R^2."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from builders import random_clt, tiny_clip
from scipy import stats
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import paired_cosine_distances
from torch import Tensor

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import contribution_scores, reconstruction, reconstructions
from vit_clt.analysis.fit import reconstruction_sums
from vit_clt.analysis.fit.reconstruction_sums import FitSums, OutputSums, survey_outputs
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.training.interventions import capture_intervened

ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.2)]


@dataclass(frozen=True)
class Toy:
    vit: HookedViT
    images: Tensor
    x: Tensor
    """"layer image token d_model"."""
    y: Tensor


def make_toy(n: int) -> Toy:
    vit = HookedViT(tiny_clip())
    images = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    _, cache = vit.run_with_cache(images)
    x, y = (
        torch.stack([cache[f"blocks.{l}.{point}"] for l in range(4)])
        for point in ("ln2.hook_out", "hook_mlp_out")
    )
    return Toy(vit, images, x, y)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return make_toy(11)


@pytest.fixture(scope="module")
def many() -> Toy:
    """Enough images that 1 % of the rows of every kind is at least one row."""
    return make_toy(230)


def in_batches(images: Tensor, batch_size: int) -> TensorImages:
    data = TensorImages(images, name="toy")
    data.batch_size = batch_size
    return data


def row_of(frame: pd.DataFrame, layer: int, tokens: str) -> pd.Series:
    (row,) = (r for _, r in frame.iterrows() if (r.layer, r.tokens) == (layer, tokens))
    return row


def own_share(
    clt: CrossLayerTranscoder, z: np.ndarray, l: int, y_hat: np.ndarray, rows: slice
) -> float:
    """Centred C(l->l), term by term: regression slope of layer l's own term on y^."""
    own = z[l][:, rows].astype(float) @ clt.W_dec[l][0].double().numpy()
    own, away = own - own.mean(0), y_hat - y_hat.mean(0)
    return (own * away).sum() / np.square(away).sum()


def test_altered_passes_are_measured_as_they_are(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    found = reconstructions(toy.vit, {"a": clt}, in_batches(toy.images, 4), interventions=True)
    altered = [capture_intervened(toy.vit, part, seed=0) for part in toy.images.split(4)]
    x, y_all = (torch.cat([getattr(each, name) for each in altered], 1) for name in ("x", "y"))
    y_hat = clt.decode(clt.encode(x))
    for l in range(4):
        y, rebuilt = (each[l, :, 1:].flatten(0, 1).double() for each in (y_all, y_hat))
        expected = r2_score(y, rebuilt, multioutput="variance_weighted")
        assert row_of(found.frame, l, "patch").r2 == pytest.approx(expected, abs=1e-9)
    assert found.facts().trajectory == "intervened"
    assert "intervened trajectory" in found.caption()
    assert "intervened trajectory" in found.figure().layout.title.text
    with pytest.raises(InputError, match="11 images in batches of 5, the last of one image"):
        reconstructions(toy.vit, {"a": clt}, in_batches(toy.images, 5), interventions=True)
    clean = reconstruction(toy.vit, clt, in_batches(toy.images, 4))
    with pytest.raises(InputError, match="expected one set of passes"):
        replace(found, compared={"clean": clean})


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_measures_equal_float64_recomputation(toy: Toy, tokens: str, sparsifier: object) -> None:
    clt = random_clt(toy.vit, sparsifier, n_features=40)
    clt.b_enc.data[:, :3] = 0
    for encoder in clt.W_enc:
        encoder.data[:3] = 0  # three features that are always silent
    frame = reconstruction(toy.vit, clt, in_batches(toy.images, 4)).frame
    codes = clt.encode(toy.x)
    z, y_hat = codes.to_dense().numpy(), clt.decode(codes).double().numpy()
    for l in range(4):
        y, y_l = toy.y[l, :, ROWS[tokens]].double().numpy(), y_hat[l][:, ROWS[tokens]]
        flat, flat_hat = y.reshape(-1, 16), y_l.reshape(-1, 16)
        sse = np.square(y - y_l).sum()
        mean = np.tile(flat.mean(0), (len(flat), 1))
        expected = {
            "cosine": 1 - paired_cosine_distances(flat, flat_hat).mean(),
            "cosine_floor": 1 - paired_cosine_distances(flat, mean).mean(),
            "mse": np.square(flat - flat_hat).mean(),
            "mse_floor": np.square(flat - mean).mean(),
            "r2": r2_score(flat, flat_hat, multioutput="variance_weighted"),
            "r2_position": 1 - sse / np.square(y - y.mean(0)).sum(),
            "fvu": sse / np.square(flat - flat.mean(0)).sum(),
            "l0": (z[l][:, ROWS[tokens]] != 0).sum(-1).mean(),
            "dead": (z[l][:, ROWS[tokens]] == 0).all((0, 1)).mean(),
        }
        row = row_of(frame, l, tokens)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        # layer 0 reads no other: what is not 0 there is float32's rounding
        cross_layer = 1 - own_share(clt, z, l, y_l, ROWS[tokens])
        assert row.cross_layer == pytest.approx(cross_layer, rel=1e-6, abs=1e-7)
        assert row.n_images == 11
        assert row.dead >= 3 / 40


def test_one_row_for_each_layer_and_token_kind(toy: Toy) -> None:
    result = reconstruction(toy.vit, random_clt(toy.vit), in_batches(toy.images, 64))
    pairs = list(zip(result.frame["layer"], result.frame["tokens"], strict=True))
    assert sorted(pairs) == sorted((l, t) for l in range(4) for t in ROWS)
    assert result.data == "toy"
    for tokens in ROWS:
        rows = result.frame[result.frame["tokens"] == tokens]
        assert result.mean(tokens) == pytest.approx(rows["r2"].mean())
        assert result.mean(tokens, "l0") == pytest.approx(rows["l0"].mean())


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batch_size_and_order_change_nothing(toy: Toy, batch_size: int) -> None:
    clt = random_clt(toy.vit)
    whole = reconstruction(toy.vit, clt, in_batches(toy.images, 64)).frame
    for images in (toy.images, toy.images.flip(0)):
        parts = reconstruction(toy.vit, clt, in_batches(images, batch_size)).frame
        pd.testing.assert_frame_equal(parts, whole, rtol=1e-5, atol=1e-9)


class Oracle(CrossLayerTranscoder):
    """Returns what it was given instead of a reconstruction."""

    def __init__(self, vit: HookedViT, y: Tensor):
        super().__init__(CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 8, ReLUTopK(k=2)))
        self.y = y

    def decode(self, codes: object, target: int | None = None, x: Tensor | None = None) -> Tensor:
        return self.y if target is None else self.y[target]


def test_oracle_has_r2_one(toy: Toy) -> None:
    frame = reconstruction(toy.vit, Oracle(toy.vit, toy.y), toy.images).frame
    for column, value in (("r2", 1), ("r2_position", 1), ("fvu", 0), ("mse", 0), ("cosine", 1)):
        assert frame[column].tolist() == pytest.approx([value] * 12, abs=1e-12), column


@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_predicting_the_mean_has_r2_zero(toy: Toy, tokens: str) -> None:
    pooled = toy.y[:, :, ROWS[tokens]].double().mean((1, 2), keepdim=True).expand_as(toy.y)
    position = toy.y.double().mean(1, keepdim=True).expand_as(toy.y)
    for mean, zero, other in ((pooled, "r2", "r2_position"), (position, "r2_position", "r2")):
        frame = reconstruction(toy.vit, Oracle(toy.vit, mean), toy.images).frame
        for l in range(4):
            row = row_of(frame, l, tokens)
            assert row[zero] == pytest.approx(0, abs=1e-9)
            if tokens != "cls":  # one position: both means are the same
                assert abs(row[other]) > 1e-3


def test_mean_written_into_the_bias_has_r2_zero(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    for decoder in clt.W_dec:
        decoder.data.zero_()
    clt.b_dec.data = toy.y.mean((1, 2))
    frame = reconstruction(toy.vit, clt, toy.images).frame
    rows = frame[frame["tokens"] == "all"]
    assert rows["r2"].tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert rows["fvu"].tolist() == pytest.approx([1] * 4, abs=1e-6)


def test_hooks_on_the_model_change_nothing(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    plain = reconstruction(toy.vit, clt, toy.images).frame
    with toy.vit.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda y, hook: 0 * y)]):
        hooked = reconstruction(toy.vit, clt, toy.images).frame
    pd.testing.assert_frame_equal(hooked, plain, check_exact=True)


@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_typical_rows_leave_out_the_largest_outputs(many: Toy, tokens: str) -> None:
    clt = random_clt(many.vit)
    frame = reconstruction(many.vit, clt, in_batches(many.images, 48)).frame
    y_hat = clt(many.x).double().numpy()
    for l in range(4):
        flat, flat_hat = (
            v[l][:, ROWS[tokens]].reshape(-1, 16)
            for v in (many.y.double().numpy(), y_hat.reshape(many.y.shape))
        )
        order = np.argsort(np.linalg.norm(flat, axis=1))
        kept = order[: len(order) - len(order) // 100]
        assert len(kept) < len(order)
        row = row_of(frame, l, tokens)
        expected = r2_score(flat[kept], flat_hat[kept], multioutput="variance_weighted")
        assert row.r2_typical == pytest.approx(expected, rel=1e-6)
        assert abs(row.r2_typical - row.r2) > 1e-5


def test_an_outlier_row_moves_r2_but_not_that_of_the_typical_rows(
    many: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = many.y.clone()
    y[:, 7, 3] *= 1000  # one patch row of 2,070, which the CLT does not see coming

    points = {"ln2.hook_out": many.x, "hook_mlp_out": y}
    cache = {f"blocks.{l}.{p}": v[l] for l in range(4) for p, v in points.items()}
    monkeypatch.setattr(many.vit, "clean_cache", lambda images, names: cache)
    y_hat = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y_hat[:, 7, 3] = 0
    data = in_batches(many.images, 230)
    frame = reconstruction(many.vit, Oracle(many.vit, y_hat), data).frame
    rows = frame[frame["tokens"] == "patch"]
    assert (rows["r2"] < 0.01).all()
    sound = np.ones((230, 9), bool)
    sound[7, 2] = False
    for l, row in enumerate(rows.itertuples()):
        flat, flat_hat = (v[l, :, 1:].double().numpy()[sound] for v in (y, y_hat))
        norms = np.linalg.norm(flat, axis=1)
        kept = np.argsort(norms)[: len(norms) - 19]  # 20 of 2,070 are left out, with the outlier
        expected = r2_score(flat[kept], flat_hat[kept], multioutput="variance_weighted")
        assert row.r2_typical == pytest.approx(expected, rel=1e-6)


def test_cross_layer_share_is_what_centred_scores_leave(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    frame = reconstruction(toy.vit, clt, in_batches(toy.images, 4)).frame
    for tokens in ROWS:
        scores = contribution_scores(toy.vit, clt, toy.images, tokens=tokens, kind="centred")
        found = frame.loc[frame["tokens"] == tokens, "cross_layer"].tolist()
        assert found == pytest.approx((1 - scores.matrix.diagonal()).tolist(), abs=1e-6)
        assert found[0] == pytest.approx(0, abs=1e-6)
        assert max(map(abs, found)) > 0.01


def test_intervals_agree_with_scipy(many: Toy) -> None:
    clt = random_clt(many.vit)
    frame = reconstruction(many.vit, clt, many.images).frame
    y, y_hat = many.y.double(), clt(many.x).double()
    for tokens in ("cls", "patch"):
        true, made = y[2][:, ROWS[tokens]], y_hat[2][:, ROWS[tokens]]
        error = (true - made).square().sum((1, 2)).numpy()
        spread = (true - true.mean((0, 1))).square().sum((1, 2)).numpy()
        cosine = torch.cosine_similarity(true, made, dim=-1).mean(1).numpy()
        row = row_of(frame, 2, tokens)
        for name, samples, measure in (
            ("r2", (error, spread), lambda e, s, axis: 1 - e.sum(axis) / s.sum(axis)),
            ("cosine", (cosine,), lambda c, axis: c.mean(axis)),
        ):
            ends = stats.bootstrap(
                samples, measure, paired=True, n_resamples=4000, method="percentile", rng=1
            ).confidence_interval
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            assert low < row[name] < high
            # ends of 1,000 resamples scatter by a few percent of the width
            width = ends.high - ends.low
            assert [low, high] == pytest.approx([ends.low, ends.high], abs=0.12 * width)


def test_the_seed_decides_the_resamples_alone(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    first, again, other = (
        reconstruction(toy.vit, clt, toy.images, seed=seed).frame for seed in (3, 3, 4)
    )
    pd.testing.assert_frame_equal(again, first, check_exact=True)
    ends = ["r2_low", "r2_high", "cosine_low", "cosine_high"]
    pd.testing.assert_frame_equal(other.drop(columns=ends), first.drop(columns=ends))
    assert (other[ends] != first[ends]).all(axis=None)


def test_several_clts_are_measured_as_each_alone_on_one_pass(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clts = [random_clt(toy.vit, sparsifier, seed=i) for i, sparsifier in enumerate(SPARSIFIERS)]
    alone = [reconstruction(toy.vit, clt, in_batches(toy.images, 4)).frame for clt in clts]
    passes = []
    real = toy.vit.clean_cache
    monkeypatch.setattr(
        toy.vit, "clean_cache", lambda images, names: passes.append(1) or real(images, names)
    )
    named = dict(zip("abcdefg", clts, strict=False))
    together = reconstructions(toy.vit, named, in_batches(toy.images, 4)).by_clt()
    assert list(together) == list(named)
    assert len(passes) == 2 * 3  # two passes over three batches, however many CLTs
    for result, frame in zip(together.values(), alone, strict=True):
        pd.testing.assert_frame_equal(result.frame, frame, check_exact=True)


def test_outputs_that_do_not_vary_have_no_r2(toy: Toy) -> None:
    vit = HookedViT(tiny_clip())
    vit.blocks[2].mlp.c_proj.weight.data.zero_()
    frame = reconstruction(vit, random_clt(vit), in_batches(toy.images, 4)).frame
    for tokens in ROWS:
        constant, other = row_of(frame, 2, tokens), row_of(frame, 1, tokens)
        undefined = ["r2", "r2_low", "r2_high", "r2_position", "r2_typical", "fvu"]
        assert constant[undefined].isna().all()
        assert constant.mse > 0
        assert constant.mse_floor == pytest.approx(0, abs=1e-12)
        assert constant.cosine_floor == pytest.approx(1)
        assert constant.cross_layer == constant.cross_layer  # y^ does vary
        assert other.notna().all()


def test_a_reconstruction_that_does_not_vary_has_no_cross_layer_share(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    for decoder in clt.W_dec:
        decoder.data.zero_()
    frame = reconstruction(toy.vit, clt, toy.images).frame
    assert frame["cross_layer"].isna().all()
    assert frame["r2"].notna().all()


def test_features_that_never_fire_give_the_bias_alone(toy: Toy) -> None:
    clt = random_clt(toy.vit)
    clt.b_enc.data.fill_(-1e4)
    frame = reconstruction(toy.vit, clt, toy.images).frame
    assert (frame["dead"] == 1).all()
    assert (frame["l0"] == 0).all()
    y = toy.y[3].double()
    expected = (y - clt.b_dec[3].double()).square().mean().item()
    assert row_of(frame, 3, "all").mse == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: s.name)
def test_a_feature_dead_on_one_kind_of_rows_may_live_on_the_other(
    toy: Toy, sparsifier: object, backend: str
) -> None:
    clt = random_clt(toy.vit, sparsifier, n_features=40)
    clt.backend = backend
    z = clt.encode(toy.x).to_dense()
    silent = {t: (z[:, :, rows] == 0).all(2).all(1) for t, rows in ROWS.items()}
    assert (silent["cls"] & ~silent["patch"]).any()  # what one count over all rows would hide
    frame = reconstruction(toy.vit, clt, in_batches(toy.images, 4)).frame
    for tokens, of_kind in silent.items():
        found = frame.loc[frame["tokens"] == tokens, "dead"].tolist()
        assert found == pytest.approx(of_kind.double().mean(1).tolist())
    both = (silent["cls"] & silent["patch"]).double().mean(1).tolist()
    assert frame.loc[frame["tokens"] == "all", "dead"].tolist() == pytest.approx(both)


def test_one_image(toy: Toy) -> None:
    frame = reconstruction(toy.vit, random_clt(toy.vit), toy.images[:1]).frame
    for row in frame.itertuples():
        over_images = ("r2_position", "r2_low", "r2_high", "cosine_low", "cross_layer")
        assert all(np.isnan(getattr(row, name)) for name in over_images)
        # one CLS row is its own mean; nine patch rows vary, and none of them is 1 %
        if row.tokens == "cls":
            assert np.isnan(row.r2)
            assert np.isnan(row.r2_typical)
        else:
            assert row.r2_typical == pytest.approx(row.r2)
        assert np.isfinite([row.cosine, row.mse, row.l0]).all()


def test_what_is_kept_of_an_image_is_a_few_numbers(many: Toy) -> None:
    def kept(n: int) -> int:
        data = in_batches(many.images[:n], 40)
        survey = survey_outputs(many.vit, data, ROWS)
        sums = {tokens: OutputSums(survey, tokens) for tokens in ROWS}
        fit = FitSums(random_clt(many.vit), survey)
        for images, _ in data:
            found = reconstruction_sums.capture(many.vit, images)
            fit.add(found, {tokens: each.add(found.y) for tokens, each in sums.items()})

        def size(value: object) -> int:
            if isinstance(value, Tensor):
                return value.numel()
            values = value.values() if isinstance(value, dict) else value
            return sum(map(size, values)) if isinstance(value, dict | list) else 0

        return sum(size(vars(each)) for each in (survey, fit, *sums.values()))

    # per layer and token kind: squared error, spread and cosine
    assert kept(200) - kept(120) == 80 * 4 * 3 * 3


def test_metrics_carry_floors_and_intervals(toy: Toy) -> None:
    clts = {"CLT": random_clt(toy.vit, seed=1), "a": random_clt(toy.vit)}
    both = reconstructions(toy.vit, clts, toy.images)
    result, metrics = both.compared["a"], {m.name: m for m in both.metrics()}
    row = row_of(result.frame, 2, "patch")
    r2, cosine, mse = (metrics[f"a_{name}_patch_layer_2"] for name in ("r2", "cosine", "mse"))
    assert (r2.value, r2.low, r2.high, r2.floor) == (row.r2, row.r2_low, row.r2_high, 0)
    assert (cosine.low, cosine.floor) == (row.cosine_low, row.cosine_floor)
    assert (mse.value, mse.floor, mse.unit, mse.n) == (row.mse, row.mse_floor, "raw^2", 11)
    assert metrics["r2_patch_layer_2"].value == row_of(both.frame, 2, "patch").r2 != r2.value
    assert len(metrics) == len(both.metrics()) == 2 * 4 * (3 * 7 + 1)


def test_no_clts_are_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="clts is empty"):
        reconstructions(toy.vit, {}, toy.images)


def test_every_clt_is_checked_before_any_pass(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.vit, "clean_cache", lambda *_: pytest.fail("a pass was made"))
    other = CrossLayerTranscoder(CLTConfig(4, 8, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="width 8"):
        reconstructions(toy.vit, {"CLT": random_clt(toy.vit), "other": other}, toy.images)


def test_clt_of_another_shape_is_refused(toy: Toy) -> None:
    other = CrossLayerTranscoder(CLTConfig(4, 8, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="width 8"):
        reconstruction(toy.vit, other, toy.images)


def test_no_images_are_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="empty"):
        reconstruction(toy.vit, random_clt(toy.vit), torch.zeros(0, 3, 12, 12))
