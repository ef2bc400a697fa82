"""The gallery's files, and the gallery in a real browser."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import tells_itself
from browser import browser_page, chromium
from builders import random_clt, tiny_clip
from PIL import Image
from torchvision.transforms import Compose, Normalize

from vit_clt.analysis import feature_statistics
from vit_clt.analysis.features import gallery_contents
from vit_clt.analysis.features.gallery import FeatureGallery, feature_gallery
from vit_clt.analysis.features.pages import FeaturePages
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.analysis.viewer.encoding import map_text, script_value
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.outputs import OutputFolder
from vit_clt.readouts.zero_shot import ZeroShot

CLASSES = ["thing red", "thing green", "thing <b>blue"]


@pytest.fixture(scope="module")
def stats() -> FeatureStatistics:
    steps = Compose([Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    vit = HookedViT(
        tiny_clip(),
        preprocess=steps,
        tokenizer=lambda texts: torch.tensor(
            [[(7 * i + len(t)) % 63 for i in range(8)] for t in texts]
        ),
    )
    images = torch.randn(300, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    data = TensorImages(images, torch.arange(300) % 3, CLASSES, name="noise")
    zs = ZeroShot(vit, CLASSES, "single")
    clt = random_clt(vit, n_features=40)
    return feature_statistics(vit, clt, data, layers=[1, 3], zs=zs, effect_images=20, top=6)


@pytest.fixture(scope="module")
def gallery(stats: FeatureStatistics, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All active features of two layers of 40, the last of each layer first."""
    found = feature_gallery(stats, active(stats), "all that are active")
    return written(found, tmp_path_factory.mktemp("gallery") / "out")


def written(gallery: FeatureGallery, path: Path, overwrite: bool = False) -> Path:
    folder = OutputFolder(path, study_files(FeatureGallery), overwrite).open()
    write_study(folder, gallery, "features")
    return path


def active(stats: FeatureStatistics) -> list[tuple[int, int]]:
    frame = stats.to_frame().query("active_images > 0")
    frame = frame.sort_values(["layer", "feature"], ascending=[True, False])
    return [(int(r.layer), int(r.feature)) for r in frame.itertuples()]


def read(path: Path) -> dict | list:
    """What a data script assigns."""
    return script_value(path.read_text())


def layers(path: Path) -> dict[int, dict]:
    """The lists of a gallery by layer."""
    return {int(each.stem[-2:]): read(each) for each in sorted((path / "layers").iterdir())}


