"""Steering curves and searches against the hooks and dense sums they are made of."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from assertions import tells_itself
from builders import random_clt
from scipy.stats import spearmanr
from torch import Tensor

from vit_clt import AbsTopK, InputError, JumpReLU, ZeroShot
from vit_clt.analysis import steering_curve, steering_search
from vit_clt.analysis.features.activity import feature_activity
from vit_clt.analysis.features.effects import contrast_weights
from vit_clt.analysis.stats.halves import halves
from vit_clt.analysis.stats.intervals import mean_intervals
from vit_clt.cli import main
from vit_clt.data.images import ImageData, ImageSubset, TensorImages
from vit_clt.hooks import Edit, FrozenPass, HookedViT, steer
from vit_clt.transcoder.model import CrossLayerTranscoder

N = 10


@pytest.fixture(scope="module")
def zs(digits_vit: HookedViT, digits_test: ImageData) -> ZeroShot:
    return ZeroShot(digits_vit, digits_test.class_names, "single")


@pytest.fixture(scope="module")
def clt(digits_vit: HookedViT) -> CrossLayerTranscoder:
    return random_clt(digits_vit, n_features=48)


@pytest.fixture(scope="module")
def data(digits_test: ImageData) -> ImageData:
    few = ImageSubset(digits_test, range(N))
    few.batch_size = 6
    return few


def codes_of(vit: HookedViT, clt: CrossLayerTranscoder, images: Tensor, layer: int) -> Tensor:
    name = f"blocks.{layer}.ln2.hook_out"
    return clt.encode(vit.clean_cache(images, [name])[name], layer=layer).to_dense()


@torch.no_grad()
def logits_of(vit, clt, zs: ZeroShot, images: Tensor, edits: list[Edit]) -> Tensor:
    """By the context manager and, from there, by hand: cosines at the model's own scale."""
    with steer(vit, clt, edits):
        embeddings = vit(images).double()
    return zs.logit_scale * F.normalize(embeddings, dim=-1) @ zs.weights.double()


