"""Keep and drop top-k against a plain open_clip forward with the MLP output overwritten by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import open_clip
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from assertions import tells_itself
from builders import noisy_digits, random_clt
from torch import Tensor

from vit_clt import CrossLayerTranscoder, InputError, ZeroShot
from vit_clt.analysis import (
    ablation_curves,
    contribution_scores,
    drop_sources,
    drop_top_k,
    keep_sources,
    keep_top_k,
)
from vit_clt.analysis.ablations.curves import AblationCurves
from vit_clt.analysis.ablations.rankings import rank_sources
from vit_clt.analysis.ablations.term_sets import REFERENCES, TermSets
from vit_clt.analysis.contributions.scores import ContributionScores, score
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.teachers import shipped_teacher

N, LAYERS = 40, 8
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
CASES = [(-1, "cls"), (3, "patch"), (0, "all")]


@dataclass(frozen=True)
class Study:
    vit: HookedViT
    clt: CrossLayerTranscoder
    data: TensorImages
    zs: ZeroShot
    clip: torch.nn.Module
    """The same teacher, loaded by open_clip alone."""
    x: Tensor
    """MLP inputs "layer image token d_model"."""
    y: Tensor
    scores: dict[str, ContributionScores]
    """Default scores per token kind."""

    def terms(self, target: int) -> Tensor:
        """c_s "source image token d_model", top-k by hand."""
        found = []
        for s in range(target + 1):
            a = self.x[s] @ self.clt.W_enc[s].T + self.clt.b_enc[s]
            threshold = a.sort(-1, descending=True).values[..., self.clt.config.sparsifier.k - 1]
            z = torch.where(a >= threshold[..., None], a, 0).clamp(min=0)
            found.append(z @ self.clt.W_dec[s][target - s])
        return torch.stack(found)

    def value(
        self, layer: int, rows: slice, kept: Iterable[int], fill: str, seed: int = 7
    ) -> Tensor:
        """y^_S by hand "image row d_model"."""
        terms = self.terms(layer)[:, :, rows]
        cycle = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        donors = torch.empty_like(cycle)
        donors[cycle] = cycle.roll(-1)
        fills = {
            "zero": torch.zeros_like(terms),
            "mean": terms.mean(1, keepdim=True).expand_as(terms),
            "resample": terms[:, donors],
        }[fill]
        parts = [(terms if s in kept else fills)[s] for s in range(layer + 1)]
        return self.clt.b_dec[layer] + sum(parts)

    def read(self, rows: slice, values: dict[int, Tensor | None]) -> tuple[float, float]:
        """Accuracy and mean loss with rows of layers' MLP outputs overwritten."""

        def overwrite(y: Tensor, value: Tensor | None) -> Tensor:
            y = y.clone()
            if value is not None:
                y[:, rows] = value
            return y

        blocks = self.clip.visual.transformer.resblocks
        handles = [
            blocks[l].mlp.register_forward_hook(lambda m, x, y, v=value: overwrite(y, v))
            for l, value in values.items()
        ]
        embeddings = self.clip.encode_image(self.data.images).double()
        for handle in handles:
            handle.remove()
        scale = self.clip.logit_scale.double().exp()
        logits = scale * F.normalize(embeddings, dim=-1) @ self.zs.weights.double()
        right = (logits.argmax(-1) == self.data.labels).double().mean()
        return float(right), float(F.cross_entropy(logits, self.data.labels))


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT, digits_test: ImageData) -> Study:
    data = noisy_digits(digits_test, N, 16)
    clip = open_clip.create_model(shipped_teacher("digits"), precision="fp32")
    clip = clip.eval().requires_grad_(False)
    x, y = [], []

    def note(module: object, inputs: tuple[Tensor], output: Tensor) -> None:
        x.append(inputs[0])
        y.append(output)

    handles = [b.mlp.register_forward_hook(note) for b in clip.visual.transformer.resblocks]
    clip.encode_image(data.images)
    for handle in handles:
        handle.remove()
    clt = random_clt(digits_vit, n_features=64)
    for decoder in clt.W_dec:
        decoder.data *= 8
    zs = ZeroShot(digits_vit, data.class_names, "single")
    moments = contribution_scores(digits_vit, clt, data).moments
    scores = {tokens: score(moments, tokens=tokens) for tokens in ROWS}
    return Study(digits_vit, clt, data, zs, clip, torch.stack(x), torch.stack(y), scores)


