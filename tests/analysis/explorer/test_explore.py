"""The explorer's numbers, against passes of their own, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import one_sentence
from builders import random_clt, tiny_clip
from torchvision.transforms import Compose, Normalize

from vit_clt.analysis import explore, read_verdict
from vit_clt.analysis.contributions.scores import contribution_scores
from vit_clt.analysis.explorer import study as explorer_study
from vit_clt.analysis.explorer.contents import IMAGES_PER_FILE
from vit_clt.analysis.explorer.images import N_FEATURES, ImageReadings
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.explorer.steered_images import FACTORS
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.analysis.viewer.encoding import script_value
from vit_clt.data.images import TensorImages
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.activations import capture
from vit_clt.metrics import metrics_json
from vit_clt.outputs import OutputFolder
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.identity import encoder_sha256

CLASSES = ["thing red", "thing green", "thing blue"]


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[(7 * i + len(t)) % 63 for i in range(8)] for t in texts])


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    return HookedViT(tiny_clip(), preprocess=steps, tokenizer=tokenize)


@pytest.fixture(scope="module")
def data() -> TensorImages:
    images = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    return TensorImages(images, torch.arange(24) % 3, CLASSES, name="noise")


@pytest.fixture(scope="module")
def explorer(vit: HookedViT, data: TensorImages) -> Explorer:
    clt = random_clt(vit, n_features=40)
    return explore(vit, clt, data, graphs=4, interventions=6, top=5, effect_images=10, clt_name="C")


@pytest.fixture(scope="module")
def pages(explorer: Explorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "out"
    folder = OutputFolder(path, study_files(Explorer, png=False)).open()
    write_study(folder, explorer, "explore")
    return path


def test_answers_are_those_of_the_model(explorer: Explorer, vit: HookedViT, data: TensorImages):
    images, labels = data.batch(range(24))
    p = ZeroShot(vit, CLASSES).logits(vit(images).double()).softmax(-1).detach().numpy()
    readings = explorer.readings
    np.testing.assert_allclose(readings.of_label, p[np.arange(24), labels], rtol=1e-5)
    np.testing.assert_array_equal(readings.classes[:, 0], p.argmax(1))
    np.testing.assert_allclose(readings.probabilities, -np.sort(-p, axis=1), rtol=1e-5)


def test_strong_features_and_neighbours_are_those_of_loops(
    explorer: Explorer, vit: HookedViT, data: TensorImages
):
    clt = explorer.gallery.clt
    activations = capture(vit, data.batch(range(24))[0])
    for s, strong in explorer.readings.strong.items():
        codes = clt.encode(activations.x[s], layer=s).to_dense().detach().double().numpy()
        targets = list(clt.config.targets(s))
        decoders = np.stack([clt.decoder(s, l).detach().double().numpy() for l in targets])
        sizes = np.sqrt((decoders**2).sum((0, 2)))
        for image in range(24):
            found = {}
            for i in range(40):
                z = codes[image, :, i]
                if z.any():
                    found[i] = z[np.abs(z).argmax()]
            best = sorted(found, key=lambda i: -abs(found[i]) * sizes[i])[:N_FEATURES]
            kept = strong.features[image].tolist()
            assert [i for i in kept if i >= 0] == best
            np.testing.assert_allclose(
                strong.values[image][: len(best)], [found[i] for i in best], rtol=1e-5
            )
        cls = codes[:, 0]
        norms = np.linalg.norm(cls, axis=1)
        cosines = cls @ cls.T / np.outer(norms, norms).clip(1e-30)
        np.fill_diagonal(cosines, -2)
        near = explorer.readings.near[s]
        np.testing.assert_allclose(
            near.similarities, -np.sort(-cosines, axis=1)[:, :5], rtol=1e-4, atol=1e-6
        )
        assert not (near.rows == np.arange(24)[:, None]).any()


@torch.no_grad()
def test_steering_is_what_hooks_on_the_codes_do(
    explorer: Explorer, vit: HookedViT, data: TensorImages
):
    clt, zs = explorer.gallery.clt, ZeroShot(vit, CLASSES)
    assert [each.row for each in explorer.steered] == explorer.graphs.query
    steered = explorer.steered[0]
    image = data.batch([steered.row])[0]
    assert steered.features

    def scaled(s: int, i: int, factor: float) -> np.ndarray:
        def hook(codes: torch.Tensor, hook: object) -> torch.Tensor:
            codes = codes.clone()
            codes[..., i] *= factor
            return codes

        with replace_mlps(vit, clt, layers=range(4), inputs="stream", error_node=True):
            out = vit.run_with_hooks(image, fwd_hooks=[(f"clt.{s}.hook_codes", hook)])
        return zs.logits(out.double()).softmax(-1)[0].numpy()

    for each in steered.features:
        for factor, found in zip(FACTORS, each.probabilities, strict=True):
            np.testing.assert_allclose(found, scaled(each.layer, each.feature, factor), rtol=1e-4)
        np.testing.assert_allclose(steered.clean, scaled(each.layer, each.feature, 1), rtol=1e-4)
        changes = [
            [np.abs(scaled(each.layer, i, factor) - steered.clean) for factor in FACTORS]
            for i in each.random
        ]
        assert each.feature not in each.random
        np.testing.assert_allclose(each.random_change, np.mean(changes, axis=0), atol=1e-6)


def test_files_hold_the_scores_and_graphs(explorer: Explorer, vit: HookedViT, pages: Path):
    document = script_value((pages / "data.js").read_text())
    gallery = explorer.gallery
    for heatmap in document["heatmaps"]:
        scores = contribution_scores(
            vit, gallery.clt, gallery.data, tokens=heatmap["tokens"], kind=heatmap["kind"]
        )
        found = np.array(heatmap["values"], float)
        np.testing.assert_allclose(found, scores.matrix, rtol=1e-3, atol=1e-6)
    assert {(h["tokens"], h["kind"]) for h in document["heatmaps"]} == {
        (tokens, kind) for tokens in ("cls", "patch") for kind in ("projection", "centred")
    }
    assert document["with_graph"] == explorer.graphs.query
    everywhere: dict[str, list[int]] = {}
    for row, graph in zip(explorer.graphs.query, explorer.graphs.graphs, strict=True):
        entry = script_value((pages / "graphs" / f"graph-{row:05}.js").read_text())
        assert entry["nodes"]["kind"] == graph.nodes["kind"].tolist()
        found = np.array(entry["edges"]["effect"], float)
        np.testing.assert_allclose(found, graph.edges["effect"], rtol=1e-2)
        features = graph.nodes[graph.nodes["kind"] == "feature"]
        for r in features.drop_duplicates(["layer", "feature"]).itertuples():
            everywhere.setdefault(f"{r.layer}:{r.feature}", []).append(row)
        assert len(entry["measured"]) == 6
    assert document["in_graphs"] == everywhere
    entries = script_value((pages / "blocks" / "images-000.js").read_text())
    assert len(entries) == min(IMAGES_PER_FILE, 24)
    bar = {each["name"]: each for each in document["bar"]}
    assert set(bar) == {"Images", "Fit", "Replaced", "Audit"}
    assert (bar["Images"]["short"], bar["Audit"]["short"]) == ("N = 24", "not audited")
    # a random CLT is worse than the mean, and every page says so
    assert bar["Fit"]["level"] == "bad"
    assert "Worse than the mean" in bar["Fit"]["text"]


def test_the_story_tells_what_was_measured(explorer: Explorer, pages: Path):
    story = script_value((pages / "data.js").read_text())["story"]
    stands_in, read, moved = story["findings"]
    r = explorer.cascade.to_frame().iloc[-1]
    assert f"{100 * r.top1:.1f} % right at {r.loss:.3f} nats" in stands_in
    assert f"their mean {100 * r.floor_mean:.1f} % at {r.loss_floor_mean:.3f}" in stands_in
    last = explorer.scores.drawn("C", "cls", "projection").matrix[-1]
    assert f"read from layer {int(last.argmax())} ({float(last.max()):.2f})" in read
    assert "No audit has tested here" in read
    changes = {
        (image.row, f"{each.layer}:{each.feature}", factor): float(np.abs(p - image.clean).max())
        for image in explorer.steered
        for each in image.features
        for factor, p in zip(FACTORS, each.probabilities, strict=True)
    }
    assert tuple(story["steered"]) == max(changes, key=changes.get)
    assert f"on image {story['steered'][0]}." in moved
    frame = explorer.gallery.to_frame()
    assert [s for s, *_ in story["features"]] == [0, 1, 2, 3]
    for s, i, images, purity, *_ in story["features"]:
        filled = frame.query("layer == @s and active_images >= 5")
        assert purity == pytest.approx(filled["purity"].max(), rel=1e-3)
        top = explorer.gallery.feature_page(s, i).top
        assert [row for row, _ in images] == [each.row for each in top[:5]]


def test_images_taken_apart_are_the_least_sure_of_every_class():
    sure = np.array([0.9, 0.2, 0.8, 0.1, 0.5, 0.6])
    labels = np.array([0, 0, 0, 1, 1, 1])
    readings = ImageReadings(np.zeros((6, 1), int), sure[:, None], sure, {}, {}, "cls")
    assert explorer_study.choose_images(readings, labels, 3) == [1, 3, 2]
    assert explorer_study.choose_images(readings, labels, 9) == [1, 3, 2, 4, 0, 5]
    unknown = ImageReadings(np.zeros((6, 1), int), sure[:, None], np.full(6, np.nan), {}, {}, "cls")
    assert explorer_study.choose_images(unknown, np.full(6, -1), 2) == [3, 1]


def test_without_class_names_the_rest_is_there(vit: HookedViT):
    images = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    data = TensorImages(images, torch.full((6,), -1), [], name="unlabelled")
    clt = random_clt(vit, n_features=20)
    explorer = explore(vit, clt, data, count=3)
    assert (explorer.graphs, explorer.cascade, explorer.readings.classes) == (None, None, None)
    assert "names of the classes" in explorer.no_graphs
    assert {s for s, _ in explorer.gallery.pages.features} == {0, 1, 2, 3}
    assert all(count <= 3 for count in np.bincount([s for s, _ in explorer.gallery.pages.features]))
    names = [name for name, _ in explorer.extras()]
    assert not [name for name in names if name.startswith("graphs/")]
    assert "<iframe" in explorer._repr_html_()


def test_a_verdict_is_that_of_the_same_clt(explorer: Explorer, vit: HookedViT, tmp_path: Path):
    clt = explorer.gallery.clt

    def audit(command: str, sha: str | None) -> Path:
        context = {
            "data": "noise",
            "target": 3,
            "verdict": "mixed",
            "claims": ["reads: unsupported (ranks)", "acts: supported"],
            "encoder_sha256": sha,
        }
        (tmp_path / "metrics.json").write_text(metrics_json([], command=command, **context))
        return tmp_path

    verdict = read_verdict(audit("audit", encoder_sha256(clt)), clt)
    assert verdict.text.endswith("attribution mixed; reads: unsupported (ranks); acts: supported")
    for command, sha, expected in (
        ("audit", encoder_sha256(random_clt(vit, seed=5)), "another CLT"),
        ("audit", None, "another CLT"),
        ("cascade", encoder_sha256(clt), "metrics.json is of cascade"),
    ):
        with pytest.raises(InputError, match=expected) as error:
            read_verdict(audit(command, sha), clt)
        one_sentence(error)


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("graphs", -1)])
def test_numbers_out_of_range_are_refused(
    vit: HookedViT, data: TensorImages, name: str, value: int
):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        explore(vit, random_clt(vit), data, **{name: value})
