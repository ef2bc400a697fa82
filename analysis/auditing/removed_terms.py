"""How much worse is y_l rebuilt without what one of its terms says of the image?

At every target l one term c_{s->l} is set to its mean over images at the same token position, and

    rise(s->l) = E[||y^_l - (c_s - mean c_s) - y_l||^2 - ||y^_l - y_l||^2] / E||y_l - mean y_l||^2

over images and scored rows. Terms come from the teacher trajectory. A rise is negative where the
term made the reconstruction worse. The form is ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from vit_clt.analysis.causal.targets import TargetEffects
from vit_clt.analysis.contributions.parts import NEGLIGIBLE
from vit_clt.analysis.stats.image_groups import image_groups
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.choices import TokenKind
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT, check_fits, token_rows
from vit_clt.hooks.activations import capture
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder


@torch.no_grad()
def removed_terms(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    *,
    tokens: TokenKind = "cls",
    seed: int = 0,
    progress: bool = False,
) -> TargetEffects:
    """The rise of the error at every target with each of its terms at its mean, in two passes.

    The first pass gathers the means of terms and of y_l, the second measures, both in float64.

    Args:
        vit: the teacher.
        clt: its transcoder; the term of a skip connection is never removed.
        data: the images.
        tokens: kind of rows that are scored.
        seed: seed by which more than 65,536 images are dealt to groups (`image_groups`).
        progress: show progress bars.

    Returns:
        The rises: `moved` holds that of the squared error in the place of a squared distance, NaN
        above the diagonal (s > l). `matrix` is rise(s->l), `draws` has it on resamples of images.

    Raises:
        InputError: the CLT does not fit the model, the images are of another shape, the model lacks
            the rows, or an activation is NaN or infinite.
    """
    check_fits(vit, clt)
    check_prepared(vit, data)
    n, device = vit.cfg.n_layers, clt.b_dec.device
    rows = token_rows(tokens, vit.cfg.rows)
    groups = image_groups(len(data), seed=seed)
    batches = range(0, len(data), data.batch_size)

    def targets(first: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        # of a batch by target: y, the terms, and the error y^ - y
        images, _ = data.batch(range(first, min(first + data.batch_size, len(data))))
        found = capture(vit, images.to(device))
        x, y = found.x[:, :, rows], found.y[:, :, rows].double()
        codes = [clt.encode(x[s], layer=s) for s in range(n)]
        for l in range(n):
            terms = clt.contributions(codes[: l + 1], target=l)
            error = terms.sum(0, dtype=torch.float64) + clt.b_dec[l] - y[l]
            if clt.config.skip:
                error += clt.skip_term(x[l], l)
            yield l, y[l], terms, error

    y_sums, term_sums = ([PositionMean() for _ in range(n)] for _ in range(2))
    for first in Progress(batches, "means of terms", disable=not progress):
        for l, y, terms, _ in targets(first):
            y_sums[l].add(y)
            term_sums[l].add(terms)
    y_means = [each.mean() for each in y_sums]
    term_means = [each.mean() for each in term_sums]
    moved = torch.zeros(len(groups), n, n, dtype=torch.float64)
    moved[:, torch.ones(n, n).triu(1).bool()] = torch.nan
    spread, power = (torch.zeros(len(groups), n, dtype=torch.float64) for _ in range(2))
    for first in Progress(batches, "removed terms", disable=not progress):
        for l, y, terms, error in targets(first):
            groups.add(spread[:, l], _summed((y - y_means[l]).square()), first)
            groups.add(power[:, l], _summed(y.square()), first)
            for s, (term, mean) in enumerate(zip(terms, term_means[l], strict=True)):
                removed = term - mean
                # ||error - removed||^2 - ||error||^2 without the loss of digits
                groups.add(moved[:, l, s], _summed(removed * (removed - 2 * error)), first)
    spread[:, spread.sum(0) <= NEGLIGIBLE * power.sum(0)] = torch.nan
    return TargetEffects(moved.numpy(), spread.numpy())


def _summed(values: Float[Tensor, "image row d_model"]) -> Float[Tensor, " image"]:
    return values.sum((1, 2)).cpu()
