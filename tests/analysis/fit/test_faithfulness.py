"""Surrogate faithfulness against replacement by hand and independent implementations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from builders import random_clt
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, log_loss
from sklearn.metrics.pairwise import cosine_similarity

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK, ZeroShot
from vit_clt.analysis import cascade, surrogate_faithfulness
from vit_clt.analysis.fit import faithfulness_study as faithfulness
from vit_clt.analysis.fit.faithfulness_study import VERSIONS, SurrogateFaithfulness
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.data.images import ImageData, ImageSubset, TensorImages
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.kernels.codes import Codes, DenseCodes

N, LAYERS = 30, 8
ROWS = {"cls": slice(0, 1), "patch": slice(1, None), "all": slice(None)}
RANGE = range(5, 8)
# the shipped teacher reads its own prompts all alike: these make its accuracy vary
TEMPLATES = ["a photo of a {}.", "{}", "{} zero", "nine {} one", "{} or two", "five {} four"]
PER_IMAGE = ["top1", "delta_top1", "loss", "delta_loss", "flip", "top5_overlap", "kl", "cosine"]
MEASURES = [*PER_IMAGE, "cka", "spearman", "prompt_r", "prompt_kl"]


class Oracle(CrossLayerTranscoder):
    """Its codes are x itself and its reconstructions the MLP's own outputs."""

    def __init__(self, vit: HookedViT):
        super().__init__(CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 2, ReLUTopK(k=1)))
        self.mlps = [block.mlp for block in vit.blocks]

    def encode(self, x: torch.Tensor, layer: int | None = None) -> Codes:
        return DenseCodes(x)

    def decode(
        self, codes: Sequence[Codes], target: int | None = None, x: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.mlps[target](codes[target].to_dense())


@dataclass(frozen=True)
class Study:
    """In double precision, so that what should not matter can be told from rounding."""

    vit: HookedViT
    clt: CrossLayerTranscoder
    data: TensorImages
    zs: ZeroShot

    def measure(self, **options: object) -> SurrogateFaithfulness:
        options = {"layers": RANGE, "tokens": "all", "templates": TEMPLATES, **options}
        return surrogate_faithfulness(self.vit, self.clt, self.data, self.zs, **options)

    def embeddings(self, tokens: str, inputs: str = "stream") -> dict[str, np.ndarray]:
        """Every version, made by hand."""
        original, cache = self.vit.run_with_cache(self.data.images)
        with replace_mlps(self.vit, self.clt, layers=RANGE, tokens=tokens, inputs=inputs):
            surrogate = self.vit(self.data.images)
        floors = {}
        for name in ("mean", "zero"):

            def overwrite(y: torch.Tensor, hook: object, name: str = name) -> torch.Tensor:
                y, rows = y.clone(), ROWS[tokens]
                # means are kept in single precision
                y[:, rows] = cache[hook.name].mean(0)[rows].float() if name == "mean" else 0
                return y

            hooks = [(f"blocks.{l}.hook_mlp_out", overwrite) for l in RANGE]
            floors[name] = self.vit.run_with_hooks(self.data.images, fwd_hooks=hooks)
        found = (original, surrogate, floors["mean"], floors["zero"])
        return {v: e.numpy() for v, e in zip(VERSIONS, found, strict=True)}


@pytest.fixture(scope="module")
def study(digits_test: ImageData) -> Study:
    vit = HookedViT.from_open_clip("digits").double()
    images, labels = digits_test.batch(range(N))
    # noise takes the teacher off its ceiling, so that every measure can move
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    data = TensorImages((images + 1.2 * noise).double(), labels, digits_test.class_names, "noisy")
    data.batch_size = 11
    clt = random_clt(vit, n_features=64).double()
    return Study(vit, clt, data, ZeroShot(vit, data.class_names, "single"))


@pytest.fixture(scope="module")
def result(study: Study) -> SurrogateFaithfulness:
    return study.measure()


def by_hand(study: Study, embeddings: dict[str, np.ndarray], version: str) -> dict[str, float]:
    """Every measure, with SciPy, scikit-learn and NumPy, from embeddings."""
    a, b = embeddings["original"], embeddings[version]
    labels, classes = study.data.labels.numpy(), np.arange(10)
    scale = float(study.vit.logit_scale)

    def logits(e: np.ndarray, zs: ZeroShot) -> np.ndarray:
        return scale * cosine_similarity(e, zs.weights.numpy().T)

    def kl(zs: ZeroShot) -> float:
        return entropy(*(softmax(logits(e, zs), axis=1) for e in (a, b)), axis=1).mean()

    def right(e: np.ndarray, zs: ZeroShot) -> float:
        return accuracy_score(labels, logits(e, zs).argmax(1))

    def loss(e: np.ndarray) -> float:
        return log_loss(labels, softmax(logits(e, study.zs), axis=1), labels=classes)

    p, q = logits(a, study.zs), logits(b, study.zs)
    tops = [np.argsort(-x, axis=1)[:, :5] for x in (p, q)]
    x, y = a - a.mean(0), b - b.mean(0)
    norm = np.linalg.norm
    upper = np.triu_indices(N, 1)
    heads = [ZeroShot(study.vit, study.zs.class_names, [t]) for t in TEMPLATES]
    accuracies = [[right(e, head) for head in heads] for e in (a, b)]
    return {
        "top1": right(b, study.zs),
        "delta_top1": right(b, study.zs) - right(a, study.zs),
        "loss": loss(b),
        "delta_loss": loss(b) - loss(a),
        "flip": 1 - accuracy_score(p.argmax(1), q.argmax(1)),
        "top5_overlap": np.mean([len({*s} & {*t}) / 5 for s, t in zip(*tops, strict=True)]),
        "kl": kl(study.zs),
        "cosine": np.diag(cosine_similarity(a, b)).mean(),
        "cka": norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)),
        "spearman": spearmanr(*(cosine_similarity(e)[upper] for e in (a, b))).statistic,
        "prompt_r": pearsonr(*accuracies).statistic,
        "prompt_kl": np.mean([kl(head) for head in heads]),
    }


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ROWS)
def test_every_measure_equals_an_independent_one(study: Study, tokens: str) -> None:
    result = study.measure(tokens=tokens)
    embeddings = study.embeddings(tokens)
    assert [measure.name for measure in result.measures] == MEASURES
    for version in VERSIONS[1:]:
        expected = by_hand(study, embeddings, version)
        found = {name: result.at(name, version) for name in MEASURES}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9), version
    assert result.at("flip") > 0
    assert result.at("top5_overlap") < 1
    assert result.at("kl") > 0.01