def arguments(study: Study) -> tuple[HookedViT, CrossLayerTranscoder, TensorImages, ZeroShot]:
    return study.vit, study.clt, study.data, study.zs


@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
@pytest.mark.parametrize("ablate", [keep_top_k, drop_top_k])
@pytest.mark.parametrize(("target", "tokens"), CASES)
def test_ablation_equals_overwriting_by_hand(
    study: Study, target: int, tokens: str, ablate: object, fill: str
) -> None:
    layer, rows = target % LAYERS, ROWS[tokens]
    k = max(1, layer // 2)
    scores = study.scores[tokens]
    options = {"target": target, "tokens": tokens, "fill": fill, "seed": 7}
    found = ablate(*arguments(study), k=k, scores=scores, **options)

    best = torch.topk(scores.matrix[layer, : layer + 1], k).indices.tolist()
    kept = [s for s in range(layer + 1) if (s in best) == (ablate is keep_top_k)]
    assert found.kept == kept

    value = study.value(layer, rows, kept, fill)
    top1, loss = study.read(rows, {layer: value})
    assert found.top1 == top1
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert found.n == N


@pytest.mark.parametrize(("target", "tokens"), CASES)
def test_references_equal_overwriting_by_hand(study: Study, target: int, tokens: str) -> None:
    layer, rows = target % LAYERS, ROWS[tokens]
    scores = study.scores[tokens]
    found = keep_top_k(*arguments(study), k=1, scores=scores, target=target, tokens=tokens)
    bias = study.clt.b_dec[layer]
    values = {
        "original": None,
        "full": bias + study.terms(layer)[:, :, rows].sum(0),
        "bias_only": bias,
        "floor_zero": torch.zeros_like(bias),
        "floor_mean": study.y[layer][:, rows].mean(0),
    }
    losses = set()
    for name, value in values.items():
        top1, loss = study.read(rows, {layer: value})
        reference = getattr(found, name)
        assert reference.top1 == top1, name
        assert reference.loss == pytest.approx(loss, abs=1e-5), name
        assert reference.top1.low <= top1 <= reference.top1.high
        assert reference.loss.low < reference.loss < reference.loss.high
        losses.add(round(loss, 4))
    assert len(losses) == len(values), "the study must tell its references apart"


def test_original_is_plain_zero_shot(study: Study) -> None:
    found = drop_top_k(*arguments(study), k=2, scores=study.scores["cls"])
    outcome = study.zs.read(study.vit(study.data.images), study.data.labels)
    assert found.original.top1 == outcome.correct.double().mean()
    assert found.original.loss == pytest.approx(float(outcome.loss.double().mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("target", "tokens", "fill"),
    [(-1, "cls", "mean"), (3, "patch", "resample"), (0, "all", "zero")],
)
def test_keeping_all_and_dropping_none_are_the_full_reconstruction(
    study: Study, target: int, tokens: str, fill: str
) -> None:
    options = {
        "target": target,
        "tokens": tokens,
        "fill": fill,
        "scores": study.scores[tokens],
    }
    full = keep_top_k(*arguments(study), k=target % LAYERS + 1, **options)
    none_dropped = drop_top_k(*arguments(study), k=0, **options)
    assert full.kept == none_dropped.kept == list(range(target % LAYERS + 1))
    for found in (full, none_dropped):
        assert found.top1 == found.full.top1
        assert found.loss == pytest.approx(found.full.loss, rel=1e-6)


@pytest.mark.parametrize(("target", "tokens"), CASES)
def test_keeping_none_with_zero_fill_is_the_bias_alone(
    study: Study, target: int, tokens: str
) -> None:
    options = {"target": target, "tokens": tokens, "scores": study.scores[tokens]}
    for found in (
        keep_top_k(*arguments(study), k=0, **options),
        drop_top_k(*arguments(study), k=target % LAYERS + 1, **options),
    ):
        assert found.kept == []
        assert (found.top1, found.loss) == (found.bias_only.top1, found.bias_only.loss)


def test_ranking_is_by_signed_score_with_ties_to_the_later_layer(study: Study) -> None:
    matrix = torch.full((LAYERS, LAYERS), torch.nan, dtype=torch.float64)
    matrix[-1] = torch.tensor([0.5, -2.0, 0.5, 0.1, 0.1, 0.5, -1.0, 3.0])
    matrix[2, :3] = torch.tensor([0.2, 0.9, 0.2])
    scores = replace(study.scores["cls"], matrix=matrix)
    assert rank_sources(scores, -1) == rank_sources(scores, 7) == [7, 5, 2, 0, 4, 3, 6, 1]
    assert rank_sources(scores, 2) == [1, 2, 0]
    assert keep_top_k(*arguments(study), k=3, scores=scores).kept == [2, 5, 7]
    assert drop_top_k(*arguments(study), k=3, scores=scores).kept == [0, 1, 3, 4, 6]
    assert keep_top_k(*arguments(study), k=1, target=2, scores=scores).kept == [1]
    assert ablation_curves(*arguments(study), target=2, scores=scores).ranking == [1, 2, 0]


@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_ranking_is_by_default_of_the_same_rows(study: Study, tokens: str) -> None:
    expected = rank_sources(study.scores[tokens], 5)[:3]
    others = {tuple(rank_sources(study.scores[t], 5)[:3]) for t in ROWS if t != tokens}
    assert tuple(expected) not in others or tokens != "cls", "the study must tell rows apart"
    found = keep_top_k(*arguments(study), k=3, target=5, tokens=tokens)
    assert found.kept == sorted(expected)


@pytest.mark.parametrize("source", [0, 7])
def test_source_that_alone_matters_is_found(study: Study, source: int) -> None:
    clt = random_clt(study.vit, n_features=64)
    for s in range(LAYERS):
        clt.W_dec[s].data[7 - s] *= 20 if s == source else 0
    kept = keep_top_k(study.vit, clt, study.data, study.zs, k=1)
    dropped = drop_top_k(study.vit, clt, study.data, study.zs, k=1)
    assert kept.kept == [source]
    assert (kept.top1, kept.loss) == (kept.full.top1, kept.full.loss)
    assert (dropped.top1, dropped.loss) == (dropped.bias_only.top1, dropped.bias_only.loss)
    assert abs(kept.loss - dropped.loss) > 0.01


@pytest.mark.parametrize("measure", ["top1", "loss"])
@pytest.mark.parametrize("floor", ["floor_zero", "floor_mean"])
def test_recovered_is_the_share_of_the_way_from_floor_to_full(
    study: Study, floor: str, measure: str
) -> None:
    scores = study.scores["all"]
    found = keep_top_k(*arguments(study), k=2, scores=scores, target=2, tokens="all")
    value, full, low = (getattr(v, measure) for v in (found, found.full, getattr(found, floor)))
    span = found.readings.difference("full", floor, measure)
    assert span == pytest.approx(full - low)
    expected = math.nan if span.holds_zero else (value - low) / (full - low)
    assert found.recovered(floor, measure) == pytest.approx(expected, nan_ok=True)
    if measure == "loss":
        assert math.isfinite(expected), "the study must have something to recover"


def test_patch_rows_of_the_last_layer_are_marked_as_a_no_op(study: Study) -> None:
    found = keep_top_k(*arguments(study), k=1, scores=study.scores["patch"], tokens="patch")
    assert found.no_op
    for name in REFERENCES:
        reference = getattr(found, name)
        assert (reference.top1, reference.loss) == (found.original.top1, found.original.loss)
    assert (found.top1, found.loss) == (found.original.top1, found.original.loss)
    assert math.isnan(found.recovered("floor_mean", "top1"))
    assert math.isnan(found.recovered("floor_zero", "loss"))


def test_all_rows_of_the_last_layer_do_what_its_cls_row_does(study: Study) -> None:
    every, cls = (
        keep_top_k(*arguments(study), k=3, scores=study.scores["cls"], tokens=tokens)
        for tokens in ("all", "cls")
    )
    assert every.top1 == cls.top1
    assert every.loss == pytest.approx(cls.loss, rel=1e-5)


@pytest.mark.parametrize(("target", "tokens"), [(-1, "cls"), (-1, "all"), (6, "patch")])
def test_rows_that_reach_the_output_are_no_no_op(study: Study, target: int, tokens: str) -> None:
    scores = study.scores[tokens]
    found = keep_top_k(*arguments(study), k=1, scores=scores, target=target, tokens=tokens)
    assert not found.no_op
    assert found.loss != found.original.loss


@pytest.fixture(scope="module")
def curves(study: Study) -> AblationCurves:
    return ablation_curves(*arguments(study), target=2, tokens="all", fill="resample", seed=5)


@pytest.mark.parametrize(("mode", "ablate"), [("keep", keep_top_k), ("drop", drop_top_k)])
def test_curves_equal_single_calls(
    study: Study, curves: AblationCurves, mode: str, ablate: object
) -> None:
    scores = study.scores["all"]
    options = {"target": 2, "tokens": "all", "fill": "resample", "seed": 5, "scores": scores}
    for k in range(4):
        single, point = ablate(*arguments(study), k=k, **options), curves.at(mode, k)
        top = curves.ranking[:k]
        assert single.kept == [s for s in range(3) if (s in top) == (mode == "keep")]
        assert point.columns() == {
            "top1": single.top1,
            "top1_low": single.low,
            "top1_high": single.high,
            "loss": single.loss,
            "loss_low": single.loss_low,
            "loss_high": single.loss_high,
            "n": N,
        }


def test_curves_as_table_carry_floors_baseline_and_recovered(curves: AblationCurves) -> None:
    frame = curves.to_frame()
    assert frame[["mode", "k"]].to_numpy().tolist() == [
        [mode, k] for mode in ("keep", "drop") for k in range(4)
    ]
    for row in frame.itertuples():
        point = curves.at(row.mode, row.k)
        assert (row.top1, row.loss, row.n) == (point.top1, point.loss, N)
        assert row.sources == " ".join(map(str, curves.ranking[: row.k]))
        for column, name, measure in (
            ("baseline", "original", "top1"),
            ("floor_zero", "floor_zero", "top1"),
            ("floor_mean", "floor_mean", "top1"),
            ("loss_baseline", "original", "loss"),
            ("loss_floor_zero", "floor_zero", "loss"),
            ("loss_floor_mean", "floor_mean", "loss"),
        ):
            assert getattr(row, column) == getattr(curves.readings[name], measure)
        for measure in ("top1", "loss"):
            name = f"projection_0_{row.mode}_{row.k}"
            share = curves.readings.recovered(name, "full", "floor_mean", measure)
            above = curves.readings.difference(name, "full", measure)
            for column, value in share.columns(f"recovered_{measure}").items():
                assert getattr(row, column) == pytest.approx(value, nan_ok=True)
            for column, value in above.columns(f"{measure}_above_full").items():
                assert getattr(row, column) == value
    assert frame.loc[frame["k"] == 0, "loss"].nunique() == 2


def test_curves_as_metrics_name_every_point(curves: AblationCurves) -> None:
    metrics = {metric.name: metric for metric in curves.metrics("l2_")}
    points = [*REFERENCES[1:], *(f"{mode}_{k}" for mode in ("keep", "drop") for k in range(4))]
    assert set(metrics) == {f"l2_{p}_{measure}" for p in points for measure in ("top1", "loss")}
    metric, point = metrics["l2_keep_2_loss"], curves.at("keep", 2)
    assert (metric.value, metric.low, metric.high) == (point.loss, point.loss.low, point.loss.high)
    assert (metric.unit, metric.n) == ("nats", N)
    assert metric.floor == curves.readings["floor_mean"].loss
    assert metric.baseline == curves.readings["original"].loss


def test_curves_figure_names_rows_fill_and_seed(curves: AblationCurves) -> None:
    figure = curves.figure()
    assert isinstance(figure, go.Figure)
    for words in ("layer 2", "all rows", "resample", "seed 5", f"N = {N}"):
        assert words in figure.layout.title.text
    by_score = [t for t in figure.data if t.name == "by projection"]
    readings = [("keep", "top1"), ("drop", "top1"), ("keep", "loss"), ("drop", "loss")]
    for trace, (mode, measure) in zip(by_score, readings, strict=True):
        factor = 100 if measure == "top1" else 1
        drawn = [factor * getattr(curves.at(mode, k), measure) for k in range(4)]
        assert list(trace.y) == pytest.approx(drawn)
        above = curves.readings.difference(f"projection_0_{mode}_1", "full", measure)
        full = getattr(curves.readings["full"], measure)
        assert trace.y[1] + trace.error_y.array[1] == pytest.approx(factor * (full + above.high))


@pytest.mark.parametrize("ablate", [keep_top_k, drop_top_k])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k is -1"),
        ({"k": LAYERS + 1}, "k is 9"),
        ({"k": 4, "target": 2}, "k is 4"),
        ({"k": 1, "target": LAYERS}, "layers contains 8"),
        ({"k": 1, "fill": "noise"}, "noise"),
        ({"k": 1, "tokens": "registers"}, "registers"),
    ],
)
def test_bad_arguments_are_refused(
    study: Study, ablate: object, options: dict[str, object], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        ablate(*arguments(study), **options)


def test_images_without_labels_are_refused(study: Study) -> None:
    unlabelled = TensorImages(study.data.images[:4])
    with pytest.raises(InputError, match="labels run from -1"):
        keep_top_k(study.vit, study.clt, unlabelled, study.zs, k=1)


@pytest.mark.parametrize(
    ("target", "tokens", "fill", "sources"),
    [
        (-1, "cls", "resample", [0, 5]),
        ("all", "all", "mean", [1, 2, 6]),
        ([6, 2, 4], "cls", "resample", [4, 0, 3]),
        ([3, -1], "patch", "zero", []),
    ],
)
def test_any_set_at_any_targets_equals_overwriting_by_hand(
    study: Study, target: object, tokens: str, fill: str, sources: list[int]
) -> None:
    layers = range(LAYERS) if target == "all" else np.atleast_1d(target).tolist()
    targets = sorted(l % LAYERS for l in layers)
    rows = ROWS[tokens]
    options = {"target": target, "tokens": tokens, "fill": fill, "seed": 7}
    for ablate, keeps in ((keep_sources, True), (drop_sources, False)):
        found = ablate(*arguments(study), sources=sources, **options)
        kept = {l: [s for s in range(l + 1) if (s in sources) == keeps] for l in targets}
        assert found.kept_at == kept
        assert found.kept == kept[targets[-1]]
        values = {l: study.value(l, rows, kept[l], fill) for l in targets}
        top1, loss = study.read(rows, values)
        assert found.top1 == pytest.approx(top1, abs=1e-9)
        assert found.loss == pytest.approx(loss, abs=2e-5)
    bias = {l: study.clt.b_dec[l] for l in targets}
    everything = {l: study.value(l, rows, range(l + 1), fill) for l in targets}
    at_mean = {l: study.y[l][:, rows].mean(0) for l in targets}
    for name, values in (
        ("full", everything),
        ("bias_only", bias),
        ("floor_zero", {l: torch.zeros_like(b) for l, b in bias.items()}),
        ("floor_mean", at_mean),
    ):
        top1, loss = study.read(rows, values)
        assert getattr(found, name).top1 == top1, name
        assert getattr(found, name).loss == pytest.approx(loss, abs=2e-5), name


def test_of_several_targets_each_keeps_its_own_top_k(study: Study) -> None:
    scores = study.scores["cls"]
    found = keep_top_k(*arguments(study), k=3, scores=scores, target=[1, 4])
    assert found.kept_at == {1: [0, 1], 4: sorted(rank_sources(scores, 4)[:3])}
    single = keep_sources(*arguments(study), sources=found.kept, target=4)
    alone = keep_top_k(*arguments(study), k=3, scores=scores, target=4)
    assert (single.top1, single.loss) == (alone.top1, alone.loss)


def test_ablations_do_not_depend_on_what_stays_in_memory(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sources": [1], "target": 2, "fill": "resample"}
    cached = keep_sources(*arguments(study), **options)
    batches: list[object] = []
    made = TermSets._batch
    monkeypatch.setattr(TermSets, "_batch", lambda *a: batches.append(a) or made(*a))
    streamed = keep_sources(*arguments(study), **options, kept_bytes=0)
    assert len(batches) == 2 * -(-N // study.data.batch_size)
    assert (streamed.top1, streamed.loss) == (cached.top1, cached.loss)


def test_groups_of_images_change_no_reading(study: Study) -> None:
    single, grouped = (
        ablation_curves(*arguments(study), fill="mean", max_groups=most) for most in (N, 6)
    )
    assert grouped.readings.names == single.readings.names
    assert [point.sources for point in grouped.points] == [p.sources for p in single.points]
    for measure, means in single.readings.means.items():
        np.testing.assert_allclose(grouped.readings.means[measure], means, rtol=1e-14)
        assert not np.array_equal(
            grouped.readings.samples[measure], single.readings.samples[measure]
        )
    assert grouped.facts().more["image_groups"] == 6
    assert "image_groups" not in single.facts().more
    assert grouped.notes() == ["intervals: bootstrap over 6 random groups of images"]


@pytest.fixture(scope="module")
def rankings(study: Study) -> AblationCurves:
    return ablation_curves(
        *arguments(study),
        scores=study.scores["all"],
        rankings=("centred", "last", "bottom", "random"),
        sources=[0, 3],
        draws=3,
        target=[1, 3],
        tokens="all",
        fill="mean",
        seed=5,
    )


def test_every_ranking_keeps_and_drops_its_own_sources(
    study: Study, rankings: AblationCurves
) -> None:
    centred = score(study.scores["all"].moments, tokens="all", kind="centred")
    for target in (1, 3):
        orders = {(o.ranking, o.draw): o.sources[target] for o in rankings.orders}
        assert orders["centred", 0] == rank_sources(centred, target)
        assert orders["last", 0] == list(range(target, -1, -1))
        # the lowest of the scores given, whatever other rankings stand beside them
        assert orders["bottom", 0] == rank_sources(study.scores["all"], target)[::-1]
        assert {tuple(sorted(orders["random", draw])) for draw in range(3)} == {
            tuple(range(target + 1))
        }
    assert len({tuple(orders["random", draw]) for draw in range(3)}) > 1
    frame = rankings.to_frame()
    assert len(frame) == 6 * 2 * 5 + 2
    for row in frame.itertuples():
        chosen = {
            int(part.split(":")[0]): [int(s) for s in part.split(":")[1].split()]
            for part in row.sources.split("|")
        }
        if row.ranking != "given":
            for target in (1, 3):
                order = next(
                    o for o in rankings.orders if (o.ranking, o.draw) == (row.ranking, row.draw)
                )
                assert chosen[target] == order.sources[target][: row.k]
        else:
            assert chosen == {1: [0], 3: [0, 3]}
    row = frame.query("ranking == 'random' and draw == 2 and mode == 'drop' and k == 2").iloc[0]
    order = rankings.orders[-1].sources
    left = {l: [s for s in range(l + 1) if s not in order[l][:2]] for l in (1, 3)}
    values = {l: study.value(l, slice(None), left[l], "mean") for l in (1, 3)}
    top1, loss = study.read(slice(None), values)
    assert row.top1 == top1
    assert row.loss == pytest.approx(loss, abs=2e-5)


def test_lowest_first_kept_is_highest_first_dropped(study: Study) -> None:
    curves = ablation_curves(
        *arguments(study), scores=study.scores["cls"], rankings=["projection", "bottom"]
    )
    for k in range(LAYERS + 1):
        kept, dropped = curves.at("keep", k, "bottom"), curves.at("drop", LAYERS - k)
        assert (kept.top1, kept.loss) == (dropped.top1, dropped.loss)


def test_random_orders_stand_as_the_mean_of_their_draws(rankings: AblationCurves) -> None:
    frame = rankings.to_frame().query("ranking == 'random' and mode == 'keep' and k == 2")
    metrics = {metric.name: metric for metric in rankings.metrics()}
    metric = metrics["random_keep_2_loss"]
    assert metric.value == pytest.approx(frame["loss"].mean())
    assert metric.low < metric.value < metric.high
    mean = rankings.mean("keep", 2, "random", "loss")
    assert (metric.value, metric.low, metric.high) == (mean, mean.low, mean.high)
    assert metrics["keep_2_loss"].value == rankings.at("keep", 2, "centred").loss
    assert metrics["last_drop_1_top1"].value == rankings.at("drop", 1, "last").top1
    figure = rankings.figure()
    for words in ("layers 1, 3", "all rows", "mean", "seed 5"):
        assert words in figure.layout.title.text
    names = {trace.name for trace in figure.data if trace.showlegend}
    assert {"by centred", "deepest first", "lowest score first", "given set"} <= names
    band = next(trace for trace in figure.data if trace.fill == "toself")
    drawn = rankings.to_frame().query("ranking == 'random' and mode == 'keep'").groupby("k")
    low, high = drawn["top1"].min(), drawn["top1"].max()
    assert list(band.y) == pytest.approx([*(100 * low), *(100 * high[::-1])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rankings": ["projection", "best"]}, 'rankings is "best"'),
        ({"rankings": []}, "rankings is empty"),
        ({"rankings": ["random"], "draws": 0}, "draws is 0"),
        ({"sources": [0, LAYERS]}, "sources holds 8; expected source layers from 0 to 7"),
        ({"sources": [3], "target": 2}, "sources holds 3"),
        ({"sources": [-1]}, "sources holds -1"),
        ({"target": "some"}, 'target is "some"'),
        ({"target": []}, "layers is empty"),
    ],
)
def test_bad_curves_are_refused(
    study: Study, options: dict[str, object], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        ablation_curves(*arguments(study), scores=study.scores["cls"], **options)


def test_a_kept_set_tells_which_sources_stayed(study: Study, tmp_path: Path) -> None:
    options = {"target": [1, 3], "tokens": "all", "fill": "mean", "seed": 5}
    found = drop_sources(*arguments(study), sources=[0, 3], **options)
    context = tells_itself(found, tmp_path / "dropped")
    assert (context["data"], context["split"]) == (study.data.name, study.data.split)
    assert (context["tokens"], context["trajectory"]) == ("all", "teacher")
    assert (context["fill"], context["seed"], context["target"]) == ("mean", 5, [1, 3])
    assert context["kept"] == {"1": [1], "3": [1, 2]}
    curves = ablation_curves(*arguments(study), scores=study.scores["all"], **options)
    assert context["l0"] == curves.l0
    assert "sources kept: 1: 1 | 3: 1 2, dropped terms: mean" in found.caption()
    table = found.shown().set_index("")
    assert table.loc["kept", "loss (nats)"] == f"{found.loss:.4f}"
    assert table.loc["full reconstruction", "loss (nats)"] == f"{found.full.loss:.4f}"
    metrics = {metric.name: metric for metric in found.metrics()}
    assert metrics["kept_loss"].value == found.loss
    assert metrics["kept_loss"].floor == found.floor_mean.loss
    assert found.figure().data[1].x[0] == found.loss
    nothing = keep_sources(*arguments(study), sources=[])
    assert "sources kept: none" in nothing.caption()


def test_curves_tell_what_was_ablated_where(
    study: Study, rankings: AblationCurves, curves: AblationCurves, tmp_path: Path
) -> None:
    context = tells_itself(rankings, tmp_path / "several")
    assert (context["data"], context["split"]) == (study.data.name, study.data.split)
    assert (context["tokens"], context["trajectory"]) == ("all", "teacher")
    assert (context["l0"], context["fill"], context["seed"]) == (rankings.l0, "mean", 5)
    assert (context["target"], context["sources"]) == ([1, 3], [0, 3])
    assert context["rankings"] == ["centred", "last", "bottom", "random"]
    assert (context["readout"], context["no_op"]) == (study.zs.name, False)
    assert "layer 1, 3, all rows" in rankings.caption()
    table = rankings.shown().set_index("")
    assert len(table) == 2 * 4 * 5 + 2 + 5
    mean = rankings.mean("keep", 2, "random", "loss")
    assert table.loc["random keep 2", "loss (nats)"] == f"{mean:.4f}"
    assert table.loc["random keep 2", "sources"] == "3 draws"
    assert table.loc["last keep 2", "sources"] == "3 2"
    assert table.loc["last keep 0", "sources"] == "-"
    floor = table.loc["floor: MLP rows at their mean", "loss (nats)"]
    assert floor == f"{rankings.readings['floor_mean'].loss:.4f}"
    context = tells_itself(curves, tmp_path / "one")
    assert (context["target"], context["sources"]) == (2, None)
    # a single ranking is not named in every row
    assert curves.shown()[""].tolist()[0] == "keep 0"
