"""High-norm rows: planted ones are found, and every number equals a float64 loop over rows."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import one_sentence, tells_itself
from builders import noise, random_clt, tiny_clip, tiny_timm, tiny_timm_clip
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from torch import Tensor

from vit_clt import InputError, JumpReLU, ReLUTopK
from vit_clt.analysis import high_norm_rows, reconstruction
from vit_clt.analysis.high_norm import survey, tables
from vit_clt.analysis.high_norm.result import HighNorm
from vit_clt.analysis.high_norm.rule import HIGH, KINDS, RANDOM, HighNormRule, row_groups
from vit_clt.analysis.high_norm.sums import sum_rows
from vit_clt.analysis.high_norm.survey import RowSurvey, survey_rows
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.rows import TokenRows
from vit_clt.transcoder.model import CrossLayerTranscoder

N = 9
PLANTED = ((0, 3), (0, 7), (4, 3), (5, 15), (8, 0))
"""Image and patch of the rows whose pixels are huge."""
MODELS = {
    "class token": lambda: tiny_timm("vit_tiny_patch16_224"),
    "registers": lambda: tiny_timm("vit_small_patch14_reg4_dinov2"),
    "patches alone": lambda: tiny_timm_clip("vit_base_patch16_siglip_224", "map", "none"),
}


def planted_images() -> TensorImages:
    """Images of 4 x 4 patches; the planted patches have 60 times the contrast of the others."""
    images = noise(N, 3, 16, 16, seed=3).float()
    for image, patch in PLANTED:
        i, j = 4 * (patch // 4), 4 * (patch % 4)
        images[image, :, i : i + 4, j : j + 4] *= 60
    data = TensorImages(images, name="planted")
    data.batch_size = 4
    return data


@pytest.fixture(params=MODELS, scope="module")
def vit(request: pytest.FixtureRequest) -> HookedViT:
    return HookedViT(MODELS[request.param]())


@pytest.fixture(scope="module")
def clt(vit: HookedViT) -> CrossLayerTranscoder:
    return random_clt(vit, JumpReLU(theta=0.5), n_features=40)


@pytest.fixture(scope="module")
def result(vit: HookedViT, clt: CrossLayerTranscoder) -> HighNorm:
    return high_norm_rows(vit, clt, planted_images(), seed=1)


@pytest.fixture(scope="module")
def found(vit: HookedViT) -> RowSurvey:
    return survey_rows(vit, planted_images(), HighNormRule(), seed=1)


def caches(vit: HookedViT, point: str) -> list[np.ndarray]:
    """An activation by layer, "image token d_model", in float64, by TransformerLens' own cache."""
    _, cache = vit.run_with_cache(planted_images().images)
    return [cache[f"blocks.{l}.{point}"].double().numpy() for l in range(vit.cfg.n_layers)]


def cell(frame: pd.DataFrame, layer: int, kind: str) -> pd.Series:
    (row,) = (r for _, r in frame.iterrows() if (r["layer"], r["kind"]) == (layer, kind))
    return row


def test_planted_rows_are_the_high_norm_ones(vit: HookedViT, found: RowSurvey) -> None:
    first = vit.cfg.rows.first_patch
    expected = {(image, first + patch) for image, patch in PLANTED}
    for groups in found.groups:
        assert {tuple(at) for at in (groups == HIGH).nonzero().tolist()} == expected
        assert (groups == RANDOM).sum() == len(PLANTED)


def test_the_rule_is_that_of_a_loop(vit: HookedViT, result: HighNorm) -> None:
    first = vit.cfg.rows.first_patch
    for l, stream in enumerate(caches(vit, "hook_resid_post")):
        norms = [
            float(sum(v * v for v in row)) ** 0.5
            for row in stream[:, first:].reshape(-1, stream.shape[-1])
        ]
        middle = median(norms)
        mad = median(abs(norm - middle) for norm in norms)
        assert result.medians[l] == pytest.approx(middle, rel=1e-6)
        assert result.limits[l] == pytest.approx(
            max(2 * middle, middle + 6 * 1.4826 * mad), rel=1e-6
        )