def test_teacher_inputs_are_those_of_teacher_replacement(study: Study) -> None:
    embeddings = study.embeddings("all", "teacher")
    found = study.measure(inputs="teacher").at("kl")
    assert found == pytest.approx(by_hand(study, embeddings, "surrogate")["kl"], rel=1e-9)
    assert found != pytest.approx(study.measure().at("kl"), rel=1e-2)


def test_accuracy_and_loss_are_those_of_the_cascade(study: Study) -> None:
    found = study.measure(layers=range(LAYERS), tokens="patch")
    row = cascade(
        study.vit, study.clt, study.data, study.zs, tokens="patch", first_layers=[0]
    ).to_frame()
    names = {
        "surrogate": ("top1", "loss"),
        "original": ("baseline", "loss_baseline"),
        "floor_mean": ("floor_mean", "loss_floor_mean"),
        "floor_zero": ("floor_zero", "loss_floor_zero"),
    }
    for version, (top1, loss) in names.items():
        assert found.at("top1", version) == row[top1].item()
        assert found.at("loss", version) == pytest.approx(row[loss].item(), rel=1e-6)


def test_prompt_by_prompt(study: Study, result: SurrogateFaithfulness) -> None:
    frame = result.by_template
    assert frame["template"].tolist() == TEMPLATES
    embeddings = study.embeddings("all")
    for row in frame.itertuples():
        zs = ZeroShot(study.vit, study.zs.class_names, [row.template])
        scale = float(study.vit.logit_scale)
        logs = {
            v: log_softmax(scale * cosine_similarity(e, zs.weights.numpy().T), axis=1)
            for v, e in embeddings.items()
        }
        labels = study.data.labels.numpy()
        right = {v: (x.argmax(1) == labels).mean() for v, x in logs.items()}
        assert (row.baseline, row.top1) == (right["original"], right["surrogate"])
        assert (row.floor_mean, row.floor_zero) == (right["floor_mean"], right["floor_zero"])
        p = logs["original"]
        for column, version in (("kl", "surrogate"), ("kl_floor_zero", "floor_zero")):
            expected = (np.exp(p) * (p - logs[version])).sum(1).mean()
            assert getattr(row, column) == pytest.approx(expected, rel=1e-9)
    assert frame["kl"].mean() == pytest.approx(result.at("prompt_kl"))


