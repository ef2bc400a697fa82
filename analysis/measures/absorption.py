"""Absorption: does the feature of a parent class fail where a child class' own feature fires?

SAEBench's definition (Chanin et al. 2024, arXiv 2409.14507; Karvonen et al. 2025, arXiv
2503.09532), of a reconstruction in the place of an activation. At target layer l, on the row that
is read (the class token's; where a model has none, the mean over token rows), feature (s, i) adds
z_si W_dec[s->l]_i. Let p be the unit direction of a logistic regression that tells a parent's
images from the others by y_l of training images. Feature (s, i) carries z_si <W_dec[s->l]_i, p>
of what is to be rebuilt along p, R = <y_l - b_dec, p>.

The parent's **main** features are chosen on training images: the one with the largest difference
of means, and the next ones as long as each raises the F1 of a logistic regression by more than
0.03, at most 10. On a held-out image of the parent which the probe gets right,

    full      1 if no main feature is active, R > 0, and the feature that carries most is at a
              cosine with p of at least 0.025 and carries at least 0.4 R; else 0
    fraction  A / (A + M): M is what the main features carry; A what the three largest others with a
              cosine of at least 0.1 carry, at most R - M. 0 if M >= R or the three carry less
              than 0.4 R; 1 if M <= 0

The floor deals the classes to parents of the same sizes at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, hstack, vstack

from vit_clt.data.hierarchies import Hierarchy, listed
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder

F1_RISE = 0.03
MOST_MAIN = 10
FULL_COSINE, FRACTION_COSINE = 0.025, 0.1
PROPORTION = 0.4
MOST_ABSORBING = 3


@dataclass(frozen=True)
class ReadRows:
    """Codes and MLP outputs on the row of each image that is read."""

    codes: dict[int, csr_array]
    """z of every source layer, "image feature"."""
    y: dict[int, Float[np.ndarray, "image d_model"]]
    labels: Int[np.ndarray, " image"]


@dataclass(frozen=True)
class Absorption:
    """Absorption of one parent in one of its child classes at one target layer."""

    layer: int
    parent: str
    child: str
    n: int
    """Held-out images of the child on which the parent's probe is right."""
    full: float
    """Mean over these images; NaN where there are none."""
    fraction: float
    main: tuple[tuple[int, int], ...]
    """The parent's main features, by layer and number."""


