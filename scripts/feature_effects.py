"""What single features do to the label's logit, and which measures foretell it.

The rule is stated in docs/results/feature_scores.md: features at random, silenced one at a time in
the ViT whose MLPs are all replaced by the CLT, and partial rank correlations within layers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt import CrossLayerTranscoder, load_data
from vit_clt.data.images import ImageData, evenly_spaced
from vit_clt.hooks import HookedViT, replace_mlps
from vit_clt.hooks.points import HOOK_IN
from vit_clt.readouts.zero_shot import ZeroShot

LAYERS = (1, 4, 7, 10)
PER_LAYER, LEAST, IMAGES, ON = 16, 20, 1000, 8
"""Features a layer; images of the first `IMAGES` on which each is active at least; images on which
each is silenced."""
MEASURES = {
    "monosemanticity": "monosemanticity",
    "morans_i": "Moran's I",
    "class_auc": "class AUC",
    "effect": "direct effect",
    "stability": "agreement with ReLU-TopK",
}
DRAWS = 1000
_LEAST_CLTS = 4


@torch.no_grad()
def effects_of(root: Path, place: Path, out: Path) -> Path:
    """The file of the effects of one CLT's features, measured where it is missing.

    Args:
        root: folder of the teacher and the images.
        place: folder of the CLT.
        out: folder of the files.
    """
    path = out / f"effects_{place.name}.csv"
    if path.is_file():
        return path
    print(f"effects of {place.name} ...", flush=True)
    vit = HookedViT.load(f"local-dir:{root}/teachers/cifar10")
    clt = CrossLayerTranscoder.from_pretrained(place).eval()
    data = load_data(f"parquet:{root}/data/cifar10/test.parquet", vit=vit, limit=IMAGES)
    zs = ZeroShot(vit, data.class_names)
    rng = np.random.default_rng(0)
    rows = []
    for layer, active in _active(vit, clt, data).items():
        enough = np.flatnonzero(active.sum(0) >= LEAST)
        features = sorted(rng.permutation(enough)[:PER_LAYER].tolist())
        on = [np.flatnonzero(active[:, feature]) for feature in features]
        chosen = [int(each[i]) for each in on for i in evenly_spaced(len(each), ON)]
        changes = _changes(vit, clt, zs, *data.batch(chosen), layer, features)
        for feature, change in zip(features, changes, strict=True):
            rows.append({"layer": layer, "feature": feature, "change": change})
    part = path.with_suffix(".part")
    pd.DataFrame(rows).to_csv(part, index=False)
    return part.rename(path)


def _active(vit: HookedViT, clt: CrossLayerTranscoder, data: ImageData) -> dict[int, np.ndarray]:
    """Of every layer, on which image each feature is active, "image feature"."""
    names = {l: HOOK_IN.format(l=l) for l in LAYERS}
    found: dict[int, list[Tensor]] = {l: [] for l in LAYERS}
    for images, _ in data:
        cache = vit.clean_cache(images, list(names.values()))
        for l, name in names.items():
            codes = clt.encode(cache[name], layer=l)
            found[l] += [codes[i].to_dense().ne(0).any(0) for i in range(len(images))]
    return {l: torch.stack(each).numpy() for l, each in found.items()}


def _changes(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    zs: ZeroShot,
    images: Tensor,
    labels: Tensor,
    layer: int,
    features: list[int],
) -> list[float]:
    """Mean |change of the label's logit| as each feature is set to 0 on all rows of its images.

    Args:
        vit: the teacher.
        clt: its transcoder.
        zs: the classifier.
        images: `ON` images of each feature, one feature after the other.
        labels: of these images.
        layer: the layer of the features.
        features: their numbers.
    """
    silenced = torch.tensor(features).repeat_interleave(ON)

    def silence(codes: Tensor, hook: HookPoint) -> Tensor:
        codes = codes.clone()
        codes[torch.arange(len(silenced)), :, silenced] = 0
        return codes

    hooks = [(f"clt.{layer}.hook_codes", silence)]
    # below the feature nothing is altered, so that those MLPs may as well be the ViT's own
    above = range(layer, vit.cfg.n_layers)
    # with error nodes the ViT whose codes are as they were is the ViT itself
    clean = vit(images)
    with replace_mlps(vit, clt, layers=above, error_node=True):
        altered = vit.run_with_hooks(images, fwd_hooks=hooks)
    of_label = [zs.logits(each).gather(1, labels[:, None]) for each in (clean, altered)]
    return (of_label[1] - of_label[0]).abs().view(len(features), ON).mean(1).tolist()


def verdicts(out: Path, names: list[str]) -> str:
    """The table of what every measure foretells in every CLT, as Markdown."""
    scores = pd.concat(
        [pd.read_csv(path) for path in sorted(out.glob("*/feature_scores.csv"))],
        ignore_index=True,
    )
    lines = ["| measure | " + " | ".join(names) + " | foretells in |"]
    lines.append("|" + "---|" * (len(names) + 2))
    for measure, title in MEASURES.items():
        cells, signs = [], []
        for name in names:
            effects = pd.read_csv(out / f"effects_{name}.csv")
            of_clt = scores[scores["dictionary"] == name]
            table = effects.merge(of_clt, on=["layer", "feature"]).dropna(subset=[measure])
            rho, interval, floor = partial_correlation(table, measure)
            apart = interval[0] > floor[1] or interval[1] < floor[0]
            signs += [np.sign(rho)] if apart else []
            text = f"{rho:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"
            cells.append(f"**{text}**" if apart else text)
        most = max((signs.count(sign) for sign in (1, -1)), default=0)
        verdict = f"{most} of {len(names)}: {'yes' if most >= _LEAST_CLTS else 'no'}"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {verdict} |")
    return "\n".join(lines)


def partial_correlation(
    table: pd.DataFrame, measure: str, seed: int = 0
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Partial Spearman correlation within layers of a measure and the change, rate taken out.

    Args:
        table: columns layer, image_rate, change and the measure.
        measure: name of the column.
        seed: seed of the bootstrap and of the shuffles.

    Returns:
        The correlation, its bootstrap interval over features, and that of shuffled measures.
    """
    rng = np.random.default_rng(seed)
    layers = table["layer"].to_numpy()

    def rho(rows: np.ndarray, values: np.ndarray) -> float:
        ranked = [
            _ranks(each[rows], layers[rows])
            for each in (values, table["change"].to_numpy(), table["image_rate"].to_numpy())
        ]
        x, y = (
            each - ranked[2] * (each @ ranked[2]) / (ranked[2] @ ranked[2]) for each in ranked[:2]
        )
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    every, values = np.arange(len(table)), table[measure].to_numpy(float)
    draws = [rho(rng.integers(0, len(table), len(table)), values) for _ in range(DRAWS)]
    shuffles = []
    for _ in range(DRAWS):
        shuffled = values.copy()
        for layer in np.unique(layers):
            at = np.flatnonzero(layers == layer)
            shuffled[at] = rng.permutation(values[at])
        shuffles.append(rho(every, shuffled))
    ends = [tuple(np.quantile(each, [0.025, 0.975]).tolist()) for each in (draws, shuffles)]
    return rho(every, values), ends[0], ends[1]


def _ranks(values: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Ranks within each layer, as shares, less their mean."""
    ranks = np.empty(len(values))
    for layer in np.unique(layers):
        at = layers == layer
        ranks[at] = (rankdata(values[at]) - (at.sum() + 1) / 2) / at.sum()
    return ranks