def test_a_curve_is_what_steering_the_model_gives(digits_vit, clt, zs, data) -> None:
    images, labels = data.batch(range(N))
    z = codes_of(digits_vit, clt, images, 5)[:, 1:]
    busy = z.ne(0).sum((0, 1)).argsort(descending=True, stable=True).tolist()
    features = [(5, busy[0]), (5, busy[1]), (6, 3)]
    curve = steering_curve(
        digits_vit,
        clt,
        data,
        zs,
        features,
        values=(3, 0),
        tokens="patch",
        target=0,
        n_random=2,
        seed=4,
    )
    assert curve.strengths == [0, 3]
    typical = [float(z[..., i][z[..., i] != 0].mean()) for i in busy[:2]]
    assert curve.steered.typical[:2] == pytest.approx(typical)
    fired = z[..., busy[0]] != 0
    assert curve.steered.rates[0] == pytest.approx(float(fired.double().mean()))
    assert curve.steered.image_rates[0] == pytest.approx(float(fired.any(1).double().mean()))
    # CLS is not among the rows
    assert np.isnan(curve.steered.cls_rates).all()
    edits = [
        Edit(s, i, "clamp", 3 * unit, "patch")
        for (s, i), unit in zip(features, curve.steered.typical, strict=True)
    ]
    found = logits_of(digits_vit, clt, zs, images, edits)
    clean = logits_of(digits_vit, clt, zs, images, [Edit(0, 0, "scale", 1)])
    expected = {
        "loss": F.cross_entropy(found, labels, reduction="none"),
        "top1": (found.argmax(-1) == labels).double(),
        "kl": F.kl_div(found.log_softmax(-1), clean.softmax(-1), reduction="none").sum(-1),
    }
    frame = curve.to_frame().query("version == 'steered' and strength == 3")
    for measure, values in expected.items():
        row = frame[frame["measure"] == measure].iloc[0]
        assert row["value"] == pytest.approx(float(values.mean()), rel=1e-4, abs=1e-6)
        [ends] = mean_intervals(values.numpy()[:, None], 4)
        assert (row["low"], row["high"]) == pytest.approx((ends.low, ends.high), rel=1e-4, abs=1e-6)
    p = frame[frame["measure"] == "probability"]
    moved = found.softmax(-1) - clean.softmax(-1)
    np.testing.assert_allclose(p["change"], moved.mean(0), atol=2e-6)
    assert p["class"].tolist() == zs.class_names
    assert float(moved.abs().max()) > 2e-4
    logit = frame[frame["measure"] == "logit"]
    np.testing.assert_allclose(logit["value"], found.mean(0), rtol=1e-4, atol=1e-4)

    # controls: the same layers, no feature twice, and of the twenty nearest in rate
    rates = feature_activity(digits_vit, clt, data, [5, 6], tokens="patch")
    controls = [each.features for each in curve.controls]
    assert [[s for s, _ in each] for each in controls] == [[5, 5, 6]] * 2
    everything = [*features, *(f for each in controls for f in each)]
    assert len(set(everything)) == len(everything)
    others = [i for i in np.flatnonzero(rates[6].fired) if i != 3]
    nearest = sorted(others, key=lambda i: abs(np.log(rates[6].fired[i] / rates[6].fired[3])))
    assert {each[2][1] for each in controls} <= set(nearest[:20])
    # the floor is their mean
    metric = next(m for m in curve.metrics() if m.name == "clamp_3_loss")
    random = curve.frame.query("measure == 'loss' and strength == 3")
    random = random[random["version"].str.startswith("random")]
    assert metric.floor == pytest.approx(random["value"].mean())
    # beyond them: paired over images
    each = [
        logits_of(
            digits_vit,
            clt,
            zs,
            images,
            [
                Edit(s, i, "clamp", 3 * unit, "patch")
                for (s, i), unit in zip(control.features, control.typical, strict=True)
            ],
        )
        for control in curve.controls
    ]
    losses = torch.stack([F.cross_entropy(x, labels, reduction="none") for x in each]).mean(0)
    beyond = (F.cross_entropy(found, labels, reduction="none") - losses).numpy()
    beyond_metric = next(m for m in curve.metrics() if m.name == "clamp_3_loss_beyond_random")
    [ends] = mean_intervals(beyond[:, None], 4)
    assert beyond_metric.value == pytest.approx(metric.value - metric.floor)
    assert (beyond_metric.low, beyond_metric.high) == pytest.approx(
        (ends.low, ends.high), rel=1e-3, abs=1e-6
    )
    assert curve.frame.query("version != 'steered'")["beyond"].isna().all()

    # read: two digits that count, however small
    row = curve.shown().iloc[-1]
    ends = beyond_metric.value, beyond_metric.low, beyond_metric.high
    moved = [100 * float(p[f"change{end}"].iloc[0]) for end in ("", "_low", "_high")]
    for text, expected in (
        (row["loss beyond random"], ends),
        (row[f"{zs.class_names[0]} %"].split(", ")[1], moved),
    ):
        shown = [float(number) for number in re.findall(r"[+-][\d.]+", text)]
        assert shown == pytest.approx(expected, rel=0, abs=0.051 * max(map(abs, expected)))

    # drawn: changes with paired intervals, random features' in the same panels
    figure = curve.figure()
    drawn = frame.query("measure == 'loss'").iloc[0]
    line = next(t for t in figure.data if t.yaxis == "y5" and t.name == "these features")
    assert line.y[1] == drawn["change"]
    assert line.error_y.array[1] == drawn["change_high"] - drawn["change"]
    axes = [figure.layout[f"yaxis{i}"].title.text for i in (2, 4, 5)]
    assert axes == ["Δ probability (points)", "Δ top-1 (points)", "Δ loss (nats)"]
    for panel in ("y2", "y3", "y4", "y5"):
        names = [t.name for t in figure.data if t.yaxis == panel]
        assert names == ["random features"] * 2 + ["these features"]
    loss = F.cross_entropy(clean, labels)
    assert metric.baseline == pytest.approx(float(loss), rel=1e-4)


def test_scaled_by_one_nothing_changes_at_all(digits_vit, clt, zs, data) -> None:
    busy = int(codes_of(digits_vit, clt, data.batch(range(N))[0], 3).ne(0).sum((0, 1)).argmax())
    curve = steering_curve(
        digits_vit, clt, data, zs, (3, busy), kind="scale", values=(0, 1), n_random=1
    )
    columns = ["measure", "value", "low", "high"]
    unsteered = curve.frame.query("version == 'unsteered'")[columns].to_numpy()
    for version in ("steered", "random 0"):  # noqa: B007
        rows = curve.frame.query("version == @version")
        assert (rows.query("strength == 1")[columns].to_numpy() == unsteered).all()
        assert (rows.query("strength == 1")["change"] == 0).all()
        assert (rows.query("strength == 0")["change"] != 0).any()