# ---- no difference ------------------------------------------------------------------------------

PERFECT = {
    "delta_top1": 0, "delta_loss": 0, "flip": 0, "top5_overlap": 1, "kl": 0, "cosine": 1, "cka": 1,
    "spearman": 1, "prompt_r": 1, "prompt_kl": 0,
}  # fmt: skip


def test_the_unaltered_model_agrees_with_itself(result: SurrogateFaithfulness) -> None:
    for name, value in PERFECT.items():
        found = result.at(name, "original")
        assert found == pytest.approx(value, abs=1e-12), name
        if not math.isnan(found.low):
            assert (found.low, found.high) == pytest.approx((value, value), abs=1e-12), name
    for name in ("flip", "kl", "top5_overlap", "delta_top1", "delta_loss", "prompt_kl"):
        assert result.at(name, "original") == PERFECT[name], name


@pytest.mark.parametrize("inputs", ["stream", "teacher"])
@pytest.mark.parametrize("tokens", ROWS)
def test_an_oracle_agrees_wholly(study: Study, tokens: str, inputs: str) -> None:
    clt = Oracle(study.vit)
    found = surrogate_faithfulness(
        study.vit,
        clt,
        study.data,
        study.zs,
        tokens=tokens,
        inputs=inputs,
        templates=TEMPLATES,
    )
    assert found.layer_range == "0-7"
    for name, value in PERFECT.items():
        assert found.at(name) == pytest.approx(value, abs=1e-10), name
        assert name == "delta_top1" or abs(found.at(name, "floor_zero") - value) > 1e-3, name


def test_patch_rows_of_the_last_layer_are_a_labelled_no_op(study: Study) -> None:
    found = study.measure(layers=-1, tokens="patch")
    assert found.no_op
    assert found.layer_range == "7"
    for version in VERSIONS:
        assert found.at("kl", version) == 0
        assert found.at("cka", version) == 1
    assert "a no-op" in found.figure().layout.title.text
    assert not study.measure(layers=-1, tokens="cls").no_op
    assert not study.measure(layers=[6, 7], tokens="patch").no_op


# ---- order, batches, draws ----------------------------------------------------------------------


@pytest.mark.parametrize("drawn", [N, 12])
def test_order_and_batches_of_images_change_nothing(
    study: Study, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithfulness, "SIMILARITY_IMAGES", drawn)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(5)).tolist()
    shuffled = ImageSubset(study.data, rows)
    shuffled.batch_size = 7
    frames = [
        surrogate_faithfulness(
            study.vit, study.clt, data, study.zs, tokens="all", templates=TEMPLATES
        ).to_frame()
        for data in (study.data, shuffled)
    ]
    numbers = [frame.select_dtypes("number").to_numpy(float) for frame in frames]
    # intervals too: the bootstrap draws the same images
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-9)
    assert frames[0].query("measure == 'spearman'")["n"].item() == drawn
    assert set(frames[0].query("measure != 'spearman'")["n"]) == {N}


