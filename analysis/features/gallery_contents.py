"""A browsable gallery of features: plain files that open from disk, without server or network.

    index.html, gallery.css, gallery.js     the page and what draws it
    data.js                                 one entry per feature: what the list shows and sorts
    pages/pages-000.js, ...                 what the features' own pages show, read when asked for
    images/sheet-000.png, ...               every image shown, once, side by side

Scripts instead of JSON because a page opened from disk may not fetch, only load scripts.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_clt.analysis.features.page import Example, FeaturePage
from vit_clt.analysis.reporting.pictures import pixels
from vit_clt.analysis.stats.names import short_names

if TYPE_CHECKING:
    from vit_clt.analysis.features.gallery import FeatureGallery

_PARTS = ("index.html", "gallery.css", "gallery.js")
SIDE = 64
"""Longest side of an image in pixels; smaller ones keep their size."""
PAGES_PER_FILE = 64
_ACROSS = 16  # images across and down a sheet
_THUMBNAILS = 5  # images a row of the list
_STEPS = 99  # of an activation map, from 0 to its scale


def gallery_contents(gallery: FeatureGallery) -> dict[str, str | bytes]:
    """Contents of the gallery's files, by name.

    Raises:
        InputError: a model without its preprocessing.
    """
    pages = gallery.pages
    rows = sorted({shown.row for page in pages for shown in _examples(page)})
    place = {row: i for i, row in enumerate(rows)}
    found, size = _sheets(gallery, rows)
    with_page = {(page.layer, page.feature) for page in pages}
    for block, start in enumerate(range(0, len(pages), PAGES_PER_FILE)):
        some = [
            _page_entry(page, place, with_page) for page in pages[start : start + PAGES_PER_FILE]
        ]
        found[f"pages/pages-{block:03}.js"] = f"GALLERY.blocks[{block}] = {_json(some)};\n"
    document = _document(gallery, place, size)
    found["data.js"] = f"window.GALLERY = {_json(document)};\n"
    parts = files("vit_clt.analysis.features") / "gallery_files"
    return found | {name: (parts / name).read_text("utf-8") for name in _PARTS}


def _examples(page: FeaturePage) -> list[Example]:
    return [*page.top, *(shown for part in page.ranges for shown in part.examples)]


def _document(
    gallery: FeatureGallery, place: dict[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    pages, effects = gallery.pages, gallery.effects
    clt, cfg = gallery.clt.config, gallery.vit.cfg
    facts = {
        "Data": f"{gallery.data.name}, N = {gallery.n_images}",
        "Model": f"{cfg.model}, {cfg.n_layers} layers of width {cfg.d_model}",
        "CLT": f"{clt.n_features} features a layer, {clt.sparsifier.name}; L0 a token row by "
        "layer: " + ", ".join(f"{s}:\u00a0{l0:.1f}" for s, l0 in gallery.l0.items()),
        "Codes": "teacher trajectory; active is z ≠ 0",
        "Shown": f"{len(pages)} of {len(gallery.layers) * clt.n_features} features: {gallery.rule}",
        "Class effects": "not measured"
        if effects is None
        else f"first {effects.n_images} images, templates: {effects.templates}",
        "Seed": f"{gallery.seed} (images drawn at random)",
    }
    raised = [_raised(page) for page in pages]
    return {
        "title": f"Features on {gallery.data.name}",
        "facts": facts,
        "context": gallery.caption(),
        "classes": list(short_names(gallery.data.class_names).values()),
        "effect_classes": []
        if effects is None
        else list(short_names(effects.class_names).values()),
        "n_images": gallery.n_images,
        "effect_images": 0 if effects is None else effects.n_images,
        "has_cls": cfg.rows.has_cls,
        "grid": {"down": cfg.patch_grid[0], "across": cfg.patch_grid[1]},
        "image": {"width": size[1], "height": size[0], "sheet": _ACROSS},
        "images": {"row": list(place), "label": gallery.labels[list(place)].tolist()},
        "pages_per_file": PAGES_PER_FILE,
        "blocks": {},
        "features": {
            "layer": [page.layer for page in pages],
            "feature": [page.feature for page in pages],
            "images": [_number(page.image_rate) for page in pages],
            "cls": [_number(page.cls_rate) for page in pages],
            "patch": [_number(page.patch_rate) for page in pages],
            "purity": [_number(page.purity) for page in pages],
            "base": [_number(page.base) for page in pages],
            "chance": [_number(page.purity_by_chance) for page in pages],
            "label": [page.label for page in pages],
            "raised": [c for c, _ in raised],
            "effect": [_number(value) for _, value in raised],
            "top": [[place[e.row] for e in page.top[:_THUMBNAILS]] for page in pages],
        },
    }


def _raised(page: FeaturePage) -> tuple[int, float]:
    """The class whose logit rises most, and by how much; -1 where none does, NaN if unknown."""
    if page.effects is None or not page.effect_images:
        return -1, math.nan
    label = int(page.effects[0].argmax())
    effect = float(page.effects[0, label])
    return (label if effect > 0 else -1), effect


def _page_entry(
    page: FeaturePage, place: dict[int, int], with_page: set[tuple[int, int]]
) -> dict[str, Any]:
    scale = page.map_scale

    def shown(each: Example) -> list[Any]:
        steps = np.zeros(each.patches.size, int)
        if scale:
            steps = np.rint(each.patches.ravel() / scale * _STEPS).astype(int)
            # what is active is seen to be, in the colour of its sign
            steps = np.where(steps == 0, np.sign(each.patches.ravel()).astype(int), steps)
        cls = None if each.cls is None else _number(each.cls)
        return [place[each.row], _number(each.value), cls, steps.tolist()]

    effects = page.effects
    return {
        "active": page.active_images,
        "scale": _number(scale),
        "edges": [_number(edge, 8) for edge in page.edges[[0, -1]].tolist()],
        "counts": page.counts.tolist(),
        "top": [shown(each) for each in page.top],
        "bands": [[r.low, r.high, [shown(each) for each in r.examples]] for r in page.ranges],
        "writes": [[l, _number(cls), _number(patch)] for l, (cls, patch) in page.writes.items()],
        "effects": None
        if effects is None or not page.effect_images
        else [[_number(value) for value in row] for row in effects.tolist()],
        "effect_images": page.effect_images,
        "near": [
            [
                n.layer,
                n.feature,
                _number(n.cosine),
                n.n_targets,
                _number(jaccard),
                (n.layer, n.feature) in with_page,
            ]
            for n, jaccard in zip(page.near, page.together, strict=True)
        ],
    }


def _sheets(
    gallery: FeatureGallery, rows: Sequence[int]
) -> tuple[dict[str, str | bytes], tuple[int, int]]:
    """Sheets of 16 x 16 images in row order, by file name; height and width of one image."""
    found: dict[str, str | bytes] = {}
    per_sheet = _ACROSS**2
    size = (1, 1)
    for number, start in enumerate(range(0, len(rows), per_sheet)):
        some = rows[start : start + per_sheet]
        small = []
        for first in range(0, len(some), gallery.data.batch_size):
            batch = gallery.data.batch(some[first : first + gallery.data.batch_size])[0]
            small += [_small(image) for image in pixels(gallery.vit, batch)]
        height, width = size = small[0].shape[:2]
        down = -(-len(small) // _ACROSS)
        sheet = np.full((down * height, _ACROSS * width, 3), 255, np.uint8)
        for i, image in enumerate(small):
            y, x = i // _ACROSS * height, i % _ACROSS * width
            sheet[y : y + height, x : x + width] = image
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "PNG", optimize=True)
        found[f"images/sheet-{number:03}.png"] = file.getvalue()
    return found, size


def _small(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "down across 3"]:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _number(value: float | int, digits: int = 4) -> float | None:
    """Rounded for a file; NaN, which JSON does not know, as null."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
