"""Layerwise retrieval: descriptors, the index and its files, class consistency, figures."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import tells_itself
from builders import random_clt, tiny_clip
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array, vstack
from torchvision.transforms import Compose, Normalize

from vit_clt import AbsTopK, InputError, JumpReLU, ReLUTopK, load_data
from vit_clt.analysis import RetrievalIndex, class_consistency
from vit_clt.analysis.reporting.pictures import data_uri, pixels
from vit_clt.analysis.reporting.style import BLUE
from vit_clt.analysis.retrieval.descriptors import (
    SparseRows,
    describe,
    pooled,
    untrained,
)
from vit_clt.analysis.retrieval.index import own_rows
from vit_clt.analysis.retrieval.retrieved import retrieve
from vit_clt.analysis.stats.intervals import mean_intervals
from vit_clt.data.images import ImageSubset, TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.kernels.codes import DenseCodes
from vit_clt.outputs.manifest import file_hash
from vit_clt.transcoder.identity import encoder_sha256

SPARSIFIERS = [ReLUTopK(k=5), AbsTopK(k=5), JumpReLU(theta=0.3)]
KINDS = ("cls", "patch", "all")


@pytest.fixture(scope="module")
def corpus() -> TensorImages:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(20, 3, 12, 12, generator=generator)
    data = TensorImages(images, torch.arange(20) % 3, ["a cat", "a dog", "a jay"], "corpus")
    data.batch_size = 7
    return data


@pytest.fixture(scope="module")
def queries() -> TensorImages:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(6, 3, 12, 12, generator=generator)
    return TensorImages(images, torch.tensor([0, 0, 1, 1, 1, 2]), ["a cat", "a dog", "a jay"], "q")


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    step = Compose([Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.5])])
    return HookedViT(tiny_clip(), preprocess=step)


@pytest.fixture(scope="module")
def index(vit: HookedViT, corpus: TensorImages) -> RetrievalIndex:
    return RetrievalIndex.build(vit, random_clt(vit), corpus, tokens=KINDS)


# ---- descriptors ----------------------------------------------------------------------------


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=lambda s: type(s).__name__)
def test_descriptors_are_means_over_rows(vit: HookedViT, corpus: TensorImages, sparsifier):
    clt = random_clt(vit, sparsifier)
    found = describe(vit, clt, corpus, tokens=KINDS)
    names = [f"blocks.{s}.ln2.hook_out" for s in range(4)]
    with torch.no_grad():
        _, cache = vit.run_with_cache(corpus.images, names_filter=names)
        x = torch.stack([cache[name] for name in names])
        z = clt.encode(x).to_dense().double()
    assert list(found.codes) == list(KINDS)
    for kind, rows in (("cls", slice(0, 1)), ("patch", slice(1, None)), ("all", slice(None))):
        for s in range(4):
            codes = found.codes[kind][s]
            assert codes.dtype == np.float32
            assert codes.indices.dtype == codes.indptr.dtype == np.int32
            assert (codes.data != 0).all()
            assert codes.has_canonical_format
            expected = z[s, :, rows].mean(1).numpy()
            np.testing.assert_allclose(codes.toarray(), expected, rtol=1e-5, atol=1e-6)
            plain = x[s, :, rows].double().mean(1).numpy()
            np.testing.assert_allclose(found.inputs[kind][s], plain, rtol=1e-5, atol=1e-6)
            l0 = z[s, :, rows].ne(0).sum(-1).double().mean()
            assert found.l0[kind][s] == pytest.approx(float(l0))
    np.testing.assert_array_equal(found.labels, corpus.labels)


def test_pooling_of_every_form_of_codes(vit: HookedViT):
    x = torch.randn(5, 9, 16, generator=torch.Generator().manual_seed(0))
    for sparsifier in SPARSIFIERS:
        clt = random_clt(vit, sparsifier)
        codes = clt.encode(x, layer=1)
        written_out = codes.to_dense()
        ours, dense = pooled(codes), pooled(DenseCodes(written_out))
        assert torch.equal(codes.to_dense(), written_out)
        np.testing.assert_allclose(ours.toarray(), dense.toarray(), rtol=1e-6)
        assert ours.nnz == dense.nnz


def test_rows_added_in_blocks_are_the_whole_bit_for_bit():
    rng = np.random.default_rng(0)
    whole = csr_array(rng.random((50, 30)) * (rng.random((50, 30)) < 0.2)).astype(np.float32)
    blocks = [whole[:0], whole[:1], whole[1:20], whole[20:]]
    growing = SparseRows(30)
    for block in blocks:
        growing.append(block)
    found = growing.matrix()
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        assert getattr(found, name).dtype.itemsize == 4
    assert (found != vstack(blocks)).nnz == 0


def test_batches_do_not_matter(vit: HookedViT, corpus: TensorImages, index: RetrievalIndex):
    one = TensorImages(corpus.images, corpus.labels)
    one.batch_size = 20
    whole = describe(vit, index.clt, one, tokens="patch")
    for s in range(4):
        streamed = index.corpus.codes["patch"][s]
        np.testing.assert_allclose(
            whole.codes["patch"][s].toarray(), streamed.toarray(), rtol=1e-4, atol=1e-5
        )


# ---- search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", KINDS)
@pytest.mark.parametrize("space", ["codes", "inputs"])
def test_neighbours_are_those_of_a_dense_search(index, queries, tokens, space):
    found = index.search(queries, 4, tokens=tokens, space=space)
    described = index.describe(queries)
    assert list(found) == [0, 1, 2, 3]
    for s, neighbours in found.items():
        q, c = (
            np.asarray(m.toarray() if space == "codes" else m, np.float64)
            for m in (getattr(each, space)[tokens][s] for each in (described, index.corpus))
        )
        q, c = (m / np.linalg.norm(m, axis=1)[:, None] for m in (q, c))
        cosine = q @ c.T
        np.testing.assert_array_equal(neighbours.rows, np.argsort(-cosine, axis=1)[:, :4])
        expected = -np.sort(-cosine, axis=1)[:, :4]
        np.testing.assert_allclose(neighbours.similarities, expected, atol=1e-11)
        np.testing.assert_array_equal(neighbours.labels, neighbours.rows % 3)
    few = index.search(described.take([4, 1]), 4, tokens=tokens, space=space)
    np.testing.assert_array_equal(few[2].rows, found[2].take([4, 1]).rows)


def test_faiss_stands_behind_the_same_interface(index, queries):
    pytest.importorskip("faiss")
    exact, fast = (index.search(queries, 3, backend=each) for each in ("exact", "faiss"))
    for s in range(4):
        np.testing.assert_array_equal(exact[s].rows, fast[s].rows)


def test_dot_prefers_large_codes(vit: HookedViT, corpus, queries):
    index = RetrievalIndex.build(vit, random_clt(vit), corpus, layers=[1], similarity="dot")
    described = index.describe(queries)
    q, c = (d.codes["cls"][1].toarray().astype(np.float64) for d in (described, index.corpus))
    found = index.search(queries, 2)[1]
    np.testing.assert_allclose(found.similarities, -np.sort(-(q @ c.T), axis=1)[:, :2], rtol=1e-9)


def test_an_image_of_the_corpus_finds_itself_unless_left_out(index, corpus):
    assert own_rows(corpus, ImageSubset(corpus, range(5))).tolist() == [*range(5), *[-1] * 15]
    some = ImageSubset(corpus, range(9))
    rows = own_rows(some, corpus)
    assert rows.tolist() == list(range(9))
    first = index.search(some, 1, tokens="patch")
    assert all((n.rows[:, 0] == rows).all() for n in first.values())
    others = index.search(some, 2, tokens="patch", own_rows=rows)
    for s, neighbours in index.search(some, 3, tokens="patch").items():
        np.testing.assert_array_equal(others[s].rows, neighbours.rows[:, 1:])


def test_other_images_are_not_taken_for_the_corpus(corpus, queries):
    assert own_rows(queries, corpus) is None
    renamed = TensorImages(queries.images, queries.labels, (), corpus.name)
    assert own_rows(renamed, corpus) is None


def test_only_some_layers(index: RetrievalIndex, queries, tmp_path: Path):
    whole = index.search(queries, 3, tokens="patch")
    part = index.only(["patch"], [3, 1])
    found = part.search(queries, 3, tokens="patch")
    assert list(found) == [1, 3]
    np.testing.assert_array_equal(found[3].rows, whole[3].rows)
    part.save(tmp_path)
    assert RetrievalIndex.load(tmp_path, index.vit, index.clt).facts == part.facts
    with pytest.raises(InputError, match="layers contains 2; this index holds 1, 3"):
        part.only(["patch"], [2])
    with pytest.raises(InputError, match='tokens is "cls"; this index holds "patch"'):
        part.search(queries, 3)


def test_bad_questions(index: RetrievalIndex, vit: HookedViT, corpus, queries):
    with pytest.raises(InputError, match="k is 21; expected 1 to 20"):
        index.search(queries, 21)
    other = describe(vit, random_clt(vit, n_features=30), queries)
    with pytest.raises(InputError, match="queries have 30 features on cls rows of layer 0"):
        index.search(other, 2)
    some = describe(vit, index.clt, queries, layers=[0])
    with pytest.raises(InputError, match="queries have nothing on cls rows of layer 1"):
        index.search(some, 2)
    with pytest.raises(InputError, match="16, 16"):
        index.search(torch.zeros(1, 3, 16, 16), 2)
    for empty in (torch.zeros(0, 3, 12, 12), []):
        with pytest.raises(InputError, match="images is empty"):
            RetrievalIndex.build(vit, index.clt, empty)
    with pytest.raises(InputError, match="tokens is empty"):
        RetrievalIndex.build(vit, index.clt, corpus, tokens=[])
    index.check_corpus(corpus)
    with pytest.raises(InputError, match="20 images of corpus; found 6 of q"):
        index.check_corpus(queries)


# ---- files ----------------------------------------------------------------------------------


def test_saved_and_loaded_bit_for_bit(index: RetrievalIndex, queries, tmp_path: Path):
    folder = tmp_path / "index"
    index.save(folder)
    index.save(folder)  # over itself
    assert sorted(f.name for f in folder.iterdir()) == ["index.json", "index.safetensors"]
    loaded = RetrievalIndex.load(folder, index.vit, index.clt)
    assert loaded.facts == index.facts
    assert loaded.corpus.l0 == index.corpus.l0
    np.testing.assert_array_equal(loaded.corpus.labels, index.corpus.labels)
    for kind in KINDS:
        for s in range(4):
            ours, theirs = index.corpus.codes[kind][s], loaded.corpus.codes[kind][s]
            for name in ("data", "indices", "indptr"):
                assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
                assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            assert index.corpus.inputs[kind][s].tobytes() == loaded.corpus.inputs[kind][s].tobytes()
    before, after = (each.search(queries, 3) for each in (index, loaded))
    np.testing.assert_array_equal(before[3].similarities, after[3].similarities)


@pytest.fixture
def saved(index: RetrievalIndex, tmp_path: Path) -> Path:
    index.save(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize(
    "damage", ["flipped", "cut", "gone", "text", "list", "shape", "key", "old"]
)
def test_a_damaged_index_is_refused(index: RetrievalIndex, saved: Path, damage: str):
    arrays, facts = saved / "index.safetensors", saved / "index.json"
    values = json.loads(facts.read_text())
    if damage == "flipped":
        content = bytearray(arrays.read_bytes())
        content[-3] ^= 1
        arrays.write_bytes(content)
    elif damage == "cut":
        arrays.write_bytes(arrays.read_bytes()[:500])
    elif damage == "gone":
        arrays.unlink()
    elif damage == "text":
        facts.write_text("{")
    elif damage == "list":
        facts.write_text("[]")
    elif damage == "key":
        facts.write_text(json.dumps({k: v for k, v in values.items() if k != "layers"}))
    else:
        change = {"n_images": 21} if damage == "shape" else {"format": 0}
        facts.write_text(json.dumps(values | change))
    with pytest.raises(InputError, match="index") as refused:
        RetrievalIndex.load(saved, index.vit, index.clt)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["cls.1.values", "patch.3.inputs", "labels", "cls.0.indices"])
def test_an_index_of_other_than_numbers_is_refused(index: RetrievalIndex, saved: Path, name: str):
    arrays = load_file(saved / "index.safetensors")
    arrays[name] = np.full(arrays[name].shape, np.nan, dtype=np.float32)
    save_file(arrays, saved / "index.safetensors")
    values = json.loads((saved / "index.json").read_text())
    values["sha256"] = file_hash(saved / "index.safetensors")
    (saved / "index.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="does not hold the index"):
        RetrievalIndex.load(saved, index.vit, index.clt)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ["words"]},
        {"layers": [0, 99]},
        {"layers": "all"},
        {"n_images": -1},
        {"n_images": True},
        {"n_features": 10**30},
        {"l0": {}},
        {"class_names": [1]},
        {"similarity": ["cosine"]},
    ],
    ids=str,
)
def test_facts_of_other_types_are_refused(index: RetrievalIndex, saved: Path, change: dict):
    facts = saved / "index.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | change))
    with pytest.raises(InputError):
        RetrievalIndex.load(saved, index.vit, index.clt)


def test_an_index_of_another_clt_or_model_is_refused(index: RetrievalIndex, saved: Path):
    with pytest.raises(InputError, match=r"encoder_sha256 is .* \(of the CLT\)"):
        RetrievalIndex.load(saved, index.vit, random_clt(index.vit, seed=1))
    with pytest.raises(InputError, match=r"encoder_sha256 is .* as in index"):
        RetrievalIndex.load(saved, index.vit, random_clt(index.vit, ReLUTopK(k=4)))
    with pytest.raises(InputError, match=r"weights_sha256 is .* \(of the model\)"):
        RetrievalIndex.load(saved, HookedViT(tiny_clip(seed=1)), index.clt)
    with pytest.raises(InputError, match=r"expected a folder holding index\.json"):
        RetrievalIndex.load(saved / "none", index.vit, index.clt)


def test_decoders_do_not_matter_to_an_index(index: RetrievalIndex, saved: Path):
    clt = random_clt(index.vit)
    clt.W_dec[0].data.mul_(2)
    clt.b_dec.data.add_(1)
    assert encoder_sha256(clt) == encoder_sha256(index.clt)
    RetrievalIndex.load(saved, index.vit, clt)
    clt.b_enc.data[0, 0] += 1
    assert encoder_sha256(clt) != encoder_sha256(index.clt)


def test_other_files_are_left_alone(index: RetrievalIndex, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds thesis\.txt"):
        index.save(tmp_path)
    with pytest.raises(InputError, match="a file; expected a folder"):
        index.save(tmp_path / "thesis.txt")
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_write_leaves_the_earlier_index(index, saved: Path, monkeypatch):
    before = load_file(saved / "index.safetensors")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("vit_clt.analysis.retrieval.files.save_file", full)
    with pytest.raises(InputError, match="disk full"):
        index.only(["cls"]).save(saved)
    assert load_file(saved / "index.safetensors").keys() == before.keys()
    RetrievalIndex.load(saved, index.vit, index.clt)
    assert sorted(f.name for f in saved.iterdir()) == ["index.json", "index.safetensors"]


# ---- class consistency ----------------------------------------------------------------------


def test_consistency_by_hand(index: RetrievalIndex, vit: HookedViT, corpus, queries):
    described = index.describe(queries)
    other = RetrievalIndex.build(vit, untrained(index.clt), corpus, tokens=KINDS)
    control = other, other.describe(queries)
    frame = class_consistency(index, described, k=4, control=control, seed=5).to_frame()
    assert len(frame) == 3 * 4
    p, q = np.bincount(corpus.labels) / 20, np.bincount(queries.labels) / 6
    np.testing.assert_allclose(frame["chance"], (p * q).sum())
    for row in frame.to_dict("records"):
        shares = {}
        for name, where, asked, space in (
            ("codes", index, described, "codes"),
            ("inputs", index, described, "inputs"),
            ("untrained", *control, "codes"),
        ):
            found = where.search(asked, 4, tokens=row["tokens"], space=space)[row["layer"]]
            hits = [
                sum(int(corpus.labels[r]) == int(label) for r in near) / 4
                for near, label in zip(found.rows, queries.labels, strict=True)
            ]
            shares[name] = np.array(hits)
            assert row[name] == pytest.approx(np.mean(hits))
            [share] = mean_intervals(np.array(hits)[:, None], 5)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
                (share.low, share.high)
            )
        gap = shares["codes"] - shares["inputs"]
        [ahead] = mean_intervals(gap[:, None], 5)
        assert row["codes_minus_inputs"] == pytest.approx(gap.mean())
        assert row["codes_minus_inputs_low"] == pytest.approx(ahead.low)
        assert row["codes_minus_inputs_high"] == pytest.approx(ahead.high)
        pooled_code = index.corpus.codes[row["tokens"]][row["layer"]].toarray()
        assert row["active"] == pytest.approx((pooled_code != 0).sum(1).mean())


def test_metrics_carry_chance_and_baseline(index: RetrievalIndex, queries):
    result = class_consistency(index.only(["cls"], [2]), index.describe(queries), k=3)
    first, gap = result.metrics(prefix="x_")
    (row,) = result.to_frame().to_dict("records")
    assert (first.name, gap.name) == ("x_consistency_cls_2", "x_consistency_cls_2_minus_inputs")
    expected = row["codes"], row["chance"], row["inputs"]
    assert (first.value, first.floor, first.baseline) == expected
    assert (gap.low, gap.high, gap.n) == (
        row["codes_minus_inputs_low"],
        row["codes_minus_inputs_high"],
        6,
    )


def test_chance_without_a_query_s_own_row(index: RetrievalIndex, corpus):
    rows = own_rows(corpus, corpus)
    frame = class_consistency(index, index.describe(corpus), own_rows=rows, k=2).to_frame()
    labels = corpus.labels.numpy()
    expected = np.mean([(labels == label).sum() - 1 for label in labels]) / 19
    np.testing.assert_allclose(frame["chance"], expected)


def test_consistency_needs_labels_and_the_same_images(index, vit: HookedViT, queries, corpus):
    bare = TensorImages(queries.images)
    with pytest.raises(InputError, match="queries have 6 images without a label"):
        class_consistency(index, index.describe(bare), k=2)
    control = index, index.describe(corpus)
    with pytest.raises(InputError, match="control has 20 queries"):
        class_consistency(index, index.describe(queries), k=2, control=control)


def test_late_layers_of_the_digits_model_tell_classes_apart(digits_vit: HookedViT):
    corpus = load_data("digits", vit=digits_vit, split="train", limit=150)
    asked = load_data("digits", vit=digits_vit, limit=40)
    index = RetrievalIndex.build(
        digits_vit, random_clt(digits_vit, n_features=64), corpus, layers=[0, 7]
    )
    frame = class_consistency(index, index.describe(asked)).to_frame().set_index("layer")
    assert frame.loc[7, "codes_low"] > 0.6
    assert frame.loc[7, "codes_low"] > frame.loc[0, "codes_high"]
    assert frame.loc[7, "chance"] < 0.15


def test_an_untrained_twin(index: RetrievalIndex):
    twin = untrained(index.clt, seed=3)
    assert twin.config.sparsifier == index.clt.config.sparsifier
    assert twin.b_enc.shape == index.clt.b_enc.shape
    assert encoder_sha256(twin) == encoder_sha256(untrained(index.clt, seed=3))
    assert encoder_sha256(twin) != encoder_sha256(untrained(index.clt, seed=4))
    state = torch.get_rng_state()
    untrained(index.clt)
    assert torch.equal(torch.get_rng_state(), state)


# ---- pictures and tables --------------------------------------------------------------------


def test_pixels_are_those_before_normalisation(vit: HookedViT):
    original = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    plain = torch.from_numpy(original).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_array_equal(pixels(vit, vit.preprocess(plain)), original)
    kind, content = data_uri(original[0]).split(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(shown, original[0])
    large = data_uri(np.zeros((300, 200, 3), np.uint8)).split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(large))).size == (64, 96)
    with pytest.raises(InputError, match="no preprocessing"):
        pixels(HookedViT(tiny_clip()), plain)


def test_grid_shows_what_was_found(index: RetrievalIndex, corpus, queries):
    chosen = [5, 2]
    shown = retrieve(index, index.describe(queries), queries, corpus, chosen, 3, tokens="patch")
    found = index.search(ImageSubset(queries, chosen), 3, tokens="patch")
    figure = shown.figure()
    assert len(figure.layout.images) == len(figure.layout.shapes) == 2 * (1 + 4 * 3)
    texts = [a.text for a in figure.layout.annotations]
    assert texts[0] == "<b>query</b><br>jay<br>row 5"
    pictures = {
        (round(p.x + p.sizex / 2, 6), round(p.y - p.sizey / 2, 6)): p for p in figure.layout.images
    }
    for i, row in enumerate(chosen):
        for y, neighbours in enumerate(found.values()):
            for rank in range(3):
                there = neighbours.rows[i, rank]
                place = (i * 4.5 + 1 + rank, -y)
                expected = data_uri(pixels(index.vit, corpus.images[there : there + 1])[0])
                assert pictures[place].source == expected
                n = i * 13 + 1 + y * 3 + rank
                same = neighbours.labels[i, rank] == queries.labels[row]
                assert ("✓" in texts[n]) == same
                assert (figure.layout.shapes[n].line.color == BLUE) == same
                assert f"{neighbours.similarities[i, rank]:.3f}" in texts[n]
                assert f"corpus row {there}" in figure.data[0].text[n - i - 1]
    assert list(figure.layout.yaxis.ticktext) == [f"layer {s}" for s in range(4)]
    title = figure.layout.title.text
    assert all(part in title for part in ("patch rows", "cosine", "corpus, N = 20", "L0 5.0"))
    assert not np.array_equal(found[0].rows, found[3].rows)


def test_curve_shows_every_line(index: RetrievalIndex, queries):
    result = class_consistency(index, index.describe(queries), k=4)
    figure = result.figure()
    frame = result.to_frame()
    assert len(figure.data) == 3 * 3
    lines = [(kind, name) for kind in KINDS for name in ("codes", "inputs", "chance")]
    for trace, (kind, name) in zip(figure.data, lines, strict=True):
        np.testing.assert_allclose(trace.y, 100 * frame.loc[frame["tokens"] == kind, name])
    assert "6 queries of q, corpus: corpus, N = 20" in figure.layout.title.text


def test_consistency_is_a_study(index: RetrievalIndex, corpus, queries, tmp_path):
    described = index.describe(queries)
    examples = [retrieve(index, described, queries, corpus, [4, 1], 2, tokens=t) for t in KINDS]
    result = class_consistency(
        index, described, k=4, examples=examples, clt_name="a/b", seed=3, backend="exact"
    )
    context = tells_itself(result, tmp_path)
    assert [context[key] for key in ("data", "tokens", "trajectory", "seed", "top")] == [
        "q", " ".join(KINDS), "teacher", 3, 4,
    ]  # fmt: skip
    assert context["l0"] == pytest.approx(result.to_frame()["l0"].mean())
    near = pd.read_csv(tmp_path / "neighbours.csv")
    assert len(near) == 3 * 2 * 4 * 2
    page = (tmp_path / "retrieval.html").read_text()
    assert "a/b, " in page
    assert page.count('id="figure-') == 1 + 3 * 2
    alone = class_consistency(index, described, k=4)
    assert not [*alone.extras()]


def test_retrieved_images_tell_themselves(index: RetrievalIndex, corpus, queries, tmp_path):
    shown = retrieve(index, index.describe(queries), queries, corpus, [4, 1], 2, tokens="patch")
    context = tells_itself(shown, tmp_path)
    assert [context[key] for key in ("data", "tokens", "trajectory", "query", "top")] == [
        "q", "patch", "teacher", [4, 1], 2,
    ]  # fmt: skip
    frame = shown.to_frame()
    same = (frame["label"] == frame["query_label"])[frame["layer"] == 3]
    assert shown.metrics()[3].value == same.mean()
    line = shown.shown().iloc[3]
    assert (line["query"], line["layer"]) == (4, 3)
    assert line["of its class"] == f"{int(same.iloc[:2].sum())} of 2"
    nearest = frame.query("query == 4 and layer == 3").iloc[0]
    assert line["nearest images (similarity)"].startswith(
        f"{nearest['row']} ({nearest['similarity']:.3f})"
    )
    with pytest.raises(InputError, match="query holds 4 twice"):
        retrieve(index, index.describe(queries), queries, corpus, [4, 4], 2)


def test_neighbours_as_a_table(index: RetrievalIndex, corpus, queries):
    described = index.describe(queries)
    found = index.search(described.take([4]), 2)
    table = retrieve(index, described, queries, corpus, [4], 2).to_frame()
    assert len(table) == 4 * 2
    row = table.query("layer == 3 and rank == 2").iloc[0]
    assert row["row"] == found[3].rows[0, 1]
    assert (row["query"], row["query_class"], row["tokens"]) == (4, "a dog", "cls")
    assert row["class"] == corpus.class_names[found[3].labels[0, 1]]
    assert row["similarity"] == found[3].similarities[0, 1]