@torch.no_grad()
def read_rows(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    targets: Sequence[int],
    *,
    progress: bool = False,
) -> ReadRows:
    """Codes of every layer and y of the targets on the row that is read, in one clean pass.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: the images.
        targets: target layers.
        progress: show a progress bar.
    """
    sources = clt.config.sources(*targets)
    xs = {s: HOOK_IN.format(l=s) for s in sources}
    ys = {l: HOOK_OUT.format(l=l) for l in targets}
    rows = slice(0, 1) if vit.cfg.rows.has_cls else slice(None)
    codes: dict[int, list[csr_array]] = {s: [] for s in sources}
    outputs: dict[int, list[np.ndarray]] = {l: [] for l in targets}
    labels = []
    n_batches = -(-len(data) // data.batch_size)
    for images, batch_labels in Progress(data, "rows read", n_batches, disable=not progress):
        cache = vit.clean_cache(images.to(vit.device), [*xs.values(), *ys.values()])
        for s, name in xs.items():
            z = clt.encode(cache[name][:, rows], layer=s).to_dense().mean(1)
            codes[s].append(csr_array(z.double().cpu().numpy()))
        for l, name in ys.items():
            outputs[l].append(cache[name][:, rows].mean(1).double().cpu().numpy())
        labels.append(batch_labels.cpu())
    return ReadRows(
        {s: csr_array(vstack(parts)) for s, parts in codes.items()},
        {l: np.concatenate(parts) for l, parts in outputs.items()},
        torch.cat(labels).numpy(),
    )


def absorption(
    clt: CrossLayerTranscoder,
    train: ReadRows,
    test: ReadRows,
    target: int,
    hierarchy: Hierarchy,
    class_names: Sequence[str],
) -> list[Absorption]:
    """Absorption of every parent in each of its children at one target layer.

    Args:
        clt: the transcoder.
        train: images that probes and main features are fitted and chosen on.
        test: other images.
        target: target layer l.
        hierarchy: the classes of every parent.
        class_names: names of the classes in label order.
    """
    sources = clt.config.sources(target)
    width = clt.config.n_features
    decoders = np.concatenate(
        [clt.decoder(s, target).detach().double().cpu().numpy() for s in sources]
    )
    norms = np.linalg.norm(decoders, axis=1)
    z_train, z_test = (
        csr_array(hstack([rows.codes[s] for s in sources], format="csr")) for rows in (train, test)
    )
    b_dec = clt.b_dec[target].detach().double().cpu().numpy()
    found = []
    for parent, children in hierarchy.items():
        numbers = [class_names.index(child) for child in children]
        inside = np.isin(train.labels, numbers)
        if not inside.any() or inside.all():
            continue
        weights, bias = _probe(train.y[target], inside)
        p = weights / np.linalg.norm(weights)
        main = main_features(z_train, inside)
        right = test.y[target] @ weights + bias > 0
        carried = decoders @ p
        cosines = carried / np.where(norms, norms, 1)
        wanted = (test.y[target] - b_dec) @ p
        full, fraction = absorbed(z_test, carried, cosines, wanted, main)
        for child, number in zip(children, numbers, strict=True):
            images = right & (test.labels == number)
            n = int(images.sum())
            means = [float(each[images].mean()) if n else float("nan") for each in (full, fraction)]
            pairs = tuple((sources[i // width], int(i % width)) for i in main.tolist())
            found.append(Absorption(target, parent, child, n, means[0], means[1], pairs))
    return found


def absorbed(
    codes: csr_array,
    carried: Float[np.ndarray, " feature"],
    cosines: Float[np.ndarray, " feature"],
    wanted: Float[np.ndarray, " image"],
    main: Int[np.ndarray, " main"],
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, " image"]]:
    """Full absorption and the absorption fraction of every image, as the top of the module defines.

    Args:
        codes: z of each image, "image feature".
        carried: what a unit of each feature carries along p.
        cosines: of each feature's decoder row with p.
        wanted: R of each image.
        main: numbers of the main features.
    """
    full, fraction = np.zeros(len(wanted)), np.zeros(len(wanted))
    is_main = np.zeros(len(carried), bool)
    is_main[main] = True
    for i, total in enumerate(wanted.tolist()):
        entries = slice(codes.indptr[i], codes.indptr[i + 1])
        features, parts = codes.indices[entries], codes.data[entries]
        parts = parts * carried[features]
        if total <= 0 or not len(features):
            continue
        of_main = is_main[features]
        top = parts.argmax()
        aligned = cosines[features[top]] >= FULL_COSINE
        full[i] = not of_main.any() and aligned and parts[top] >= PROPORTION * total
        others = parts[~of_main & (cosines[features] >= FRACTION_COSINE) & (parts > 0)]
        absorbing = np.sort(others)[-MOST_ABSORBING:].sum()
        carried_by_main = parts[of_main].sum()
        if carried_by_main >= total or absorbing < PROPORTION * total:
            continue
        taken = min(absorbing, total - carried_by_main)
        fraction[i] = 1 if carried_by_main <= 0 else taken / (taken + carried_by_main)
    return full, fraction


def main_features(codes: csr_array, inside: Bool[np.ndarray, " image"]) -> Int[np.ndarray, " main"]:
    """The main features of a parent: each further one raises F1 by more than `F1_RISE`.

    Args:
        codes: z of each image, "image feature".
        inside: whether each image is of the parent.
    """
    difference = codes[inside].mean(0) - codes[~inside].mean(0)
    ranked = np.argsort(-difference, kind="stable")[:MOST_MAIN]
    values = codes[:, ranked].toarray()
    best = _f1(values[:, :1], inside)
    for k in range(2, len(ranked) + 1):
        f1 = _f1(values[:, :k], inside)
        if f1 - best <= F1_RISE:
            return ranked[: k - 1]
        best = f1
    return ranked


def shuffled(hierarchy: Hierarchy, rng: np.random.Generator) -> Hierarchy:
    """The same parents, of the same sizes, with classes dealt to them at random."""
    names = rng.permutation(listed(hierarchy)).tolist()
    return {parent: [names.pop() for _ in children] for parent, children in hierarchy.items()}


def _probe(
    x: Float[np.ndarray, "image d"], inside: Bool[np.ndarray, " image"]
) -> tuple[Float[np.ndarray, " d"], float]:
    """Weights and bias of a logistic regression in standard deviations, for x as it is."""
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale, scale, 1)
    fit = LogisticRegression(class_weight="balanced", max_iter=1000)
    fit.fit((x - mean) / scale, inside)
    weights = fit.coef_[0] / scale
    return weights, float(fit.intercept_[0] - mean @ weights)


def _f1(x: Float[np.ndarray, "image k"], inside: Bool[np.ndarray, " image"]) -> float:
    weights, bias = _probe(x, inside)
    named = x @ weights + bias > 0
    hits = 2 * (named & inside).sum()
    return float(hits / (named.sum() + inside.sum()))
