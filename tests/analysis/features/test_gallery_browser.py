"""The gallery's files, and the gallery in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import tells_itself
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
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
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
    return json.loads(re.sub(r"^[^=]+= |;\n$", "", path.read_text()))


def test_files_hold_what_pages_hold(stats: FeatureStatistics, gallery: Path):
    document = read(gallery / "data.js")
    chosen = active(stats)
    features = document["features"]
    assert list(zip(features["layer"], features["feature"], strict=True)) == chosen
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
    for (_, value, cls, steps), each in zip(entry["top"], page.top, strict=True):
        assert (value, cls) == (pytest.approx(each.value, rel=1e-3), pytest.approx(each.cls, 1e-3))
        patches = each.patches.ravel()
        np.testing.assert_allclose(
            np.array(steps) * page.map_scale / 99, patches, atol=page.map_scale / 90
        )
        assert ((np.array(steps) != 0) == (patches != 0)).all()
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


def test_a_weak_patch_keeps_its_sign(
    stats: FeatureStatistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = stats.feature_page(*active(stats)[0])
    page.top[0].patches[:] = [[-1e-4, 0, 1e-4], [-1, 0, 1], [0, 0, 0]]
    page.top[0].patches[:] *= page.map_scale
    monkeypatch.setattr(FeaturePages, "_page", lambda self, *address: page)
    written(feature_gallery(stats, [(page.layer, page.feature)], "one"), tmp_path)
    (entry,) = read(tmp_path / "pages" / "pages-000.js")
    assert entry["top"][0][3] == [-1, 0, 1, -99, 0, 99, 0, 0, 0]


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

PROBE = """
const seen = { errors: [], requests: [] };
window.addEventListener("error", (e) =>
  seen.errors.push(String(e.message || e.target.src || e.target.href || e)), true);
