"""Readings of a model whose MLP outputs at some target layers are rebuilt from a subset of terms.

The rows of every target l become y^_S = b_dec[l] + sum_{s in S} c_{s->l} + (fills of the others),
at all targets at once. The term of a skip connection stays in every set, as b_dec does. Terms come
from the teacher trajectory, also where a layer below is altered. Nothing changes before the first
target's MLP: the stream up to there is kept, and only what follows runs again. Where the output
depends only on the class token's row of it, no block runs at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.contributions.scores import ContributionScores, contribution_scores
from vit_clt.analysis.contributions.source_scores import SourceScores
from vit_clt.analysis.silencing.study import effect_scores
from vit_clt.analysis.stats.donors import donor_cycle
from vit_clt.analysis.stats.image_groups import ImageGroups, image_groups
from vit_clt.analysis.stats.means import PositionMean
from vit_clt.analysis.stats.readings import Readings, ReadingSums
from vit_clt.choices import KEPT_BYTES, MAX_GROUPS, Fill, ScoreKind, TokenKind
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import (
    HookedViT,
    check_fits,
    layer_list,
    overwrite_mlp_hooks,
    token_rows,
)
from vit_clt.hooks.interventions import overwrite_rows
from vit_clt.hooks.passes.clean import CleanPass, Keep
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, RESID_MID
from vit_clt.hooks.rows import rows_unread
from vit_clt.progress import Progress
from vit_clt.readouts.base import Classifier, Outcome
from vit_clt.transcoder.model import CrossLayerTranscoder

Targets = int | Iterable[int] | Literal["all"]
Kept = Mapping[int, Collection[int]]
"""By target, the sources whose terms stay."""
REFERENCES = ("original", "full", "bias_only", "floor_zero", "floor_mean")
# The most numbers of the stream that run on together, few enough for the processor's cache.
_AT_ONCE = 2**19


@dataclass(frozen=True)
class TermBatch:
    """Terms and clean pass of some images, from which every set of kept sources is read."""

    labels: Int[Tensor, " image"]
    terms: dict[int, Float[Tensor, "_source image row d_model"]]
    """Terms by target."""
    donated: dict[int, Float[Tensor, "_source image row d_model"]]
    """Terms of the donors by target; empty unless the fill is "resample"."""
    rest: dict[int, Float[Tensor, "*image_row d_model"]]
    """What every set keeps, by target: b_dec, and with a skip connection + its term of each row."""
    y: dict[int, Float[Tensor, "image row d_model"]]
    """The model's own MLP rows by target."""
    l0: Float[Tensor, " source"]
    """Active features a token row, by source of the deepest target."""
    clean: CleanPass
    """The stream before the first target's MLP and its output, on all rows that are read later."""

    @property
    def nbytes(self) -> int:
        """Memory of the terms and the stream."""
        of_rows = self.terms, self.donated, self.rest, self.y
        tensors = [tensor for by_target in of_rows for tensor in by_target.values()]
        return sum(tensor.nbytes for tensor in tensors) + self.clean.nbytes


@dataclass(frozen=True)
class _Means:
    terms: dict[int, Float[Tensor, "_source row d_model"]]
    y: dict[int, Float[Tensor, "row d_model"]]
    l0: Float[Tensor, " source"]


