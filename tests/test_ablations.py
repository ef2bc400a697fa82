"""Keep and drop top-k against a plain open_clip forward with the MLP output overwritten by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jaxtyping
import open_clip
import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from conftest import random_clt
from torch import Tensor

from vit_clt import CrossLayerTranscoder, InputError, ZeroShot
from vit_clt.analysis import ablation_curves, contribution_scores, drop_top_k, keep_top_k
from vit_clt.analysis.ablations import REFERENCES, AblationCurves, rank_sources
from vit_clt.analysis.contributions import ContributionScores, score
from vit_clt.data import ImageData, TensorImages
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

    def read(self, layer: int, rows: slice, value: Tensor | None) -> tuple[float, float]:
        """Accuracy and mean loss with rows of one layer's MLP output overwritten."""

        def overwrite(module: object, inputs: object, y: Tensor) -> Tensor:
            y = y.clone()
            if value is not None:
                y[:, rows] = value
            return y

        mlp = self.clip.visual.transformer.resblocks[layer].mlp
        handle = mlp.register_forward_hook(overwrite)
        embeddings = self.clip.encode_image(self.data.images).double()
        handle.remove()
        scale = self.clip.logit_scale.double().exp()
        logits = scale * F.normalize(embeddings, dim=-1) @ self.zs.weights.double()
        right = (logits.argmax(-1) == self.data.labels).double().mean()
        return float(right), float(F.cross_entropy(logits, self.data.labels))


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT, digits_test: ImageData) -> Study:
    images, labels = digits_test.batch(range(N))
    # noise takes the teacher off its ceiling, so that accuracy and loss can move
    images = images + 0.7 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    data = TensorImages(images, labels, digits_test.class_names)
    data.batch_size = 16
    clip = open_clip.create_model(shipped_teacher("digits"), precision="fp32")
    clip = clip.eval().requires_grad_(False)
    x, y = [], []

    def note(module: object, inputs: tuple[Tensor], output: Tensor) -> None:
        x.append(inputs[0])
        y.append(output)

    handles = [b.mlp.register_forward_hook(note) for b in clip.visual.transformer.resblocks]
    clip.encode_image(images)
    for handle in handles:
        handle.remove()
    clt = random_clt(digits_vit, n_features=64)
    for decoder in clt.W_dec:
        decoder.data *= 8
    zs = ZeroShot(digits_vit, data.class_names, "single")
    moments = contribution_scores(digits_vit, clt, data).moments
    scores = {tokens: score(moments, tokens=tokens) for tokens in ROWS}
    return Study(digits_vit, clt, data, zs, clip, torch.stack(x), torch.stack(y), scores)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the run-time check of annotations, so that a wrong choice reaches the package's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


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

    terms = study.terms(layer)[:, :, rows]
    cycle = torch.randperm(N, generator=torch.Generator().manual_seed(7))
    donors = torch.empty_like(cycle)
    donors[cycle] = cycle.roll(-1)
    fills = {
        "zero": torch.zeros_like(terms),
        "mean": terms.mean(1, keepdim=True).expand_as(terms),
        "resample": terms[:, donors],
    }[fill]
    value = study.clt.b_dec[layer] + sum(
        (terms if s in kept else fills)[s] for s in range(layer + 1)
    )
    top1, loss = study.read(layer, rows, value)
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
        top1, loss = study.read(layer, rows, value)
        reference = getattr(found, name)
        assert reference == reference.top1 == top1, name
        assert reference.loss == pytest.approx(loss, abs=1e-5), name
        assert reference.low <= top1 <= reference.high
        assert reference.loss_low < reference.loss < reference.loss_high
        losses.add(round(loss, 4))
    assert len(losses) == len(values), "the study must tell its references apart"


def test_original_is_plain_zero_shot(study: Study) -> None:
    found = drop_top_k(*arguments(study), k=2, scores=study.scores["cls"])
    outcome = study.zs.read(study.vit(study.data.images), study.data.labels)
    assert found.original == outcome.correct.double().mean()
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
    span, lower, upper = found.readings.difference("full", floor, measure)
    assert span == pytest.approx(full - low)
    expected = math.nan if lower <= 0 <= upper else (value - low) / (full - low)
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
            assert getattr(row, f"recovered_{measure}") == pytest.approx(
                curves.readings.recovered(f"{row.mode}_{row.k}", "full", "floor_mean", measure),
                nan_ok=True,
            )
    assert frame.loc[frame["k"] == 0, "loss"].nunique() == 2


def test_curves_as_metrics_name_every_point(curves: AblationCurves) -> None:
    metrics = {metric.name: metric for metric in curves.metrics("l2_")}
    points = [*REFERENCES[1:], *(f"{mode}_{k}" for mode in ("keep", "drop") for k in range(4))]
    assert set(metrics) == {f"l2_{p}_{measure}" for p in points for measure in ("top1", "loss")}
    metric, point = metrics["l2_keep_2_loss"], curves.at("keep", 2)
    assert (metric.value, metric.low, metric.high) == (point.loss, point.loss_low, point.loss_high)
    assert (metric.unit, metric.n) == ("nats", N)
    assert metric.floor == curves.readings["floor_mean"].loss
    assert metric.baseline == curves.readings["original"].loss


def test_curves_figure_names_rows_fill_and_seed(curves: AblationCurves) -> None:
    figure = curves.figure()
    assert isinstance(figure, go.Figure)
    for words in ("layer 2", "all rows", "resample", "seed 5", f"N = {N}"):
        assert words in figure.layout.title.text
    keep = next(t for t in figure.data if t.name == "keep top k")
    assert list(keep.y) == [100 * curves.at("keep", k).top1 for k in range(4)]


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