def test_images_without_labels_and_a_single_image(digits_vit, zs, data) -> None:
    images = data.batch(range(4))[0]
    for sparsifier in (AbsTopK(k=5), JumpReLU(theta=0.2)):
        clt = random_clt(digits_vit, sparsifier)
        busy = int(codes_of(digits_vit, clt, images, 7).ne(0).sum((0, 1)).argmax())
        curve = steering_curve(
            digits_vit, clt, images, zs, (7, busy), values=(2,), query=[2], n_random=1
        )
        assert set(curve.frame["measure"]) == {"probability", "logit", "kl"}
        assert (curve.n, curve.n_typical) == (1, 4)
        assert curve.frame["low"].isna().all()
        # the table: no change of the unsteered model, no interval of one image
        unsteered, once = curve.shown().astype(str).agg(" ".join, axis=1)
        assert "+" not in unsteered
        assert "nan" not in once
        assert " to " not in once
        assert "+" in once
        assert curve.frame["value"].notna().all()
        # a signed feature's unit: its mean size, with the sign of its sum
        z = codes_of(digits_vit, clt, images, 7)[..., busy]
        unit = z[z != 0].abs().mean() * z.sum().sign()
        assert curve.steered.typical[0] == pytest.approx(float(unit), rel=1e-5)
        for rows, found in zip((z[:, :1], z[:, 1:]), curve.steered.typical_by_kind[0], strict=True):
            on = rows[rows != 0].abs()
            expected = on.mean() * z.sum().sign() if len(on) else 0.0
            assert found == pytest.approx(float(expected), rel=1e-5)
        assert curve.steered.cls_rates[0] == float((z[:, 0] != 0).double().mean())


