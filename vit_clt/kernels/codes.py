"""Codes z: what the encoders emit and the decoders read.

Three layouts with one interface, `Codes`. Top-k sparsifiers give `SparseCodes` (k slots a token);
JumpReLU gives `RaggedCodes` where few units matter and `DenseCodes` where many do; codes edited by
hand are `DenseCodes`. Indexing with a layer, `codes[s]`, gives that source's codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_clt.kernels.entries import Band, Entries


class Codes(ABC):
    """Codes of all layers "layer *token feature", or of one layer "*token feature"."""

    # fields in one layout and properties in another; a field cannot override a property
    if TYPE_CHECKING:

        @property
        def n_features(self) -> int:
            """Features per layer."""

        @property
        def tokens(self) -> tuple[int, ...]:
            """The axes "*layer_token"."""

    @property
    @abstractmethod
    def layout(self) -> Literal["dense", "banded", "sparse"]:
        """How these codes can be decoded: "sparse" as entries, "banded" as entries and a band."""

    @abstractmethod
    def density(self) -> float:
        """Stored entries as a share of all features."""

    def __len__(self) -> int:
        return self.tokens[0]

    @abstractmethod
    def __getitem__(self, layer: int) -> Codes: ...

    @abstractmethod
    def at_rows(self, rows: slice) -> Codes:
        """The same codes at some places of the last token axis."""

    def at_features(self, features: Sequence[int]) -> Float[Tensor, "*layer_token chosen"]:
        """The codes of some features, 0 where they are silent."""
        return self.to_dense()[..., list(features)]

    @abstractmethod
    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """The same codes with every feature written out, differentiable."""

    @abstractmethod
    def read(self, dense: Float[Tensor, "*layer_token feature"]) -> Float[Tensor, "*stored"]:
        """What `dense` holds where these codes store a value, in the shape they store it in."""

    @abstractmethod
    def entries(self) -> Entries:
        """The codes as a flat list: every active entry, and silent ones that the layout stores."""

    def active(self) -> RaggedCodes:
        """The active entries alone (z != 0), within a token in the order they are stored in."""
        entries = self.entries()
        return self._chosen(entries, entries.values != 0)

    def between(self, first: int, stop: int) -> Codes:
        """The same codes with all features but first, ..., stop - 1 silenced.

        Layouts that store entries keep those of these features alone.
        """
        entries = self.entries()
        return self._chosen(entries, (entries.indices >= first) & (entries.indices < stop))

    def _chosen(self, entries: Entries, chosen: Bool[Tensor, " entry"]) -> RaggedCodes:
        return RaggedCodes(
            entries.values[chosen],
            entries.indices[chosen].long(),
            _until(chosen)[entries.offsets],
            self.tokens,
            self.n_features,
        )

    @abstractmethod
    def l0(self) -> Int[Tensor, "*layer_token"]:
        """Active features per token."""

    @abstractmethod
    def fired(self) -> Int[Tensor, "layer feature"]:
        """Tokens on which each feature is active, summed over every token axis."""

    def nbytes(self) -> int:
        """Bytes of the tensors that hold these codes, without a band's."""
        return sum(each.nbytes for each in vars(self).values() if isinstance(each, Tensor))


