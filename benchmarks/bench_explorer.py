"""How large the explorer's pages are, and how long a reader waits for each click in Chromium.

    python benchmarks/bench_explorer.py [--features 2048] [--images 2000] [--out FILE]

A random CLT of a random ViT of 12 layers, on random smooth images of 64 x 64 pixels in 64 patches:
what is measured does not depend on what features mean. Milliseconds from the click to the end of
the frame in which the view is drawn, for the first time it is asked for and for the second, when
its files have been read; pictures may come a frame later. Exits 1 where it was measured under load.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from measure import LoadWatch, finish
from torchvision.transforms import Compose, Normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Page, browser_page

from vit_clt import CLTConfig, CrossLayerTranscoder, ReLUTopK
from vit_clt.analysis import explore
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.reporting.study import study_files, write_study
from vit_clt.data.images import TensorImages
from vit_clt.hooks import HookedViT
from vit_clt.outputs import OutputFolder

LAYERS, WIDTH, K = 12, 64, 16
BARS = {"first view, ms": 1000, "a click, ms": 200, "all files, MB": 100}
CLASSES = [f"a photo of thing {chr(97 + c)}" for c in range(10)]


def random_explorer(n_features: int, n_images: int) -> Explorer:
    """The explorer of a random CLT."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            **{"image_size": 64, "layers": LAYERS, "width": WIDTH},
            **{"head_width": 16, "patch_size": 8},
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    clip = open_clip.CLIP(**config).eval()
    vit = HookedViT(
        clip,
        preprocess=Compose([Normalize((0.5,) * 3, (0.25,) * 3)]),
        tokenizer=lambda texts: torch.tensor([[ord(t[-1]) % 64] * 7 + [63] for t in texts]),
    )
    images = F.interpolate(torch.randn(n_images, 3, 8, 8), size=(64, 64), mode="bicubic")
    data = TensorImages(images, torch.arange(n_images) % len(CLASSES), CLASSES, name="random")
    clt = CrossLayerTranscoder(CLTConfig(LAYERS, WIDTH, n_features, ReLUTopK(k=K)))
    return explore(vit, clt, data, graphs=12, clt_name="random", progress=True)


def click(page: Page, act: str) -> float:
    """Milliseconds from an act to the end of the frame in which another view is drawn."""
    return page.value(
        "new Promise((done) => { const view = document.getElementById('view'), before = "
        "view.dataset.shown, began = performance.now(); "
        "const look = () => (view.dataset.shown === before ? setTimeout(look, 1) : "
        "requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)))); "
        f"{act}; look(); }})"
    )


def walk(page: Page, address: str, graph_row: int) -> dict[str, float]:
    """A reader's way from the first view on: milliseconds of each step."""
    page.open("about:blank")
    began = time.perf_counter()
    page.open(address)
    page.until("document.getElementById('view').dataset.shown")
    found = {"first view": 1000 * (time.perf_counter() - began)}
    press = "document.querySelector({!r}).click()"
    steps = {
        "a cell of the heatmap": press.format("[data-cell='3,9']"),
        "a feature": press.format("#rows .address"),
        "the next feature": press.format("#view [data-key=right]"),
        "an image": press.format("#view .shelf a.image"),
        "a graph": f"location.hash = '#/graph/{graph_row}'",
        "steering": press.format("#view a[href^='#/steer']"),
        "back": "history.back()",
        "another layer": "location.hash = '#/layer/7?target=11&tokens=cls'",
        "all features": "location.hash = '#/features'",
    }
    for name, act in steps.items():
        found[name] = click(page, act)
    return found


def main() -> None:
    """Make the pages, walk through them several times, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        began = time.perf_counter()
        explorer = random_explorer(args.features, args.images)
        made = time.perf_counter() - began
        path = Path(place) / "explorer"
        write_study(OutputFolder(path, study_files(Explorer, png=False)).open(), explorer, "bench")
        written = time.perf_counter() - began - made
        files = [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        assert explorer.graphs is not None
        watch = LoadWatch()
        rounds = []
        for turn in range(args.rounds):
            with browser_page(Path(place) / f"browser{turn}") as page:
                page.size(1280, 900)
                address = (path / "index.html").as_uri()
                rounds.append(walk(page, address, explorer.graphs.query[0]))
                assert not page.errors, page.errors
                outside = [name for name in page.requests if name.startswith("http")]
                assert not outside, outside
    waits = {name: [each[name] for each in rounds] for name in rounds[0]}
    for name, values in waits.items():
        print(f"{name:24}{statistics.median(values):8.0f} ms   largest {max(values):.0f}")
    print(f"made in {made:.0f} s, written in {written:.0f} s: {size:.1f} MB in {len(files)} files")
    report = {
        "layers": LAYERS,
        "features": args.features,
        "images": args.images,
        "pages": len(explorer.gallery.pages),
        "seconds_made": made,
        "seconds_written": written,
        "megabytes": size,
        "milliseconds": waits,
        "bars": BARS,
    }
    finish(report, watch, args.out)


if __name__ == "__main__":
    main()
