"""Does the answer follow when features are clamped to their codes for another value of a factor?

On an image with left = b the group's codes on a region's rows are set to their means, row by row,
over images with left = a. The answer *moves* where the model's top class is that of (a, right), and
*stays* where it is still the image's own class. This is compared with three versions: the group at
its means for the image's own value, which shows what the edit itself costs; random features that
are clamped in the same way; and the unaltered model. The class of a pair comes from the labels of
the data. The study is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.factors.anova import Cells
from vit_clt.analysis.factors.clamping import Clamp
from vit_clt.analysis.factors.edited_sets import measured_on
from vit_clt.analysis.factors.selectivity_study import factor_values
from vit_clt.analysis.factors.sets import (
    FeatureSet,
    active_codes,
    compared_sets,
    with_codes,
)
from vit_clt.choices import Region
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.hooks.activations import capture
from vit_clt.hooks.rows import region_rows
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def clamp(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    classifier: Classifier,
    group: FeatureSet,
    *,
    mean_data: ImageData,
    randoms: Sequence[FeatureSet],
    factor: str = "left",
    other: str = "right",
    region: Region = "left_half",
    seed: int = 0,
    progress: bool = False,
) -> Clamp:
    """On every image, clamp the group, then each random set, to one other value of the factor.

    Args:
        vit: the teacher, with no hooks attached.
        clt: its transcoder.
        data: labelled images that know both factors; not those that the group was chosen on.
        classifier: the readout.
        group: features by source layer, e.g. all of the factor (`Selectivity.features`).
        mean_data: images that the mean codes come from, with the same factors.
        randoms: random sets to compare with (`Selectivity.matched`, several seeds).
        factor: the factor whose value is changed, a name among `data.factors`.
        other: the factor that stays; both together determine the label.
        region: token rows on which codes are set.
        seed: seed of the values clamped to, drawn evenly among the others, and of intervals.
        progress: show progress bars.

    Raises:
        InputError: a factor or region is unknown, there is no random set, a set is empty or out of
            range, the factor has one value or one that `mean_data` lacks, a pair of values has
            fewer than two images or two labels, or the CLT is of another model.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    check_prepared(vit, mean_data)
    sets = compared_sets(clt, group, randoms)
    rows = region_rows(region, vit.cfg.rows)
    origin, kept = (factor_values(data, name) for name in (factor, other))
    labels = torch.cat([batch_labels for _, batch_labels in data])
    classifier.check_labels(labels)
    cells = Cells(origin, kept, labels.numpy(), (factor, other))
    answers = cells.label.reshape(cells.shape)
    known = cells.values[0]
    if len(known) < 2:
        raise InputError(
            f"{factor} is {known[0]} in every image of {data.name}; expected at least two values."
        )
    if missing := set(known.tolist()) - set(factor_values(mean_data, factor).tolist()):
        raise InputError(
            "mean_data", f"has no image of {factor} {min(missing)}; expected every value."
        )
    place = np.searchsorted(known, origin)
    step = np.random.default_rng(seed).integers(1, len(known), len(data))
    aim = (place + step) % len(known)
    moved_to = torch.from_numpy(answers[aim, np.searchsorted(cells.values[1], kept)])
    means = {
        name: _means(vit, clt, mean_data, features, rows, factor, known, progress)
        for name, features in sets.items()
    }
    outcomes: dict[str, dict[str, list[Tensor]]] = {
        column: {name: [] for name in ("original", "own", *sets)}
        for column in ("moved", "stayed", "moved_loss", "stayed_loss")
    }
    layers = sorted({s for features in sets.values() for s in features})
    n_active = 0
    with Progress(total=len(data), desc="clamp", unit=" images", disable=not progress) as bar:
        done = 0
        for images, batch_labels in data:
            here = slice(done, done + len(images))
            images = images.to(clt.b_enc.device)
            codes = active_codes(vit, clt, images, rows, layers)
            n_active += sum(int(active.sum()) for active in codes.values())
            own_means = {s: mean[place[here]] for s, mean in means["group"].items()}
            versions = {
                "original": vit(images),
                "own": with_codes(vit, clt, images, group, rows, own_means),
            }
            for name, features in sets.items():
                other_means = {s: mean[aim[here]] for s, mean in means[name].items()}
                versions[name] = with_codes(vit, clt, images, features, rows, other_means)
            for name, embeddings in versions.items():
                for answer, label in (("moved", moved_to[here]), ("stayed", batch_labels)):
                    outcome = classifier.read(embeddings, label)
                    outcomes[answer][name].append(outcome.correct)
                    outcomes[f"{answer}_loss"][name].append(outcome.loss)
            done += len(images)
            bar.update(len(images))
    moved, stayed, moved_loss, stayed_loss = (
        {name: torch.cat(parts).double().numpy() for name, parts in by_version.items()}
        for by_version in outcomes.values()
    )
    l0 = n_active / (len(data) * len(rows) * len(layers))
    return Clamp(
        moved=moved,
        stayed=stayed,
        moved_loss=moved_loss,
        stayed_loss=stayed_loss,
        origin=origin,
        target=known[aim],
        factor=factor,
        chance=1 / len(classifier.class_names),
        mean_data=mean_data.name,
        **measured_on(group, randoms, region, l0, classifier, data, seed),
    )


def _means(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    mean_data: ImageData,
    group: FeatureSet,
    rows: Int[Tensor, " row"],
    factor: str,
    known: Int[np.ndarray, " value"],
    progress: bool,
) -> dict[int, Float[Tensor, "value row _"]]:
    """Mean codes of the group over the images with each value, by layer and token row."""
    values = factor_values(mean_data, factor)
    device = clt.b_enc.device
    sums = {
        s: torch.zeros(len(known), len(rows), len(features), dtype=torch.float64, device=device)
        for s, features in group.items()
    }
    done = 0
    n_batches = -(-len(mean_data) // mean_data.batch_size)
    for images, _ in Progress(mean_data, "mean codes", n_batches, disable=not progress):
        batch_values = values[done : done + len(images)]
        done += len(images)
        member = torch.from_numpy(known[:, None] == batch_values).double().to(device)
        x = capture(vit, images.to(device)).x[:, :, rows]
        for s, features in group.items():
            codes = clt.encode(x[s], layer=s).to_dense()[:, :, features].double()
            sums[s] += torch.einsum("vi,irf->vrf", member, codes)
    counts = torch.from_numpy((values[:, None] == known).sum(0)).to(device)
    return {s: (total / counts[:, None, None]).float() for s, total in sums.items()}