def test_a_search_predicts_on_one_half_and_measures_on_the_other(digits_vit, clt, zs, data) -> None:
    label, seed = 2, 3
    search = steering_search(
        digits_vit, clt, data, zs, zs.class_names[label], top=4, n_random=1, tokens="cls", seed=seed
    )
    ranking, measuring = halves(data, seed)
    assert (search.n_ranked, search.n, search.label) == (N // 2, N // 2, label)

    # the ranking, by dense sums on its half: every effect by its definition
    images, _ = ranking.batch(range(N // 2))
    frozen = FrozenPass(digits_vit, images)
    weights = zs.weights.double()
    others = [c for c in range(10) if c != label]
    direction = zs.logit_scale * (weights[:, label] - weights[:, others].mean(1))
    torch.testing.assert_close(
        contrast_weights(zs, label).double(), direction, rtol=1e-4, atol=1e-4
    )
    gradients = frozen.gradients(direction.float(), norms="differentiated")[:, :, 0].double()
    effects = torch.zeros(8, 48, dtype=torch.float64)
    for s in range(8):
        z = clt.encode(frozen.x[s][:, :1], layer=s).to_dense()[:, 0].double()
        written = torch.einsum("tfd,tbd->bf", clt.W_dec[s].double(), gradients[s:])
        effects[s] = (z * written).mean(0)
    best = effects.abs().flatten().argsort(descending=True)[:4]
    assert search.candidates == [divmod(int(at), 48) for at in best]
    frame = search.to_frame()
    at = torch.tensor(frame["layer"]), torch.tensor(frame["feature"])
    np.testing.assert_allclose(frame["effect"], effects[at], rtol=1e-3, atol=1e-6)
    assert (frame["predicted"] == (frame["scale"] - 1) * frame["effect"]).all()

    # what was measured, by the context manager on the other half
    images, labels = measuring.batch(range(N // 2))
    clean = logits_of(digits_vit, clt, zs, images, [Edit(0, 0, "scale", 1)])
    for row in frame.to_dict("records")[1:4]:
        edit = Edit(row["layer"], row["feature"], "scale", row["scale"], "cls")
        found = logits_of(digits_vit, clt, zs, images, [edit])
        contrast = [x[:, label] - x[:, others].mean(1) for x in (clean, found)]
        change = (contrast[1] - contrast[0]).numpy()
        assert row["contrast"] == pytest.approx(float(change.mean()), rel=1e-3, abs=1e-4)
        [ends] = mean_intervals(change[:, None], seed)
        assert (row["contrast_low"], row["contrast_high"]) == pytest.approx(
            (ends.low, ends.high), rel=1e-3, abs=1e-4
        )
        losses = [float(F.cross_entropy(x, labels)) for x in (clean, found)]
        assert row["loss"] == pytest.approx(losses[1] - losses[0], rel=1e-2, abs=1e-5)
    suppressed = frame.query("role == 'found' and scale == 0")
    rho = spearmanr(suppressed["predicted"], suppressed["contrast"]).statistic
    assert search.agreement.value == pytest.approx(rho)
    fit = np.linalg.lstsq(suppressed[["predicted"]], suppressed["contrast"], rcond=None)[0][0]
    assert search.slope == pytest.approx(fit)
    assert search.slope.low <= fit <= search.slope.high
    assert f"Slope of measured on predicted: {fit:.2f} (" in search.agreement_text()
    assert search.baseline["probability"] == pytest.approx(
        float(clean.softmax(-1)[:, label].mean()), rel=1e-4
    )
    # a random feature beside each: the same layer, never one of those found
    random = frame.query("role == 'random' and scale == 0")
    assert random["layer"].tolist() == suppressed["layer"].tolist()
    assert not set(zip(random["layer"], random["feature"], strict=True)) & set(search.candidates)
    assert search.random_mean(1, 0, "contrast") == random["contrast"].iloc[1]
    first, beside = frame.iloc[0], random.iloc[0]
    changes = []
    for s, i in search.candidates[0], (beside["layer"], beside["feature"]):
        found = logits_of(digits_vit, clt, zs, images, [Edit(int(s), int(i), "scale", 0, "cls")])
        changes.append((found - clean)[:, label] - (found - clean)[:, others].mean(1))
    past = (changes[0] - changes[1]).numpy()
    assert first["contrast_beyond"] == pytest.approx(past.mean(), rel=1e-3, abs=1e-4)
    [ends] = mean_intervals(past[:, None], seed)
    assert (first["contrast_beyond_low"], first["contrast_beyond_high"]) == pytest.approx(
        (ends.low, ends.high), rel=1e-3, abs=1e-4
    )
    assert random["contrast_beyond"].isna().all()
    # rows steered are CLS rows, one an image
    assert (frame["rate"] == frame["cls_rate"]).all()
    assert (frame["rate"] == frame["image_rate"]).all()
    table = search.shown()
    assert table["CLS %"][0] == f"{100 * first['rate']:.1f}"
    assert len(search.figure().data) == 2 * (3 + 2 + 2)


def test_a_silent_feature_is_never_found(digits_vit, zs, data) -> None:
    clt = random_clt(digits_vit, n_features=48)
    clt.b_enc.data[:7] -= 1000
    # patch rows of the last layer move nothing: every effect is 0, those of silent features too
    search = steering_search(digits_vit, clt, data, zs, 1, top=3, n_random=1, tokens="patch")
    assert [s for s, _ in search.candidates] == [7, 7, 7]
    assert (search.frame["rate"] > 0).all()
    assert (search.frame["effect"] == 0).all()
    assert np.isnan(search.slope)


def test_results_are_studies(digits_vit, clt, zs, data, tmp_path: Path) -> None:
    curve = steering_curve(
        digits_vit,
        clt,
        data,
        zs,
        (7, 1),
        values=(0, 2),
        query=[3, 1],
        n_random=1,
        clt_name="a/b",
        seed=6,
    )
    search = steering_search(
        digits_vit, clt, data, zs, "THREE", top=2, n_random=1, tokens="cls", clt_name="a/b"
    )
    keys = ("data", "split", "tokens", "trajectory", "l0", "seed", "features", "search", "kind")
    for study, expected in (
        (curve, ["all", "stream", curve.l0, 6, ["7:1"], None, "clamp"]),
        (search, ["cls", "stream", search.l0, 0, [], "THREE", "scale"]),
    ):
        context = tells_itself(study, tmp_path / str(study.n))
        assert [context[key] for key in keys] == [data.name, data.split, *expected]
        assert (context["clt"], context["readout"]) == ("a/b", zs.name)
        page = (tmp_path / str(study.n) / "steering.html").read_text()
        assert all(html.escape(note) in page for note in study.notes())
    assert search.target == zs.class_names[3]


def test_refused(digits_vit, clt, zs, data) -> None:
    silent = np.flatnonzero(
        feature_activity(digits_vit, clt, data, [7], tokens="cls")[7].fired == 0
    )
    shared = (digits_vit, clt, data, zs)
    for message, call in {
        "expected layers from 0 to 7": lambda: steering_curve(*shared, (8, 0)),
        "features from 0 to 47": lambda: steering_curve(*shared, (7, 48)),
        "edits is empty": lambda: steering_curve(*shared, []),
        "twice on row": lambda: steering_curve(*shared, [(7, 1), (7, 1)]),
        "active on none of these rows": lambda: steering_curve(
            *shared, (7, int(silent[0])), tokens="cls"
        ),
        "values are": lambda: steering_curve(*shared, (7, 1), values=(1, 1)),
        "query is 10; expected images from 0 to 9": lambda: steering_curve(
            *shared, (7, 1), query=[10]
        ),
        "query holds 3 twice": lambda: steering_curve(*shared, (7, 1), query=[3, 3]),
        "n_random is 0": lambda: steering_curve(*shared, (7, 1), n_random=0),
        "other features that fire": lambda: steering_curve(*shared, (7, 1), n_random=48),
        'target is "eleven"': lambda: steering_search(*shared, "eleven"),
        'target is "10"': lambda: steering_search(*shared, 10),
        "top is 0": lambda: steering_search(*shared, 1, top=0),
        "data has 3 images": lambda: steering_search(
            digits_vit, clt, ImageSubset(data, range(3)), zs, 1
        ),
        "labels run from 12": lambda: steering_search(
            digits_vit, clt, TensorImages(data.batch(range(4))[0], torch.full((4,), 12)), zs, 1
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_the_command(
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:
    start = ["steer", "--clt", str(digits_clt), "--limit", "8", "--templates", "single"]
    out = tmp_path / "out"
    for args, message in (
        ([], "neither is given of --feature and --search"),
        (["--feature", "7:1", "--search", "1"], "both are given"),
        (["--feature", "7-1"], 'feature is "7-1"; expected layer:feature'),
        (["--feature", "9:1"], "expected layers from 0 to 7"),
        (["--search", "1", "--values", "2"], "--values is given with --search"),
        (["--search", "eleven"], 'search is "eleven", which fits no class name'),
    ):
        assert message in refused(*start, *args)

    args = ["--feature", "7:1", "--values", "-1", "2", "--query", "0", "3", "--random", "1"]
    assert main([*start, *args, "--out", str(out)]) == 0
    frame = pd.read_csv(out / "steering.csv")
    assert set(frame["strength"].dropna()) == {-1, 2}
    assert (frame["n"] == 2).all()
    document = json.loads((out / "metrics.json").read_text())
    assert document["context"]["features"] == ["7:1"]
    assert document["context"]["l0"] > 0
    named = {m["name"]: m for m in document["metrics"]}
    row = frame.query("version == 'steered' and strength == 2 and measure == 'kl'").iloc[0]
    assert named["clamp_2_kl"]["value"] == pytest.approx(row["value"])
    page = (out / "steering.html").read_text()
    assert "takes the value on every row named, active or not" in page
    assert "never meets" not in page
    assert "typical activation mixes the CLS row with the patches" in page
    assert "(CLS rows" in page
    assert "attention held" not in page
    # nobody named a class: the one shown was chosen for being moved
    assert "class compared: the one that moves most" in page

    (tmp_path / "feature_names.json").write_text(
        '{"schema": "vit-clt feature names 1", "names": {"7:1": {"text": "a <stroke>"}}}'
    )
    args += ["--names", str(tmp_path), "--overwrite"]
    assert main([*start, *args, "--out", str(out)]) == 0
    assert "Steering 7:1 a <stroke> on" not in (page := (out / "steering.html").read_text())
    assert "7:1 a &lt;stroke&gt;" in page

    args = ["--search", "Three", "--top", "3", "--random", "1", "--overwrite"]
    assert main([*start, *args, "--out", str(out)]) == 0
    assert len(pd.read_csv(out / "steering.csv")) == 3 * 2 * 2
    names = [m["name"] for m in json.loads((out / "metrics.json").read_text())["metrics"]]
    assert "predicted_measured_spearman" in names
    assert "predicted_measured_slope" in names
    assert "Spearman of predicted and measured" in capsys.readouterr().out
    page = (out / "steering.html").read_text()
    assert "never meets" in page
    assert "attention held" in page
