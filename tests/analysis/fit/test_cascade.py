"""Cascades against direct replacement and floors made by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pytest
import torch
from builders import noisy_digits, random_clt

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK, ZeroShot
from vit_clt.analysis import cascade
from vit_clt.analysis.fit.cascade_study import mean_mlp_outputs
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, replace_mlps

N, LAYERS = 30, 8
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
COLUMNS = [
    "tokens", "first_layer", "last_layer", "inputs",
    "top1", "top1_low", "top1_high", "n", "baseline", "floor_zero", "floor_mean",
    "loss", "loss_low", "loss_high", "loss_baseline", "loss_floor_zero", "loss_floor_mean", "l0",
]  # fmt: skip


@dataclass(frozen=True)
class Study:
    vit: HookedViT
    clt: CrossLayerTranscoder
    data: TensorImages
    zs: ZeroShot
    means: list[torch.Tensor]
    """Mean MLP output per layer, "token d_model"."""

    def read(self, embeddings: torch.Tensor) -> tuple[float, float]:
        outcome = self.zs.read(embeddings, self.data.labels)
        return float(outcome.correct.double().mean()), float(outcome.loss.double().mean())

    def floor(self, first: int, rows: slice, means: bool) -> tuple[float, float]:
        def overwrite(y: torch.Tensor, hook: object) -> torch.Tensor:
            y = y.clone()
            y[:, rows] = self.means[int(hook.name.split(".")[1])][rows] if means else 0
            return y

        hooks = [(f"blocks.{l}.hook_mlp_out", overwrite) for l in range(first, LAYERS)]
        return self.read(self.vit.run_with_hooks(self.data.images, fwd_hooks=hooks))


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT, digits_test: ImageData) -> Study:
    data = noisy_digits(digits_test, N, 15)
    _, cache = digits_vit.run_with_cache(data.images)
    means = [cache[f"blocks.{l}.hook_mlp_out"].double().mean(0).float() for l in range(LAYERS)]
    zs = ZeroShot(digits_vit, data.class_names, "single")
    # a seed without near ties, which rounding decides: there whole passes leave float64 as well
    clt = random_clt(digits_vit, n_features=64, seed=1)
    return Study(digits_vit, clt, data, zs, means)


@pytest.fixture(scope="module")
def frames(study: Study) -> dict[str, pd.DataFrame]:
    return {
        tokens: cascade(study.vit, study.clt, study.data, study.zs, tokens=tokens).to_frame()
        for tokens in ROWS
    }


@pytest.mark.parametrize("tokens", ROWS)
def test_one_row_for_each_first_layer(
    study: Study, frames: dict[str, pd.DataFrame], tokens: str
) -> None:
    frame = frames[tokens]
    assert frame.columns.tolist() == COLUMNS
    assert frame["first_layer"].tolist() == list(range(LAYERS))
    assert set(frame["last_layer"]) == {LAYERS - 1}
    assert set(frame["tokens"]) == {tokens}
    assert set(frame["inputs"]) == {"stream"}
    assert set(frame["n"]) == {N}
    top1, loss = study.read(study.vit(study.data.images))
    assert set(frame["baseline"]) == {top1}
    assert frame["loss_baseline"].tolist() == pytest.approx([loss] * LAYERS, rel=1e-6)
    assert ((frame["top1_low"] <= frame["top1"]) & (frame["top1"] <= frame["top1_high"])).all()
    assert ((frame["loss_low"] < frame["loss"]) & (frame["loss"] < frame["loss_high"])).all()


@pytest.mark.parametrize("tokens", ROWS)
def test_rows_equal_direct_replacement(
    study: Study, frames: dict[str, pd.DataFrame], tokens: str
) -> None:
    for row in frames[tokens].itertuples():
        layers = range(row.first_layer, LAYERS)
        with replace_mlps(study.vit, study.clt, layers=layers, tokens=tokens):
            top1, loss = study.read(study.vit(study.data.images))
        assert row.top1 == top1
        assert row.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("tokens", ROWS)
def test_floors_equal_overwriting_by_hand(
    study: Study, frames: dict[str, pd.DataFrame], tokens: str
) -> None:
    for row in frames[tokens].itertuples():
        zero = study.floor(row.first_layer, ROWS[tokens], means=False)
        mean = study.floor(row.first_layer, ROWS[tokens], means=True)
        assert (row.floor_zero, row.floor_mean) == (zero[0], mean[0])
        assert row.loss_floor_zero == pytest.approx(zero[1], rel=1e-5)
        assert row.loss_floor_mean == pytest.approx(mean[1], rel=1e-5)


def test_replacing_patch_rows_of_the_last_layer_alone_changes_nothing(
    frames: dict[str, pd.DataFrame],
) -> None:
    last = frames["patch"].iloc[-1]
    assert last.top1 == last.floor_zero == last.floor_mean == last.baseline
    assert last.loss == last.loss_floor_zero == last.loss_floor_mean == last.loss_baseline
    assert frames["cls"].iloc[-1].loss != last.loss_baseline


def test_teacher_inputs_give_what_teacher_replacement_gives(study: Study) -> None:
    result = cascade(
        study.vit,
        study.clt,
        study.data,
        study.zs,
        tokens="all",
        inputs="teacher",
        first_layers=[5, 2, -3],
    )
    frame = result.to_frame()
    assert frame["first_layer"].tolist() == [2, 5]
    assert set(frame["inputs"]) == {"teacher"}
    assert result.data == "noisy digits"
    for row in frame.itertuples():
        layers = range(row.first_layer, LAYERS)
        losses = {}
        for inputs in ("teacher", "stream"):
            with replace_mlps(study.vit, study.clt, layers=layers, tokens="all", inputs=inputs):
                losses[inputs] = study.read(study.vit(study.data.images))[1]
        assert row.loss == pytest.approx(losses["teacher"], rel=1e-5)
        assert row.loss != pytest.approx(losses["stream"], rel=1e-3)


def test_several_kinds_and_inputs_at_once_give_what_each_gives(
    study: Study, frames: dict[str, pd.DataFrame]
) -> None:
    result = cascade(
        study.vit,
        study.clt,
        study.data,
        study.zs,
        tokens=["patch", "cls", "patch"],
        inputs=("stream", "teacher"),
    )
    frame = result.to_frame()
    assert list(dict.fromkeys(frame["tokens"])) == ["patch", "cls"]
    assert len(frame) == 2 * 2 * LAYERS
    for tokens in ("patch", "cls"):
        part = frame.query("tokens == @tokens and inputs == 'stream'").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, frames[tokens])
    # the floors and the first layer's inputs are the same for both
    stream, teacher = (frame[frame["inputs"] == i].reset_index() for i in ("stream", "teacher"))
    floors = [name for name in COLUMNS if "floor" in name]
    pd.testing.assert_frame_equal(stream[floors], teacher[floors])
    loss = [part.loc[part["first_layer"] == LAYERS - 1, "loss"] for part in (stream, teacher)]
    pd.testing.assert_series_equal(*loss, rtol=1e-5)
    metrics = {metric.name: metric for metric in result.metrics()}
    row = teacher.query("tokens == 'cls' and first_layer == 3").iloc[0]
    metric = metrics["cls_teacher_3_to_7_loss"]
    assert (metric.value, metric.low, metric.high) == (row.loss, row.loss_low, row.loss_high)
    assert (metric.floor, metric.baseline) == (row.loss_floor_mean, row.loss_baseline)


def test_neither_order_nor_batch_size_of_the_images_matters(
    study: Study, frames: dict[str, pd.DataFrame]
) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    data = TensorImages(
        study.data.images[order], study.data.labels[order], study.data.class_names, name="shuffled"
    )
    data.batch_size = 8
    shuffled = cascade(study.vit, study.clt, data, study.zs, tokens="all").to_frame()
    # intervals depend on the order: resamples are drawn by row
    numbers = [name for name in COLUMNS[4:] if not name.endswith(("low", "high"))]
    expected = frames["all"][numbers]
    pd.testing.assert_frame_equal(shuffled[numbers], expected, rtol=1e-5)


def test_the_figure_shows_every_range_with_baseline_and_floors(study: Study) -> None:
    result = cascade(
        study.vit,
        study.clt,
        study.data,
        study.zs,
        tokens=["cls", "all"],
        inputs=["stream", "teacher"],
        first_layers=[2, 6],
    )
    figure = result.figure()
    assert len(figure.data) == 2 * 2 * 5
    frame = result.to_frame().query("tokens == 'all'")
    drawn = {(t.name, t.yaxis): t for t in figure.data}
    stream = frame[frame["inputs"] == "stream"]
    for name, axis, column, factor in (
        ("CLT, stream inputs", "y3", "top1", 100),
        ("floor: MLP rows at their mean", "y3", "floor_mean", 100),
        ("floor: MLP rows at zero", "y4", "loss_floor_zero", 1),
        ("unaltered model", "y4", "loss_baseline", 1),
    ):
        trace = drawn[name, axis]
        assert list(trace.x) == [2, 6]
        assert list(trace.y) == pytest.approx((stream[column] * factor).tolist())
    assert sum(trace.showlegend for trace in figure.data) == 5


def test_a_model_with_hooks_is_refused(study: Study) -> None:
    with (
        study.vit.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda y, hook: None)]),
        pytest.raises(InputError, match="expected none"),
    ):
        cascade(study.vit, study.clt, study.data, study.zs)


def test_mean_outputs_do_not_depend_on_the_batches(study: Study) -> None:
    torch.testing.assert_close(mean_mlp_outputs(study.vit, study.data), torch.stack(study.means))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_layers": [LAYERS]}, "layers contains 8"),
        ({"first_layers": []}, "layers is empty"),
        ({"tokens": "registers"}, "registers"),
        ({"inputs": "oracle"}, "oracle"),
        ({"tokens": []}, "tokens is empty"),
        ({"inputs": ["stream", "oracle"]}, "oracle"),
    ],
)
def test_bad_arguments_are_refused(
    study: Study, options: dict[str, object], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        cascade(study.vit, study.clt, study.data, study.zs, **options)


def test_clt_of_another_shape_is_refused(study: Study) -> None:
    other = CrossLayerTranscoder(CLTConfig(2, 64, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="2 layers"):
        cascade(study.vit, other, study.data, study.zs)