def test_similarities_are_of_a_seeded_sample(
    study: Study, monkeypatch: pytest.MonkeyPatch, result: SurrogateFaithfulness
) -> None:
    other = study.measure(seed=1)
    assert other.at("spearman") == pytest.approx(result.at("spearman"), abs=1e-10)
    monkeypatch.setattr(faithfulness, "SIMILARITY_IMAGES", 12)
    drawn = [study.measure(seed=seed).at("spearman") for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != pytest.approx(drawn[2], abs=1e-4)


def test_intervals_are_bootstraps_over_images_and_paired(
    study: Study, result: SurrogateFaithfulness
) -> None:
    for name in PER_IMAGE:
        found = result.at(name)
        assert found.low < found < found.high, name
    assert math.isnan(result.at("cka").low)
    assert math.isnan(result.at("spearman").low)
    # a difference of losses is known better than two losses apart
    losses = [result.at("loss", version) for version in ("surrogate", "original")]
    apart = sum((e.high - e.low) ** 2 for e in losses) ** 0.5
    delta = result.at("delta_loss")
    assert delta.high - delta.low < apart
    # an independent bootstrap of the cosines
    e = study.embeddings("all")
    cosines = np.diag(cosine_similarity(e["original"], e["surrogate"]))
    draws = np.random.default_rng(9).integers(0, N, (4000, N))
    found = result.at("cosine")
    drawn = Interval.of(found, cosines[draws].mean(1))
    assert (found.low, found.high) == pytest.approx(
        (drawn.low, drawn.high), abs=0.15 * (drawn.high - drawn.low)
    )


# ---- tables, figures ----------------------------------------------------------------------------


def test_tables_hold_floors_beside_every_number(result: SurrogateFaithfulness) -> None:
    frame = result.to_frame().set_index("measure")
    assert frame.index.tolist() == MEASURES
    assert set(frame["layers"]) == {"5-7"}
    metrics = {metric.name: metric for metric in result.metrics()}
    for name in MEASURES:
        row, metric = frame.loc[name], metrics[name]
        assert (metric.value, metric.floor, metric.baseline) == (
            row["value"],
            row["floor_mean"],
            row["baseline"],
        )
        for version in ("floor_mean", "floor_zero"):
            assert metrics[f"{version}_{name}"].value == row[version]
            assert row[version] == result.at(name, version)
            assert not math.isnan(row[version])
    assert metrics["kl"].unit == "nats"
    assert metrics["flip"].unit == "fraction"


def test_figure_has_a_panel_per_measure(result: SurrogateFaithfulness) -> None:
    figure = result.figure()
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == [measure.label for measure in result.measures]
    flips = [trace for trace in figure.data if trace.xaxis == "x5" and trace.mode == "markers"]
    expected = [100 * result.at("flip", v) for v in ("surrogate", "floor_mean", "floor_zero")]
    assert [trace.y[0] for trace in flips] == pytest.approx(expected)
    assert "noisy, N = 30" in figure.layout.title.text


def test_l0_counts_codes_on_the_replaced_rows(study: Study) -> None:
    _, cache = study.vit.run_with_cache(study.data.images)
    counts = [
        study.clt.encode(cache[f"blocks.{s}.ln2.hook_out"][:, :1], layer=s).to_dense()
        for s in range(7)
    ]
    expected = torch.stack(counts).ne(0).sum(-1).double().mean()
    found = study.measure(layers=[3, 6], tokens="cls")
    assert found.l0 == pytest.approx(float(expected))
    assert found.layer_range == "3 6"


def test_few_classes_compare_as_many_as_there_are(study: Study) -> None:
    few = TensorImages(study.data.images, study.data.labels % 3, ["zero", "one", "two"])
    zs = ZeroShot(study.vit, few.class_names, "single")
    found = surrogate_faithfulness(study.vit, study.clt, few, zs, templates=TEMPLATES)
    assert found.at("top3_overlap") == 1
    (label,) = (m.label for m in found.measures if m.name == "top3_overlap")
    assert "of 3 classes: always 1" in label


def test_one_image_leaves_geometry_undefined(study: Study) -> None:
    one = ImageSubset(study.data, [0])
    found = surrogate_faithfulness(study.vit, study.clt, one, study.zs, templates=TEMPLATES)
    assert math.isnan(found.at("cka"))
    assert math.isnan(found.at("spearman"))
    assert found.at("kl") > 0
    found.figure()


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [LAYERS]}, "layers contains 8; expected layers from 0 to 7"),
        ({"layers": []}, "layers is empty"),
        ({"tokens": "registers"}, 'tokens is "registers"'),
        ({"inputs": "oracle"}, 'inputs is "oracle"'),
        ({"templates": ["a photo of a {}."]}, "templates has 1 of them; expected at least 2"),
        ({"templates": ["a {}.", "a photo."]}, 'templates holds "a photo."'),
    ],
)
def test_bad_arguments_are_refused(
    study: Study, options: dict[str, object], message: str, unchecked: None
) -> None:
    with pytest.raises(InputError, match=message):
        study.measure(**options)


def test_images_without_labels_are_refused(study: Study) -> None:
    with pytest.raises(InputError, match="labels run from -1 to -1; expected 0 to 9"):
        surrogate_faithfulness(
            study.vit, study.clt, TensorImages(study.data.images), study.zs, layers=7
        )


def test_clt_of_another_shape_is_refused(study: Study) -> None:
    other = CrossLayerTranscoder(CLTConfig(2, 64, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="2 layers"):
        surrogate_faithfulness(study.vit, other, study.data, study.zs)


def test_a_clt_that_breaks_the_model_is_refused(study: Study) -> None:
    clt = random_clt(study.vit, n_features=64).double()
    clt.b_dec.data[6, 0] = float("nan")
    with pytest.raises(InputError, match="embeddings of the surrogate model hold NaN"):
        surrogate_faithfulness(
            study.vit, clt, study.data, study.zs, layers=RANGE, templates=TEMPLATES
        )