@dataclass(frozen=True)
class SparseCodes(Codes):
    """At most `slot` active features a token. Slots with value 0 are silent, whatever their index.

    Indices never repeat within a token. Activity is `value != 0`, never `value > 0`: Abs-TopK
    codes are signed.
    """

    values: Float[Tensor, "*layer_token slot"]
    indices: Int[Tensor, "*layer_token slot"]
    n_features: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The axes "*layer_token"."""
        return tuple(self.values.shape[:-1])

    @property
    def layout(self) -> Literal["sparse"]:
        """Always "sparse"."""
        return "sparse"

    def density(self) -> float:
        """Slots as a share of all features."""
        return self.values.shape[-1] / self.n_features

    def __getitem__(self, layer: int) -> SparseCodes:
        return SparseCodes(self.values[layer], self.indices[layer], self.n_features)

    def at_features(self, features: Sequence[int]) -> Float[Tensor, "*layer_token chosen"]:
        """The codes of some features, 0 where they are silent."""
        # indices never repeat within a token, and slots of value 0 add nothing
        found = [(self.values * (self.indices == i)).sum(-1) for i in features]
        return torch.stack(found, dim=-1)

    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """The same codes with every feature written out; differentiable in the values."""
        dense = self.values.new_zeros(*self.values.shape[:-1], self.n_features)
        return dense.scatter_(-1, self.indices, self.values)  # in place: zeros are written once

    def read(
        self, dense: Float[Tensor, "*layer_token feature"]
    ) -> Float[Tensor, "*layer_token slot"]:
        """What `dense` holds at these codes' slots; the transpose of `to_dense`."""
        return dense.gather(-1, self.indices)

    def at_rows(self, rows: slice) -> SparseCodes:
        """The same codes at some places of the last token axis."""
        chosen = (..., rows, slice(None))
        return SparseCodes(self.values[chosen], self.indices[chosen], self.n_features)

    def l0(self) -> Int[Tensor, "*layer_token"]:
        """Active features per token."""
        return self.values.ne(0).sum(-1)

    def fired(self) -> Int[Tensor, "layer feature"]:
        """Tokens on which each feature is active, summed over every token axis."""
        active = self.values.ne(0).flatten(1).long()
        counts = active.new_zeros(len(self), self.n_features)
        return counts.scatter_add(1, self.indices.flatten(1), active)

    def entries(self) -> Entries:
        """The slots of all tokens in a row."""
        n, slots = self.values.numel(), self.values.shape[-1]
        offsets = torch.arange(0, n + 1, slots, device=self.indices.device)
        return Entries(self.values.reshape(-1), self.indices.reshape(-1), offsets)


@dataclass(frozen=True)
class RaggedCodes(Codes):
    """As many entries a token as matter there, possibly none; tokens in a row.

    Entries with value 0 are silent. JumpReLU's training codes hold units just below their
    threshold, which receive a gradient: as such entries where they are few, as a band where they
    are many.
    """

    values: Float[Tensor, " entry"]
    indices: Int[Tensor, " entry"]
    offsets: Int[Tensor, " token_and_one"]
    tokens: tuple[int, ...]
    """The axes "*layer_token" that the tokens fold into."""
    n_features: int
    band: Band | None = None
    """Silent near units, where they are not listed. None also where nothing asks for them."""

    @property
    def layout(self) -> Literal["banded", "sparse"]:
        """ "banded" with a band, else "sparse"."""
        return "sparse" if self.band is None else "banded"

    def density(self) -> float:
        """Stored entries as a share of all features."""
        return len(self.values) / max(1, prod(self.tokens) * self.n_features)

    def __getitem__(self, layer: int) -> RaggedCodes:
        n_tokens = prod(self.tokens[1:])
        first = range(len(self))[layer] * n_tokens
        offsets = self.offsets[first : first + n_tokens + 1]
        lo, hi = int(offsets[0]), int(offsets[-1])
        return RaggedCodes(
            self.values[lo:hi],
            self.indices[lo:hi],
            offsets - lo,
            self.tokens[1:],
            self.n_features,
            None if self.band is None else self.band[layer],
        )

    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """The same codes with every feature written out; differentiable in values and band."""
        dense = self.values.new_zeros((len(self.offsets) - 1) * self.n_features)
        dense = dense.scatter_(0, self._flat(), self.values).view(*self.tokens, self.n_features)
        return dense if self.band is None else dense + self.band.to_dense()

    def read(self, dense: Float[Tensor, "*layer_token feature"]) -> Float[Tensor, " entry"]:
        """What `dense` holds at these codes' entries; without a band, `to_dense` transposed."""
        return dense.reshape(-1).gather(0, self._flat())

    def _flat(self) -> Tensor:
        firsts = torch.arange(len(self.offsets) - 1, device=self.indices.device) * self.n_features
        return firsts.repeat_interleave(self.offsets.diff()) + self.indices

    def at_rows(self, rows: slice) -> RaggedCodes:
        """The same codes at some places of the last token axis; without a band."""
        counts = self.offsets.diff()
        kept = torch.zeros_like(counts, dtype=torch.bool).view(self.tokens)
        kept[..., rows] = True
        tokens = tuple(kept[..., rows].shape)
        kept = kept.flatten()
        entries = kept.repeat_interleave(counts)
        offsets = _until(counts[kept])
        return RaggedCodes(
            self.values[entries], self.indices[entries], offsets, tokens, self.n_features
        )

    def between(self, first: int, stop: int) -> RaggedCodes:
        """The entries and the band of these features alone."""
        chosen = (self.indices >= first) & (self.indices < stop)
        band = None if self.band is None else self.band.between(first, stop)
        return replace(self._chosen(self.entries(), chosen), band=band)

    def l0(self) -> Int[Tensor, "*layer_token"]:
        """Active features per token."""
        return _until(self.values.ne(0))[self.offsets].diff().view(self.tokens)

    def fired(self) -> Int[Tensor, "layer feature"]:
        """Tokens on which each feature is active, summed over every token axis."""
        return torch.stack(
            [
                codes.indices[codes.values != 0].bincount(minlength=self.n_features)
                for codes in (self[layer] for layer in range(len(self)))
            ]
        )

    def entries(self) -> Entries:
        """The entries as they are."""
        if self.band is None:
            return Entries(self.values, self.indices, self.offsets)
        band = Band(self.band.silent.reshape(-1, self.n_features), self.band.shift)
        return Entries(self.values, self.indices, self.offsets, band)


