"""Images -> (x, y): what the MLPs of a frozen ViT read and write, as shuffled token batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HOOK_IN, HOOK_OUT, HookedViT

IMAGES_PER_PASS = 128


@dataclass(frozen=True)
class Activations:
    """MLP inputs x and outputs y of a batch of images, on the clean (teacher) trajectory."""

    x: Float[Tensor, "layer image token d_model"]
    y: Float[Tensor, "layer image token d_model"]


@dataclass(frozen=True)
class TokenBatch:
    """Token rows of many images, shuffled together."""

    x: Float[Tensor, "layer token d_model"]
    y: Float[Tensor, "layer token d_model"]
    is_cls: Bool[Tensor, " token"]

    def __len__(self) -> int:
        return len(self.is_cls)


@torch.no_grad()
def capture(vit: HookedViT, images: Float[Tensor, "batch 3 height width"]) -> Activations:
    """(x, y) of every layer and token, whatever hooks are attached to the model.

    Raises:
        InputError: an activation is NaN or infinite.
    """
    names = [point.format(l=l) for l in range(vit.cfg.n_layers) for point in (HOOK_IN, HOOK_OUT)]
    cache = vit.clean_cache(images, names)
    for name in names:
        if not cache[name].sum().isfinite():
            raise InputError(f"{name} holds NaN or infinite values; expected finite activations.")
    x, y = (
        torch.stack([cache[point.format(l=l)] for l in range(vit.cfg.n_layers)])
        for point in (HOOK_IN, HOOK_OUT)
    )
    return Activations(x, y)


def token_batches(
    vit: HookedViT,
    data: ImageData,
    *,
    batch_size: int,
    buffer_batches: int,
    generator: torch.Generator,
) -> Iterator[TokenBatch]:
    """One epoch of token batches, activations recomputed as it goes.

    Images are visited in random order; tokens wait in a buffer of about `buffer_batches` batches
    that is shuffled before it is emptied, so that a batch mixes tokens of many images. The last
    batch of the epoch holds what is left.
    """
    order = torch.randperm(len(data), generator=generator).tolist()
    device = next(vit.parameters()).device
    pieces: list[TokenBatch] = []
    for start in range(0, len(order), IMAGES_PER_PASS):
        images, _ = data.batch(order[start : start + IMAGES_PER_PASS])
        found = capture(vit, images.to(device))
        is_cls = torch.zeros(found.x.shape[1:3], dtype=torch.bool, device=device)
        is_cls[:, 0] = vit.cfg.has_cls
        pieces.append(TokenBatch(found.x.flatten(1, 2), found.y.flatten(1, 2), is_cls.flatten()))
        last = start + IMAGES_PER_PASS >= len(order)
        if last or sum(map(len, pieces)) >= buffer_batches * batch_size:
            pool = _shuffled(pieces, generator)
            whole = len(pool) if last else len(pool) - len(pool) % batch_size
            for row in range(0, whole, batch_size):
                yield _rows(pool, slice(row, min(row + batch_size, whole)))
            pieces = [] if last else [_rows(pool, slice(whole, None))]


@torch.no_grad()
def norm_scales(
    vit: HookedViT, data: ImageData, *, n_images: int, generator: torch.Generator
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """Factors per layer for x and for y that bring the mean norm of a token to sqrt(d_model).

    Measured on `n_images` images drawn without repeats (all, if there are fewer).

    Raises:
        InputError: a layer reads or writes nothing but zeros.
    """
    order = torch.randperm(len(data), generator=generator).tolist()[:n_images]
    device = next(vit.parameters()).device
    totals = torch.zeros(2, vit.cfg.n_layers, dtype=torch.float64, device=device)
    for start in range(0, len(order), IMAGES_PER_PASS):
        images, _ = data.batch(order[start : start + IMAGES_PER_PASS])
        found = capture(vit, images.to(device))
        for i, values in enumerate((found.x, found.y)):
            totals[i] += values.double().norm(dim=-1).sum((1, 2))
    for values, point in zip(totals, (HOOK_IN, HOOK_OUT), strict=True):
        if (values == 0).any():
            silent = point.format(l=int((values == 0).nonzero()[0]))
            raise InputError(f"{silent} is zero on every token; expected activations that vary.")
    means = totals / (len(order) * vit.cfg.n_tokens)
    scales = (vit.cfg.d_model**0.5 / means).float()
    return scales[0], scales[1]


def _shuffled(pieces: list[TokenBatch], generator: torch.Generator) -> TokenBatch:
    order = torch.randperm(sum(map(len, pieces)), generator=generator)
    order = order.to(pieces[0].is_cls.device)
    return TokenBatch(
        torch.cat([p.x for p in pieces], 1)[:, order],
        torch.cat([p.y for p in pieces], 1)[:, order],
        torch.cat([p.is_cls for p in pieces])[order],
    )


def _rows(batch: TokenBatch, rows: slice) -> TokenBatch:
    return TokenBatch(batch.x[:, rows], batch.y[:, rows], batch.is_cls[rows])
