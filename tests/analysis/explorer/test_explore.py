"""The explorer's numbers, against passes of their own, and its files."""

from __future__ import annotations

from dataclasses import replace
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
from vit_clt.analysis.explorer.steered_images import ALWAYS_ON, FACTORS, N_CONTROLS
from vit_clt.analysis.explorer.story import findings
from vit_clt.analysis.explorer.study import STEERED
from vit_clt.analysis.graphs.agreement import GraphAgreement
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.analysis.viewer.encoding import script_value
from vit_clt.data.images import TensorImages
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.activations import capture
from vit_clt.metrics import metrics_json
from vit_clt.outputs import OutputFolder
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.identity import weights_sha256

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
            for i in each.controls
        ]
        np.testing.assert_allclose(each.control_change, np.mean(changes, axis=0), atol=1e-6)


def test_what_is_steered_has_the_largest_effects_and_controls_of_its_size(
    explorer: Explorer, vit: HookedViT, data: TensorImages
):
    clt, gallery = explorer.gallery.clt, explorer.gallery
    rates = {s: t.counts.images.numpy() / 24 for s, t in gallery.tallies.items()}
    always_on = 0
    for steered, graph in zip(explorer.steered, explorer.graphs.graphs, strict=True):
        nodes = graph.nodes[graph.nodes["kind"] == "feature"]
        total = nodes["total"].abs().groupby([nodes["layer"], nodes["feature"]]).sum()
        total = total.sort_values(ascending=False)
        allowed = [(s, i) for s, i in total.index if rates[s][i] <= ALWAYS_ON]
        always_on += len(total) - len(allowed)
        assert {(f.layer, f.feature) for f in steered.features} == set(allowed[:STEERED])
        x = capture(vit, data.batch([steered.row])[0]).x
        for each in steered.features:
            codes = clt.encode(x[each.layer], layer=each.layer).to_dense().detach()[0]
            norms = np.sqrt(
                sum(
                    clt.decoder(each.layer, l).detach().square().sum(1).numpy()
                    for l in clt.config.targets(each.layer)
                )
            )
            sizes = codes.abs().amax(0).numpy() * norms
            possible = [
                i
                for i in np.flatnonzero(sizes)
                if i != each.feature and rates[each.layer][i] <= ALWAYS_ON
            ]
            nearest = sorted(possible, key=lambda i: abs(sizes[i] - sizes[each.feature]))
            assert each.controls == nearest[:N_CONTROLS]
    assert always_on > 0


def test_files_hold_the_scores_and_graphs(
    explorer: Explorer, vit: HookedViT, pages: Path, monkeypatch: pytest.MonkeyPatch
):
    document = script_value((pages / "data.js").read_text())
    gallery = explorer.gallery
    for heatmap in document["heatmaps"]:
        scores = contribution_scores(
            vit, gallery.clt, gallery.data, tokens=heatmap["tokens"], kind=heatmap["kind"]
        )
        found = np.array(heatmap["values"], float)
        np.testing.assert_allclose(found, scores.matrix, rtol=1e-3, atol=1e-6)
        bias = np.array(heatmap["bias"], float) if heatmap["bias"] else 0
        np.testing.assert_allclose(np.nansum(found, axis=1) + bias, 1, atol=5e-3)
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
        tried = explorer.graphs.agreement.interventions
        tried = tried[tried["image"] == explorer.graphs.query.index(row)]
        foretold = "direct" if explorer.graphs.norms == "held" else "direct_norms"
        expected = tried[["layer", "token", "feature", foretold, "live"]]
        np.testing.assert_allclose(entry["measured"], expected.to_numpy(float), rtol=1e-3)
    assert document["in_graphs"] == everywhere
    # whether interventions support what is drawn stands on every graph
    for supported in (True, False):
        monkeypatch.setattr(GraphAgreement, "supports", lambda self, norms, s=supported: s)
        told = script_value(dict(explorer.extras())["data.js"])["agreement"]
        assert told["level"] == ("" if supported else "bad")
        assert ("They do not support" in told["text"]) != supported
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
    assert f"L0 {r.l0:.1f}, N = 24" in stands_in
    assert f"their mean {100 * r.floor_mean:.1f} % at {r.loss_floor_mean:.3f}" in stands_in
    last = explorer.scores.drawn("C", "cls", "centred").matrix[-1]
    assert f"read from layer {int(last.argmax())} ({float(last.max()):.2f})" in read
    assert "No audit was given" in read
    changes = {
        (image.row, f"{each.layer}:{each.feature}", factor): float(np.abs(p - image.clean).max())
        for image in explorer.steered
        for each in image.features
        for factor, p in zip(FACTORS, each.probabilities, strict=True)
    }
    assert tuple(story["steered"]) == max(changes, key=changes.get)
    row, feature, factor = story["steered"]
    assert f"{feature}, scaled by {factor:g}, takes " in moved
    assert f"on image {row}" in moved
    assert f"over 4 images that the model is unsure of, {len(changes) // 4} features" in moved
    case = explorer.case
    assert case.changes_the_answer == ("can change an answer" in moved)
    assert f"{100 * case.control:.1f} points" in moved
    frame = explorer.gallery.to_frame()
    assert [s for s, *_ in story["features"]] == [0, 1, 2, 3]
    for s, i, images, purity, *_ in story["features"]:
        filled = frame.query("layer == @s and active_images >= 5 and image_rate <= @ALWAYS_ON")
        assert purity == pytest.approx(filled["purity"].max(), rel=1e-3)
        top = explorer.gallery.feature_page(s, i).top
        assert [row for row, _ in images] == [each.row for each in top[:5]]