@dataclass(frozen=True)
class TermSets:
    """Reads a model with sets of terms kept, for some target layers, one token kind and one fill.

    Terms (teacher trajectory), their means and the floors are all measured on `data`. A model with
    hooks attached is refused by `CleanPass`.
    """

    vit: HookedViT
    clt: CrossLayerTranscoder
    data: ImageData
    classifier: Classifier
    targets: Sequence[int]
    """Target layers, ascending."""
    tokens: TokenKind
    fill: Fill
    seed: int
    max_groups: int = MAX_GROUPS
    """The most groups that outcomes of images are added up in (`image_groups`)."""
    kept_bytes: int = KEPT_BYTES
    """The most bytes of terms, and of codes of scores, that are kept between passes over the
    images; those of further images are computed in every pass."""
    progress: bool = False
    _cache: dict[range, TermBatch] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_fits(self.vit, self.clt)
        check_prepared(self.vit, self.data)
        _ = self._groups  # refuses a wrong number before any work
        if self.fill == "resample":
            _ = self._donors  # refuses too few images before any work

    @property
    def no_op(self) -> bool:
        """Whether these rows cannot reach the output."""
        return self._rows_unread(self.tokens)

    @torch.no_grad()
    def read(self, plans: Mapping[str, Kept]) -> Readings:
        """Readings of the sets of kept sources, given by name, and of the five references."""
        names: dict[tuple[frozenset[int], ...], list[str]] = {}
        for name, kept in plans.items():
            key = tuple(frozenset(kept[target]) for target in self.targets)
            names.setdefault(key, []).append(name)
        masks = self._masks([dict(zip(self.targets, sets, strict=True)) for sets in names])
        sums = ReadingSums([*REFERENCES, *plans], self._groups, self.data.label_sets)
        _ = self._means  # computed in a pass over the images before the one below
        first = 0
        for batch in self._batches("ablate"):
            original = self.classifier.read(batch.clean.embeddings, batch.labels)
            sums.add("original", original, first)
            for name, values in self._references(batch).items():
                # A reference runs alone, as the model does: rounding depends on the batch size.
                single = {target: value[None] for target, value in values.items()}
                embeddings = self._embed(batch, single)
                sums.add(name, self.classifier.read(embeddings, batch.labels), first)
            for same, outcome in zip(names.values(), self._read_sets(batch, masks), strict=True):
                for name in same:
                    sums.add(name, outcome, first)
            first += len(batch.labels)
        return sums.readings(self.seed)

    @torch.no_grad()
    def read_means(
        self, sets: Sequence[Kept]
    ) -> tuple[Float[Tensor, " set"], Float[Tensor, " set"]]:
        """Accuracy and mean loss of many sets of kept sources, without intervals (float64)."""
        masks = self._masks(sets)
        _ = self._means
        right, loss = (torch.zeros(len(sets), dtype=torch.float64) for _ in range(2))
        for batch in self._batches(f"{len(sets)} sets"):
            for i, outcome in enumerate(self._read_sets(batch, masks)):
                right[i] += outcome.correct.sum()
                loss[i] += outcome.loss.double().sum()
        return right / len(self.data), loss / len(self.data)

    def scores(self, scores: SourceScores | ScoreKind) -> SourceScores:
        """The scores as given, or of this kind on the same images and rows.

        Effects are total ones on y_l with the same fill, of codes silenced on all rows.
        """
        if not isinstance(scores, str):
            return scores
        if scores == "effect":
            return effect_scores(
                self.vit,
                self.clt,
                self.data,
                tokens=self.tokens,
                fill=self.fill,
                seed=self.seed,
                progress=self.progress,
            )
        return contribution_scores(
            self.vit,
            self.clt,
            self.data,
            tokens=self.tokens,
            kind=scores,
            max_groups=self.max_groups,
            kept_bytes=self.kept_bytes,
            progress=self.progress,
        )

    def rescored(self, scores: SourceScores, kind: ScoreKind) -> SourceScores:
        """Scores of another kind than these, of the same rows; of contribution scores also of the
        same choice of images."""
        if kind == "effect":
            return self.scores(kind)
        if not isinstance(scores, ContributionScores):
            scores = self._contributions
        return scores.rescored(kind)

    def measured(self) -> dict[str, Any]:
        """The fields of an `AblationStudy` other than its readings, by name."""
        return {
            "targets": list(self.targets),
            "tokens": self.tokens,
            "fill": self.fill,
            "data": self.data.name,
            "split": self.data.split,
            "readout": self.classifier.name,
            "seed": self.seed,
            "l0": float(self._means.l0.mean()),
            "no_op": self.no_op,
            "has_skip": self.clt.config.skip,
        }

    def _rows_unread(self, tokens: TokenKind) -> bool:
        cfg = self.vit.cfg
        return rows_unread(tokens, self.targets[0], cfg.n_layers, cfg.pools_cls)

    @property
    def _one_row(self) -> bool:
        return self.tokens == "cls" and self._rows_unread("patch")

    def _masks(self, sets: Sequence[Kept]) -> dict[int, Tensor]:
        # by target "set source", 1 where the source is kept
        masks = {}
        for target in self.targets:
            masks[target] = torch.zeros(len(sets), target + 1)
            for i, kept in enumerate(sets):
                masks[target][i, list(kept[target])] = 1
        return {target: mask.to(self.clt.b_dec.device) for target, mask in masks.items()}

    def _references(self, batch: TermBatch) -> dict[str, dict[int, Tensor]]:
        rest = {t: batch.rest[t].expand_as(batch.y[t]) for t in self.targets}
        return {
            "full": {t: rest[t] + batch.terms[t].sum(0) for t in self.targets},
            "bias_only": rest,
            "floor_zero": {t: torch.zeros_like(rest[t]) for t in self.targets},
            "floor_mean": {t: self._means.y[t].expand_as(rest[t]) for t in self.targets},
        }

    def _read_sets(self, batch: TermBatch, masks: Mapping[int, Tensor]) -> Iterator[Outcome]:
        n_sets, n_images = len(masks[self.targets[0]]), len(batch.labels)
        columns = {}
        for target in self.targets:
            parts = [batch.terms[target]]
            if self.fill == "mean":
                parts.append(self._means.terms[target][:, None].expand_as(parts[0]))
            elif self.fill == "resample":
                parts.append(batch.donated[target])
            columns[target] = torch.cat(parts).flatten(1)
        size = max(1, _AT_ONCE // batch.clean.at(RESID_MID, self.targets[0]).numel())
        for start in range(0, n_sets, size):
            values = {}
            for target, column in columns.items():
                kept = masks[target][start : start + size]
                # One product adds kept terms and fills of the others, for many sets at once.
                mixed = (kept if self.fill == "zero" else torch.cat([kept, 1 - kept], 1)) @ column
                values[target] = mixed.unflatten(1, batch.y[target].shape) + batch.rest[target]
            n = min(size, n_sets - start)
            outcome = self.classifier.read(self._embed(batch, values), batch.labels.repeat(n))
            per_image = (outcome.correct, outcome.loss, outcome.top)
            yield from map(Outcome, *(values.split(n_images) for values in per_image))

    def _embed(
        self,
        batch: TermBatch,
        values: Mapping[int, Float[Tensor, "set image row d_model"]],
    ) -> Tensor:
        # embeddings "set*image d_embed" with these rows written at every target
        first, *later = self.targets
        y = batch.clean.at(HOOK_OUT, first).repeat(len(values[first]), 1, 1)
        flat = {target: value.flatten(0, 1) for target, value in values.items()}
        y = overwrite_rows(y, token_rows(self.tokens), flat[first])
        return batch.clean.from_mlp(first, y, overwrite_mlp_hooks(later, self.tokens, flat))

    def _batches(self, title: str) -> Iterator[TermBatch]:
        size = self.data.batch_size
        starts = range(0, len(self.data), size)
        for start in Progress(starts, f"{title} ({self.tokens})", disable=not self.progress):
            numbers = range(start, min(start + size, len(self.data)))
            batch = self._cache.get(numbers)
            if batch is None:
                batch = self._batch(numbers)
                cached = sum(other.nbytes for other in self._cache.values())
                if cached + batch.nbytes <= self.kept_bytes:
                    self._cache[numbers] = batch
            yield batch

    def _batch(self, numbers: range) -> TermBatch:
        first = self.targets[0]
        images, labels = self.data.batch(numbers)
        terms, l0, clean = self._terms(images, {RESID_MID: [first], HOOK_OUT: self.targets})
        rest = {t: self.clt.b_dec[t] for t in self.targets}
        rows = token_rows(self.tokens, self.vit.cfg.rows)
        if self.clt.config.skip:
            for t in self.targets:
                rest[t] = rest[t] + self.clt.skip_term(clean.at(HOOK_IN, t)[:, rows], t)
        donated: dict[int, Tensor] = {}
        if self.fill == "resample":
            donors, _ = self.data.batch([self._donors[i] for i in numbers])
            donated, _, _ = self._terms(donors, {})
        # Only the class token's row of the stream is kept where no other row is read later.
        kept_rows = rows if self._one_row else slice(None)
        return TermBatch(
            labels=labels,
            terms=terms,
            donated=donated,
            rest=rest,
            # These are copies, so that the other rows need not stay in memory.
            y={t: clean.at(HOOK_OUT, t)[:, rows].contiguous() for t in self.targets},
            l0=l0,
            clean=clean.at_rows(kept_rows, {RESID_MID: [first], HOOK_OUT: [first]}),
        )

    def _terms(self, images: Tensor, more: Keep) -> tuple[dict[int, Tensor], Tensor, CleanPass]:
        # terms by target, L0 by source, and the pass, which also keeps the points of `more`
        rows = token_rows(self.tokens, self.vit.cfg.rows)
        sources = range(self.targets[-1] + 1)
        clean = CleanPass(self.vit, images.to(self.clt.b_dec.device), {HOOK_IN: sources, **more})
        codes = [self.clt.encode(clean.at(HOOK_IN, s)[:, rows], layer=s) for s in sources]
        terms = {t: self.clt.contributions(codes[: t + 1], target=t) for t in self.targets}
        return terms, torch.stack([c.l0().float().mean() for c in codes]), clean

    @cached_property
    @torch.no_grad()
    def _means(self) -> _Means:
        terms, y = ({target: PositionMean() for target in self.targets} for _ in range(2))
        l0 = torch.zeros(self.targets[-1] + 1, dtype=torch.float64, device=self.clt.b_dec.device)
        for batch in self._batches("means"):
            l0 += batch.l0.double() * len(batch.labels)
            for target in self.targets:
                terms[target].add(batch.terms[target])
                y[target].add(batch.y[target])
        return _Means(
            terms={target: mean.mean().float() for target, mean in terms.items()},
            y={target: mean.mean().float() for target, mean in y.items()},
            l0=(l0 / len(self.data)).float(),
        )

    @cached_property
    def _contributions(self) -> ContributionScores:
        found = self.scores("projection")
        assert isinstance(found, ContributionScores)
        return found

    @cached_property
    def _groups(self) -> ImageGroups:
        return image_groups(len(self.data), self.max_groups, self.seed)

    @cached_property
    def _donors(self) -> list[int]:
        return donor_cycle(len(self.data), self.seed)


def target_list(target: Targets, n_layers: int) -> list[int]:
    """Target layers as a list, ascending and without repeats; "all" is every layer.

    Raises:
        InputError: there is no target, or one is outside the model.
    """
    if isinstance(target, str):
        if target != "all":
            raise InputError("target", f'is "{target}"; expected a layer, several, or "all".')
        return list(range(n_layers))
    return layer_list(target, n_layers)
