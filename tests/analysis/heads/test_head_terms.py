"""Direct terms and what heads carry, in float64: sums, and passes written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import noise
from einops import rearrange
from oracles.frozen_oracle import double_clt, double_vit
from scipy.stats import spearmanr
from torch import Tensor

from vit_clt.analysis.graphs.sources import Sources
from vit_clt.analysis.heads.agreement import predictions, term_agreement
from vit_clt.analysis.heads.carried import PARTS, CarriedSums, read_rows
from vit_clt.analysis.heads.terms import DirectTerms, image_terms
from vit_clt.hooks import FrozenPass
from vit_clt.hooks.passes.carried import head_readers
from vit_clt.hooks.passes.heads import HeadPass

HEADS = [(2, 1), (0, 0), (3, 0)]


@pytest.fixture
def directions() -> Tensor:
    return noise(2, 12, seed=6)


def terms_of(images: Tensor, directions: Tensor, fill: Any = None, **vision: Any) -> DirectTerms:
    vit = double_vit(**vision)
    found = [
        image_terms(FrozenPass(vit, image[None].double()), directions, fill) for image in images
    ]
    return DirectTerms.stacked(found)


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.7}, {"no_ln_pre": True}])
def test_terms_sum_to_the_logit(vision: Any, images: Tensor, directions: Tensor) -> None:
    terms = terms_of(images, directions, **vision)
    assert terms.residue < 1e-10
    vit = double_vit(**vision)
    unit = torch.nn.functional.normalize(vit(images.double()), dim=-1)
    np.testing.assert_allclose(terms.logit, unit @ directions[0], rtol=1e-9)
    # the floor is the same output read for another label
    other = terms_of(images, directions.flip(0), **vision)
    np.testing.assert_allclose(terms.floor, other.heads, rtol=1e-9, atol=1e-12)
    beyond = np.abs((terms.heads - other.heads).mean(0))
    strongest = terms.strongest(3)
    assert [beyond[head] for head in strongest] == sorted(beyond.ravel(), reverse=True)[:3]


def test_a_term_is_what_the_heads_weights_write(images: Tensor, directions: Tensor) -> None:
    vit = double_vit(ls_init_value=0.7)
    visual: Any = vit.model.visual
    terms = terms_of(images, directions, ls_init_value=0.7)
    _, cache = vit.run_with_cache(images.double())
    last = cache["blocks.3.hook_resid_post"][:, 0]
    std = (last.var(-1, correction=0, keepdim=True) + visual.ln_post.eps).sqrt()
    size = vit(images.double()).norm(dim=-1)
    for l, h in HEADS:
        attn, seen = visual.transformer.resblocks[l].attn, []
        with attn.out_proj.register_forward_pre_hook(lambda module, x, s=seen: s.append(x[0])):
            vit.blocks[l].unfused_attention(cache[f"blocks.{l}.ln1.hook_out"])
        z = rearrange(seen[0], "b t (h d) -> b h t d", h=2)[:, h, 0]
        written = z @ attn.out_proj.weight[:, 8 * h : 8 * h + 8].T
        written = written * visual.transformer.resblocks[l].ls_1.gamma
        centred = written - written.mean(-1, keepdim=True)
        e = (centred / std * visual.ln_post.weight) @ visual.proj
        np.testing.assert_allclose(terms.heads[:, l, h], e @ directions[0] / size, rtol=1e-9)


@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_small_terms_are_the_slope_of_a_direct_ablation(
    fill: str, images: Tensor, directions: Tensor
) -> None:
    vit, doubles = double_vit(), images.double()
    clean = HeadPass(vit, doubles)
    own = {l: clean.outputs(l) for l in range(4)}
    values = {
        "zero": None,
        "mean": {l: z.mean(0) for l, z in own.items()},
        "resample": {l: z.roll(1, 0) for l, z in own.items()},
    }[fill]
    found = []
    for i, image in enumerate(doubles):
        of_image = values
        if fill == "resample":
            assert values is not None
            of_image = {l: z[i : i + 1] for l, z in values.items()}
        found.append(image_terms(FrozenPass(vit, image[None]), directions, of_image))
    terms = DirectTerms.stacked(found)

    def logit(change: Tensor) -> np.ndarray:
        unit = torch.nn.functional.normalize(clean.direct(change), dim=-1)
        return (unit @ directions[0]).numpy()

    for l, h in HEADS:
        change = clean.change(l, h, values)
        slope = (logit(1e-6 * change) - logit(-1e-6 * change)) / 2e-6
        np.testing.assert_allclose(-terms.small[:, l, h], slope, rtol=1e-5, atol=1e-8)
    written = predictions(terms)["direct_term_less_fill"].reshape(terms.heads.shape)
    np.testing.assert_allclose(written, terms.fills - terms.heads)
    if fill == "zero":
        assert not terms.fills.any()


def test_what_heads_carry_sums_to_their_terms(images: Tensor, directions: Tensor) -> None:
    vit = double_vit()
    clt = double_clt(vit)
    sums = CarriedSums(HEADS, clt.config.n_features, 4)
    sources = [Sources(vit, clt, image.double()) for image in images]
    for each in sources:
        sums.add(each, directions)
    parts, terms = sums.parts(), terms_of(images, directions)
    own = np.stack([terms.heads[:, l, h] for l, h in HEADS], axis=1)
    assert parts.parts.shape == (len(images), 3, len(PARTS))
    np.testing.assert_allclose(parts.parts.sum(-1), own, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(parts.keys.sum(-1), own, rtol=1e-9, atol=1e-12)
    # features by hand: one head of one image, entry by entry
    i, (l, h) = 1, HEADS[0]
    reader = sources[i].frozen.output_reader(directions)
    readout = sources[i].frozen.readout(head_readers(sources[i].frozen, reader, l))
    wanted = np.zeros((2, 4 * clt.config.n_features))
    for c in range(len(sources[i].layer)):
        s, t, f = (int(x[c]) for x in (sources[i].layer, sources[i].token, sources[i].feature))
        for d in range(2):
            for target in range(s, l):
                write = sources[i].activation[c] * clt.decoder(s, target)[f]
                part = float(write @ readout.y[h, d, target, 0, t])
                wanted[d, s * clt.config.n_features + f] += part
    np.testing.assert_allclose(parts.features[0].toarray()[i], wanted[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(parts.floor[0].toarray()[i], wanted[1], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(parts.parts[i, 0, 0], wanted[0].sum(), rtol=1e-9, atol=1e-12)
    top = parts.top_features()
    of_head = top[(top["layer"] == l) & (top["head"] == h)]
    means = parts.features[0].toarray().mean(0)
    floors = parts.floor[0].toarray().mean(0)
    best = np.abs(means - floors).argmax()
    first = of_head.iloc[0]
    assert (first["source"], first["feature"]) == divmod(best, clt.config.n_features)
    assert first["carried"] == pytest.approx(means[best], rel=1e-5)
    assert first["floor"] == pytest.approx(floors[best], abs=1e-7)
    assert first["beyond"] == pytest.approx(means[best] - floors[best], abs=1e-7)
    assert first["beyond_low"] <= first["beyond"] <= first["beyond_high"]
    assert first["of_term"] == pytest.approx(means[best] / own[:, 0].mean(), rel=1e-5)
    # layer 0 reads no MLP
    assert not len(top[top["layer"] == 0])


def test_rows_read_are_key_rows_alone(images: Tensor, directions: Tensor) -> None:
    vit = double_vit()
    sources = Sources(vit, double_clt(vit), images[0].double())
    frozen = sources.frozen
    read = read_rows(sources, directions[0], HEADS)
    l, h = HEADS[0]
    one = read[(read["layer"] == l) & (read["head"] == h)]
    reader = frozen.output_reader(directions[0])
    # each key row by hand: the class row's attention to it, times its values
    at_z = frozen.attention[l].at_heads(reader.stream)[0, h, 0]
    pattern, values = frozen.pattern[l, 0, h, 0], frozen.attention[l].values()[0, h]
    by_key = (pattern[:, None] * values) @ at_z
    largest = by_key.abs().argsort(descending=True)[:2].tolist()
    assert one["key"].unique().tolist() == largest
    for key, part in one.groupby("key"):
        np.testing.assert_allclose(part["term"], float(by_key[key]))
        share = float(by_key[key].abs() / by_key.abs().sum())
        np.testing.assert_allclose(part["share"], share)
    # layer 0 reads no MLP: its key rows stand there without a feature
    of_first = read[read["layer"] == 0]
    assert len(of_first) == 2
    assert of_first["feature"].isna().all()
    assert not of_first["carried"].any()
    # a source that no other attention moves is read on its own row: from the layer before
    for r in one.itertuples():
        if r.source == l - 1:
            assert r.token == r.key


def test_agreement_is_scipys_and_permutations_are_the_floor() -> None:
    rng = np.random.default_rng(3)
    heads = rng.normal(size=(30, 4, 3))
    shape = heads.shape
    flat = np.zeros(shape)
    vectors = {name: np.zeros(30) for name in ("stream", "reader", "logit")}
    layers = {name: np.zeros((30, 4)) for name in ("out_bias", "mlps")}
    terms = DirectTerms(heads, flat, 0.5 * heads, 2 * heads, **layers, **vectors)
    measured = -2 * heads.reshape(30, -1) + rng.normal(size=(30, 12)) * 0.1
    unrelated = rng.normal(size=(30, 12))
    found = term_agreement(terms, {"direct": measured, "total": unrelated})
    assert [each.measured for each in found] == ["direct"] * 3 + ["total"] * 3
    x, y = -heads.mean(0).ravel(), measured.mean(0)
    assert found[0].rho == pytest.approx(spearmanr(x, y).statistic)
    assert found[0].slope == pytest.approx((x @ y) / (x @ x))
    assert found[1].slope == pytest.approx(2 * float(found[0].slope))
    assert found[0].foretells
    assert not found[3].foretells
    assert abs(found[0].floor) < 0.1
    assert 0.4 < found[0].floor.high < 0.75  # 1.96 / sqrt(11) is 0.59
