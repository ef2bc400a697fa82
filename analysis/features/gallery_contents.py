"""What the front end shows of features: their lists, layer by layer, and a page of each.

layers/layer-00.js, ...     a layer's features by column: what lists show, sort and search
pages/pages-000.js, ...     what the features' own pages show, in blocks
images/sheet-000.png, ...   every image shown, once
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vit_clt.analysis.features.active import CLS, PATCH
from vit_clt.analysis.features.page import Example, FeaturePage
from vit_clt.analysis.stats.names import short_names
from vit_clt.analysis.viewer.encoding import map_text, number, script
from vit_clt.analysis.viewer.front_end import front_end
from vit_clt.analysis.viewer.sheets import sheets
from vit_clt.progress import Progress

if TYPE_CHECKING:
    from vit_clt.analysis.features.gallery import FeatureGallery
    from vit_clt.analysis.features.names import FeatureNames

PAGES_PER_FILE = 64
_THUMBNAILS = 5  # images a row of the list
_TESTED = (
    *("auc", "auc_low", "auc_high"),
    *("texts_mean", "texts_high", "features_mean", "features_high"),
)
_AT_EITHER_END = 10  # classes whose effects a page shows, where there are more than twice as many


def gallery_contents(gallery: FeatureGallery) -> Iterator[tuple[str, str | bytes]]:
    """Names and contents of the gallery's files, each made when the one before it is done with.

    Raises:
        InputError: a model without its preprocessing.
    """
    rows = gallery.pages.rows
    size = (1, 1)
    for name, sheet, image_size in sheets(gallery.vit, gallery.data, rows):
        size = image_size
        yield name, sheet
    yield from feature_files(gallery, {row: i for i, row in enumerate(rows)})
    yield from front_end(gallery_document(gallery, rows, size))


def feature_files(
    gallery: FeatureGallery, place: Mapping[int, int]
) -> Iterator[tuple[str, str | bytes]]:
    """The files of the features' pages and lists.

    Args:
        gallery: the features.
        place: of each image shown, by its number in the data, its place on the sheets.
    """
    pages = gallery.pages
    with_page = set(pages.features)
    columns: dict[int, dict[str, list[Any]]] = {s: {} for s in gallery.layers}
    with Progress(
        total=len(pages), desc="pages", unit=" features", disable=not pages.progress
    ) as bar:
        for block, start in enumerate(range(0, len(pages), PAGES_PER_FILE)):
            some = pages[start : start + PAGES_PER_FILE]
            for i, page in enumerate(some, start):
                for column, value in _listed(page, place).items():
                    columns[page.layer].setdefault(column, []).append(value)
                columns[page.layer].setdefault("page", []).append(i)
            entries = [
                _page_entry(page, place, with_page) | {"naming": _naming(gallery.names, page)}
                for page in some
            ]
            yield f"pages/pages-{block:03}.js", script(f"pages[{block}]", entries)
            bar.update(len(some))
    for s, listed in columns.items():
        written = {"targets": list(gallery.clt.config.targets(s))} | _mean_writes(
            gallery, s, listed.get("feature", [])
        )
        yield f"layers/layer-{s:02}.js", script(f"layers[{s}]", listed | {"write": written})


def gallery_document(
    gallery: FeatureGallery, rows: Sequence[int], size: tuple[int, int]
) -> dict[str, Any]:
    """What the page begins with: the facts, and the images and layers there are.

    Args:
        gallery: the features.
        rows: numbers in the data of all images shown, in the order of the sheets.
        size: height and width of an image on the sheets.
    """
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
        "Names": "not sought" if gallery.names is None else gallery.names.caption(),
        "Seed": f"{gallery.seed} (images drawn at random)",
    }
    with_page = np.bincount([s for s, _ in pages.features], minlength=cfg.n_layers)
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
        "image": {"width": size[1], "height": size[0]},
        "images": {"row": list(rows), "label": gallery.labels[list(rows)].tolist()},
        "pages_per_file": PAGES_PER_FILE,
        "with_page": {s: int(with_page[s]) for s in gallery.layers},
        "names": {} if gallery.names is None else gallery.names.by_address,
        "naming": None if gallery.names is None else gallery.names.caption(),
        "layers": {},
        "pages": {},
    }


def _naming(names: FeatureNames | None, page: FeaturePage) -> dict[str, Any] | None:
    """The text tested as a name of a feature, with its test; None where none was sought."""
    found = None if names is None else names.tested(page.layer, page.feature)
    if found is None:
        return None
    return {name: found[name] for name in ("name", "reason", "text", "evidence", "fires", "n")} | {
        name: None if math.isnan(found[name]) else number(found[name], 3) for name in _TESTED
    }


def _listed(page: FeaturePage, place: Mapping[int, int]) -> dict[str, Any]:
    """What the list shows of a feature, by column."""
    raised, effect = _raised(page)
    return {
        "feature": page.feature,
        "images": number(page.image_rate),
        "cls": number(page.cls_rate),
        "patch": number(page.patch_rate),
        "purity": number(page.purity),
        "base": number(page.base),
        "chance": number(page.purity_by_chance),
        "label": page.label,
        "raised": raised,
        "effect": number(effect),
        "top": [place[shown.row] for shown in page.top[:_THUMBNAILS]],
    }


def _mean_writes(
    gallery: FeatureGallery, s: int, features: Sequence[int]
) -> dict[str, list[list[float | None]]]:
    """Size of each feature's write at each target, a mean over all rows of a kind.

    E||z_i W_dec[s->l]_i|| / sqrt(E||y_l||^2), over the rows on which it is silent too; a list of
    features for each target.
    """
    chosen = np.array(features, int)
    norms = gallery.clt.W_dec[s].detach().double().norm(dim=-1).cpu().numpy()[:, chosen]
    targets = list(gallery.clt.config.targets(s))
    mean_size = np.nan_to_num(gallery.sizes(s)) * gallery.rates(s)  # NaN for a kind not there
    found = {}
    for name, kind in (("cls", CLS), ("patch", PATCH)):
        share = mean_size[kind, chosen] * norms / gallery.norms[kind, targets][:, None]
        found[name] = [[number(v, 3) for v in row] for row in share.tolist()]
    return found


def _raised(page: FeaturePage) -> tuple[int, float]:
    """The class whose logit rises most, and by how much; -1 where none does, NaN if unknown."""
    if page.effects is None or not page.effect_images:
        return -1, math.nan
    label = int(page.effects[0].argmax())
    effect = float(page.effects[0, label])
    return (label if effect > 0 else -1), effect


def _page_entry(
    page: FeaturePage, place: Mapping[int, int], with_page: set[tuple[int, int]]
) -> dict[str, Any]:
    scale = page.map_scale

    def shown(each: Example) -> list[Any]:
        cls = None if each.cls is None else number(each.cls)
        return [place[each.row], number(each.value), cls, map_text(each.patches, scale)]

    effects = page.effects
    return {
        "active": page.active_images,
        "scale": number(scale),
        "edges": [number(edge, 8) for edge in page.edges[[0, -1]].tolist()],
        "counts": page.counts.tolist(),
        "top": [shown(each) for each in page.top],
        "bands": [[r.low, r.high, [shown(each) for each in r.examples]] for r in page.ranges],
        "writes": [[l, number(cls), number(patch)] for l, (cls, patch) in page.writes.items()],
        "effects": None
        if effects is None or not page.effect_images
        else [[c, *map(number, effects[:, c].tolist())] for c in _shown_classes(effects[0])],
        "effect_images": page.effect_images,
        "near": [
            [
                n.layer,
                n.feature,
                number(n.cosine),
                n.n_targets,
                number(jaccard),
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