def test_files_hold_what_pages_hold(stats: FeatureStatistics, gallery: Path):
    document = read(gallery / "data.js")
    chosen = active(stats)
    listed = layers(gallery)
    assert [(l, i) for l, layer in listed.items() for i in layer["feature"]] == chosen
    assert [n for layer in listed.values() for n in layer["page"]] == list(range(len(chosen)))
    assert document["with_page"] == {str(s): len(listed[s]["feature"]) for s in (1, 3)}
    features = {
        name: [value for layer in listed.values() for value in layer[name]]
        for name in listed[1]
        if name != "write"
    }
    frame = stats.to_frame().set_index(["layer", "feature"]).loc[chosen]
    for column, name in (("images", "image_rate"), ("purity", "purity"), ("effect", "effect")):
        found = np.array(features[column], float)
        np.testing.assert_allclose(found, frame[name], rtol=1e-3)
    raised = [CLASSES[c] if c >= 0 else "" for c in features["raised"]]
    assert raised == frame["raised"].tolist()
    assert "" in raised
    assert document["classes"] == ["red", "green", "<b>blue"]
    assert "noise, N = 300, teacher trajectory, L0 5.0" in document["context"]
    # images: 256 a sheet, in row order, each as the model sees it
    rows = document["images"]["row"]
    assert rows == sorted(set(rows))
    sheets = sorted((gallery / "images").iterdir())
    assert len(sheets) == -(-len(rows) // 256)
    for place in (0, 17, len(rows) - 1):
        sheet = np.asarray(Image.open(io.BytesIO(sheets[place // 256].read_bytes())))
        y, x = place % 256 // 16 * 12, place % 16 * 12
        expected = pixels(stats.vit, stats.data.batch([rows[place]])[0])[0]
        np.testing.assert_array_equal(sheet[y : y + 12, x : x + 12], expected)
    blocks = sorted((gallery / "pages").iterdir())
    pages = [entry for block in blocks for entry in read(block)]
    assert len(pages) == len(chosen)
    at = int(np.flatnonzero(frame["effect_images"])[-1])
    page, entry = stats.feature_page(*chosen[at]), pages[at]
    assert [rows[place] for place, *_ in entry["top"]] == [each.row for each in page.top]
    for (_, value, cls, text), each in zip(entry["top"], page.top, strict=True):
        assert (value, cls) == (pytest.approx(each.value, rel=1e-3), pytest.approx(each.cls, 1e-3))
        assert text == map_text(each.patches, page.map_scale)
    order = np.argsort(-page.effects[0])
    for (c, *effects), expected in zip(entry["effects"], order, strict=True):
        assert c == expected
        np.testing.assert_allclose(effects, page.effects[:, c], rtol=1e-3)
    assert [(l, i, c) for l, i, _, _, _, c in entry["near"]] == [
        (n.layer, n.feature, (n.layer, n.feature) in chosen) for n in page.near
    ]


def test_statistics_and_gallery_tell_themselves(stats: FeatureStatistics, tmp_path: Path):
    alone = tells_itself(stats, tmp_path / "alone")
    assert "pages" not in alone
    gallery = feature_gallery(stats, active(stats)[:3], "three")
    context = tells_itself(gallery, tmp_path / "gallery")
    assert alone.items() < context.items()
    pd.testing.assert_frame_equal(gallery.to_frame(), stats.to_frame())
    assert [context[key] for key in ("data", "tokens", "trajectory", "seed")] == [
        "noise", "all", "teacher", 0,
    ]  # fmt: skip
    assert context["l0"] == pytest.approx(np.mean([stats.l0[s] for s in (1, 3)]))
    assert (context["pages"], context["select"], context["readout"]) == (
        3,
        "three",
        "text tower (templates: single)",
    )
    measured = gallery.figure().data[0]
    np.testing.assert_allclose(measured.y, 100 * gallery.summary()["purity"])


def test_pages_are_made_one_block_at_a_time(
    stats: FeatureStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = active(stats)
    gallery = feature_gallery(stats, chosen, "all")
    made, page = [], FeaturePages._page
    monkeypatch.setattr(
        FeaturePages, "_page", lambda self, *address: made.append(address) or page(self, *address)
    )
    monkeypatch.setattr(gallery_contents, "PAGES_PER_FILE", 8)
    blocks = []
    for name, _ in gallery.extras():
        if name.startswith("pages/"):
            blocks.append(name)
            assert made == chosen[: 8 * len(blocks)]
    assert len(blocks) == -(-len(chosen) // 8)
    assert made == chosen  # each once


def test_of_many_classes_a_page_has_the_ten_at_either_end() -> None:
    effects = np.array([0.3, -0.1, *range(25), 0.3])
    found = gallery_contents._shown_classes(effects)
    assert found == [*range(26, 16, -1), 8, 7, 6, 5, 4, 3, 0, 27, 2, 1]
    assert gallery_contents._shown_classes(effects[:20]) == [*range(19, 2, -1), 0, 2, 1]


def test_writes_are_means_over_all_rows(stats: FeatureStatistics, gallery: Path):
    vit, clt = stats.vit, stats.clt
    activations = capture(vit, torch.cat([images for images, _ in stats.data]))
    for s, layer in layers(gallery).items():
        codes = clt.encode(activations.x[s], layer=s).to_dense().double()
        assert layer["write"]["targets"] == list(clt.config.targets(s))
        for t, l in enumerate(clt.config.targets(s)):
            norms = clt.decoder(s, l).double().norm(dim=1)
            for kind, rows in (("cls", slice(0, 1)), ("patch", slice(1, None))):
                power = activations.y[l][:, rows].double().square().sum(-1).mean()
                expected = codes[:, rows].abs().mean((0, 1)) * norms / power.sqrt()
                found = np.array(layer["write"][kind][t], float)
                np.testing.assert_allclose(
                    found, expected[layer["feature"]].detach(), rtol=6e-3, atol=1e-12
                )


def test_overwrite_removes_only_its_own_files(stats: FeatureStatistics, tmp_path: Path):
    written(feature_gallery(stats, active(stats), "all"), tmp_path)
    assert (tmp_path / "pages" / "pages-001.js").exists()
    mine = ("mine.txt", "pages/mine.js", "pages/pages-007.js")
    for name in mine:
        (tmp_path / name).write_text("mine")
    written(feature_gallery(stats, active(stats)[:2], "two"), tmp_path, overwrite=True)
    assert {(tmp_path / name).read_text() for name in mine} == {"mine"}
    pages = sorted(p.name for p in (tmp_path / "pages").iterdir())
    assert pages == ["mine.js", "pages-000.js", "pages-007.js"]
    assert (tmp_path / "index.html").exists()


# ---- in a browser ----------------------------------------------------------------------------

LINKS = "[...document.querySelectorAll('#rows .address')].map((a) => a.textContent)"


@pytest.mark.skipif(chromium() is None, reason="needs Chromium or Chrome on the PATH")
def test_in_a_browser(gallery: Path, stats: FeatureStatistics, tmp_path: Path):
    chosen = [f"{s}:{i}" for s, i in active(stats)]
    with browser_page(tmp_path) as page:

        def links() -> list[str]:
            return page.value(LINKS)

        def enter(text: str) -> list[str]:
            page.value(f"document.getElementById('query').value = {text!r}")
            page.value("document.getElementById('query').dispatchEvent(new Event('input'))")
            return links()

        def column(place: int) -> list[float]:
            cells = f"[...document.querySelectorAll('#rows tr td:nth-child({place})')]"
            return [
                float(text.split()[0]) for text in page.value(f"{cells}.map((c) => c.innerText)")
            ]

        def sort(name: str) -> None:
            page.value(f"document.querySelector('[data-sort={name}]').click()")

        page.open((gallery / "index.html").as_uri())
        drawn = "[...document.querySelectorAll('#rows canvas')].every((c) => c.dataset.drawn)"
        whole = f"{len(chosen)} of {len(chosen)} features"
        page.until(f"document.getElementById('found').textContent === '{whole}' && {drawn}")
        assert len(chosen) > 40
        assert links() == chosen[:40]
        assert page.value("document.getElementById('found').textContent") == (
            f"{len(chosen)} of {len(chosen)} features"
        )
        assert page.value("document.querySelectorAll('#rows canvas').length") > 100
        page.value("document.getElementById('after').click()")
        assert links() == chosen[40:80]
        of_three = [each for each in chosen if each.startswith("3:")]
        assert enter("3:") == of_three[:40]
        frame = stats.to_frame().query("active_images > 0")
        frame = frame.sort_values(["layer", "feature"], ascending=[True, False])
        green = frame[(frame["class"] == CLASSES[1]) | (frame["raised"] == CLASSES[1])]
        assert enter("GREEN") == [f"{r.layer}:{r.feature}" for r in green.itertuples()][:40]
        assert 0 < len(green) < len(chosen)
        assert enter("purple") == []
        assert "“purple”" in page.value("document.getElementById('found').textContent")
        enter("")
        in_order = [f"{s}:{i}" for s, i in sorted(active(stats))]
        sort("feature")
        assert links() == in_order[:40] != chosen[:40]
        sort("feature")
        assert links() == in_order[::-1][:40]
        sort("images")
        falling = column(4)
        assert falling == sorted(falling, reverse=True)
        sort("images")
        rising = column(4)
        assert rising == sorted(rising)
        assert falling[0] > rising[0]
        assert page.value("document.querySelectorAll('[aria-sort=ascending]').length") == 1
        # the address keeps what was chosen
        kept = page.value("location.href")
        page.open("about:blank")
        page.open(kept)
        page.until(f"document.getElementById('found')?.textContent === '{whole}'")
        assert column(4) == rising
        enter("3:")
        clicked = page.value("document.querySelectorAll('#rows .address')[2].textContent")
        page.value("document.querySelectorAll('#rows .address')[2].click()")
        page.until("document.querySelector('#view[data-view=feature] h1')")
        assert page.value("document.querySelector('h1').textContent") == f"Feature {clicked}"
        shown = stats.feature_page(*map(int, clicked.split(":")))
        names = page.value(
            "[...document.querySelectorAll('#view canvas')]"
            ".map((canvas) => canvas.getAttribute('aria-label'))"
        )
        assert len(names) == len(shown.top) + sum(len(r.examples) for r in shown.ranges)
        first = shown.top[0]
        assert names[0].startswith(
            f"{['red', 'green', '<b>blue'][first.label]}, image {first.row}; z "
        )
        assert page.value("document.querySelectorAll('#view svg').length") == (
            2 + (shown.effect_images > 0)
        )
        near = page.value("document.querySelector('#view td .address').textContent")
        page.value("document.querySelector('#view td .address').click()")
        page.until(f"document.querySelector('h1').textContent === 'Feature {near}'")
        page.value("location.hash = '#/feature/9:9'")
        page.until("document.querySelector('[role=alert]')")
        assert "Layer 9 is not shown here" in page.value(
            "document.querySelector('[role=alert]').textContent"
        )
        assert page.errors == []
        assert all(name.startswith(("file:", "data:", "about:")) for name in page.requests)
