"""Effect scores against whole replaced passes in float64, and on a model known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from assertions import tells_itself
from builders import noisy_digits, random_clt, tiny_clip
from torch import Tensor, nn

from vit_clt import CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK, ZeroShot
from vit_clt.analysis import (
    ablation_curves,
    causal_effects,
    contribution_scores,
    effect_scores,
    feature_effects,
    keep_sets,
)
from vit_clt.analysis.causal.agreement import causal_agreement
from vit_clt.analysis.contributions.study import score_study
from vit_clt.analysis.silencing.scores import EffectScores
from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.cli import main
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, replace_mlps, token_rows
from vit_clt.readouts.base import Classifier

L, D, F_EACH = 4, 16, 6


class Linear(Classifier):
    """A linear readout of three classes with random weights."""

    def __init__(self, d_embed: int = 12, n_classes: int = 3):
        self.name, self.device = "random weights", torch.device("cpu")
        self.class_names = list("abc")[:n_classes]
        generator = torch.Generator().manual_seed(7)
        self.weights = torch.randn(d_embed, n_classes, generator=generator, dtype=torch.float64)

    def logits(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.weights.to(embeddings.dtype)


def some_images(n: int = 11, dtype: torch.dtype = torch.float64) -> TensorImages:
    pixels = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    data = TensorImages(pixels.to(dtype), torch.arange(n) % 3, list("abc"))
    data.batch_size = 4
    return data


def in_doubles(n_features: int = 24) -> tuple[HookedViT, CrossLayerTranscoder]:
    vit = HookedViT(tiny_clip()).double()
    return vit, random_clt(vit, n_features=n_features).double()


def contrast(logits: Tensor, labels: Tensor) -> Tensor:
    others = F.one_hot(labels, logits.shape[1]) == 0
    return logits.gather(1, labels[:, None])[:, 0] - logits[others].view(len(logits), -1).mean(1)


@torch.no_grad()
def by_hand(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: TensorImages,
    classifier: Classifier,
    source: int,
    features: list[int],
    *,
    fill: str,
    ablated: str,
    tokens: str,
    seed: int,
) -> tuple[np.ndarray, float, float]:
    """Total effects on y_l, loss and contrast of some features, from whole replaced passes."""
    images, rows, scored = data.images, token_rows(ablated), token_rows(tokens)
    names = [f"blocks.{l}.{point}" for l in range(L) for point in ("ln2.hook_out", "hook_mlp_out")]
    clean = vit.clean_cache(images, names)
    z = clt.encode(clean[f"blocks.{source}.ln2.hook_out"], layer=source).to_dense()
    donors = torch.tensor(donor_cycle(len(images), seed))
    value = {"zero": 0 * z, "mean": z.mean(0).expand_as(z), "resample": z[donors]}[fill]
    seen: dict[int, Tensor] = {}

    def edit(codes: Tensor, hook: object) -> Tensor:
        codes = codes.clone()
        codes[:, rows, features] = value[:, rows, features]
        return codes

    def keep(y: Tensor, hook: object, l: int) -> None:
        seen[l] = y

    hooks = [(f"clt.{source}.hook_codes", edit)]
    hooks += [(f"blocks.{l}.hook_mlp_out", partial(keep, l=l)) for l in range(L)]
    with replace_mlps(vit, clt, layers=range(L), error_node=True), vit.hooks(fwd_hooks=hooks):
        altered = classifier.logits(vit(images))
    logits = classifier.logits(vit(images))
    on_y = np.full(L, np.nan)
    for l in range(source, L):
        y = clean[f"blocks.{l}.hook_mlp_out"][:, scored]
        moved = (seen[l][:, scored] - y).square().sum()
        on_y[l] = moved / (y - y.mean(0)).square().sum()
    loss = F.cross_entropy(altered, data.labels) - F.cross_entropy(logits, data.labels)
    change = contrast(altered, data.labels) - contrast(logits, data.labels)
    return on_y, float(loss), float(change.mean())


@pytest.mark.parametrize("fill", ["mean", "resample", "zero"])
@pytest.mark.parametrize(
    ("ablated", "tokens"), [("all", "cls"), ("cls", "patch"), ("patch", "all")]
)
def test_effects_are_those_of_whole_replaced_passes(fill: str, ablated: str, tokens: str) -> None:
    (vit, clt), data, classifier = in_doubles(), some_images(), Linear()
    options = {"fill": fill, "ablated": ablated, "tokens": tokens, "seed": 3}
    found = effect_scores(vit, clt, data, classifier, **options)
    features = [(0, 3), (2, 5), (0, 11), (-1, 0)]
    single = feature_effects(vit, clt, data, features, classifier, **options)
    every = list(range(clt.config.n_features))
    for effects, silenced in (
        (found.effects, [(s, every) for s in range(L)]),
        (single.effects, [(s % L, [i]) for s, i in features]),
    ):
        for i, (s, numbers) in enumerate(silenced):
            on_y, loss, logit = by_hand(vit, clt, data, classifier, s, numbers, **options)
            np.testing.assert_allclose(effects.on_targets.matrix[:, i], on_y, rtol=0, atol=1e-10)
            assert effects.output("loss", i) == pytest.approx(loss, abs=1e-10)
            assert effects.output("contrast", i) == pytest.approx(logit, abs=1e-10)
    assert found.effects.l0 == pytest.approx(clt.config.sparsifier.k)


def test_direct_effects_are_the_terms_alone() -> None:
    (vit, clt), data, classifier = in_doubles(), some_images(), Linear()
    found = effect_scores(vit, clt, data, classifier, path="direct", tokens="patch", ablated="all")
    with torch.no_grad():
        clean = vit.clean_cache(
            data.images,
            [f"blocks.{l}.{p}" for l in range(L) for p in ("ln2.hook_out", "hook_mlp_out")],
        )
        resid, logits = vit(data.images, stop_at_layer=L), classifier.logits(vit(data.images))
        for s in range(L):
            z = clt.encode(clean[f"blocks.{s}.ln2.hook_out"], layer=s).to_dense()
            change = {l: (z.mean(0) - z) @ clt.decoder(s, l) for l in range(s, L)}
            for l, dy in change.items():
                y = clean[f"blocks.{l}.hook_mlp_out"][:, 1:]
                truth = dy[:, 1:].square().sum() / (y - y.mean(0)).square().sum()
                assert float(found.matrix[l, s]) == pytest.approx(float(truth), abs=1e-10)
            altered = classifier.logits(vit.head(resid + sum(change.values())))
            loss = F.cross_entropy(altered, data.labels) - F.cross_entropy(logits, data.labels)
            assert found.on_output[s] == pytest.approx(float(loss), abs=1e-10)


def linear_toy() -> tuple[HookedViT, CrossLayerTranscoder]:
    """No attention and no LayerNorm before the MLPs and the head; every feature is active.

    A change of codes then runs through W_enc and W_dec alone. Patch rows are pooled, as without
    attention the CLS row is the same for all images.
    """
    clip = tiny_clip(pool_type="avg")
    for block in clip.visual.transformer.resblocks:
        block.ln_2 = nn.Identity()
        for parameter in block.attn.out_proj.parameters():
            parameter.data.zero_()
    clip.visual.ln_post = nn.Identity()
    vit = HookedViT(clip).double()
    clt = CrossLayerTranscoder(CLTConfig(L, D, F_EACH, ReLUTopK(k=F_EACH))).double()
    with torch.no_grad():
        clt.b_enc.fill_(100.0)
    return vit, clt.requires_grad_(False)


def linear_truth(
    vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages
) -> tuple[np.ndarray, np.ndarray]:
    """Total changes of y "source target image row d" and of the embedding, by hand in numpy."""
    names = [f"blocks.{l}.ln2.hook_out" for l in range(L)]
    x = [v.numpy() for v in vit.clean_cache(data.images, names).values()]
    encoders = [w.numpy() for w in clt.W_enc]
    moved = np.zeros((L, L, *x[0].shape))
    for s in range(L):
        z = x[s] @ encoders[s].T
        dz = {s: z.mean(0) - z}
        for l in range(s, L):
            if l > s:
                dz[l] = moved[s, s:l].sum(0) @ encoders[l].T
            moved[s, l] = sum(dz[j] @ clt.W_dec[j][l - j].numpy() for j in dz)
    return moved, moved.sum(1)[:, :, 1:].mean(2) @ vit.tower.visual.proj.numpy()


@pytest.mark.parametrize("order", ["exact", "first"])
@torch.no_grad()
def test_on_a_linear_model_both_orders_are_the_truth(order: str) -> None:
    (vit, clt), data, classifier = linear_toy(), some_images(), Linear()
    found = effect_scores(vit, clt, data, classifier, tokens="patch", order=order)
    moved, at_embedding = linear_truth(vit, clt, data)
    change = torch.from_numpy(at_embedding) @ classifier.weights
    logits = classifier.logits(vit(data.images))
    if order == "first":
        slope = logits.softmax(1) - F.one_hot(data.labels, 3)
        truth = (slope * change).sum(2).mean(1)
        np.testing.assert_allclose(found.on_output, truth, rtol=0, atol=1e-10)
        assert list(found.effects.on_output) == ["loss"]
        return
    for s in range(L):
        truth = float(contrast(change[s], data.labels).mean())
        assert found.effects.output("contrast", s) == pytest.approx(truth, abs=1e-10)
        loss = F.cross_entropy(logits + change[s], data.labels) - F.cross_entropy(
            logits, data.labels
        )
        assert found.on_output[s] == pytest.approx(float(loss), abs=1e-10)
    for l in range(L):
        y = vit.clean_cache(data.images, [f"blocks.{l}.hook_mlp_out"]).popitem()[1][:, 1:]
        spread = float((y - y.mean(0)).square().sum())
        for s in range(l + 1):
            truth = np.square(moved[s, l][:, 1:]).sum() / spread
            assert float(found.matrix[l, s]) == pytest.approx(truth, abs=1e-10)


def test_random_probes_estimate_effects_on_y() -> None:
    (vit, clt), data = linear_toy(), some_images(2400)
    data.batch_size = 200
    exact = effect_scores(vit, clt, data, tokens="patch")
    first = effect_scores(vit, clt, data, tokens="patch", order="first", checked=0)
    assert first.effects.error is None
    # a target's own term is known, so that the diagonal has no noise
    np.testing.assert_allclose(first.matrix.diagonal(), exact.matrix.diagonal(), rtol=1e-10)
    low, high = first.low.numpy(), first.high.numpy()
    below = np.tril(np.ones((L, L), bool), -1)
    np.testing.assert_allclose(first.matrix[below], exact.matrix[below], rtol=0.15)
    assert ((low <= exact.matrix.numpy()) & (exact.matrix.numpy() <= high))[below].mean() > 0.8


def test_first_order_effects_tell_their_error() -> None:
    (vit, clt), data, classifier = in_doubles(), some_images(), Linear()
    exact = effect_scores(vit, clt, data, classifier)
    first = effect_scores(vit, clt, data, classifier, order="first")
    error = first.effects.error
    assert error is not None
    assert error.n == len(data)
    truth = exact.on_output
    expected = np.linalg.norm(first.on_output - truth) / np.linalg.norm(truth)
    assert error.outputs["loss"] == pytest.approx(expected)
    assert 0.01 < error.outputs["loss"] < 1
    below = np.tril(np.ones((L, L), bool), -1)
    found, truth = first.matrix.numpy()[below], exact.matrix.numpy()[below]
    assert error.y == pytest.approx(np.linalg.norm(found - truth) / np.linalg.norm(truth))
    direct = [
        effect_scores(vit, clt, data, classifier, path="direct", order=order)
        for order in ("exact", "first")
    ]
    torch.testing.assert_close(direct[0].matrix, direct[1].matrix, equal_nan=True)


def test_batches_do_not_change_effects() -> None:
    (vit, clt), classifier = in_doubles(), Linear()
    for fill in ("mean", "resample"):
        found = []
        for size in (3, 11):
            data = some_images()
            data.batch_size = size
            found.append(effect_scores(vit, clt, data, classifier, fill=fill))
        torch.testing.assert_close(found[0].matrix, found[1].matrix, equal_nan=True)
        np.testing.assert_allclose(found[0].on_output, found[1].on_output)


def test_a_per_layer_transcoder_acts_beyond_its_layer_through_the_codes_above() -> None:
    vit, _ = in_doubles()
    clt = CrossLayerTranscoder(CLTConfig(L, D, 24, ReLUTopK(k=5), cross_layer=False)).double()
    data = some_images()
    for order in ("exact", "first"):
        total = effect_scores(vit, clt, data, order=order).matrix.numpy()
        direct = effect_scores(vit, clt, data, order=order, path="direct").matrix.numpy()
        below = np.tril(np.ones((L, L), bool), -1)
        assert (direct[below] == 0).all()
        assert (total[below] != 0).all()
        np.testing.assert_allclose(total.diagonal(), direct.diagonal())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": "register"}, 'tokens is "register"; this model has no register tokens'),
        ({"ablated": "register"}, 'tokens is "register"; this model has no register tokens'),
        ({"fill": "median"}, 'fill is "median"; expected one of'),
        ({"path": "indirect"}, 'path is "indirect"; expected one of "total", "direct"'),
        ({"order": "second"}, 'order is "second"; expected one of "exact", "first"'),
        ({"checked": -1}, "checked is -1; expected at least 0 images"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused(
    tiny_vit: HookedViT, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        effect_scores(tiny_vit, random_clt(tiny_vit), some_images(), **options)


def test_what_cannot_be_measured_is_refused(tiny_vit: HookedViT) -> None:
    clt, data = random_clt(tiny_vit), some_images(dtype=torch.float32)
    with pytest.raises(InputError, match="class_names has 1 class; expected at least 2"):
        effect_scores(tiny_vit, clt, data, Linear(n_classes=1))
    with pytest.raises(InputError, match="labels run from 0 to 2; expected 0 to 1"):
        effect_scores(tiny_vit, clt, data, Linear(n_classes=2))
    with pytest.raises(InputError, match="data has 1 image; expected at least 2, as effects"):
        effect_scores(tiny_vit, clt, some_images(1, torch.float32))
    with pytest.raises(InputError, match="data has 2 images; expected at least 3, as effects"):
        effect_scores(tiny_vit, clt, some_images(2, torch.float32), order="first")
    with pytest.raises(InputError, match="features is empty; expected at least one"):
        feature_effects(tiny_vit, clt, data, [])
    with pytest.raises(InputError, match="feature is 24 at layer 1; expected features from 0"):
        feature_effects(tiny_vit, clt, data, [(1, 24)])
    with pytest.raises(InputError, match="layers contains 4; expected layers from 0 to 3"):
        feature_effects(tiny_vit, clt, data, [(4, 0)])
    other = CrossLayerTranscoder(CLTConfig(3, D, 24, ReLUTopK(k=5)))
    with pytest.raises(InputError, match="the CLT is for 3 layers"):
        effect_scores(tiny_vit, other, data)


@pytest.fixture(scope="module")
def measured(digits_vit: HookedViT, digits_test: ImageData) -> tuple[EffectScores, ImageData]:
    data = noisy_digits(digits_test, 24, 12)
    classifier = ZeroShot(digits_vit, data.class_names)
    return effect_scores(digits_vit, random_clt(digits_vit), data, classifier), data


def test_effects_stand_where_contribution_scores_stand(
    digits_vit: HookedViT, measured: tuple[EffectScores, ImageData], tmp_path: Path
) -> None:
    scores, data = measured
    clt, classifier = random_clt(digits_vit), ZeroShot(digits_vit, data.class_names)
    order = sorted(range(8), key=lambda s: (-float(scores.matrix[-1, s]), -s))
    curves = ablation_curves(
        digits_vit, clt, data, classifier, scores=scores, rankings=["effect", "centred"]
    )
    assert curves.ranking == order
    assert curves.ranked_by.startswith("effect (total, mean fill, all rows silenced), cls rows")
    # by name, the effects have the fill of the ablation
    named = ablation_curves(
        digits_vit, clt, data, classifier, rankings=["centred", "effect"], fill="mean"
    )
    assert named.orders[1].sources[7] == order
    assert named.orders[0].sources == curves.orders[1].sources
    sets = keep_sets(digits_vit, clt, data, classifier, k=2, scores=scores)
    assert sets.marked[0].name == "effect"
    assert sets.marked[0].sources == tuple(sorted(order[:2]))

    effects = causal_effects(digits_vit, data, classifier)
    centred = contribution_scores(digits_vit, clt, data, kind="centred")
    agreement = causal_agreement(effects, [centred, scores])
    assert "centred C, total effect on y" in agreement.by_comparison
    on_loss = agreement.by_comparison["total E, total effect on loss"]
    rise, _ = effects.loss_rise("total")
    ranks = [np.argsort(np.argsort(each)) for each in (rise, scores.on_output)]
    assert on_loss.spearman.value == pytest.approx(np.corrcoef(*ranks)[0, 1])

    further = {"CLT": [scores]}
    study = score_study(
        digits_vit,
        {"CLT": clt},
        data,
        tokens=["cls"],
        kinds=["centred", "effect"],
        further=further,
    )
    context = tells_itself(study, tmp_path / "study")
    assert context["excluded_rows"] == 0
    frame = study.to_frame().query("kind == 'effect'")
    assert len(frame) == 36 + 2 * 8
    assert study.shown()["source layer"].tolist() == ["CLS rows, centred", "CLS rows, effect"]
    with pytest.raises(InputError, match="further holds scores of CLT on cls rows of noisy digits"):
        score_study(digits_vit, {"CLT": clt}, some_images(), further=further)
    with pytest.raises(InputError, match='kinds hold "effect", of which CLT has none on cls rows'):
        score_study(digits_vit, {"CLT": clt}, data, kinds=["effect"])
    with pytest.raises(InputError, match="further is given with a label or an image"):
        score_study(digits_vit, {"CLT": clt}, data, label=1, further=further)


def test_effects_tell_themselves(
    digits_vit: HookedViT, measured: tuple[EffectScores, ImageData], tmp_path: Path
) -> None:
    scores, data = measured
    context = tells_itself(scores, tmp_path / "scores")
    assert context["path"] == "total"
    assert context["ablated"] == "all"
    assert context["trajectory"] == "stream"
    frame = scores.to_frame()
    assert len(frame) == 36 + 2 * 8
    cell = frame.query("source == 2 and target == 5")
    assert float(cell["score"].iloc[0]) == pytest.approx(float(scores.matrix[5, 2]))
    assert float(cell["low"].iloc[0]) == pytest.approx(float(scores.low[5, 2]))
    assert scores.output_row[3] == pytest.approx(scores.on_output[3])
    assert len(scores.metrics()) == 8 * 3
    [*_, output] = scores.figure().data
    assert output.y[-1] == "output"
    assert [z is None for z in output.z[-2]] == [True] * 8
    classifier = ZeroShot(digits_vit, data.class_names)
    first = feature_effects(
        digits_vit, random_clt(digits_vit), data, [(0, 1), (7, 2)], classifier, order="first"
    )
    context = tells_itself(first, tmp_path / "features")
    assert set(context["first_order_error"]) == {"n", "y", "loss"}
    assert first.shown()["feature"].tolist() == ["0/1", "7/2"]
    tells_itself(
        feature_effects(digits_vit, random_clt(digits_vit), data, [(0, 1)]), tmp_path / "unread"
    )


def test_the_command_draws_effects(
    digits_clt: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options = ["--clt", str(digits_clt), "--data", "digits", "--limit", "24"]
    shown = ["--kind", "centred", "effect", "--order", "first", "--compare"]
    other = tmp_path / "other"
    CrossLayerTranscoder.from_pretrained(digits_clt).save_pretrained(other)
    out = tmp_path / "out"
    assert main(["contributions", *options, *shown, str(other), "--out", str(out)]) == 0
    page = (out / "contributions.html").read_text()
    assert "first order against exact on 24 images" in page
    assert "effect" in (out / "difference.csv").read_text()
    assert "fill is given without effects" in refused("contributions", *options, "--fill", "zero")
    sentence = refused("contributions", *options, "--kind", "effect", "--label", "1")
    assert "label is given with effects; expected all images" in sentence
    ablate = ["--kind", "effect", "--fill", "mean", "--out", str(tmp_path / "ablate")]
    assert main(["ablate", *options, *ablate]) == 0