def test_images_taken_apart_are_the_least_sure_of_every_class():
    sure = np.array([0.9, 0.2, 0.8, 0.1, 0.5, 0.6])
    labels = np.array([0, 0, 0, 1, 1, 1])
    readings = ImageReadings(np.zeros((6, 1), int), sure[:, None], sure, {}, {}, "cls")
    assert explorer_study.choose_images(readings, labels, 3) == [3, 1, 4]
    assert explorer_study.choose_images(readings, labels, 9) == [3, 1, 4, 2, 5, 0]
    # with fewer images than classes the least sure of all; what has no label is left out
    assert explorer_study.choose_images(readings, np.array([0, 1, 2, 3, 4, -1]), 2) == [3, 1]
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


def written_audit(folder: Path, command: str, **context: object) -> Path:
    facts = {
        "data": "noise",
        "target": 3,
        "tokens": "cls",
        "n_images": 40,
        "verdict": "supported",
        "claims": ["reads: unsupported (ranks)", "acts: supported"],
    }
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(metrics_json([], command=command, **(facts | context)))
    return folder


def test_a_verdict_is_that_of_the_same_clt(explorer: Explorer, vit: HookedViT, tmp_path: Path):
    clt = explorer.gallery.clt
    sha = weights_sha256(clt)
    verdict = read_verdict(written_audit(tmp_path, "audit", weights_sha256=sha), clt)
    assert verdict.text == (
        "Audit of CLS rows of layer 3 on noise, N = 40: attribution supported; "
        "reads: unsupported (ranks); acts: supported"
    )
    assert verdict.short == "attribution supported; reads: unsupported; acts: supported"
    assert not verdict.holds
    told = replace(explorer, verdict=verdict)
    assert "The audit says: attribution supported; reads: unsupported" in told.findings()[1]
    other = replace(explorer, verdict=replace(verdict, tokens="patch"))
    assert "is of patch rows of layer 3, and says nothing of this" in other.findings()[1]
    fine = replace(verdict, claims=["reads: supported", "acts: supported"])
    assert fine.holds
    assert not replace(fine, verdict="mixed").holds
    # the same encoders with other decoders are another CLT
    twin = random_clt(vit, n_features=40)
    twin.load_state_dict(clt.state_dict())
    assert read_verdict(tmp_path, twin) == verdict
    with torch.no_grad():
        twin.W_dec[2] += 1
    for wanted, audited, expected in (
        (twin, written_audit(tmp_path, "audit", weights_sha256=sha), "another CLT"),
        (clt, written_audit(tmp_path / "b", "audit"), "another CLT"),
        (clt, written_audit(tmp_path / "c", "cascade"), "metrics.json is of cascade"),
        (
            clt,
            written_audit(tmp_path / "d", "audit", weights_sha256=sha, target="last"),
            "expected the facts of an audit",
        ),
    ):
        with pytest.raises(InputError, match=expected) as error:
            read_verdict(audited, wanted)
        one_sentence(error)


def test_findings_say_no_more_than_was_found(explorer: Explorer):
    case = replace(explorer.case, answers=(0, 0), label=0, before=0.98, after=0.97)
    text = findings(explorer.scores, explorer.fit, None, case, None, CLASSES)
    assert text[0] == explorer.fit.line()
    assert "takes thing red from 98.0 % to 97.0 %" in text[2]
    assert "the answer stays thing red" in text[2]
    flip = replace(case, answers=(0, 2), control=float("nan"))
    text = findings(explorer.scores, explorer.fit, None, flip, None, CLASSES)[2]
    assert "can change an answer, from thing red to thing blue" in text
    assert "No other feature of its layer fires there" in text


def test_a_share_is_named_only_where_the_mlps_are_worth_something(
    explorer: Explorer, vit: HookedViT, data: TensorImages
):
    named = "what its MLPs are worth" in explorer.findings()[0]
    draws = explorer.cascade.readings.draws
    worth = draws("all_mean_0", "loss") - draws("original", "loss")
    assert named == bool(np.quantile(worth, 0.025) > 0)


def test_a_feature_that_is_steered_has_a_page(vit: HookedViT, data: TensorImages):
    clt = random_clt(vit, n_features=40)
    few = explore(vit, clt, data, count=1, graphs=2, interventions=4, effect_images=4)
    pages = set(few.gallery.pages.features)
    steered = {(f.layer, f.feature) for image in few.steered for f in image.features}
    assert steered <= pages
    files = dict(few.extras())
    entries = script_value(files["blocks/images-000.js"])
    marks = {
        (int(s), i): has
        for entry in entries
        for s, strong in entry["strong"].items()
        for i, _, has in strong
    }
    assert {pair for pair, has in marks.items() if has} <= pages
    assert not any((pair in pages) != has for pair, has in marks.items())


def test_classes_of_another_readout_are_refused(vit: HookedViT, data: TensorImages):
    zs = ZeroShot(vit, ["a cat", "a dog"])
    with pytest.raises(InputError, match="classifier has 2 classes") as error:
        explore(vit, random_clt(vit), data, zs)
    one_sentence(error)


@pytest.mark.parametrize(("name", "value"), [("count", 0), ("graphs", -1), ("interventions", 1)])
def test_numbers_out_of_range_are_refused(
    vit: HookedViT, data: TensorImages, name: str, value: int
):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        explore(vit, random_clt(vit), data, **{name: value})
