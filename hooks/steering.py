"""Steering: features of a CLT are set to a value, or scaled, in the running model.

Inside `replace_mlps` the codes are hook points. An edit of z_{s,i} at a row changes that row of the
reconstruction at every target by (z' - z) W_dec[s->l]_i, and downstream codes respond to the
altered stream. With error nodes the model without an edit is the original bit for bit, so that
every change comes from the edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import isfinite
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import EditKind, TokenKind, check_choice
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import FwdHooks
from vit_clt.hooks.replacement import check_fits, replace_mlps
from vit_clt.hooks.rows import TokenRows, layer_list, rows_of, token_rows
from vit_clt.transcoder.model import CrossLayerTranscoder

Rows = TokenKind | tuple[int, ...]
"""Token rows by kind, or by number (row 0 is CLS)."""
_ROW_LIMIT = 2**31  # more token rows than any model has


@dataclass(frozen=True)
class Edit:
    """An edit of features of one layer: z' = value (clamp) or z' = value * z (scale).

    Scaling leaves a silent feature silent; scale 0 suppresses a feature, scale 1 changes nothing.
    Clamping sets the value on every row of `tokens`, active or not, so that L0 may exceed k.

    Raises:
        InputError: a negative layer, feature or row, no feature or row, one given twice, an unknown
            kind, or a value that is not finite.
    """

    layer: int
    """Source layer s, from 0."""
    feature: int | tuple[int, ...]
    """One feature of the layer, or several that are edited alike."""
    kind: EditKind
    value: float | int
    """The new z of a clamp, or the factor of a scale."""
    tokens: Rows = "all"
    """Token rows that are edited."""
    only_active: bool = False
    """Whether a clamp applies only where the feature is active (z != 0)."""

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise InputError("layer", f"is {self.layer}; expected a layer from 0.")
        check_choice("kind", self.kind, get_args(EditKind))
        if not isfinite(self.value):
            raise InputError("value", f"is {self.value}; expected a finite number.")
        _check_numbers("feature", self.features)
        _check_rows_of_any(self.tokens)

    @property
    def features(self) -> tuple[int, ...]:
        """The features as a tuple."""
        return (self.feature,) if isinstance(self.feature, int) else self.feature

    def apply(
        self, z: Float[Tensor, "batch token edited"], rows: TokenRows
    ) -> Float[Tensor, "batch token edited"]:
        """A copy of the codes z of `features` on all rows, edited on the rows of `tokens`.

        Args:
            z: the codes.
            rows: the rows of the model (`vit.cfg.rows`).

        Raises:
            InputError: rows that the model does not have.
        """
        index = row_index(self.tokens, rows)
        old = z[:, index]
        if self.kind == "scale":
            new = self.value * old
        else:
            new = torch.full_like(old, self.value)
            if self.only_active:
                new = torch.where(old != 0, new, old)
        edited = z.clone()
        edited[:, index] = new
        return edited


@contextmanager
def steer(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    edits: Edit | Sequence[Edit],
    *,
    layers: int | Iterable[int] | None = None,
    tokens: TokenKind = "all",
    error_node: bool = True,
) -> Iterator[HookedViT]:
    """A context in which every forward of `vit` runs with these features edited.

    It is `replace_mlps` with stream inputs, with `steering_hooks` added. Other hooks fire as they
    do in `replace_mlps`; hooks at `clt.{s}.hook_codes` added in this context see the edited codes.

    Args:
        vit: the teacher.
        clt: its transcoder.
        edits: one edit, or several of different features or rows.
        layers: layers whose MLPs the CLT replaces; by default all.
        tokens: token rows that it replaces.
        error_node: add the clean pass's reconstruction error back.

    Raises:
        InputError: no edit, two of one feature and row, a layer, feature or row out of range, an
            edit that writes to no replaced layer or row, or a CLT of another model.
    """
    check_fits(vit, clt)
    n = vit.cfg.n_layers
    edits = [edits] if isinstance(edits, Edit) else list(edits)
    replaced = layer_list(range(n) if layers is None else layers, n)
    check_edits(clt, edits, layers=replaced, tokens=tokens, rows=vit.cfg.rows)
    with (
        replace_mlps(vit, clt, layers=replaced, tokens=tokens, error_node=error_node),
        vit.hooks(fwd_hooks=steering_hooks(edits)),
    ):
        yield vit


def steering_hooks(edits: Edit | Sequence[Edit]) -> FwdHooks:
    """The edits as plain `fwd_hooks` at `clt.{s}.hook_codes`, for use inside `replace_mlps`.

    The list knows neither model nor CLT, so that a feature or row out of range is refused only in
    the forward.

    Raises:
        InputError: no edit, or two of one feature and row.
    """
    edits = [edits] if isinstance(edits, Edit) else list(edits)
    _check_apart(edits)
    by_layer: dict[int, list[Edit]] = {}
    for edit in edits:
        by_layer.setdefault(edit.layer, []).append(edit)
    return [(f"clt.{s}.hook_codes", partial(_edit, edits=by_layer[s])) for s in sorted(by_layer)]


def check_edits(
    clt: CrossLayerTranscoder,
    edits: Sequence[Edit],
    *,
    layers: Sequence[int],
    tokens: TokenKind = "all",
    rows: TokenRows,
) -> None:
    """Refuse edits that cannot be made, or that could change nothing.

    Args:
        clt: the CLT whose features are edited.
        edits: the edits.
        layers: layers whose MLPs the CLT replaces.
        tokens: token rows that it replaces.
        rows: the rows of the model.

    Raises:
        InputError: as `steer`.
    """
    _check_apart(edits, rows)
    config = clt.config
    for edit in edits:
        if edit.layer >= config.n_layers:
            raise InputError(
                "edits",
                f"hold layer {edit.layer}; expected layers from 0 to {config.n_layers - 1}.",
            )
        check_feature(edit.layer, max(edit.features), config.n_features)
        check_rows(edit.tokens, rows)
        targets = config.targets(edit.layer)
        if not any(l in targets for l in layers):
            written = f"{targets[0]} to {targets[-1]}" if len(targets) > 1 else f"{targets[0]}"
            raise InputError(
                "edits",
                f"hold layer {edit.layer}, whose features write to layer {written}; expected "
                f"one of them among the replaced layers, {', '.join(map(str, layers))}.",
            )
        if _shared_row(edit.tokens, tokens, rows) is None:
            raise InputError(
                "edits",
                f"hold tokens {_rows_text(edit.tokens)}; expected rows that are replaced, "
                f"{_rows_text(tokens)}.",
            )


def check_feature(layer: int, feature: int, n_features: int) -> None:
    """Refuse a feature number that the CLT does not have.

    Raises:
        InputError: the number is out of range.
    """
    if not 0 <= feature < n_features:
        raise InputError(
            "feature",
            f"is {feature} at layer {layer}; expected features from 0 to {n_features - 1}.",
        )


def check_rows(tokens: Rows, rows: TokenRows) -> None:
    """Refuse rows that a model does not have.

    Raises:
        InputError: an unknown kind, no row, a row given twice, or one that the model lacks.
    """
    _check_rows_of_any(tokens)
    if isinstance(tokens, str):
        token_rows(tokens, rows)
    elif max(tokens) >= rows.n_tokens:
        raise InputError(
            "tokens", f"hold row {max(tokens)}; expected rows 0 to {rows.n_tokens - 1}."
        )


def row_index(tokens: Rows, rows: TokenRows) -> slice | list[int]:
    """The rows of a model as a slice or list that indexes the token axis.

    Raises:
        InputError: rows that the model does not have.
    """
    check_rows(tokens, rows)
    return token_rows(tokens, rows) if isinstance(tokens, str) else list(tokens)


def _check_rows_of_any(tokens: Rows) -> None:
    if isinstance(tokens, str):
        check_choice("tokens", tokens, get_args(TokenKind))
    else:
        _check_numbers("tokens", tokens)


def _edit(codes: Tensor, hook: HookPoint, edits: Sequence[Edit]) -> Tensor:
    # edited in a copy, because a hook that fired before may have kept the codes
    edited, rows = codes.clone(), rows_of(hook)
    for edit in edits:
        check_feature(edit.layer, max(edit.features), codes.shape[-1])
        features = list(edit.features)
        edited[..., features] = edit.apply(edited[..., features], rows)
    return edited


def _check_apart(edits: Sequence[Edit], rows: TokenRows | None = None) -> None:
    if not edits:
        raise InputError("edits", "is empty; expected at least one.")
    for a, b in combinations(edits, 2):
        both = set(a.features) & set(b.features) if a.layer == b.layer else ()
        row = _shared_row(a.tokens, b.tokens, rows) if both else None
        if row is not None:
            raise InputError(
                "edits",
                f"hold feature {min(both)} of layer {a.layer} twice on row {row}; expected "
                "one edit a feature and row.",
            )


def _shared_row(a: Rows, b: Rows, rows: TokenRows | None = None) -> int | None:
    """A row that is in both, or None; of a model that is not known, one with CLS and patches."""
    within = range(_ROW_LIMIT if rows is None else rows.n_tokens)

    def numbers(tokens: Rows) -> Sequence[int]:
        known = rows or TokenRows(has_cls=True, n_registers=0, grid=(1, 1))
        if not isinstance(tokens, str):
            return tokens
        return within[token_rows(tokens, known)] if tokens in known.kinds else ()

    shorter, longer = sorted((numbers(a), numbers(b)), key=len)
    # this is quick: the shorter has a few numbers, or the longer has its first row
    return next((row for row in shorter if row in longer), None)


def _check_numbers(name: str, numbers: Sequence[int]) -> None:
    if not numbers:
        raise InputError(name, "is empty; expected at least one number.")
    if min(numbers) < 0:
        raise InputError(name, f"holds {min(numbers)}; expected numbers from 0.")
    if len(set(numbers)) < len(numbers):
        raise InputError(name, "holds a number twice; expected each once.")


def _rows_text(tokens: Rows) -> str:
    return f'"{tokens}"' if isinstance(tokens, str) else ", ".join(map(str, tokens))