window.addEventListener("unhandledrejection", (e) => seen.errors.push(String(e.reason)));
for (const name of ["error", "warn"]) {
  console[name] = (...all) => seen.errors.push(all.join(" "));
}
"""
STEPS = """
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const all = (what) => [...document.querySelectorAll(what)];
const links = () => all("#rows a").map((a) => a.textContent);
async function until(done) { for (let i = 0; i < 100 && !done(); i++) await pause(30); }
function type(text) {
  const box = document.getElementById("query");
  box.value = text;
  box.dispatchEvent(new Event("input"));
}
async function walk() {
  await until(() => all("#rows canvas").every((c) => c.dataset.drawn));
  seen.first = links();
  seen.arrows = all("#heads button").map((b) => b.textContent).join("").match(/[↑↓]/g);
  seen.found = document.getElementById("found").textContent;
  seen.drawn = all("#rows canvas").map((c) => c.dataset.drawn === "yes");
  seen.sizes = Object.values(GALLERY.sheets).map((s) => s.naturalWidth);
  document.getElementById("after").click();
  seen.second = links();
  type("3:");
  seen.layer = links();
  type("GREEN");
  seen.green = links();
  type("purple");
  seen.nothing = [links().length, document.getElementById("found").textContent];
  type("");
  document.querySelector('[data-sort="feature"]').click();
  seen.byFeature = links();
  document.querySelector('[data-sort="feature"]').click();
  seen.fromLast = links();
  document.querySelector('[data-sort="images"]').click();
  seen.falling = all("#rows tr td:nth-child(3)").map((c) => parseFloat(c.textContent));
  document.querySelector('[data-sort="images"]').click();
  seen.rising = all("#rows tr td:nth-child(3)").map((c) => parseFloat(c.textContent));
  seen.ariaSort = all("[aria-sort=ascending]").length;
  type("3:");
  const link = all("#rows a")[2];
  seen.clicked = link.textContent;
  link.click();
  await until(() => all("#page h1").length && all("#page canvas").every((c) => c.dataset.drawn));
  seen.page = document.querySelector("#page h1").textContent;
  seen.pictures = all("#page canvas").map((c) => c.getAttribute("aria-label"));
  seen.charts = all("#page svg").length;
  seen.listHidden = document.getElementById("list").hidden;
  seen.explained = all("#page .note").at(-1).textContent;
  const near = all("#page td a")[0];
  seen.nearLink = near.textContent;
  near.click();
  await until(() => document.querySelector("#page h1").textContent !== seen.page);
  seen.near = document.querySelector("#page h1").textContent;
  location.hash = "#/";
  await until(() => !document.getElementById("list").hidden);
  seen.back = links().length;
  location.hash = "#/9:9";
  await until(() => all("[role=alert]").length);
  seen.missing = document.querySelector("[role=alert]").textContent;
  seen.requests = performance.getEntriesByType("resource").map((r) => r.name);
}
walk().catch((e) => seen.errors.push(String(e.stack))).finally(() => {
  const out = document.createElement("script");
  out.type = "application/json";
  out.id = "seen";
  out.textContent = JSON.stringify(seen).replaceAll("<", "\\\\u003c");
  document.body.append(out);
});
"""


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@pytest.mark.skipif(chromium() is None, reason="needs Chromium or Chrome on the PATH")
def test_in_a_browser(gallery: Path, stats: FeatureStatistics, tmp_path: Path):
    shutil.copytree(gallery, tmp_path / "g")
    index = tmp_path / "g" / "index.html"
    head, tail = index.read_text().split("</head>")
    tail = tail.replace("</body>", f"<script>{STEPS}</script></body>")
    index.write_text(f"{head}<script>{PROBE}</script></head>{tail}")
    command = [
        *(chromium() or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-quic", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'user'}"),
        *("--dump-dom", index.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    result = re.search(r'<script type="application/json" id="seen">(.*?)</script>', done.stdout)
    assert result, done.stderr[-2000:]
    seen = json.loads(result[1])
    chosen = [f"{s}:{i}" for s, i in active(stats)]
    assert seen["errors"] == []
    assert all(name.startswith("file:") for name in seen["requests"])
    assert len(chosen) > 40
    assert seen["first"] == chosen[:40]
    assert seen["second"] == chosen[40:80]
    assert seen["found"] == f"{len(chosen)} of {len(chosen)} features"
    assert len(seen["drawn"]) > 100
    assert all(seen["drawn"])
    assert seen["sizes"]
    assert all(size == 16 * 12 for size in seen["sizes"])
    of_three = [each for each in chosen if each.startswith("3:")]
    assert seen["layer"] == of_three[:40]
    assert seen["arrows"] is None
    in_order = [f"{s}:{i}" for s, i in sorted(active(stats))]
    assert seen["byFeature"] == in_order[:40] != chosen[:40]
    assert seen["fromLast"] == in_order[::-1][:40]
    assert "not one of the features this gallery shows" in seen["explained"]
    frame = stats.to_frame().query("active_images > 0")
    frame = frame.sort_values(["layer", "feature"], ascending=[True, False])
    green = frame[(frame["class"] == CLASSES[1]) | (frame["raised"] == CLASSES[1])]
    assert seen["green"] == [f"{r.layer}:{r.feature}" for r in green.itertuples()][:40]
    assert 0 < len(green) < len(chosen)
    assert seen["nothing"][0] == 0
    assert "“purple”" in seen["nothing"][1]
    assert seen["falling"] == sorted(seen["falling"], reverse=True)
    assert seen["rising"] == sorted(seen["rising"])
    assert seen["falling"][0] > seen["rising"][0]
    assert seen["ariaSort"] == 1
    assert seen["page"] == "Layer {}, feature {}".format(*seen["clicked"].split(":"))
    page = stats.feature_page(*map(int, seen["clicked"].split(":")))
    assert len(seen["pictures"]) == len(page.top) + sum(len(r.examples) for r in page.ranges)
    names = ["red", "green", "<b>blue"]
    first = page.top[0]
    assert seen["pictures"][0].startswith(f"{names[first.label]}, row {first.row}; z ")
    assert (seen["charts"], seen["listHidden"]) == (2 + (page.effect_images > 0), True)
    assert seen["near"] == "Layer {}, feature {}".format(*seen["nearLink"].split(":"))
    assert seen["back"] == min(40, len(of_three))
    assert seen["missing"] == "Feature 9:9 has no page here."