def test_every_number_equals_a_loop_over_rows(
    vit: HookedViT, clt: CrossLayerTranscoder, result: HighNorm, found: RowSurvey
) -> None:
    activations = {
        "stream": caches(vit, "hook_resid_post"),
        "x": caches(vit, "ln2.hook_out"),
        "y": caches(vit, "hook_mlp_out"),
    }
    codes = clt.encode(torch.from_numpy(np.stack(activations["x"])).float())
    z, decoded = codes.to_dense().numpy(), clt.decode(codes).double().numpy()
    for l, y in enumerate(activations["y"]):
        groups = found.groups[l].numpy()
        places = [(i, t) for i in range(N) for t in range(groups.shape[1])]
        mean = sum(y[at] for at in places) / len(places)
        spread = {at: float(((y[at] - mean) ** 2).sum()) for at in places}
        error = {at: float(((y[at] - decoded[l][at]) ** 2).sum()) for at in places}
        for kind in result.kinds:
            row = cell(result.frame, l, kind)
            inside = [at for at in places if groups[at] in KINDS[kind]]
            assert row["rows"] == len(inside) > 0
            for name, values in activations.items():
                norms = [float((values[l][at] ** 2).sum()) ** 0.5 for at in inside]
                assert row[f"{name}_median"] == pytest.approx(median(norms), rel=1e-5)
                assert row[f"{name}_max"] == pytest.approx(max(norms), rel=1e-5)
            for name, values in (("spread", spread), ("error", error)):
                share = sum(values[at] for at in inside) / sum(values.values())
                assert row[f"{name}_share"] == pytest.approx(share, rel=1e-5)
            true = np.stack([y[at] for at in inside])
            rebuilt = np.stack([decoded[l][at] for at in inside])
            r2 = r2_score(true, rebuilt, multioutput="variance_weighted")
            assert row["fvu"] == pytest.approx(1 - r2, rel=1e-4)
            active = [np.flatnonzero(z[l][at]) for at in inside]
            assert row["l0"] == pytest.approx(sum(map(len, active)) / len(inside))
            silent = 40 - len({int(i) for each in active for i in each})
            assert row["silent"] == pytest.approx(silent / 40)


def test_kinds_that_part_the_rows_sum_to_all(result: HighNorm) -> None:
    parts = [kind for kind in ("cls", "register", "ordinary", "high_norm") if kind in result.kinds]
    for column in ("row_share", "spread_share", "error_share"):
        assert sum(result.by_layer(kind, column) for kind in parts) == pytest.approx(1)
    assert ("all" in result.kinds) == (parts[0] != "ordinary")


def test_fvu_of_all_rows_is_that_of_reconstruct(
    vit: HookedViT, clt: CrossLayerTranscoder, result: HighNorm
) -> None:
    frame = reconstruction(vit, clt, planted_images()).frame
    for kind in {"patch", "all"} & {*result.kinds}:
        expected = frame.loc[frame["tokens"] == kind, "fvu"].to_numpy()
        assert result.by_layer(kind, "fvu") == pytest.approx(expected, rel=1e-9)


def test_features_are_counted_on_the_rows_they_are_active_on(
    vit: HookedViT, clt: CrossLayerTranscoder, result: HighNorm, found: RowSurvey
) -> None:
    x = torch.from_numpy(np.stack(caches(vit, "ln2.hook_out"))).float()
    active = (clt.encode(x).to_dense() != 0).numpy()
    assert result.features is not None
    assert result.counts is not None
    listed = {(r["layer"], r["feature"]): r for r in result.features.to_dict("records")}
    counts = {name: [0] * 3 for name in ("features", "above", "mostly", "exclusive")}
    first = vit.cfg.rows.first_patch
    base = len(PLANTED) / (16 * N)
    for l in range(3):
        high = found.groups[l].numpy() == HIGH
        for feature in range(40):
            fires = active[l, :, :, feature]
            on_patches = int(fires[:, first:].sum())
            if on_patches < 10:
                assert (l, feature) not in listed
                continue
            share = int((fires & high).sum()) / on_patches
            row = listed[l, feature]
            assert row["patch_rows"] == on_patches
            assert row["share"] == pytest.approx(share)
            drawn = int((fires & (found.groups[l].numpy() == RANDOM)).sum())
            assert row["random_share"] == pytest.approx(drawn / on_patches)
            assert row["base"] == pytest.approx(base)
            assert row["rate_high_norm"] == pytest.approx(share * on_patches / len(PLANTED))
            ordinary = (1 - share) * on_patches / (16 * N - len(PLANTED))
            assert row["rate_ordinary"] == pytest.approx(ordinary)
            for name, counted in (
                ("features", True),
                ("above", share > base),
                ("mostly", share > 0.5),
                ("exclusive", share == 1),
            ):
                counts[name][l] += counted
    for name, expected in counts.items():
        assert result.counts[name].tolist() == expected
    assert sum(counts["features"]) > 0


