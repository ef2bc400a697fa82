"""Norms of the residual stream by depth, what LayerScale leaves of y, and where the errors are.

For scripts/dinov2_small.py. Over the rows of a layer l, with gamma the LayerScale of its MLP,
mid the residual stream before the MLP and post = mid + gamma y the stream after it:

    share        median of ||gamma y|| / ||mid||: what the MLP adds to the stream
    FVU          sum ||y - y^||^2 / sum ||y - mean||^2, the mean over these rows
    FVU, scaled  the same of gamma y, as the stream has it
    added error  median of ||gamma (y - y^)|| / ||post||
    largest 1 %  of the patch rows by ||mid||: the shares that they hold of those two sums of FVU
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from dinov2_images import linked_model
from jaxtyping import Float
from torch import Tensor

from vit_clt import CrossLayerTranscoder, load_data
from vit_clt.analysis.fit.reconstruction_sums import survey_outputs
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, RESID_MID, RESID_POST

N_IMAGES = 500
LARGEST = 100
"""One patch row in this many is among the largest."""
WIDE, N_WIDE = 518, 20
"""Norms are measured at the image size of the model's own training too, in pixels; images there."""


@dataclass(frozen=True)
class Rows:
    """What was measured at each row of one layer, "image token"."""

    mid: Float[Tensor, "image token"]
    """||mid||; the others are in the words of the module's docstring."""
    post: Float[Tensor, "image token"]
    added: Float[Tensor, "image token"]
    error: Float[Tensor, "image token"]
    spread: Float[Tensor, "image token"]
    scaled_error: Float[Tensor, "image token"]
    scaled_spread: Float[Tensor, "image token"]


@torch.no_grad()
def measure(vit: HookedViT, clt: CrossLayerTranscoder, data: ImageData) -> list[Rows]:
    """All rows of all layers, on the teacher trajectory; squared norms for errors and spreads.

    The mean of y is taken over images for patch rows together, and for the class token.
    """
    layers = range(vit.cfg.n_layers)
    kinds = {kind: token_rows(kind, vit.cfg.rows) for kind in ("cls", "patch")}
    survey = survey_outputs(vit, data, kinds)
    mean = torch.cat(
        [
            survey.pooled_mean(kind)[:, None].expand(-1, len(range(vit.cfg.n_tokens)[at]), -1)
            for kind, at in kinds.items()
        ],
        1,
    )
    keep = dict.fromkeys((RESID_MID, HOOK_IN, HOOK_OUT, RESID_POST), layers)
    found: list[list[Rows]] = [[] for _ in layers]
    for images, _ in data:
        clean = CleanPass(vit, images, keep)
        decoded = clt.decode(clt.encode(torch.stack([clean.at(HOOK_IN, l) for l in layers])))
        for l in layers:
            gamma = vit.blocks[l].gamma2
            y = clean.at(HOOK_OUT, l).double()
            error, centred = y - decoded[l], y - mean[l]
            parts = (
                clean.at(RESID_MID, l).norm(dim=-1),
                clean.at(RESID_POST, l).norm(dim=-1),
                (gamma * y).norm(dim=-1),
                *(part.square().sum(-1) for part in (error, centred)),
                *((gamma * part).square().sum(-1) for part in (error, centred)),
            )
            found[l].append(Rows(*parts))
    return [
        Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))
        for parts in found
    ]


@torch.no_grad()
def stream_norms(vit: HookedViT, data: ImageData) -> Float[Tensor, "layer image patch"]:
    """||post|| of every patch row."""
    layers, first = range(vit.cfg.n_layers), vit.cfg.rows.first_patch
    parts = []
    for images, _ in data:
        clean = CleanPass(vit, images, {RESID_POST: layers})
        parts.append(torch.stack([clean.at(RESID_POST, l)[:, first:].norm(dim=-1) for l in layers]))
    return torch.cat(parts, 1)