@dataclass(frozen=True)
class DenseCodes(Codes):
    """Every feature of every token written out."""

    dense: Float[Tensor, "*layer_token feature"]

    @property
    def n_features(self) -> int:
        """Features per layer."""
        return self.dense.shape[-1]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The axes "*layer_token"."""
        return tuple(self.dense.shape[:-1])

    @property
    def layout(self) -> Literal["dense"]:
        """Always "dense": silent features are owed a gradient too."""
        return "dense"

    def density(self) -> float:
        """Every feature is stored: 1."""
        return 1.0

    def __getitem__(self, layer: int) -> DenseCodes:
        return DenseCodes(self.dense[layer])

    def to_dense(self) -> Float[Tensor, "*layer_token feature"]:
        """The codes themselves."""
        return self.dense

    def read(
        self, dense: Float[Tensor, "*layer_token feature"]
    ) -> Float[Tensor, "*layer_token feature"]:
        """All of it."""
        return dense

    def at_rows(self, rows: slice) -> DenseCodes:
        """The same codes at some places of the last token axis."""
        return DenseCodes(self.dense[..., rows, :])

    def between(self, first: int, stop: int) -> DenseCodes:
        """The same codes with all features but first, ..., stop - 1 silenced."""
        numbers = torch.arange(self.n_features, device=self.dense.device)
        return DenseCodes(self.dense * ((numbers >= first) & (numbers < stop)))

    def l0(self) -> Int[Tensor, "*layer_token"]:
        """Active features per token."""
        return self.dense.ne(0).sum(-1)

    def fired(self) -> Int[Tensor, "layer feature"]:
        """Tokens on which each feature is active, summed over every token axis."""
        n_tokens = self.dense[0, ..., 0].numel()
        return self.dense.ne(0).reshape(len(self), n_tokens, self.n_features).sum(1)

    def entries(self) -> Entries:
        """The active features, ascending within a token."""
        flat = self.dense.reshape(-1, self.n_features)
        rows, features = flat.nonzero(as_tuple=True)
        offsets = _until(torch.bincount(rows, minlength=len(flat)))
        return Entries(flat[rows, features], features, offsets)


def stack_codes(per_layer: Sequence[Codes]) -> Codes:
    """Codes of single layers to one object with a leading layer axis."""
    first = per_layer[0]
    if all(isinstance(codes, SparseCodes) for codes in per_layer):
        sparse = [codes for codes in per_layer if isinstance(codes, SparseCodes)]
        return SparseCodes(
            torch.stack([codes.values for codes in sparse]),
            torch.stack([codes.indices for codes in sparse]),
            first.n_features,
        )
    ragged = [codes for codes in per_layer if isinstance(codes, RaggedCodes)]
    bands = [codes.band for codes in ragged if codes.band is not None]
    if len(ragged) == len(per_layer) and len(bands) in (0, len(ragged)):
        counts = torch.cat([codes.offsets.diff() for codes in ragged])
        return RaggedCodes(
            torch.cat([codes.values for codes in ragged]),
            torch.cat([codes.indices for codes in ragged]),
            _until(counts),
            (len(ragged), *ragged[0].tokens),
            first.n_features,
            _stack_bands(bands) if bands else None,
        )
    return DenseCodes(torch.stack([codes.to_dense() for codes in per_layer]))


def _until(counts: Tensor) -> Tensor:
    """Sums of all counts before each, and of all."""
    return torch.cat([counts.new_zeros(1, dtype=torch.long), counts.cumsum(0)])


def _stack_bands(bands: Sequence[Band]) -> Band:
    return Band(
        torch.stack([band.silent for band in bands]), torch.stack([band.shift for band in bands])
    )
