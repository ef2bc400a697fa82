"""Surrogate causality on surrogates that are exact, and against whole passes in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from assertions import one_sentence, tells_itself
from builders import noisy_digits, random_clt, tiny_clip
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from vit_clt import AbsTopK, CLTConfig, CrossLayerTranscoder, InputError, ReLUTopK, ZeroShot
from vit_clt.analysis import surrogate_causality
from vit_clt.analysis.auditing.ridge import ridge_transcoder
from vit_clt.analysis.causal.effect_agreement import Products, effect_agreement
from vit_clt.analysis.causal.interventions import Intervention, every_intervention
from vit_clt.analysis.causal.surrogate_result import EXACT, SurrogateCausality
from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, replace_mlps, token_rows
from vit_clt.hooks.points import SITE_OUT
from vit_clt.readouts.base import Classifier

N, N_IMAGES = 4, 9


class Fixed(Classifier):
    """A linear readout with random weights."""

    name = "fixed"
    device = torch.device("cpu")

    def __init__(self, n_classes: int = 3):
        self.class_names = [str(i) for i in range(n_classes)]
        self.weights = torch.randn(12, n_classes, generator=torch.Generator().manual_seed(4))

    def logits(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self.weights.to(embeddings.dtype)


def relu_vit() -> HookedViT:
    """A small ViT in float64 whose MLPs have a ReLU, so that a transcoder can equal them."""
    clip = tiny_clip()
    for block in clip.visual.transformer.resblocks:
        block.mlp.gelu = nn.ReLU()
    return HookedViT(clip).double()


def exact_clt(vit: HookedViT) -> CrossLayerTranscoder:
    """A CLT whose features are the hidden units of the MLPs; nothing is written across layers."""
    n_hidden = vit.blocks[0].mlp.c_fc.out_features
    clt = CrossLayerTranscoder(CLTConfig(N, vit.cfg.d_model, n_hidden, ReLUTopK(k=n_hidden)))
    clt = clt.double().requires_grad_(False)
    for l, block in enumerate(vit.blocks):
        clt.W_enc[l].copy_(block.mlp.c_fc.weight)
        clt.b_enc[l].copy_(block.mlp.c_fc.bias)
        clt.W_dec[l].zero_()
        clt.W_dec[l][0].copy_(block.mlp.c_proj.weight.T)
        clt.b_dec[l].copy_(block.mlp.c_proj.bias)
    return clt


def some_images() -> TensorImages:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(N_IMAGES, 3, 12, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (N_IMAGES,), generator=generator)
    data = TensorImages(images, labels, ["0", "1", "2"])
    data.batch_size = 5
    return data


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    return relu_vit()


def test_an_exact_surrogate_agrees_exactly(vit: HookedViT) -> None:
    study = surrogate_causality(
        vit,
        exact_clt(vit),
        some_images(),
        Fixed(),
        interventions=every_intervention(vit),
        sets=[(0,), (1,), (2,), (3,), (1, 2, 3)],
    )
    assert len(study.interventions) == 2 * 3 * 3
    n_checked = 0
    for compared in study.compared:
        if compared.model == "CLT":
            for measure, found in compared.agreement.items():
                undefined = measure == "spearman" and compared.n_sets < 3
                assert math.isnan(found.value) == undefined
                if not undefined:
                    assert found.value == pytest.approx(EXACT[measure], abs=1e-10)
                    n_checked += 1
    assert n_checked > 250
    # patch rows act on CLS rows through attention alone, and not at all in the last layer
    patch = Intervention(ablated="patch")
    assert (patch, "direct") not in study.mean_effects
    assert (N - 1,) not in study.mean_effects[patch, "total"]["ViT"]
    single = study.comparison(sets="single")
    assert single.agreement["pearson"].floor < 0.9
    assert study.agreement("pearson", model="first order").value < 1
    assert study.unaltered["CLT"].loss == pytest.approx(study.unaltered["ViT"].loss, abs=1e-6)


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize("fill", ["mean", "resample", "zero"])
@pytest.mark.parametrize("ablated", ["all", "cls", "patch"])
@torch.no_grad()
def test_effects_by_hand(vit: HookedViT, site: str, fill: str, ablated: str) -> None:
    clt, data, classifier = random_clt(vit).double(), some_images(), Fixed()
    intervention = Intervention(site, fill, ablated)
    sets = [(0,), (2,), (1, 3), (0, 1, 2, 3), (2, 3)]
    study = surrogate_causality(
        vit, clt, data, classifier, interventions=[intervention], sets=sets, seed=3
    )
    names = {l: SITE_OUT[site].format(l=l) for l in range(N)}
    rows = token_rows(ablated)
    _, teacher = vit.run_with_cache(data.images)
    donors = donor_cycle(N_IMAGES, 3)

    def altered(layers: tuple[int, ...], out: Tensor) -> Tensor:
        [l] = layers
        value = {
            # means are kept in single precision
            "mean": teacher[names[l]].mean(0).float().double().expand_as(out),
            "resample": teacher[names[l]][donors],
            "zero": torch.zeros_like(out),
        }[fill]
        out = out.clone()
        out[:, rows] = value[:, rows]
        return out

    def effects(model: HookedViT) -> dict[tuple[str, tuple[int, ...]], np.ndarray]:
        _, cache = model.run_with_cache(data.images)

        def loss(embeddings: Tensor) -> Tensor:
            return F.cross_entropy(classifier.logits(embeddings), data.labels, reduction="none")

        original, found = loss(model(data.images)), {}
        for layers in sets:
            hooks = [(names[l], lambda o, hook, l=l: altered((l,), o)) for l in layers]
            total = loss(model.run_with_hooks(data.images, fwd_hooks=hooks))
            found["total", layers] = (total - original).numpy()
            end = cache["resid_post", N - 1]
            end = end + sum(altered((l,), cache[names[l]]) - cache[names[l]] for l in layers)
            found["direct", layers] = (loss(model.head(end)) - original).numpy()
        return found

    expected = {"ViT": effects(vit)}
    with replace_mlps(vit, clt, layers=range(N)):
        expected["CLT"] = effects(vit)
    for path in ("total", "direct"):
        by_model = study.mean_effects.get((intervention, path), {})
        assert by_model or (path, ablated) == ("direct", "patch")
        for model, hand in expected.items():
            for layers, mean in by_model.get(model, {}).items():
                assert mean == pytest.approx(hand[path, layers].mean(), abs=1e-10)
        if not by_model:
            continue
        chosen = list(by_model["ViT"])
        x, y = (np.stack([expected[m][path, s] for s in chosen], 1) for m in ("ViT", "CLT"))
        value = {m: study.agreement(m, path=path).value for m in EXACT}
        assert value["pearson"] == pytest.approx(pearsonr(x.ravel(), y.ravel())[0], abs=1e-9)
        assert value["slope"] == pytest.approx((x * y).sum() / (x * x).sum(), abs=1e-9)
        error = np.linalg.norm(y - x) / np.linalg.norm(x)
        assert value["relative_error"] == pytest.approx(error, abs=1e-9)
        rho = spearmanr(x.mean(0), y.mean(0)).statistic
        assert value["spearman"] == pytest.approx(rho, abs=1e-9)


@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_first_order_effects_are_exact_for_small_changes(vit: HookedViT, site: str) -> None:
    """Outputs of images that differ little are close to their mean."""
    data = some_images()
    first = data.images[:1]
    near = TensorImages(first + 1e-4 * (data.images - first), data.labels, data.class_names)
    study = surrogate_causality(
        vit, exact_clt(vit), near, Fixed(), interventions=[Intervention(site)]
    )
    # together, a later layer that is overwritten cuts paths from the earlier ones
    for path, sets in (("total", "single"), ("direct", "single"), ("direct", "range")):
        found = study.comparison("first order", path=path, sets=sets).agreement
        assert found["relative_error"].value < 1e-3
        assert found["slope"].value == pytest.approx(1, abs=1e-3)


def test_permuted_effects_are_those_of_other_layers() -> None:
    """An effect that depends on the layer alone has a floor that is symmetric about 0."""
    rng = np.random.default_rng(0)
    by_layer = np.arange(6.0) - 2.5
    x = by_layer + 0.01 * rng.normal(size=(50, 6))
    found = effect_agreement(Products.of_numbers(x, 2 * x))
    assert found["pearson"].value == pytest.approx(1)
    assert found["slope"].value == pytest.approx(2)
    assert found["relative_error"].value == pytest.approx(1)
    assert abs(found["pearson"].floor) < 0.05
    assert found["pearson"].floor.high < 0.9
    orders = [rng.permutation(6) for _ in range(300)]
    by_hand = [np.linalg.norm(2 * x[:, order] - x) / np.linalg.norm(x) for order in orders]
    assert found["relative_error"].floor == pytest.approx(np.mean(by_hand), rel=0.05)
    # what differs between images and not between layers survives the permutation
    image = np.tile(rng.normal(size=(50, 1)), (1, 6))
    assert effect_agreement(Products.of_numbers(image, image))["pearson"].floor.low > 0.999


def test_linear_maps_are_exact_where_mlps_are_linear() -> None:
    clip = tiny_clip()
    for block in clip.visual.transformer.resblocks:
        block.mlp.gelu = nn.Identity()
    vit = HookedViT(clip)
    data = some_images()
    data = TensorImages(data.images.float(), data.labels, data.class_names)
    fit = torch.randn(60, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    linear = ridge_transcoder(vit, fit, cross_layer=False, penalties=[1e-9])
    assert not linear.clt.config.cross_layer
    assert linear.clt.config.sparsifier == AbsTopK(k=16)
    assert min(linear.r2) > 0.999999
    study = surrogate_causality(
        vit, random_clt(vit), data, Fixed(), rivals=[("linear maps", linear.clt)]
    )
    assert study.agreement("relative_error", model="linear maps").value < 1e-2
    assert study.agreement("relative_error").value > 0.1


# ---- what it tells ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(digits_test: ImageData) -> TensorImages:
    return noisy_digits(digits_test, 20, 16)


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT, noisy: TensorImages) -> SurrogateCausality:
    zs = ZeroShot(digits_vit, noisy.class_names, "single")
    rivals = [("other", random_clt(digits_vit, seed=1))]
    return surrogate_causality(digits_vit, random_clt(digits_vit), noisy, zs, rivals=rivals, seed=2)


def test_the_study_tells_itself(study: SurrogateCausality, tmp_path: Path) -> None:
    context = tells_itself(study, tmp_path / "told")
    assert (context["data"], context["tokens"], context["fill"]) == ("noisy digits", "all", "mean")
    assert set(context["l0"]) == {"CLT", "other"}
    frame = study.to_frame()
    assert len({m.name for m in study.metrics()}) == len(frame)
    named = {m.name: m for m in study.metrics()}
    pearson = study.agreement("pearson", sets="single")
    found = named["CLT_mlp_mean_all_total_single_loss_pearson"]
    assert (found.value, found.floor) == (float(pearson.value), pearson.floor.high)
    assert found.low < found.value < found.high
    effects = study.mean_effects[Intervention(), "total"]
    mean = named["CLT_mlp_mean_all_total_2-7_loss_mean"]
    assert mean.value == effects["CLT"][2, 3, 4, 5, 6, 7]
    assert mean.baseline == effects["ViT"][2, 3, 4, 5, 6, 7]


def test_the_figure_holds_the_numbers(study: SurrogateCausality) -> None:
    figure = study.figure()
    text = figure.layout.title.text
    assert all(part in text for part in ("noisy digits", "N = 20", "seed 2", "all rows"))
    effects = study.mean_effects[Intervention(), "total"]
    singles = [t for t in figure.data if t.name == "single sets of layers"]
    assert len(singles) == 3
    for trace, model in zip(singles, ("CLT", "other", "first order"), strict=True):
        assert list(trace.x) == [effects["ViT"][s,] for s in range(8)]
        assert list(trace.y) == [effects[model][s,] for s in range(8)]
    bars = [t for t in figure.data if t.type == "bar" and t.name == "CLT"]
    assert [b.y[0] for b in bars] == [
        study.agreement("pearson").value,
        study.agreement("relative_error").value,
    ]


def test_bad_input(vit: HookedViT, unchecked: None) -> None:
    data, clt = some_images(), exact_clt(vit)

    def refused(*args: object, **options: object) -> str:
        with pytest.raises(InputError) as error:
            surrogate_causality(*args, **options)
        return one_sentence(error)

    assert "classifier has 1 class" in refused(vit, clt, data, Fixed(1))
    assert "classifier is None" in refused(vit, clt, data, None)
    narrow = CrossLayerTranscoder(CLTConfig(N, 8, 4, ReLUTopK(k=2)))
    assert "the CLT is for 4 layers of width 8" in refused(vit, narrow, data, Fixed())
    assert "width 8" in refused(vit, clt, data, Fixed(), rivals=[("other", narrow)])
    assert 'rivals hold "CLT"' in refused(vit, clt, data, Fixed(), rivals=[("CLT", clt)])
    assert "layers contains 4" in refused(vit, clt, data, Fixed(), sets=[[4]])
    assert "sets is empty" in refused(vit, clt, data, Fixed(), sets=[])
    assert "interventions is empty" in refused(vit, clt, data, Fixed(), interventions=[])
    patch = Intervention(ablated="patch")
    assert "reaches the output" in refused(
        vit, clt, data, Fixed(), interventions=[patch], sets=[[3]]
    )
    for wrong in (Intervention(site="neuron"), Intervention(fill="foam")):
        assert "expected one of" in refused(vit, clt, data, Fixed(), interventions=[wrong])
    unlabelled = TensorImages(data.images)
    assert "labels run from -1" in refused(vit, clt, unlabelled, Fixed())
    one = TensorImages(data.images[:1], data.labels[:1], data.class_names)
    assert "data has 1 image" in refused(vit, clt, one, Fixed())
