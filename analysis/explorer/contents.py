"""The files of the explorer: those of its features, and what its other pages show.

    blocks/images-000.js, ...   answers, features and nearest images of every image, in blocks
    graphs/graph-00012.js, ...  the graph of one image, its check, and its steering

Beside them stand the files of the features (`features.gallery_contents`) and of the front end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from vit_clt.analysis.explorer.images import ImageReadings
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.explorer.steered_images import FACTORS, SteeredImage
from vit_clt.analysis.explorer.story import chosen_features
from vit_clt.analysis.features.gallery_contents import feature_files, gallery_document
from vit_clt.analysis.graphs.result import GraphStudy
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.analysis.viewer.encoding import map_text, number, script
from vit_clt.analysis.viewer.front_end import front_end
from vit_clt.analysis.viewer.sheets import sheets

IMAGES_PER_FILE = 100
_KIND_TITLES = {
    "centred": "Where y_l can be read: centred C(s→l)",
    "projection": "Where y_l can be read, with what is the same in every image: projection C(s→l)",
}
_MOST_CLASSES = 10  # whose probabilities a steered image shows


def explorer_contents(explorer: Explorer) -> Iterator[tuple[str, str | bytes]]:
    """Names and contents of all files, each made when the one before it is done with.

    Raises:
        InputError: a model without its preprocessing.
    """
    gallery = explorer.gallery
    rows = range(gallery.n_images)
    size = (1, 1)
    for name, sheet, image_size in sheets(gallery.vit, gallery.data, rows):
        size = image_size
        yield name, sheet
    yield from feature_files(gallery, {row: row for row in rows})
    with_page = set(gallery.pages.features)
    for block, start in enumerate(range(0, len(rows), IMAGES_PER_FILE)):
        some = rows[start : start + IMAGES_PER_FILE]
        entries = [_image_entry(explorer.readings, row, with_page) for row in some]
        yield f"blocks/images-{block:03}.js", script(f"imageBlocks[{block}]", entries)
    if explorer.graphs is not None:
        steered = {each.row: each for each in explorer.steered}
        for i, row in enumerate(explorer.graphs.query):
            entry = _graph_entry(explorer.graphs, i) | {"steered": _steered_entry(steered[row])}
            yield f"graphs/graph-{row:05}.js", script(f"graphs[{row}]", entry)
    document = gallery_document(gallery, rows, size)
    yield from front_end(document | _overview(explorer))


def _overview(explorer: Explorer) -> dict[str, Any]:
    gallery, graphs = explorer.gallery, explorer.graphs
    return {
        "title": f"{explorer.clt} on {gallery.data.name}",
        "bar": _bar(explorer),
        "heatmaps": _heatmaps(explorer),
        "meaning": list(explorer.scores.notes()),
        "scores_on": f"{gallery.data.name}, N = {gallery.n_images}, teacher trajectory",
        "fit": _fit_entry(explorer),
        "replaced": _replaced(explorer),
        "one_label": getattr(gallery.data, "label_sets", None) is None,
        "near_tokens": ROW_NAMES[explorer.readings.near_tokens],
        "images_per_file": IMAGES_PER_FILE,
        "imageBlocks": {},
        "graphs": {},
        "no_graphs": explorer.no_graphs,
        "with_graph": [] if graphs is None else graphs.query,
        "with_steering": [each.row for each in explorer.steered if each.features],
        "graph_targets": [] if graphs is None else graphs.targets,
        "in_graphs": {} if graphs is None else _graphs_by_feature(graphs),
        "agreement": None if graphs is None else _agreement_text(graphs),
        "factors": FACTORS,
        "links": dict(explorer.links),
        "story": _story(explorer),
    }


def _story(explorer: Explorer) -> dict[str, Any]:
    """Findings, a few features, and the largest change by steering."""
    gallery = explorer.gallery
    case = explorer.case
    pages = gallery.feature_pages(chosen_features(gallery))
    features = [
        [
            page.layer,
            page.feature,
            [[shown.row, map_text(shown.patches, page.map_scale)] for shown in page.top[:5]],
            number(page.purity),
            page.label,
            number(page.purity_by_chance),
        ]
        for page in pages
    ]
    steered = None if case is None else [case.row, f"{case.layer}:{case.feature}", case.factor]
    return {"findings": explorer.findings(), "features": features, "steered": steered}


def _bar(explorer: Explorer) -> list[dict[str, str]]:
    """What is in sight on every page: short, in whole sentences, and whether it is a warning."""
    fit, gallery = explorer.fit, explorer.gallery
    names = {"cls": "CLS", "patch": "patches", "register": "registers"}
    parts = [f"{names[kind]} {fit.mean_r2(kind):.2f}" for kind in fit.r2]
    worse = bool(fit.worse_than_mean())
    r2 = (
        f"R² {', '.join(parts)} · L0 {fit.mean_l0():.1f} · {fit.dead_share():.0%} silent on "
        f"{fit.n_images}"
    )
    bar = [
        {"name": "Images", "short": f"N = {gallery.n_images}", "text": gallery.caption()},
        {
            "name": "Fit",
            "short": f"worse than the mean in places · {r2}" if worse else r2,
            "text": fit.line(),
            "level": "bad" if worse else "",
        },
    ]
    if explorer.cascade is None:
        text = "Accuracy and loss need a readout of classes, and a label of every image."
        bar.append({"name": "Replaced", "short": "not measured", "text": text, "level": "open"})
    else:
        replaced = _replaced(explorer)[-1]
        losses = (
            f"{replaced['loss']:.3f} nats (unaltered {replaced['unaltered'][1]:.3f}, floor "
            f"{replaced['mean'][1]:.3f})"
        )
        text = (
            f"All MLPs replaced on {replaced['rows']}, stream inputs: top-1 "
            f"{100 * replaced['top1']:.1f} %, {losses}; the floor has these MLP rows at their "
            f"mean. Readout: {explorer.cascade.readout}."
        )
        bar.append({"name": "Replaced", "short": losses, "text": text})
    verdict = explorer.verdict
    if verdict is None:
        text = (
            "No audit was given. vit-clt audit tests whether these scores hold; explore takes its "
            "folder as --audit."
        )
        bar.append({"name": "Audit", "short": "not audited", "text": text, "level": "open"})
    else:
        level = "" if verdict.holds else "bad"
        bar.append({"name": "Audit", "short": verdict.short, "text": verdict.text, "level": level})
    return bar


def _heatmaps(explorer: Explorer) -> list[dict[str, Any]]:
    """Centred scores first: the sources alone sum to 1, while others have a bias beside them."""
    study = explorer.scores
    kinds = sorted(study.kinds, key=lambda kind: kind != "centred")
    found = []
    for tokens in study.tokens:
        for kind in kinds:
            scores = study.drawn(study.names[0], tokens, kind)
            bias = (
                [] if kind == "centred" else [number(v, 6) for v in scores.values[:, -1].tolist()]
            )
            found.append(
                {
                    "tokens": tokens,
                    "kind": kind,
                    "rows": ROW_NAMES[tokens],
                    "title": _KIND_TITLES.get(kind, scores.title),
                    "l0": number(scores.l0, 3),
                    "values": [[number(v, 6) for v in row] for row in scores.matrix.tolist()],
                    "bias": bias,
                }
            )
    return found


def _fit_entry(explorer: Explorer) -> dict[str, Any]:
    fit = explorer.fit
    return {
        "line": fit.line(),
        "r2": {ROW_NAMES[kind]: [number(v) for v in values] for kind, values in fit.r2.items()},
        "l0": [number(v) for v in fit.l0],
        "silent": [number(v) for v in fit.dead],
    }


def _replaced(explorer: Explorer) -> list[dict[str, Any]]:
    """All MLPs replaced: a row for each token kind, with accuracy and loss beside the floors."""
    if explorer.cascade is None:
        return []
    return [
        {
            "rows": ROW_NAMES[r["tokens"]],
            "top1": number(r["top1"], 6),
            "loss": number(r["loss"], 6),
            "unaltered": [number(r["baseline"], 6), number(r["loss_baseline"], 6)],
            "mean": [number(r["floor_mean"], 6), number(r["loss_floor_mean"], 6)],
            "zero": [number(r["floor_zero"], 6), number(r["loss_floor_zero"], 6)],
        }
        for r in explorer.cascade.to_frame().to_dict("records")
    ]


def _image_entry(
    readings: ImageReadings, row: int, with_page: set[tuple[int, int]]
) -> dict[str, Any]:
    classes = None
    own = None
    if readings.classes is not None and readings.probabilities is not None:
        pairs = zip(readings.classes[row].tolist(), readings.probabilities[row], strict=True)
        classes = [[c, number(float(p))] for c, p in pairs]
        assert readings.of_label is not None
        own = number(float(readings.of_label[row]))
    return {
        "classes": classes,
        "own": own,
        "strong": {
            s: [
                [i, number(z), (s, i) in with_page]
                for i, z in zip(each.features[row].tolist(), each.values[row].tolist(), strict=True)
                if i >= 0
            ]
            for s, each in readings.strong.items()
        },
        "near": {
            s: [
                [i, number(similarity, 3)]
                for i, similarity in zip(
                    near.rows[row].tolist(), near.similarities[row].tolist(), strict=True
                )
            ]
            for s, near in readings.near.items()
        },
    }


def _graph_entry(study: GraphStudy, i: int) -> dict[str, Any]:
    graph = study.graphs[i]
    nodes, edges, about = graph.nodes, graph.edges, graph.metadata
    ids = graph.node_ids()
    measured = study.agreement.interventions.query("image == @i")
    predicted = "direct" if about.norms == "held" else "direct_norms"
    return {
        "target": study.targets[i],
        "logit": number(about.logit),
        "floor": number(study.floors[i]),
        "norms": about.norms,
        "caption": graph.caption(),
        "notes": graph.notes(),
        "nodes": {
            "kind": nodes["kind"].tolist(),
            **{name: _integers(nodes[name]) for name in ("layer", "token", "feature")},
            **{name: _numbers(nodes[name]) for name in ("value", "effect", "total", "influence")},
        },
        "edges": {
            "source": edges["source"].tolist(),
            "target": edges["target"].tolist(),
            "effect": _numbers(edges["effect"], 3),
            "influence": _numbers(edges["influence"], 3),
        },
        "groups": {name: [ids[node] for node in group] for name, group in graph.groups.items()},
        "measured": [
            [
                int(r.layer),
                int(r.token),
                int(r.feature),
                number(getattr(r, predicted)),
                number(r.live),
            ]
            for r in measured.itertuples()
        ],
    }


def _graphs_by_feature(study: GraphStudy) -> dict[str, list[int]]:
    """The images in whose graphs a feature is a node, by its address."""
    found: dict[str, list[int]] = {}
    for row, graph in zip(study.query, study.graphs, strict=True):
        nodes = graph.nodes[graph.nodes["kind"] == "feature"]
        for s, i in sorted(set(zip(nodes["layer"], nodes["feature"], strict=True))):
            found.setdefault(f"{s}:{i}", []).append(row)
    return found


def _agreement_text(study: GraphStudy) -> dict[str, str]:
    """How well direct effects foretell what silencing a feature does, over all graphs."""
    found = study.agreement.live(study.norms)
    holds = study.agreement.supports(study.norms)
    text = (
        f"Direct effects against {int(found['n'])} interventions on these graphs (one feature "
        f"silenced, everything recomputed): Pearson's r {found['pearson']:.2f} "
        f"[{found['pearson_low']:.2f}, {found['pearson_high']:.2f}], floor "
        f"{found['pearson_floor_high']:.2f}; slope {found['slope']:.2f}, 1 is right."
    )
    if study.norms_reason is not None:
        text += " The same interventions chose the norms."
    if not holds:
        text += " They do not support what is drawn here."
    return {"text": text, "level": "" if holds else "bad"}


def _steered_entry(steered: SteeredImage) -> dict[str, Any]:
    """Probabilities of the classes that change or hold most, before and after."""
    all_values = np.stack([steered.clean, *(p for f in steered.features for p in f.probabilities)])
    order = np.argsort(-all_values.max(0), kind="stable")[:_MOST_CLASSES]
    shown = order[np.argsort(-steered.clean[order], kind="stable")]
    return {
        "classes": shown.tolist(),
        "clean": [number(float(p)) for p in steered.clean[shown]],
        "features": [
            {
                "layer": each.layer,
                "feature": each.feature,
                "p": [[number(p) for p in row] for row in each.probabilities[:, shown].tolist()],
                "controls": each.controls,
                "control_change": [
                    [number(p) for p in row] for row in each.control_change[:, shown].tolist()
                ],
            }
            for each in steered.features
        ],
    }


def _integers(column: pd.Series) -> list[int | None]:
    return [None if pd.isna(v) else int(v) for v in column]


def _numbers(column: pd.Series, digits: int = 4) -> list[float | None]:
    return [None if pd.isna(v) else number(float(v), digits) for v in column]
