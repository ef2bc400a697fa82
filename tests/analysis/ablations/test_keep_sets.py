"""Every keep-set against the ViT run for it, by hand in float64, and what stands out among them."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from assertions import tells_itself
from builders import noisy_digits, random_clt, tiny_clip
from torch import Tensor

from vit_clt import CrossLayerTranscoder, InputError, ZeroShot
from vit_clt.analysis import contribution_scores, keep_sets, keep_sources, score
from vit_clt.analysis.ablations.all_sets_result import KeepSets
from vit_clt.analysis.ablations.rankings import rank_sources
from vit_clt.analysis.ablations.term_sets import TermSets
from vit_clt.analysis.contributions.scores import ContributionScores
from vit_clt.data.images import ImageData, TensorImages
from vit_clt.hooks import HookedViT, overwrite_mlp_hooks, token_rows

N, LAYERS = 24, 8


class Study:
    """Noisy digits, so that accuracy and loss can move, and a CLT whose terms matter."""

    def __init__(self, vit: HookedViT, test: ImageData):
        self.vit = vit
        self.data = noisy_digits(test, N, 10)
        self.clt = random_clt(vit, n_features=64)
        for decoder in self.clt.W_dec:
            decoder.data *= 8
        self.zs = ZeroShot(vit, test.class_names, "single")
        self.scores = contribution_scores(vit, self.clt, self.data)

    def __iter__(self):
        return iter((self.vit, self.clt, self.data, self.zs))

    def embed(self, value: Tensor, target: int, tokens: str) -> Tensor:
        hooks = overwrite_mlp_hooks([target], tokens, {target: value})
        return self.vit.run_with_hooks(self.data.images, fwd_hooks=hooks)

    def terms(self, target: int, tokens: str, clt: CrossLayerTranscoder | None = None) -> Tensor:
        rows, clt = token_rows(tokens), clt or self.clt
        names = [f"blocks.{s}.ln2.hook_out" for s in range(target + 1)]
        cache = self.vit.clean_cache(self.data.images, names)
        codes = [clt.encode(cache[name][:, rows], layer=s) for s, name in enumerate(names)]
        return clt.contributions(codes, target=target).double()

    def loss(self, embeddings: Tensor) -> Tensor:
        logits = self.zs.logit_scale * F.normalize(embeddings.double(), dim=-1)
        return F.cross_entropy(logits @ self.zs.weights.double(), self.data.labels)


@pytest.fixture(scope="module")
def study(digits_vit: HookedViT, digits_test: ImageData) -> Study:
    return Study(digits_vit, digits_test)


def fills_of(terms: Tensor, fill: str, seed: int) -> Tensor:
    if fill == "zero":
        return torch.zeros_like(terms)
    if fill == "mean":
        return terms.mean(1, keepdim=True).expand_as(terms)
    cycle = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(cycle)
    donors[cycle] = cycle.roll(-1)
    return terms[:, donors]


@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_one_product_gives_what_float64_layernorm_and_projection_give(
    study: Study, fill: str
) -> None:
    found = keep_sets(*study, k=3, scores=study.scores, fill=fill, seed=7)
    assert found.sets == list(combinations(range(LAYERS), 3))
    terms = study.terms(7, "cls")
    fills = fills_of(terms, fill, 7)
    [middle] = study.vit.clean_cache(study.data.images, ["blocks.7.hook_resid_mid"]).values()
    norm, proj = study.vit.model.visual.ln_post, study.vit.model.visual.proj.double()
    for i in (0, 13, 37, 55):
        kept = [
            t if s in found.sets[i] else f
            for s, (t, f) in enumerate(zip(terms, fills, strict=True))
        ]
        row = middle[:, 0].double() + study.clt.b_dec[7].double() + sum(kept)[:, 0]
        row = F.layer_norm(row, row.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)
        embeddings = row @ proj
        logits = F.normalize(embeddings, dim=-1) @ study.zs.weights.double()
        assert float(found.loss[i]) == pytest.approx(float(study.loss(embeddings)), abs=1e-5)
        assert float(found.top1[i]) == (logits.argmax(-1) == study.data.labels).double().mean()


@pytest.mark.parametrize(
    ("target", "tokens", "fill"),
    [(-1, "cls", "mean"), (-1, "all", "zero"), (3, "cls", "resample"), (4, "patch", "mean")],
)
def test_every_set_equals_the_vit_run_for_it(
    study: Study, target: int, tokens: str, fill: str
) -> None:
    layer = target % LAYERS
    found = keep_sets(
        *study, k=2, scores=study.scores, target=target, tokens=tokens, fill=fill, seed=7
    )
    terms = study.terms(layer, tokens)
    fills = fills_of(terms, fill, 7)
    for i in range(0, len(found.sets), 5):
        parts = [(terms if s in found.sets[i] else fills)[s] for s in range(layer + 1)]
        value = (study.clt.b_dec[layer].double() + sum(parts)).float()
        loss = study.loss(study.embed(value, layer, tokens))
        assert float(found.loss[i]) == pytest.approx(float(loss), abs=2e-5)
    options = {"target": target, "tokens": tokens, "fill": fill, "seed": 7}
    kept = keep_sources(*study, sources=found.chosen.sources, **options)
    assert found.chosen.loss == pytest.approx(kept.loss, abs=1e-6)
    assert found.chosen.top1 == pytest.approx(float(kept.top1))
    full = keep_sources(*study, sources=range(layer + 1), **options)
    assert full.loss == pytest.approx(full.full.loss, abs=1e-6)
    assert found.readings["full"].loss == pytest.approx(full.loss, abs=1e-6)


def test_one_row_gives_what_whole_blocks_give(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = keep_sets(*study, k=3, scores=study.scores, fill="mean")
    assert TermSets(*study, [7], "cls", "mean", 0)._one_row
    monkeypatch.setattr(TermSets, "_one_row", property(lambda _: False))
    slow = keep_sets(*study, k=3, scores=study.scores, fill="mean")
    torch.testing.assert_close(fast.loss, slow.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(fast.top1, slow.top1)


def test_models_that_pool_all_rows_run_their_blocks(images: Tensor) -> None:
    vit = HookedViT(tiny_clip(pool_type="avg"))
    assert not vit.cfg.pools_cls
    clt = random_clt(vit)

    class Head(ZeroShot):
        """A tiny CLIP has no tokenizer to build text embeddings with."""

        def __init__(self) -> None:
            self.weights, self.class_names = torch.eye(12)[:, :3], ["a", "b", "c"]
            self.logit_scale, self.logit_bias = torch.tensor(20.0), None

    data = TensorImages(images, torch.tensor([0, 1, 2, 0, 1, 2]), ["a", "b", "c"])
    study = TermSets(vit, clt, data, Head(), [3], "all", "zero", 0)
    sets = [{3: each} for each in combinations(range(4), 2)]
    _, loss = study.read_means(sets)
    assert loss.unique().numel() == len(sets)
    names = [f"blocks.{s}.ln2.hook_out" for s in range(4)]
    cache = vit.clean_cache(images, names)
    terms = clt.contributions([clt.encode(cache[n], layer=s) for s, n in enumerate(names)], 3)
    for kept, value in zip(sets, loss, strict=True):
        y = clt.b_dec[3] + sum(terms[s] for s in kept[3])
        out = vit.run_with_hooks(images, fwd_hooks=overwrite_mlp_hooks([3], "all", {3: y}))
        expected = F.cross_entropy(Head().logits(out).double(), data.labels)
        assert float(value) == pytest.approx(float(expected), abs=1e-5)


@pytest.fixture(scope="module", params=[2, 6])
def planted(request: pytest.FixtureRequest, study: Study) -> tuple[int, KeepSets, object]:
    """A CLT whose terms at the last layer come from one source alone, and help the answer."""
    source = request.param
    vit = study.vit
    clt = random_clt(vit, n_features=vit.cfg.d_model)
    x = vit.clean_cache(study.data.images, [f"blocks.{source}.ln2.hook_out"])
    y = vit.clean_cache(study.data.images, ["blocks.7.hook_mlp_out"])["blocks.7.hook_mlp_out"]
    codes = clt.encode(x[f"blocks.{source}.ln2.hook_out"][:, 0], layer=source).to_dense()
    for s in range(LAYERS):
        clt.W_dec[s].data.zero_()
    # the class's direction, so far as codes of this source can tell it
    fit = torch.linalg.lstsq(codes.double(), (y[:, 0] - y[:, 0].mean(0)).double()).solution
    clt.W_dec[source].data[7 - source] = 3 * fit.float()
    clt.b_dec.data[7] = y[:, 0].mean(0)
    found = keep_sets(vit, clt, study.data, study.zs, k=1)
    alone = keep_sources(vit, clt, study.data, study.zs, sources=[source])
    return source, found, alone


def test_the_one_source_that_matters_is_named_and_ranks_first(planted: tuple) -> None:
    source, found, alone = planted
    assert found.chosen.sources == (source,)
    assert alone.loss == pytest.approx(alone.full.loss, rel=1e-6)
    assert found.chosen.loss == pytest.approx(alone.full.loss, rel=1e-6)
    others = {
        round(float(x), 6) for s, x in zip(found.sets, found.loss, strict=True) if s != (source,)
    }
    assert others == {round(alone.bias_only.loss, 6)}
    assert alone.full.loss < alone.bias_only.loss - 0.005
    assert found.chosen.rank["loss"] == 1
    assert found.chosen.better["loss"] == 0
    layers = found.layers().set_index("source")
    assert layers["explained"].idxmax() == source
    assert layers.loc[source, "explained"] == pytest.approx(1)
    assert layers.loc[source, "loss_with"] == pytest.approx(found.chosen.loss)
    assert found.spearman() < 0


@pytest.fixture(scope="module")
def result(study: Study) -> KeepSets:
    return keep_sets(*study, k=3, scores=study.scores, target=5, tokens="cls", fill="mean", seed=3)


def test_scores_of_a_class_choose_by_that_class_under_every_ranking(study: Study) -> None:
    differ = 0
    for label in sorted(set(study.data.labels.tolist())):
        own, rows = score(study.scores.moments, label=label), {}
        found = keep_sets(*study, k=3, scores=own, target=5)
        for kind in ("centred", "norm"):
            by_class, by_all = (
                score(study.scores.moments, kind=kind, **which).matrix[5, :6]
                for which in ({"label": label}, {})
            )
            rows[kind] = tuple(sorted(by_class.topk(3).indices.tolist()))
            differ += rows[kind] != tuple(sorted(by_all.topk(3).indices.tolist()))
        assert {m.name: m.sources for m in found.marked if m.name in rows} == rows
    assert differ > 0


def test_ranks_count_the_sets_that_are_strictly_better(study: Study, result: KeepSets) -> None:
    loss, top1 = result.loss.tolist(), result.top1.tolist()
    assert [mark.name for mark in result.marked] == [
        "projection",
        "centred",
        "norm",
        "last",
        "bottom",
    ]
    ranking = rank_sources(study.scores, 5)
    assert result.chosen.sources == tuple(sorted(ranking[:3]))
    by_name = {mark.name: mark for mark in result.marked}
    assert by_name["last"].sources == (3, 4, 5)
    assert by_name["bottom"].sources == tuple(sorted(ranking[3:]))
    for mark in result.marked:
        i = result.sets.index(mark.sources)
        assert (mark.loss, mark.top1) == (loss[i], top1[i])
        assert mark.rank["loss"] == 1 + sorted(loss).index(loss[i])
        assert mark.better["top1"] == sum(x > top1[i] for x in top1) / len(top1)
    assert len({mark.rank["loss"] for mark in result.marked}) > 1
    table = result.marks()
    above = result.readings.difference("last", "projection", "loss")
    assert table.set_index("set").loc["last", "loss_above_chosen"] == above
    assert table["loss_above_chosen_low"][3] == above.low


def test_membership_and_correlation_are_those_of_the_table(study: Study, result: KeepSets) -> None:
    frame = result.to_frame()
    assert len(frame) == math.comb(6, 3)
    assert frame["loss"].is_monotonic_increasing
    matrix = study.scores.matrix[5]
    for row in frame.itertuples():
        sources = [int(s) for s in row.sources.split()]
        assert row.summed_score == pytest.approx(float(matrix[sources].sum()))
    # ranks correlated by hand: no ties here
    ranks = frame[["summed_score", "loss"]].rank()
    assert result.spearman() == pytest.approx(ranks.corr().iloc[0, 1])
    layers = result.layers()
    for source in range(6):
        held = frame["sources"].str.split().map(lambda s, source=source: str(source) in s)
        row = layers.loc[source]
        assert row["loss_with"] == pytest.approx(frame["loss"][held].mean())
        assert row["loss_without"] == pytest.approx(frame["loss"][~held].mean())
        # eta squared of two groups is the squared correlation with membership
        r = np.corrcoef(held.astype(float), frame["loss"])[0, 1]
        assert row["explained"] == pytest.approx(r**2)
        assert row["score"] == pytest.approx(float(matrix[source]))


def test_metrics_and_figure_say_where_the_chosen_set_stands(result: KeepSets) -> None:
    metrics = {metric.name: metric for metric in result.metrics("a_")}
    chosen = result.readings["projection"]
    metric = metrics["a_projection_loss"]
    assert (metric.value, metric.low, metric.high) == (
        chosen.loss,
        chosen.loss.low,
        chosen.loss.high,
    )
    assert metric.floor == result.readings["floor_mean"].loss
    assert metric.baseline == result.readings["original"].loss
    assert metrics["a_projection_rank_loss"].value == result.chosen.rank["loss"]
    assert metrics["a_n_sets"].value == 20
    assert metrics["a_source_5_loss_with"].value == result.layers()["loss_with"][5]
    figure = result.figure()
    for words in ("3 source layers", "layer 5", "CLS rows", f"N = {N}", "mean", "seed 3"):
        assert words in figure.layout.title.text
    bars = next(trace for trace in figure.data if trace.type == "bar")
    assert sum(bars.y) == 20
    marks = next(t for t in figure.data if t.error_x.array is not None)
    assert marks.x[0] == pytest.approx(result.chosen.loss, abs=1e-6)
    labels = figure.layout.yaxis3.ticktext
    for mark in result.marked:
        rank = f"rank {mark.rank['loss']}"
        text = next(t for t in labels if "{" + " ".join(map(str, mark.sources)) + "}" in t)
        assert text.endswith(rank)


def test_too_many_sets_are_sampled_and_said(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    # the package's attribute of that name is the function
    module = import_module("vit_clt.analysis.ablations.all_sets")
    monkeypatch.setattr(module, "MAX_SETS", 30)
    options = {"k": 4, "scores": study.scores, "fill": "mean"}
    found = keep_sets(*study, seed=1, **options)
    assert found.sampled
    assert found.n_possible == 70
    assert found.extent == "30 of 70 sets of 4, drawn at random"
    assert len(set(found.sets)) == len(found.loss) == 30
    assert all(len(set(s)) == 4 and list(s) == sorted(s) for s in found.sets)
    assert found.sets == keep_sets(*study, seed=1, **options).sets
    assert found.sets != keep_sets(*study, seed=2, **options).sets
    # marked sets that were not drawn are read all the same, and ranked among those that were
    missing = [mark for mark in found.marked if mark.sources not in found.sets]
    assert missing
    for mark in missing:
        single = keep_sources(*study, sources=mark.sources, fill="mean", seed=1)
        assert mark.loss == pytest.approx(single.loss, abs=1e-6)
        assert mark.rank["loss"] == 1 + int((found.loss < mark.loss).sum())


def test_patch_rows_of_the_last_layer_change_nothing(study: Study) -> None:
    scores = contribution_scores(study.vit, study.clt, study.data, tokens="patch")
    found = keep_sets(*study, k=1, scores=scores, tokens="patch")
    assert found.no_op
    assert found.loss.numpy() == pytest.approx(found.readings["original"].loss, abs=1e-6)
    assert "no-op" in found.figure().layout.title.text


def test_the_kind_of_the_scores_chooses(study: Study) -> None:
    scores: ContributionScores = replace(study.scores, kind="norm")
    found = keep_sets(*study, k=3, scores=scores)
    assert [mark.name for mark in found.marked] == ["norm", "centred", "last", "bottom"]
    assert found.chosen.sources == tuple(sorted(rank_sources(study.scores, 7)[:3]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0; layer 7 has 8 sources"),
        ({"k": 8}, "k is 8"),
        ({"k": 3, "target": 2}, "k is 3; layer 2 has 3 sources"),
        ({"k": 1, "target": 8}, "layers contains 8"),
        ({"k": 1, "target": [3, 5]}, "target is 2 layers; expected one"),
    ],
)
def test_bad_sets_are_refused(study: Study, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        keep_sets(*study, scores=study.scores, **options)


def test_a_hook_that_would_fire_above_the_target_alone_is_refused(study: Study) -> None:
    with (
        study.vit.hooks(fwd_hooks=overwrite_mlp_hooks([2], "cls")),
        pytest.raises(InputError, match=r'vit has a hook at "blocks\.2\.hook_mlp_out"'),
    ):
        keep_sets(*study, k=1, scores=study.scores, target=1)


def test_a_result_tells_which_sets_were_read_and_marked(
    study: Study, result: KeepSets, tmp_path: Path
) -> None:
    context = tells_itself(result, tmp_path / "sets")
    assert (context["data"], context["split"]) == (study.data.name, study.data.split)
    assert (context["tokens"], context["trajectory"]) == ("cls", "teacher")
    assert (context["l0"], context["fill"], context["seed"]) == (result.l0, "mean", 3)
    assert (context["target"], context["k"], context["sets"]) == (5, 3, "all 20 sets of 3")
    assert context["marked"]["last"] == [3, 4, 5]
    assert (context["readout"], context["no_op"]) == (study.zs.name, False)
    assert f"chosen by projection, L0 {result.l0:.1f}, seed 3" in result.caption()
    table = result.shown().set_index("")
    assert table.loc["last", "loss (nats)"] == f"{result.readings['last'].loss:.4f}"
    assert table.loc["last", "rank by loss"] == str(result.marked[3].rank["loss"])
    assert table.loc["full reconstruction", "sources"] == "-"