def diagonal_table(place: Path) -> str:
    """Centred C(l->l) by layer as Markdown, beside C(l-1->l) and the largest of other sources.

    Args:
        place: `contributions.csv` of `vit-clt contributions`.
    """
    scores = pd.read_csv(place).query("kind == 'centred' and source >= 0")
    lines = [
        "Centred C(l→l), C(l-1→l), and the largest of any other source:",
        "",
        "| layer | CLS | from l-1 | largest other | patches | from l-1 | largest other |",
        "|" + "---|" * 7,
    ]
    by_target = scores.set_index(["tokens", "target", "source"])["score"]
    for l in sorted(set(scores["target"])):
        cells = []
        for tokens in ("cls", "patch"):
            row = by_target[tokens, l]
            others = row.drop(l).dropna()
            cells += [
                f"{row[l]:.2f}",
                f"{row[l - 1]:.2f}" if l else "",
                f"{others.max():.2f} (layer {others.idxmax()})" if len(others) else "",
            ]
        lines.append(f"| {l} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def fixed_order(contributions: Path, causal: Path) -> float:
    """How well one order of sources, the same for every target, ranks direct effects.

    The order is that of C(s->L-1), centred, CLS rows. The result is the mean over all other targets
    with at least three sources of its Spearman correlation with the direct effects on y.

    Args:
        contributions: `contributions.csv` of `vit-clt contributions`.
        causal: `causal.csv` of `vit-clt causal`.
    """
    scores = pd.read_csv(contributions).query("kind == 'centred' and tokens == 'cls'")
    order = scores[scores["target"] == scores["target"].max()].set_index("source")["score"]
    effects = pd.read_csv(causal).query("path == 'direct' and measure == 'y'")
    effects = effects.astype({"layers": int, "target": int}).set_index("layers")
    found = [
        group.corr(order.reindex(group.index), method="spearman")
        for target, group in effects.groupby("target")["value"]
        if 3 <= target < scores["target"].max()
    ]
    return float(np.mean(found))


def depth_tables(model: Path, root: Path, out: Path) -> str:
    """Tables as Markdown: scores on the diagonal, LayerScale and errors, norms of patch rows."""
    vit = HookedViT.load(f"hf:{out / 'vit'}")
    clt = CrossLayerTranscoder.from_pretrained(out / "clt").eval().requires_grad_(False)
    wide = HookedViT.load(f"hf:{linked_model(model, out / 'vit_wide', WIDE)}")
    cifar = f"parquet:{root}/data/cifar10/test.parquet"
    rows = measure(vit, clt, load_data(cifar, split="test", limit=N_IMAGES, vit=vit))
    lines = [
        f"LayerScale and errors, {N_IMAGES} test images of CIFAR-10, CLS / patch rows:",
        "",
        "| layer | mean \\|gamma\\| | share | FVU | FVU, scaled | added error |",
        "|---|---|---|---|---|---|",
    ]
    for l, layer in enumerate(rows):
        at_rows = [
            Rows(*(part[:, at] for part in vars(layer).values()))
            for at in (slice(1), slice(1, None))
        ]
        columns = (
            [(at.added / at.mid).median() for at in at_rows],
            [at.error.sum() / at.spread.sum() for at in at_rows],
            [at.scaled_error.sum() / at.scaled_spread.sum() for at in at_rows],
            [(at.scaled_error.sqrt() / at.post).median() for at in at_rows],
        )
        cells = " | ".join(" / ".join(f"{value:.3f}" for value in both) for both in columns)
        lines.append(f"| {l} | {vit.blocks[l].gamma2.abs().mean():.2f} | {cells} |")
    scores = out / "contributions" / "contributions.csv"
    diagonal = diagonal_table(scores) + (
        "\nSpearman of direct effects on y_l with one order for all targets, that of C(s→L-1): "
        f"{fixed_order(scores, out / 'causal' / 'causal.csv'):.2f}\n"
    )
    return "\n".join(
        [diagonal, *lines, "", norm_table(vit, wide, rows, f"coco:{root}/data/coco_tiny")]
    )


def norm_table(vit: HookedViT, wide: HookedViT, rows: list[Rows], coco: str) -> str:
    """Norms of patch rows by layer as Markdown, and what the largest hold of the sums of FVU."""
    norms = {
        f"CIFAR-10, {vit.cfg.image_size[0]}": torch.stack([layer.post[:, 1:] for layer in rows])
    }
    for model in (vit, wide):
        name = f"COCO, {model.cfg.image_size[0]}"
        data = load_data(coco, split="val", limit=N_WIDE, vit=model)
        data.batch_size = 4
        norms[name] = stream_norms(model, data)
    lines = [
        "Norms of patch rows after each block, median / 99 % quantile / largest, by data and image "
        "size in pixels; CIFAR-10: shares of the sums of FVU in the largest 1 % of rows:",
        "",
        f"| layer | {' | '.join(norms)} | of the variation | of the error |",
        "|" + "---|" * (3 + len(norms)),
    ]
    for l, layer in enumerate(rows):
        cells = []
        for by_layer in norms.values():
            there = by_layer[l].double().flatten()
            shown = (there.median(), there.quantile(0.99), there.max())
            cells.append(" / ".join(f"{norm:.1f}" for norm in shown))
        mid = layer.mid[:, 1:].flatten()
        large = mid.topk(len(mid) // LARGEST).indices
        for part in (layer.spread, layer.error):
            patches = part[:, 1:].flatten()
            cells.append(f"{patches[large].sum() / patches.sum():.1%}")
        lines.append(f"| {l} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
