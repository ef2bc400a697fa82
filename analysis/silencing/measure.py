"""Measures what silencing changes, exactly or to first order, batch by batch.

Exactly: one altered pass for each silencing. To first order, one pass and one gradient a reading
serve all silencings at once: with G_l the gradient of a reading at y_l in the live stream, a change
dy_l of the terms changes it by

    sum over targets l of <G_l, dy_l>

A squared norm over many rows is no reading, but a random one with signs v gives it on the mean:
||u||^2 = E <v, u>^2. The change of y_t is its own term's change dy_t, which is known, and u, which
downstream codes add; so with q = <v, dy_t + u> from the gradient of <v, y_t>

    ||dy_t + u||^2 = E[ ||dy_t||^2 + q^2 - <v, dy_t>^2 ]

Each image has one v at one target t, dealt at random. On an image the estimate is poor, and may be
negative; means over many images are used alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.silencing.changes import Changes, Silenced
from vit_clt.analysis.silencing.effects import Reading
from vit_clt.choices import EffectPath, TokenKind
from vit_clt.data.images import ImageData
from vit_clt.hooks import HookedViT, token_rows
from vit_clt.hooks.passes.live import Change, LivePass
from vit_clt.hooks.passes.tangent import TangentPass
from vit_clt.kernels.codes import Codes
from vit_clt.readouts.base import Classifier
from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class BatchEffects:
    """Effects on the images of one batch, in float64."""

    moved: Float[np.ndarray, "image target silenced"]
    """Squared change of y_l over an image's scored rows; NaN below the layer that is silenced."""
    on_output: dict[Reading, Float[np.ndarray, "image silenced"]]
    spread: Float[np.ndarray, "image target"]
    """||y_l - mean y_l||^2."""
    power: Float[np.ndarray, "image target"]
    """||y_l||^2."""
    l0: float
    """Active features a scored row and layer."""


@dataclass(frozen=True)
class Measurement:
    """What is silenced, where and how its effects are read."""

    vit: HookedViT
    clt: CrossLayerTranscoder
    data: ImageData
    classifier: Classifier | None
    changes: Changes
    tokens: TokenKind
    path: EffectPath
    seed: int

    @property
    def silenced(self) -> Sequence[Silenced]:
        """What is silenced, one after another."""
        return self.changes.silenced

    @torch.no_grad()
    def exact(self, numbers: Sequence[int]) -> BatchEffects:
        """The effects on the images with these numbers, from an altered pass for each silencing."""
        images, labels = self.data.batch(numbers)
        live = LivePass(self.vit, self.clt, images.to(self.vit.device))
        clean = self._read(live.embeddings, labels)
        found = self._nothing([live.y(l) for l in self._layers], live.codes, clean)
        rows = self.changes.rows
        for i, change in enumerate(self.changes.of(live.codes, numbers)):
            source = self.silenced[i].layer
            if self.path == "total":
                altered = live.changed(source, change, rows)
                embeddings = altered.embeddings
                for l, moved in altered.moved.items():
                    found.moved[:, l, i] = _square(moved[:, self._scored])
            else:
                embeddings = live.direct_on_output(change, rows)
                self._add_direct(found, i, change)
            for name, value in self._read(embeddings, labels).items():
                found.on_output[name][:, i] = (value - clean[name]).cpu().numpy()
        return found

    def first_order(
        self,
        numbers: Sequence[int],
        probed: Int[np.ndarray, " image"],
        weights: Float[np.ndarray, " target"],
    ) -> BatchEffects:
        """The effects on the images with these numbers to first order; at the output on the loss.

        Args:
            numbers: of the images.
            probed: the target of each image's random probe.
            weights: by target, the number of all images over that of those with its probe.
        """
        images, labels = self.data.batch(numbers)
        tangent = TangentPass(self.vit, self.clt, images.to(self.vit.device))
        gradients: dict[Reading, list[Tensor]] = {}
        if self.classifier is not None:
            with torch.enable_grad():
                loss = self._read(tangent.embeddings, labels)["loss"].sum()
            at = tangent.gradients if self.path == "total" else tangent.direct_gradients
            gradients["loss"] = at(loss)
        found = self._nothing(tangent.y, tangent.codes, gradients)
        probes = _Probes(tangent, self._scored, probed, [self.seed, numbers[0]])
        at_probe = probes.gradients() if self.path == "total" else None
        rows = self.changes.rows
        with torch.no_grad():
            for i, change in enumerate(self.changes.of(tangent.codes, numbers)):
                for name, at_y in gradients.items():
                    found.on_output[name][:, i] = _first_order(at_y, change, rows)
                direct = self._add_direct(found, i, change)
                if at_probe is None:
                    continue
                q, own = _first_order(at_probe, change, rows), probes.read(direct)
                above = probed > self.silenced[i].layer
                added = weights[probed] * (q**2 - own**2)
                found.moved[above, probed[above], i] += added[above]
        return found

    @property
    def _layers(self) -> range:
        return range(self.vit.cfg.n_layers)

    @property
    def _scored(self) -> slice:
        return token_rows(self.tokens, self.vit.cfg.rows)

    def _nothing(
        self, y: Sequence[Tensor], codes: Sequence[Codes], readings: Iterable[Reading]
    ) -> BatchEffects:
        """No effect yet: what is known of the unaltered pass."""
        scored = [each.detach()[:, self._scored] for each in y]
        n_images, n_silenced = len(y[0]), len(self.silenced)
        moved = np.full((n_images, len(y), n_silenced), np.nan)
        for i, each in enumerate(self.silenced):
            moved[:, each.layer :, i] = 0
        spread = zip(scored, self.changes.y_means, strict=True)
        return BatchEffects(
            moved,
            {name: np.zeros((n_images, n_silenced)) for name in readings},
            np.stack([_square(value - mean) for value, mean in spread], 1),
            np.stack([_square(value) for value in scored], 1),
            float(np.mean([float(c.at_rows(self._scored).l0().double().mean()) for c in codes])),
        )

    def _read(self, embeddings: Tensor, labels: Tensor) -> dict[Reading, Float[Tensor, " image"]]:
        if self.classifier is None:
            return {}
        self.classifier.check_labels(labels)
        logits, labels = self.classifier.logits(embeddings).double(), labels.to(embeddings.device)
        own = logits.gather(1, labels[:, None])[:, 0]
        others = (logits.sum(1) - own) / (logits.shape[1] - 1)
        return {"loss": F.cross_entropy(logits, labels, reduction="none"), "contrast": own - others}

    def _add_direct(self, found: BatchEffects, i: int, change: Change) -> dict[int, Tensor]:
        """The change of each target's own term on the scored rows, whose squares are added."""
        direct = {}
        rows = range(self.vit.cfg.n_tokens)
        scored, silenced = rows[self._scored], rows[self.changes.rows]
        shared = [row for row in scored if row in silenced]
        for l, dy in change.items():
            direct[l] = dy.new_zeros(len(dy), len(scored), dy.shape[-1])
            if shared:  # rows of a kind are consecutive
                here, there = (
                    slice(each.index(shared[0]), each.index(shared[-1]) + 1)
                    for each in (scored, silenced)
                )
                direct[l][:, here] = dy[:, there]
            found.moved[:, l, i] += _square(direct[l])
        return direct


