"""Names: what proposes a text, planted names that must be found, and noise that must get none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import random_clt, tiny_clip, tiny_timm
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from vit_clt import CrossLayerTranscoder, InputError
from vit_clt.analysis import Vocabulary, name_features
from vit_clt.analysis.features.names import FeatureNames
from vit_clt.analysis.features.names_file import names_json, read_names
from vit_clt.analysis.naming.evidence import Evidence, gather_evidence
from vit_clt.analysis.naming.study import _Tests, best_proposals
from vit_clt.analysis.stats.auc import auc, ranks
from vit_clt.cli import main
from vit_clt.data.images import TensorImages
from vit_clt.data.words import common_words, read_words
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.hooks.passes.frozen import FrozenPass
from vit_clt.readouts.linear import LinearClassifier
from vit_clt.readouts.zero_shot import ZeroShot

WORDS = ["red", "green", "blue", "wide", "tall"]
N = 44


def tokens(texts: list[str]) -> Tensor:
    """Of 8 places the last ones are padding."""
    rows = torch.zeros(len(texts), 8, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [1 + sum(map(ord, word)) % 61 for word in text.split()][:7]
        row[: len(ids)] = torch.tensor(ids)
        row[len(ids)] = 63
    return rows


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    return HookedViT(tiny_clip(), preprocess=steps, tokenizer=tokens)


@pytest.fixture(scope="module")
def data() -> TensorImages:
    images = torch.randn(N, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    found = TensorImages(images, torch.arange(N) % 3, ["a", "b", "c"], name="noise")
    found.batch_size = 7
    return found


@pytest.fixture(scope="module")
def clt(vit: HookedViT) -> CrossLayerTranscoder:
    return random_clt(vit)


def gathered(
    vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages, vocabulary: Vocabulary
) -> tuple[Evidence, np.ndarray]:
    chosen = np.arange(N) % 3 > 0
    found = gather_evidence(vit, clt, data, chosen, vocabulary, [0, 2], N, False)
    return found, chosen


def test_evidence_against_a_dense_recomputation(
    vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages
):
    vocabulary = Vocabulary.of_texts(vit, WORDS, "test")
    found, chosen = gathered(vit, clt, data, vocabulary)
    images = data.batch(range(N))[0]
    activations = capture(vit, images)
    u = torch.nn.functional.normalize(vit(images), dim=-1).double().numpy()
    np.testing.assert_allclose(found.points, u, atol=1e-6)
    contrasts = vocabulary.directions.double().numpy()
    contrasts = contrasts - contrasts.mean(0)
    contrasts /= np.linalg.norm(contrasts, axis=1, keepdims=True)
    # the last attention layer looking at each row alone, by its own weights
    block = vit.blocks[-1].native
    x = vit.clean_cache(images, ["blocks.3.ln1.hook_out"])["blocks.3.ln1.hook_out"]
    w_v, b_v = block.attn.in_proj_weight.chunk(3)[2], block.attn.in_proj_bias.chunk(3)[2]
    rows = block.attn.out_proj(x @ w_v.T + b_v)[:, 1:]
    visual = vit.tower.visual
    at_rows = visual.ln_post(rows) @ visual.proj
    at_rows = torch.nn.functional.normalize(at_rows, dim=-1).double().detach().numpy()
    frozen = FrozenPass(vit, images)
    gradients = frozen.read_output(vocabulary.directions - vocabulary.directions.mean(0),
                                   norms="differentiated").y  # fmt: skip
    for s in (0, 2):
        z = clt.encode(activations.x[s], layer=s).to_dense().double().numpy()
        assert (found.fired[s] == (z != 0).any(1).T).all()
        size = np.abs(z).max(1)
        for i in range(clt.config.n_features):
            active = [n for n in range(N) if chosen[n] and size[n, i] > 0]
            top = sorted(active, key=lambda n: (-size[n, i], n))[:12]
            if not top:
                assert (found.proposals[s]["images"][i] == -1).all()
                continue
            point = u[top].mean(0) - u[chosen].mean(0)
            assert_order(found.proposals[s]["images"][i], contrasts @ point)
            weight = np.abs(z[chosen, 1:, i])
            if weight.any():
                point = (weight[..., None] * at_rows[chosen]).sum((0, 1)) / weight.sum()
                point -= at_rows[chosen].mean((0, 1))
                assert_order(found.proposals[s]["patches"][i], contrasts @ point)
            else:
                assert (found.proposals[s]["patches"][i] == -1).all()
            effect = np.zeros(len(WORDS))
            for l in range(s, 4):
                write = clt.W_dec[s][l - s, i].double().numpy()
                per_row = gradients[:, l].double().numpy() @ write  # text image token
                effect += (per_row[:, chosen] * z[chosen][:, :, i]).sum((1, 2))
            lengths = np.linalg.norm(
                (vocabulary.directions - vocabulary.directions.mean(0)).numpy(), axis=1
            )
            assert_order(found.proposals[s]["write"][i], effect / lengths)


def assert_order(proposed: np.ndarray, along: np.ndarray) -> None:
    """The texts proposed are those furthest along, up to rounding."""
    assert (np.diff(along[proposed]) <= 1e-6).all()
    rest = np.setdiff1d(np.arange(len(along)), proposed)
    assert along[rest].max() <= along[proposed].min() + 1e-6


def planted(seed: int, n: int = 200, texts: int = 30) -> tuple[Evidence, np.ndarray, np.ndarray]:
    """Half of the features fire where one text matches best, the other half at random."""
    rng = np.random.default_rng(seed)
    match = rng.standard_normal((n, texts))
    fired = np.zeros((60, n), bool)
    for i, row in enumerate(fired):
        score = match[:, i % texts] if i < 30 else rng.standard_normal(n)
        row[np.argsort(-score)[: rng.integers(20, 60)]] = True
    proposals = {0: {"images": np.arange(60)[:, None] % texts}}
    return Evidence(match, {0: fired}, proposals, 1.0), match, np.arange(n) % 2 == 0


def test_planted_names_are_found_and_noise_gets_none():
    named, by_chance = 0, []
    for seed in range(3):
        evidence, match, chosen = planted(seed)
        texts = [f"text {w}" for w in range(30)]
        frame = _Tests(evidence, match, chosen, seed).layer(0, texts)
        right = frame["name"][:30] == [f"text {i}" for i in range(30)]
        assert right.all()
        assert (frame["auc"][:30] > 0.95).all()
        named += int((frame["name"][30:] != "").sum())
        by_chance += [frame["random_texts_hold"].sum(), frame["other_proposals_hold"].sum()]
    assert named <= 4  # of 90
    assert sum(by_chance) <= 18  # of 360


def test_names_are_tested_on_other_images_than_they_are_chosen_on():
    evidence, match, chosen = planted(0)
    evidence.fired[0][0, ~chosen] = np.random.default_rng(5).random((~chosen).sum()) < 0.3
    frame = _Tests(evidence, match, chosen, 0).layer(0, [f"text {w}" for w in range(30)])
    assert frame["name"][0] == ""
    assert frame["reason"][0] == "not above other texts"


def test_controls_go_through_the_same_choice():
    """With every text proposed, choosing finds the planted one, and so does the control."""
    evidence, match, chosen = planted(3, texts=8)
    everything = np.tile(np.arange(8), (60, 1))
    evidence.proposals[0]["images"] = everything
    frame = _Tests(evidence, match, chosen, 0).layer(0, [f"text {w}" for w in range(8)])
    tested = frame[frame["auc"].notna()]
    # as many random texts are all texts, and another feature's proposals are the same ones
    assert (tested["random_texts_auc"] == tested["auc"]).all()
    assert (tested["other_proposals_auc"] == tested["auc"]).all()
    assert (tested["random_texts_hold"].astype(bool) == (tested["name"] != "")).all()
    # a feature that is rare on the first half alone is not tested
    evidence.fired[0][1, chosen] = False
    frame = _Tests(evidence, match, chosen, 0).layer(0, [f"text {w}" for w in range(8)])
    assert frame["reason"][1] == "rare"


def test_the_best_proposal_is_the_one_of_largest_auc():
    rng = np.random.default_rng(0)
    aucs = rng.random((4, 6))
    aucs[3] = np.nan
    proposals = {"write": np.array([[0, 1], [2, 3], [-1, -1], [0, 1]]),
                 "images": np.array([[1, 4], [2, 5], [-1, -1], [2, 3]])}  # fmt: skip
    best, kinds = best_proposals(proposals, aucs)
    assert best[0] == max([0, 1, 4], key=lambda w: aucs[0, w])
    assert best[1] == max([2, 3, 5], key=lambda w: aucs[1, w])
    assert best[2:].tolist() == [-1, -1]
    assert kinds[0] == [k for k, rows in proposals.items() if best[0] in rows[0]]


def test_study_of_a_model(vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages):
    vocabulary = Vocabulary.of_texts(vit, [*WORDS, "red"], "test")
    assert vocabulary.texts == WORDS
    names = name_features(vit, clt, data, vocabulary, effect_images=4, seed=1)
    assert isinstance(names, FeatureNames)
    frame = names.to_frame()
    assert len(frame) == 4 * clt.config.n_features
    assert (names.n_chosen_on, names.n_held_out) == (22, 22)
    # every reason is one of those said, and a row is named or says why it is not
    assert ((frame["name"] == "") == (frame["reason"] != "")).all()
    untested = {"rare", "always on", "no evidence"}
    assert set(frame["reason"]) <= untested | {
        "",
        "not above other texts",
        "not above other features",
        "not above 1/2 (p < 0.01)",
    }
    tested = frame["auc"].notna()
    assert (tested == ~frame["reason"].isin(untested)).all()
    again = name_features(vit, clt, data, vocabulary, effect_images=4, seed=1).to_frame()
    assert frame.equals(again)
    for number in (names.summary(), names.shown(), names.metrics(), names.figure()):
        assert number is not None


def test_aucs_of_the_study_are_those_of_its_held_out_images(
    vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages
):
    vocabulary = Vocabulary.of_texts(vit, WORDS, "test")
    names = name_features(vit, clt, data, vocabulary, layers=[1], effect_images=4, seed=2)
    chosen = np.random.default_rng(2).permutation(N) < N // 2
    images = data.batch(range(N))[0]
    z = clt.encode(capture(vit, images).x[1], layer=1).to_dense()
    fired = (z != 0).any(1).T.numpy()[:, ~chosen]
    u = torch.nn.functional.normalize(vit(images), dim=-1)
    contrasts = vocabulary.directions - vocabulary.directions.mean(0)
    aucs = auc(fired, ranks((u @ contrasts.T).numpy()[~chosen]))
    tested = names.frame[names.frame["auc"].notna()]
    assert len(tested)
    for r in tested.itertuples():
        assert r.auc == pytest.approx(aucs[r.feature, WORDS.index(r.text)], abs=1e-6)


def test_classes_of_a_linear_readout_name_features_of_a_model_without_texts(data: TensorImages):
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    vit = HookedViT(tiny_timm("vit_tiny_patch16_224", img_size=12), preprocess=steps)
    images, labels = data.batch(range(N))
    with torch.no_grad():
        embeddings = vit(images)
    classifier = LinearClassifier(embeddings, labels, ["a", "b", "c"])
    vocabulary = Vocabulary.of_classes(classifier, vit.cfg.d_embed)
    logits = classifier.logits(embeddings.double())
    centred = logits - logits.mean(1, keepdim=True)
    found = vocabulary.match(vocabulary.points(embeddings.double()))
    offsets = found - centred  # a bias of each class, the same for all images
    assert (offsets - offsets[:1]).abs().max() < 1e-4
    names = name_features(vit, random_clt(vit), data, vocabulary)
    evidence = {kind for text in names.frame["evidence"] for kind in text.split(", ") if kind}
    assert "write" not in evidence
    assert "images" in evidence
    with pytest.raises(InputError, match="no text tower"):
        Vocabulary.of_texts(vit, WORDS, "test")


def test_classes_of_prompts_are_unit_texts(vit: HookedViT):
    zs = ZeroShot(vit, WORDS, "single")
    assert torch.equal(Vocabulary.of_classes(zs, 12).directions, zs.weights.T)
    assert torch.allclose(Vocabulary.of_texts(vit, WORDS, "x").directions, zs.weights.T, atol=1e-6)


def test_bad_vocabularies(vit: HookedViT, tmp_path: Path):
    with pytest.raises(InputError, match=r"vocabulary holds 1 texts; expected at least two"):
        Vocabulary.of_texts(vit, ["red"], "test")
    long = "one two three four five six"
    with pytest.raises(InputError, match=r'holds "one two three .* prompt fills the 8 tokens'):
        Vocabulary.of_texts(vit, ["red", long], "test")
    empty = tmp_path / "words.txt"
    empty.write_text("# only a remark\n\n")
    with pytest.raises(InputError, match=r"holds no texts; expected 2 to 100,000, one a line"):
        read_words(empty)
    empty.write_text("a cat \n\n# remark\nb\ta\na cat\n")
    assert read_words(empty) == ["a cat", "b a"]
    with pytest.raises(InputError, match=r"missing\.txt"):
        read_words(tmp_path / "missing.txt")


def test_the_list_of_common_words():
    words = common_words()
    assert len(words) > 3000
    assert len(set(words)) == len(words)
    assert {"zebra", "truck", "red", "round", "person"} <= set(words)


def test_too_few_images(vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages):
    vocabulary = Vocabulary.of_texts(vit, WORDS, "test")
    few = TensorImages(data.batch(range(19))[0])
    with pytest.raises(InputError, match="data has 19 images; expected at least 20"):
        name_features(vit, clt, few, vocabulary)
    with pytest.raises(InputError, match="n_images is 5"):
        name_features(vit, clt, data, vocabulary, n_images=5)


def test_names_file(vit: HookedViT, clt: CrossLayerTranscoder, data: TensorImages, tmp_path: Path):
    names = name_features(
        vit, clt, data, Vocabulary.of_texts(vit, WORDS, "test"), effect_images=4, seed=1
    )
    path = tmp_path / "feature_names.json"
    path.write_text(names_json(names))
    assert read_names(path, clt) == read_names(tmp_path, clt) == names.texts
    other = random_clt(vit, seed=7)
    with pytest.raises(InputError, match="names of this one"):
        read_names(path, other)
    document = json.loads(path.read_text())
    del document["weights_sha256"]
    for bad, said in (
        ({"9:0": {"text": "x"}}, "none of 4 layers"),
        ({"one": {"text": "x"}}, "no layer:feature"),
        ({"0:1": {"text": ""}}, "not one of 1 to 1000"),
        ({"0:1": "x"}, "holds no names"),
        ([], "names holds a list"),
    ):
        path.write_text(json.dumps(document | {"names": bad}))
        with pytest.raises(InputError, match=said):
            read_names(path, clt)
    path.write_text(json.dumps(document | {"names": {"0:1": {"text": "mine"}}}))
    assert read_names(path, clt) == {(0, 1): "mine"}
    path.write_text("{}")
    with pytest.raises(InputError, match="has schema null"):
        read_names(path, clt)


def test_command(
    digits_clt: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
):
    words = tmp_path / "words.txt"
    words.write_text("handwritten zero\nhandwritten one\nhandwritten two\n")
    out = tmp_path / "out"
    args = ["features", "--clt", str(digits_clt), "--limit", "60", "--layers", "7"]
    more = ["--count", "2", "--effect-images", "8", "--out", str(out)]
    assert main([*args, "--vocabulary", str(words), *more]) == 0
    document = json.loads((out / "feature_names.json").read_text())
    assert document["facts"]["vocabulary"] == "3 texts of words.txt"
    assert document["facts"]["n"] == 30
    assert (out / "names.csv").is_file()
    assert "tested on N = 30 others" in (out / "data.js").read_text()
    words.write_text("# none\n")
    said = refused(*args, "--vocabulary", words)
    assert said.startswith("--vocabulary: is ") or "--vocabulary is" in said
    assert "holds no texts" in said
