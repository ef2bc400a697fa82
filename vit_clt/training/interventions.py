"""Training on passes in which outputs of the ViT's own MLPs are replaced by others.

In a part of the images (`TrainConfig.interventions`) the outputs of a range of MLPs are replaced,
and everything above is recomputed. The CLT must still give MLP_l(x_l) of every layer. A CLT that
reads y_l from an earlier depth than the one that computes it cannot: the early layers know nothing
of a change that was made above them (the shortcut of Lange et al. 2026).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.activations import Activations, capture
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, FwdHooks
from vit_clt.training.batches import ActivationReader, GroupActivations
from vit_clt.training.order import seeded


@dataclass(frozen=True)
class Interventions:
    """What is overwritten in the passes of some images."""

    images: list[int]
    """Their places in the group."""
    layers: Bool[Tensor, "layer image"]
    """The layers whose MLP output is overwritten: a range of layers for each image."""
    fill: Float[Tensor, "layer image token d_model"]
    """What it is overwritten by."""


class InterventionReader:
    """Reads activations of another reader, some of them of passes with interventions.

    What is altered is a function of the seed and of the images of a group, whose order differs from
    epoch to epoch.

    Args:
        reader: reads the unaltered activations.
        vit, data: the teacher and its images.
        share: the share of the images whose pass is altered.
        seed: seed of the run.
    """

    def __init__(
        self, reader: ActivationReader, vit: HookedViT, data: ImageData, share: float, seed: int
    ):
        self.reader, self.vit, self.data = reader, vit, data
        self.share, self.seed = share, seed

    @property
    def skipped(self) -> set[int]:
        """Images that could not be read so far."""
        return self.reader.skipped

    @skipped.setter
    def skipped(self, images: set[int]) -> None:
        self.reader.skipped = images

    def read(self, groups: Sequence[Sequence[int]]) -> Iterator[GroupActivations]:
        """The activations of each group, in order.

        Raises:
            InputError: as `read` of the other reader.
        """
        for group, clean in zip(groups, self.reader.read(groups), strict=True):
            drawn = draw_interventions(clean, self.share, seeded(self.seed, "altered", *group))
            if not drawn.images:
                yield clean
                continue
            pixels, _ = self.data.batch([group[i] for i in drawn.images])
            altered = intervened(self.vit, drawn, pixels.to(clean.x.device))
            x, y = clean.x.clone(), clean.y.clone()
            x[:, drawn.images], y[:, drawn.images] = altered.x.to(x.dtype), altered.y.to(y.dtype)
            yield GroupActivations(x, y, clean.readable)


def draw_interventions(
    clean: GroupActivations, share: float, generator: torch.Generator
) -> Interventions:
    """Draw the images of a group whose passes are altered, and how.

    Each gets a range of layers, its ends drawn evenly, whose outputs become, with equal chance,
    those of another image of the group or their mean over the group at the same position.

    Args:
        clean: the unaltered activations of the group.
        share: the share of its readable images.
        generator: draws.
    """
    readable = clean.readable.nonzero()[:, 0].cpu()
    n_layers, n_readable = len(clean.y), len(readable)
    n = round(share * n_readable) if n_readable > 1 else 0
    order = torch.randperm(n_readable, generator=generator)
    images, donors = readable[order[:n]], readable[order.roll(-1)[:n]]
    ends = torch.randint(n_layers, (2, n), generator=generator).sort(0).values
    layers = torch.arange(n_layers)[:, None]
    mask = (ends[0] <= layers) & (layers <= ends[1])
    to_mean = torch.rand(n, generator=generator) < 0.5
    fill = clean.y[:, donors]
    mean = clean.y[:, readable].mean(1, keepdim=True)
    fill = torch.where(to_mean.to(fill.device)[:, None, None], mean, fill)
    return Interventions(images.tolist(), mask.to(fill.device), fill)


@torch.no_grad()
def intervened(
    vit: HookedViT, drawn: Interventions, images: Float[Tensor, "batch 3 height width"]
) -> Activations:
    """x of every layer in the altered pass, and y = MLP_l(x_l), also where it is then overwritten.

    Args:
        vit: the teacher.
        drawn: what is overwritten.
        images: the images of `drawn`.
    """
    x: list[Tensor] = []
    y: list[Tensor] = []

    def overwrite(value: Tensor, hook: HookPoint, layer: int) -> Tensor:
        y.append(value)
        chosen = drawn.layers[layer][:, None, None]
        return torch.where(chosen, drawn.fill[layer].to(value.dtype), value)

    layers = range(vit.cfg.n_layers)
    hooks: FwdHooks = [(HOOK_IN.format(l=l), lambda value, hook: x.append(value)) for l in layers]
    hooks += [(HOOK_OUT.format(l=l), partial(overwrite, layer=l)) for l in layers]
    vit.run_with_hooks(images, fwd_hooks=hooks)
    return Activations(torch.stack(x), torch.stack(y))


@torch.no_grad()
def capture_intervened(
    vit: HookedViT, images: Float[Tensor, "batch 3 height width"], seed: int
) -> Activations:
    """x and y of passes with interventions, one in every image, drawn as in training.

    What is drawn is a function of the seed and the pixels of the batch, whose images are each
    other's donors.

    Raises:
        InputError: there is one image, or an activation is NaN or infinite.
    """
    if len(images) < 2:
        raise InputError(
            "images", "is a batch of 1 image, which has no donor; expected at least 2 a batch."
        )
    clean = capture(vit, images)
    everything = torch.ones(len(images), dtype=torch.bool)
    pixels = zlib.crc32(images.detach().cpu().contiguous().numpy().tobytes())
    group = GroupActivations(clean.x, clean.y, everything)
    drawn = draw_interventions(group, 1.0, seeded(seed, "intervened", pixels))
    altered = intervened(vit, drawn, images[drawn.images])
    # the images were drawn in an order of their own
    places = torch.tensor(drawn.images, device=altered.x.device).argsort()
    return Activations(altered.x[:, places], altered.y[:, places])