class _Probes:
    """A random sign for every number of y_t on an image's scored rows, at the image's target t."""

    def __init__(
        self,
        tangent: TangentPass,
        scored: slice,
        probed: Int[np.ndarray, " image"],
        seed: Sequence[int],
    ):
        self.tangent, self.scored, self.probed = tangent, scored, probed
        like = tangent.y[0][:, scored]
        signs = np.random.default_rng(seed).integers(0, 2, tuple(like.shape)) * 2 - 1
        self.signs = torch.from_numpy(signs).to(like)

    def gradients(self) -> list[Tensor]:
        """Gradients at y_l of every image's own reading <v, y_t>, summed over the images."""
        with torch.enable_grad():
            parts = [
                (self.signs[at] * self.tangent.y[t][at][:, self.scored]).sum()
                for t, at in self._by_target()
            ]
            return self.tangent.gradients(torch.stack(parts).sum())

    def read(self, y: dict[int, Tensor]) -> Float[np.ndarray, " image"]:
        """<v, y_t> of every image, for values of y on scored rows; 0 where there are none."""
        found = np.zeros(len(self.probed))
        for t, at in self._by_target():
            if t in y:
                products = self.signs[at] * y[t][at]
                found[at.cpu().numpy()] = products.double().sum((1, 2)).cpu().numpy()
        return found

    def _by_target(self) -> Iterator[tuple[int, Int[Tensor, " image"]]]:
        for t in np.unique(self.probed).tolist():
            yield t, torch.from_numpy(np.flatnonzero(self.probed == t)).to(self.signs.device)


def _first_order(
    at_y: Sequence[Tensor], change: Change, rows: slice
) -> Float[np.ndarray, " image"]:
    parts = [torch.einsum("brd,brd->b", at_y[l][:, rows], dy) for l, dy in change.items()]
    return torch.stack(parts).double().sum(0).cpu().numpy()


def _square(values: Tensor) -> np.ndarray:
    return values.double().square().sum((1, 2)).cpu().numpy()
