"""The sums that every contribution score is computed from, in two passes over the images.

The first pass adds up, per target l and source s, the products of the terms c_s with the
reconstruction y^ and its error. The second adds up products of the terms about their means over
all images, which are known only then. A skip connection's W_skip[l] x_l counts as one more term,
the last. Each image keeps one sum over its CLS row and one over its
patch rows, never single rows: every score kind, reduction and token kind, of all images, of a
class, of one image or of a bootstrap draw, follows from them. Beyond `max_groups` images these sums
are added up in random groups of images (`ImageGroups`), which give the scores of all images and of
bootstrap draws. Products are computed in the dtype of the terms (float32 at least) and summed in
float64. Codes come from the teacher trajectory.

The second pass reuses the codes that the first one kept, up to `kept_bytes`; codes of further
images are computed again, at the cost of the first pass, and are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.stats.image_groups import ImageGroups, image_groups
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.choices import KEPT_BYTES, MAX_GROUPS, TokenKind
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.hooks.activations import capture
from vit_clt.hooks.rows import ROW_GROUPS, TokenRows
from vit_clt.kernels.codes import Codes
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder

# Rows whose ||y^||^2 is below this share of its running mean are decided on with the final mean.
_SUSPECT = 1e-6


@dataclass(frozen=True)
class SuspectRow:
    """A token row whose ||y^||^2 is so small that ratios to it may be rounding alone."""

    image_group: int
    """Number of the group of its image."""
    row_group: int
    """A number of `ROW_GROUPS`."""
    yy: float
    ratio: Float[Tensor, " term"]
    bias_ratio: float
    norm_ratio: Float[Tensor, " term"]


class TargetMoments:
    """Sums over rows at one target layer, all float64; the last axes are group of images, row
    group."""

    def __init__(self, n_terms: int, groups: ImageGroups, bias: Tensor, rows: TokenRows):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, len(groups), 3, dtype=torch.float64)

        self._groups = groups
        self.bias = bias.detach()
        self.rows = rows
        self.ratio = zeros(n_terms)  # <c_s, y^> / <y^, y^>, suspect rows left out
        self.bias_ratio = zeros()  # <b, y^> / <y^, y^>, suspect rows left out
        self.ratio_rows = zeros()  # number of rows in `ratio` and `bias_ratio`
        self.norm_ratio = zeros(n_terms)  # ||c_s|| / sum_j ||c_j||, suspect rows left out
        self.norm_rows = zeros()  # number of rows in `norm_ratio`
        self.cy = zeros(n_terms)  # <c_s, y^>
        self.cc = zeros(n_terms)  # ||c_s||^2
        self.ce = zeros(n_terms)  # <c_s, y - y^>
        self.norm = zeros(n_terms)  # ||c_s||
        self.centred = zeros(n_terms)  # <c_s - mean c_s, y^ - mean y^>, means over all images
        self.yy = zeros()  # ||y^||^2
        self.by = zeros()  # <b, y^>
        self.be = zeros()  # <b, y - y^>
        self.suspects: list[SuspectRow] = []
        self._mean_terms = PositionMean()
        self._yy_seen, self._rows_seen = 0.0, 0

    def add(
        self,
        terms: Float[Tensor, "term image token d_model"],
        y: Float[Tensor, "image token d_model"],
        first: int,
    ) -> None:
        """First pass: add a batch of images, whose first image has the number `first`."""
        bias = self.bias.to(terms.dtype)
        y_hat = terms.sum(0) + bias
        error = y.to(terms.dtype) - y_hat
        cy, cc, ce = (_dots(terms, other) for other in (y_hat, terms, error))
        by, be = _dots(y_hat, bias), _dots(error, bias)
        # This equals <y^, y^>, and shares of it sum to 1 without rounding.
        yy = cy.sum(0) + by
        norm = cc.sqrt()
        self._mean_terms.add(terms)
        for total, value in (
            (self.cy, cy),
            (self.cc, cc),
            (self.ce, ce),
            (self.norm, norm),
            (self.yy, yy),
            (self.by, by),
            (self.be, be),
        ):
            self._groups.add(total, by_row_group(value, self.rows), first, dim=-2)

        self._yy_seen += float(yy.sum())
        self._rows_seen += yy.numel()
        # With "not above", a zero row is suspect also while the running mean is zero.
        suspect = ~(yy > _SUSPECT * self._yy_seen / self._rows_seen)
        ratio, bias_ratio, norm_ratio = cy / yy, by / yy, norm / norm.sum(0)
        for image, token in suspect.nonzero().tolist():
            row = (slice(None), image, token)
            self.suspects.append(
                SuspectRow(
                    int(self._groups.of[first + image]),
                    int(self.rows.groups[token]),
                    float(yy[image, token]),
                    ratio[row].cpu(),
                    float(bias_ratio[image, token]),
                    norm_ratio[row].cpu(),
                )
            )
        sound = ~suspect
        # A row on which every term is zero has no norm shares.
        shared = sound & (norm.sum(0) > 0)
        for total, value in (
            (self.ratio, torch.where(sound, ratio, 0)),
            (self.bias_ratio, torch.where(sound, bias_ratio, 0)),
            (self.ratio_rows, sound.double()),
            (self.norm_ratio, torch.where(shared, norm_ratio, 0)),
            (self.norm_rows, shared.double()),
        ):
            self._groups.add(total, by_row_group(value, self.rows), first, dim=-2)

    def add_centred(self, terms: Float[Tensor, "term image token d_model"], first: int) -> None:
        """Second pass: add a batch once `add` has seen all images; it overwrites `terms`."""
        terms -= self._mean_terms.mean().to(terms.dtype)[:, None]
        products = _dots(terms, terms.sum(0))
        self._groups.add(self.centred, by_row_group(products, self.rows), first, dim=-2)


@dataclass(frozen=True)
class ContributionMoments:
    """Moments at every target of one CLT, and the images they were measured on."""

    targets: list[TargetMoments]
    has_skip: bool
    """Whether the last term of every target is that of a skip connection."""
    groups: ImageGroups
    """Groups of images, each of one image up to `max_groups` images."""
    variation: dict[TokenKind, Float[Tensor, "layer image_group"]]
    """By token kind, the sum over the rows of a group's images of ||y - mean y||^2; the mean is
    taken over the rows of all images."""
    active: Float[Tensor, "layer image_group row_group"]
    """Number of active features, summed over the rows of each group."""
    rows: TokenRows
    """The token rows of the model."""
    labels: Int[Tensor, " image"]
    """Class of each image, -1 where it has no label."""
    class_names: list[str]
    data: str
    split: str | None

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.labels)

    def mean_l0(self, tokens: TokenKind, images: Int[Tensor, " image"]) -> float:
        """L0, active features a token row and layer, of these images on rows of a token kind."""
        row_groups = ROW_GROUPS[tokens]
        n_rows = sum(self.rows.sizes[g] for g in row_groups) * len(images) * len(self.targets)
        active = self.active[:, self.groups_of(images)]
        return float(active[..., row_groups].sum() / n_rows)

    def groups_of(self, images: Int[Tensor, " image"]) -> Int[Tensor, " image_group"]:
        """The groups that hold these images, ascending; there must be no other image in them."""
        return self.groups.of[images].unique()


def contribution_moments(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor | Iterable[Any],
    *,
    max_groups: int = MAX_GROUPS,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> ContributionMoments:
    """The moments of all targets and sources of one CLT, image by image or in groups of images.

    Args:
        vit: the teacher.
        clt: its transcoder.
        images: ImageData, a tensor, or batches.
        max_groups: the most groups that images are added up in (`image_groups`). With more images
            than groups there are no scores of single classes and images.
        kept_bytes: the most bytes of codes kept between both passes (CIFAR-10: 0.3 MB an image);
            those of further images are computed again.
        seed: seed by which images are dealt to groups.
        progress: show a progress bar.

    Raises:
        InputError: the CLT does not fit the model, there are no images, or `max_groups` is below 2.
    """
    [moments] = compared_moments(
        vit,
        [clt],
        images,
        max_groups=max_groups,
        kept_bytes=kept_bytes,
        seed=seed,
        progress=progress,
    )
    return moments


@torch.no_grad()
def compared_moments(
    vit: HookedViT,
    clts: Sequence[CrossLayerTranscoder],
    images: ImageData | Tensor | Iterable[Any],
    *,
    max_groups: int = MAX_GROUPS,
    kept_bytes: int = KEPT_BYTES,
    seed: int = 0,
    progress: bool = False,
) -> list[ContributionMoments]:
    """`contribution_moments` of several CLTs of one teacher, which runs once for all of them.

    `kept_bytes` are those of all CLTs together.
    """
    for clt in clts:
        check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    cfg, n = vit.cfg, len(data)
    groups = image_groups(n, max_groups, seed)
    layers = range(cfg.n_layers)
    targets = [
        [TargetMoments(l + 1 + clt.config.skip, groups, clt.b_dec[l], cfg.rows) for l in layers]
        for clt in clts
    ]
    active = torch.zeros(len(clts), cfg.n_layers, len(groups), 3, dtype=torch.float64)
    labels = torch.full((n,), -1)
    sums: Tensor | None = None
    kept: list[_Batch] = []
    room = kept_bytes
    with Progress(total=2 * n, desc="contributions", unit=" images", disable=not progress) as bar:
        for batch in _batches(vit, clts, data):
            labels[batch.images] = batch.labels
            assert batch.y is not None
            total = batch.y_sums.sum(1)
            sums = total if sums is None else sums + total
            for i, (clt, codes) in enumerate(zip(clts, batch.codes, strict=True)):
                counts = by_row_group(codes.l0().double(), cfg.rows)
                groups.add(active[i], counts, batch.first, dim=-2)
                for l in layers:
                    targets[i][l].add(_terms(clt, codes, batch.x, l), batch.y[l], batch.first)
            batch.y = None
            room -= batch.nbytes()
            if room >= 0:
                kept.append(batch)
            bar.update(batch.size)
        assert sums is not None
        rows = cfg.rows.sizes
        means = _kind_means(sums, rows, n)
        variation = {
            kind: torch.zeros(cfg.n_layers, len(groups), dtype=torch.float64) for kind in means
        }
        for batch in _batches(vit, clts, data, kept):
            for kind, (row_groups, mean) in means.items():
                # sum ||y - m||^2 = sum ||y||^2 - (2 <sum y, m> - n_rows ||m||^2)
                n_rows = sum(rows[g] for g in row_groups)
                along_mean = torch.einsum("lid,ld->li", batch.y_sums[:, :, row_groups].sum(2), mean)
                mean_power = n_rows * mean.square().sum(-1, keepdim=True)
                power = batch.y_power[..., row_groups].sum(-1)
                about_mean = power - (2 * along_mean - mean_power).cpu()
                groups.add(variation[kind], about_mean, batch.first, dim=-1)
            for i, (clt, codes) in enumerate(zip(clts, batch.codes, strict=True)):
                for l in layers:
                    targets[i][l].add_centred(_terms(clt, codes, batch.x, l), batch.first)
            bar.update(batch.size)
    return [
        ContributionMoments(
            targets[i],
            clts[i].config.skip,
            groups,
            variation,
            active[i],
            cfg.rows,
            labels,
            data.class_names,
            data.name,
            data.split,
        )
        for i in range(len(clts))
    ]


@dataclass
class _Batch:
    first: int
    labels: Tensor
    codes: list[Codes]
    x: Float[Tensor, "layer image token d_model"] | None
    """MLP inputs, where a skip connection reads them."""
    y: Float[Tensor, "layer image token d_model"] | None
    y_sums: Float[Tensor, "layer image row_group d_model"]
    y_power: Float[Tensor, "layer image row_group"]

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> slice:
        return slice(self.first, self.first + self.size)

    def nbytes(self) -> int:
        inputs = 0 if self.x is None else self.x.nbytes
        return inputs + self.y_sums.nbytes + sum(codes.nbytes() for codes in self.codes)


def _batches(
    vit: HookedViT,
    clts: Sequence[CrossLayerTranscoder],
    data: ImageData,
    kept: Sequence[_Batch] = (),
) -> Iterator[_Batch]:
    """The batches that were kept, then those of the further images, computed from them."""
    yield from kept
    first = sum(batch.size for batch in kept)
    device = clts[0].b_dec.device
    starts = range(first, len(data), data.batch_size)
    rows = (range(start, min(start + data.batch_size, len(data))) for start in starts)
    for start, (images, labels) in zip(starts, data.batches(rows), strict=True):
        activations = capture(vit, images.to(device))
        y = activations.y.double()
        power = by_row_group(y.square().sum(-1), vit.cfg.rows)
        sums = torch.stack([part.sum(2) for part in _parts(y, vit.cfg.rows, dim=2)], 2)
        codes = [clt.encode(activations.x) for clt in clts]
        x = activations.x if any(clt.config.skip for clt in clts) else None
        yield _Batch(start, labels, codes, x, activations.y, sums, power)


def _kind_means(
    sums: Float[Tensor, "layer row_group d_model"], rows: tuple[int, int, int], n_images: int
) -> dict[TokenKind, tuple[list[int], Tensor]]:
    """By token kind, its groups of rows and the mean y over their rows, "layer d_model"."""
    return {
        kind: (groups, sums[:, groups].sum(1) / (n_images * sum(rows[g] for g in groups)))
        for kind, groups in ROW_GROUPS.items()
        if any(rows[g] for g in groups)
    }


def _terms(
    clt: CrossLayerTranscoder, codes: Codes, x: Tensor | None, target: int
) -> Float[Tensor, "term image token d_model"]:
    terms = clt.contributions(codes, target=target)
    if clt.config.skip:
        assert x is not None
        terms = torch.cat([terms, clt.skip_term(x[target], target)[None]])
    return terms.to(torch.promote_types(terms.dtype, torch.float32))


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b.expand_as(a)).double()


def by_row_group(
    values: Float[Tensor, "*axes token"], rows: TokenRows
) -> Float[Tensor, "*axes row_group"]:
    """Sums over the rows of each group, 0 for a group that the model does not have."""
    return torch.stack([part.sum(-1) for part in _parts(values, rows, dim=-1)], -1).cpu()


def _parts(values: Tensor, rows: TokenRows, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of each group along the axis `dim`."""
    n_cls, n_patches, n_registers = rows.sizes
    cls, registers, patches = values.split([n_cls, n_registers, n_patches], dim)
    return cls, patches, registers
