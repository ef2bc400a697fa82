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
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from tqdm import tqdm

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
_AT_EITHER_END = 10  # classes whose effects a page shows, where there are more than twice as many


def gallery_contents(gallery: FeatureGallery) -> Iterator[tuple[str, str | bytes]]:
    """Names and contents of the gallery's files, each made when the one before it is done with.

    Raises:
        InputError: a model without its preprocessing.
    """
    pages = gallery.pages
    rows = pages.rows
    place = {row: i for i, row in enumerate(rows)}
    size = (1, 1)
    for name, sheet, image_size in _sheets(gallery, rows):
        size = image_size
        yield name, sheet
    with_page = set(pages.features)
    columns: dict[str, list[Any]] = {}
    with tqdm(total=len(pages), desc="gallery", unit=" pages", disable=not pages.progress) as bar:
        for block, start in enumerate(range(0, len(pages), PAGES_PER_FILE)):
            some = pages[start : start + PAGES_PER_FILE]
            for page in some:
                for column, value in _listed(page, place).items():
                    columns.setdefault(column, []).append(value)
            entries = _json([_page_entry(page, place, with_page) for page in some])
            yield f"pages/pages-{block:03}.js", f"GALLERY.blocks[{block}] = {entries};\n"
            bar.update(len(some))
    document = _document(gallery, rows, size) | {"features": columns}
    yield "data.js", f"window.GALLERY = {_json(document)};\n"
    parts = files("vit_clt.analysis.features") / "gallery_files"
    for name in _PARTS:
        yield name, (parts / name).read_text("utf-8")


def _listed(page: FeaturePage, place: dict[int, int]) -> dict[str, Any]:
    """What the list shows of a feature, by column."""
    raised, effect = _raised(page)
    return {
        "layer": page.layer,
        "feature": page.feature,
        "images": _number(page.image_rate),
        "cls": _number(page.cls_rate),
        "patch": _number(page.patch_rate),
        "purity": _number(page.purity),
        "base": _number(page.base),
        "chance": _number(page.purity_by_chance),
        "label": page.label,
        "raised": raised,
        "effect": _number(effect),
        "top": [place[shown.row] for shown in page.top[:_THUMBNAILS]],
    }


def _document(
    gallery: FeatureGallery, rows: Sequence[int], size: tuple[int, int]
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
        else f"first {effects.n_images} images, readout: {effects.readout}",
        "Seed": f"{gallery.seed} (images drawn at random)",
    }
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
        "images": {"row": rows, "label": gallery.labels[rows].tolist()},
        "pages_per_file": PAGES_PER_FILE,
        "blocks": {},
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
    maps = np.stack([each.patches.ravel() for each in page.examples])
    steps = np.zeros(maps.shape, int)
    if scale:
        steps = np.rint(maps / scale * _STEPS).astype(int)
        # what is active is seen to be, in the colour of its sign
        steps = np.where(steps == 0, np.sign(maps).astype(int), steps)
    steps_of = {each.row: row for each, row in zip(page.examples, steps.tolist(), strict=True)}

    def shown(each: Example) -> list[Any]:
        cls = None if each.cls is None else _number(each.cls)
        return [place[each.row], _number(each.value), cls, steps_of[each.row]]

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
        else [[c, *map(_number, effects[:, c].tolist())] for c in _shown_classes(effects[0])],
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


def _shown_classes(centred: Float[np.ndarray, " class"]) -> list[int]:
    """Classes from the highest effect to the lowest: all, or the ten at either end."""
    order = np.argsort(-centred, kind="stable").tolist()
    return (
        order
        if len(order) <= 2 * _AT_EITHER_END
        else order[:_AT_EITHER_END] + order[-_AT_EITHER_END:]
    )


def _sheets(
    gallery: FeatureGallery, rows: Sequence[int]
) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Sheets of 16 x 16 images in row order: file name, PNG, height and width of one image."""
    per_sheet = _ACROSS**2
    for number, start in enumerate(range(0, len(rows), per_sheet)):
        some = rows[start : start + per_sheet]
        small = []
        for first in range(0, len(some), gallery.data.batch_size):
            batch = gallery.data.batch(some[first : first + gallery.data.batch_size])[0]
            small += [_small(image) for image in pixels(gallery.vit, batch)]
        height, width = small[0].shape[:2]
        down = -(-len(small) // _ACROSS)
        sheet = np.full((down * height, _ACROSS * width, 3), 255, np.uint8)
        for i, image in enumerate(small):
            y, x = i // _ACROSS * height, i % _ACROSS * width
            sheet[y : y + height, x : x + width] = image
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "PNG", optimize=True)
        yield f"images/sheet-{number:03}.png", file.getvalue(), (height, width)


def _small(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "down across 3"]:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _number(value: float | int, digits: int = 4) -> float | None:
    """Rounded for a file; NaN, which JSON does not know, as null."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