def test_a_feature_of_the_planted_rows_alone_is_exclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature of every layer fires just above what any other row has in the planted direction."""
    monkeypatch.setattr(tables, "LEAST_ROWS", 1)
    vit = HookedViT(MODELS["class token"]())
    high = survey_rows(vit, planted_images(), HighNormRule(), seed=0).groups == HIGH
    clt = random_clt(vit, JumpReLU(theta=0.1), n_features=4)
    for l, x in enumerate(caches(vit, "ln2.hook_out")):
        rows = torch.from_numpy(x).float()
        direction = rows[high[l]].mean(0) - rows[~high[l]].mean(0)
        clt.W_enc[l].data[0] = direction
        clt.b_enc.data[l, 0] = 0.1 - 1e-4 - (rows[~high[l]] @ direction).max()
    found = high_norm_rows(vit, clt, planted_images())
    assert found.features is not None
    assert found.counts is not None
    planted = found.features[found.features["feature"] == 0]
    assert planted["layer"].tolist() == [0, 1, 2]
    assert (planted["share"] == 1).all()
    assert (planted["rate_ordinary"] == 0).all()
    assert (found.counts["exclusive"] >= 1).all()


def test_batches_and_parts_of_batches_change_nothing(
    vit: HookedViT, clt: CrossLayerTranscoder, result: HighNorm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_ROWS_PER_PASS", 2 * vit.cfg.n_tokens)
    data = planted_images()
    data.batch_size = 9
    again = high_norm_rows(vit, clt, data, seed=1)
    pd.testing.assert_frame_equal(again.frame, result.frame, rtol=1e-5)
    assert again.image_share.tolist() == result.image_share.tolist()


def test_the_map_is_a_count_of_images(result: HighNorm) -> None:
    expected = np.zeros((4, 4))
    for _, patch in PLANTED:
        expected[patch // 4, patch % 4] += 1 / N
    assert result.image_share == pytest.approx(np.stack([expected] * 3))


def test_rows_alone_without_a_clt(vit: HookedViT, result: HighNorm, tmp_path: Path) -> None:
    alone = high_norm_rows(vit, None, planted_images(), seed=1)
    shared = result.frame[list(alone.frame.columns)]
    pd.testing.assert_frame_equal(alone.frame, shared)
    assert "fvu" not in alone.frame
    assert alone.counts is None
    context = tells_itself(alone, tmp_path / "alone")
    assert context["clt"] is None
    assert context["l0"] is None


def test_a_result_tells_itself(result: HighNorm, tmp_path: Path) -> None:
    context = tells_itself(result, tmp_path)
    assert "2 times the median" in context["rule"]
    page = (tmp_path / "high_norm.html").read_text()
    assert 'id="where-they-lie"' in page
    metrics = {metric.name: metric for metric in result.metrics()}
    metric = metrics["fvu_ordinary_layer_1"]
    assert metric.floor == result.by_layer("patch_without_random", "fvu")[1]
    assert metric.baseline == result.by_layer("patch", "fvu")[1]
    assert (
        metrics["spread_share_high_norm_layer_0"].low
        <= metrics["spread_share_high_norm_layer_0"].value
    )
    table = pd.read_csv(tmp_path / "map.csv")
    assert table["image_share"].sum() == pytest.approx(3 * len(PLANTED) / N)


def test_no_high_norm_rows_are_told_as_none(tmp_path: Path) -> None:
    vit = HookedViT(tiny_clip())
    data = TensorImages(noise(5, 3, 12, 12).float(), name="even")
    found = high_norm_rows(vit, random_clt(vit), data, rule=HighNormRule(multiple=100.0))
    assert not found.by_layer("high_norm", "rows").any()
    assert np.isnan(found.by_layer("high_norm", "fvu")).all()
    same = found.by_layer("patch", "fvu")
    assert found.by_layer("ordinary", "fvu") == pytest.approx(same, rel=1e-12)
    assert set(found.shown()["L0 of them"]) == {"none"}
    tells_itself(found, tmp_path)
    assert "No patch row is high-norm" in (tmp_path / "high_norm.html").read_text()


def test_images_are_shown_with_their_marks() -> None:
    vit = HookedViT.from_open_clip("digits")
    side = vit.cfg.image_size[0]
    images = 0.1 * noise(6, 3, side, side, seed=2).float()
    rule = HighNormRule(deviations=1.0, multiple=1.0)
    found = high_norm_rows(vit, None, images, rule=rule)
    assert len(found.marked) == 4
    marks = [int(each.high.sum()) for each in found.marked]
    assert marks == sorted(marks, reverse=True)
    layer = found.marked[0].layer
    rows = found.by_layer("high_norm", "rows")
    assert rows[layer] == rows.max()
    for each in found.marked:
        assert (each.norms[each.high] > found.limits[layer]).all()
        assert (each.norms[~each.high] <= found.limits[layer]).all()
    assert "Images with the most high-norm patches" in found.page()


@given(
    values=st.lists(st.floats(0.125, 2**20, width=32), min_size=12, max_size=12),
    factor=st.sampled_from([0.25, 2.0, 64.0]),
    deviations=st.floats(0, 10),
    multiple=st.floats(1, 5),
)
def test_marks_follow_scale_and_order(
    values: list[float], factor: float, deviations: float, multiple: float
) -> None:
    norms = torch.tensor(values).view(1, 3, 4)
    rule = HighNormRule(deviations, multiple)
    middle, limit = rule.limits(norms)
    expected = median(values)
    mad = median(abs(value - expected) for value in values)
    assert float(middle) == pytest.approx(expected)
    bound = max(multiple * expected, expected + deviations * 1.4826 * mad)
    assert float(limit) == pytest.approx(bound)
    _, scaled = rule.limits(factor * norms)
    assert float(scaled) == pytest.approx(factor * float(limit))
    _, turned = rule.limits(norms.flip(1, 2))
    assert float(turned) == float(limit)
    # rows before the patches, whatever their norms, change nothing
    others = torch.full((1, 3, 3), 1e9)
    rows = TokenRows(True, 2, (2, 2))
    groups = row_groups(torch.cat([others, norms], 2), limit, rows, seed=0)
    patches = groups[:, :, 3:]
    assert ((patches == HIGH) == (norms.double() > limit[:, None, None])).all()
    assert (patches == RANDOM).sum() == (patches == HIGH).sum()
    assert groups[0, :, :3].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("numbers", "field"),
    [
        ({"deviations": -1.0}, "deviations"),
        ({"multiple": 0.5}, "multiple"),
        ({"multiple": float("nan")}, "multiple"),
    ],
)
def test_a_rule_that_marks_ordinary_rows_is_refused(numbers: dict[str, float], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field} is") as error:
        HighNormRule(**numbers)
    one_sentence(error)


def test_activations_that_are_not_finite_are_refused() -> None:
    vit = HookedViT(tiny_timm("vit_tiny_patch16_224"))
    images = noise(2, 3, 16, 16).float()
    images[1, 0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="holds NaN or infinite values") as error:
        high_norm_rows(vit, None, images)
    one_sentence(error)


def test_a_clt_of_another_width_is_refused() -> None:
    vit, other = HookedViT(tiny_timm("vit_tiny_patch16_224")), HookedViT(tiny_clip())
    with pytest.raises(InputError):
        high_norm_rows(vit, random_clt(other, ReLUTopK(k=3)), noise(2, 3, 16, 16).float())


def test_sums_of_top_k_codes_count_what_is_active(vit: HookedViT, found: RowSurvey) -> None:
    clt = random_clt(vit, ReLUTopK(k=3))
    sums = sum_rows(vit, planted_images(), found, clt)
    x: Tensor = torch.from_numpy(np.stack(caches(vit, "ln2.hook_out"))).float()
    active = clt.encode(x).to_dense() != 0
    assert sums.codes is not None
    for group in range(5):
        expected = (active & (found.groups == group)[..., None]).sum((1, 2))
        assert sums.codes.fired[:, group].tolist() == expected.tolist()
