"""Direct effects of features on class logits, or on a contrast of them, norms differentiated.

    effect of (s, i) on class c in one image
        = sum over rows of z * sum_l <W_dec[s->l]_i, G_l[row, c]>

G_l is the gradient of the logit exp(logit_scale) cos(e, class c) with respect to y_l at the
unaltered pass, all LayerNorms and ||e|| differentiated, attention patterns held and the MLPs cut
(`vit_clt.hooks.passes.frozen`): z times the rate at which a small change of z moves the logit, by
residual stream and attention, not through later MLPs. A skip connection is what a CLT puts in their
place beside its codes: with one, G_l also runs through W_skip. Taking the feature away is no small
change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.features.active import active_codes
from vit_clt.analysis.features.activity import ActivitySums, FeatureActivity, sums_by_feature
from vit_clt.data.images import ImageData, ImageSubset
from vit_clt.errors import InputError
from vit_clt.hooks import FrozenPass, HookedViT, Rows
from vit_clt.hooks.steering import row_index
from vit_clt.progress import Progress
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.transcoder.model import CrossLayerTranscoder

_FLOATS = 2**25  # of gradients at a time, 128 MiB


@dataclass(frozen=True)
class ClassEffects:
    """Direct effects on logits, by source layer, of the first images of a data set."""

    sums: dict[int, Float[np.ndarray, "feature class"]]
    """Summed over images, in logits."""
    images: dict[int, Int[np.ndarray, " feature"]]
    """Images on which the feature is active."""
    n_images: int
    class_names: list[str]
    readout: str
    """Name of the prompts."""

    def mean(self, layer: int) -> Float[np.ndarray, "feature class"]:
        """Mean over the images on which a feature is active; NaN where there is none."""
        images = self.images[layer][:, None].astype(float)
        return self.sums[layer] / np.where(images, images, np.nan)

    def centred(self, layer: int) -> Float[np.ndarray, "feature class"]:
        """`mean` less its mean over classes: a constant added to all logits changes no answer."""
        mean = self.mean(layer)
        return mean - mean.mean(1, keepdims=True)

    def of(self, layer: int, feature: int) -> Float[np.ndarray, "centred_and_raw class"]:
        """The rows of one feature in `centred` and `mean`."""
        images = float(self.images[layer][feature])
        mean = self.sums[layer][feature] / (images or np.nan)
        return np.stack([mean - mean.mean(), mean])


@torch.no_grad()
def class_effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    layers: Sequence[int],
    *,
    n_images: int = 200,
    progress: bool = False,
) -> ClassEffects:
    """Effects of all features of these layers, summed over the first `n_images` images.

    Raises:
        InputError: fewer than one image, or a model that does not pool the class token alone.
    """
    if n_images < 1:
        raise InputError("effect_images", f"is {n_images}; expected at least 1.")
    shown = ImageSubset(data, range(min(n_images, len(data))))
    found = direction_effects(
        vit, clt, shown, zs.logit_scale * zs.weights.T, layers, progress=progress
    )
    return ClassEffects(found.sums, found.images, len(shown), zs.class_names, zs.name)


@dataclass(frozen=True)
class DirectionEffects:
    """Direct effects on readings <e/||e||, direction> of the embedding e, by source layer."""

    sums: dict[int, Float[np.ndarray, "feature direction"]]
    """Summed over images."""
    images: dict[int, Int[np.ndarray, " feature"]]
    """Images on which the feature is active."""


@torch.no_grad()
def direction_effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    shown: ImageSubset,
    directions: Float[Tensor, "direction d_embed"],
    layers: Sequence[int],
    *,
    title: str = "class effects",
    progress: bool = False,
) -> DirectionEffects:
    """Effects of all features of these layers on readings of the embedding, summed over images.

    A product per active entry, target and direction; 8 bytes are kept per feature and direction. An
    effect is linear in the direction. Where there are more directions than the embedding has
    dimensions, effects on the dimensions are therefore summed in place of those on the directions,
    and put together at the end.

    Args:
        vit: the teacher; hooks attached to it do not fire.
        clt: its transcoder.
        shown: the images, whose batches are made as small as this takes.
        directions: what is read.
        layers: source layers.
        title: of the progress bar.
        progress: show it.

    Raises:
        InputError: a model that does not pool the class token alone.
    """
    cfg, n_features = vit.cfg, clt.config.n_features
    given, d_embed = directions, directions.shape[1]
    if len(given) > d_embed:
        directions = torch.eye(d_embed, dtype=given.dtype, device=given.device)
    an_image = cfg.n_layers * cfg.n_tokens * cfg.d_model
    shown.batch_size = max(1, min(32, _FLOATS // an_image))
    at_once = max(1, _FLOATS // (an_image * shown.batch_size))
    sums = {s: np.zeros((len(directions), n_features)) for s in layers}
    active_images = {s: torch.zeros(n_features, dtype=torch.int64) for s in layers}
    with Progress(total=len(shown), desc=title, unit=" images", disable=not progress) as bar:
        for images, _ in shown:
            images = images.to(clt.b_enc.device)
            frozen = FrozenPass(vit, images)
            found = {}
            for s in layers:
                codes = clt.encode(frozen.x[s], layer=s).active()
                active_images[s] += (active_codes(codes).of_images() != 0).sum(0).cpu()
                found[s] = clt.decode_adjoint(codes, s), codes.indices
            for first in range(0, len(directions), at_once):
                gradients = _gradients(frozen, clt, directions[first : first + at_once])
                for i, gradient in enumerate(gradients, start=first):
                    for s, (adjoint, features) in found.items():
                        effects = adjoint.effects(gradient)
                        sums[s][i] += sums_by_feature(effects, features, n_features)
            bar.update(len(images))
    if len(given) > d_embed:
        weights = given.double().cpu().numpy()
        sums = {s: weights @ values for s, values in sums.items()}
    return DirectionEffects(
        {s: values.T for s, values in sums.items()},
        {s: counts.numpy() for s, counts in active_images.items()},
    )


@torch.no_grad()
def contrast_effects(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    label: int,
    tokens: Rows,
    progress: bool,
) -> tuple[Float[np.ndarray, "layer feature"], dict[int, FeatureActivity]]:
    """Every feature's direct effect on the contrast, mean over images, and activity on the way.

    effect(s, i) = mean over images of sum over rows of z_{s,i} * sum over l of <W_dec[s->l]_i, G_l>

    0 on an image where the feature is silent. G_l is the contrast's gradient at y_l with attention
    held and all norms differentiated (`FrozenPass`): the first order of a small change of z.
    """
    config = clt.config
    layers, rows = range(config.n_layers), row_index(tokens, vit.cfg.rows)
    sums = ActivitySums(layers, config.n_features, tokens, vit.cfg.rows)
    effects = np.zeros((config.n_layers, config.n_features))
    direction = contrast_weights(zs, label)
    n_batches = -(-len(data) // data.batch_size)
    for images, _ in Progress(data, "direct effects", n_batches, disable=not progress):
        frozen = FrozenPass(vit, images.to(clt.b_dec.device))
        gradients = _gradients(frozen, clt, direction)[:, :, rows]
        for s in layers:
            codes = clt.encode(frozen.x[s][:, rows], layer=s).active()
            sums.add(s, active_codes(codes))
            each = clt.decode_adjoint(codes, s).effects(gradients)
            effects[s] += sums_by_feature(each, codes.indices, config.n_features)
    return effects / len(data), sums.found()


def _gradients(
    frozen: FrozenPass, clt: CrossLayerTranscoder, direction: Float[Tensor, "*direction d_embed"]
) -> Float[Tensor, "*direction layer batch token d_model"]:
    """G_l: norms differentiated, the MLPs cut but for what a skip connection passes on."""
    skips = clt.W_skip

    def through(layer: int, y: Mapping[int, Tensor]) -> Tensor:
        assert skips is not None
        return y[layer] @ skips[layer].to(y[layer])

    return frozen.read_output(direction, through if clt.config.skip else None, "differentiated").y


def contrast_weights(zs: ZeroShot, label: int) -> Float[Tensor, " d_embed"]:
    """The direction of a class' logit minus the mean of the other classes' logits."""
    others = torch.ones_like(zs.weights[0]) / (1 - len(zs.class_names))
    others[label] = 1
    return zs.logit_scale * zs.weights @ others
