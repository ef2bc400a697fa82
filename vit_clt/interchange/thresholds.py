"""Thresholds in the place of top-k, with which each feature fires as often on given images.

With top-k the features of a token row compete; a threshold depends on its own feature alone. Over
the N token rows of the images (class token and patches), feature i of a layer is active on n_i rows
with top-k. Its threshold lies half-way between its n_i-th and its (n_i + 1)-th largest
pre-activation, or half-way to 0 where the latter is not positive. On these images the feature then
fires on n_i rows again (on fewer where the two are equal), though not on the same rows, so that the
L0 of the layer, the sum of n_i / N, is the same. Where n_i is 0 the threshold is just above the
largest pre-activation.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_clt.choices import KEPT_BYTES
from vit_clt.data.forms import check_prepared
from vit_clt.data.images import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.hooks.activations import capture
from vit_clt.kernels.chunks import pre_activation_chunks
from vit_clt.layers_together import layers_together
from vit_clt.progress import Progress
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import JumpReLU

# factor from the largest pre-activation of a silent feature to its threshold; the rounding of
# log_theta is far smaller
_ABOVE = 1 + 1e-4
_ENTRY = 4 + 8
"""Bytes of a pre-activation that is kept, and of the number of its feature."""


@torch.no_grad()
def with_thresholds(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    images: ImageData | Tensor,
    *,
    kept_bytes: int = KEPT_BYTES,
    progress: bool = False,
) -> CrossLayerTranscoder:
    """A JumpReLU CLT with the weights of a ReLU-TopK CLT and thresholds fitted on `images`.

    One pass over the images counts how often features fire, further ones give the exact order
    statistics of all rows, of as many layers in a pass as `kept_bytes` allow. Pre-activations "row
    feature" are in memory for one chunk of rows at a time; from one chunk to the next at most twice
    as many are kept as the layers of the pass have active codes and features together.

    Args:
        vit: the teacher.
        clt: the transcoder; its weight tensors are shared, not copied.
        images: images that thresholds are fitted on; quality should be measured on others.
        kept_bytes: the most bytes of pre-activations that are kept, or those of one layer.
        progress: show progress bars.

    Raises:
        InputError: another sparsifier, a CLT of another model, or no images.
    """
    if clt.config.sparsifier.signed or clt.thresholds() is not None:
        name = clt.config.sparsifier.name
        raise InputError("sparsifier", f"is {name}; expected relu_topk, to fit thresholds to.")
    check_fits(vit, clt)
    data = as_image_data(images)
    check_prepared(vit, data)
    n_batches = -(-len(data) // data.batch_size)
    counts = torch.zeros_like(clt.b_enc, dtype=torch.long)
    for batch, _ in Progress(data, "features firing", n_batches, disable=not progress):
        counts += clt.encode(capture(vit, batch.to(counts.device)).x).fired()
    sizes = {s: 2 * _ENTRY * int((n + 1).sum()) for s, n in enumerate(counts)}
    found = []
    for layers in layers_together(sizes, kept_bytes):
        largest = {s: _Largest(counts[s] + 1) for s in layers}
        for batch, _ in Progress(data, "thresholds", n_batches, disable=not progress):
            x = capture(vit, batch.to(counts.device)).x.flatten(1, 2)
            for s, kept in largest.items():
                inputs = x[s].to(clt.b_enc.dtype)
                for _, a in pre_activation_chunks(inputs, clt.W_enc[s], clt.b_enc[s]):
                    kept.add(a)
        found += [kept.thresholds() for kept in largest.values()]
    theta = torch.stack(found)
    with torch.device("meta"):
        with_theta = CrossLayerTranscoder(replace(clt.config, sparsifier=JumpReLU()), clt.backend)
    for s in range(clt.config.n_layers):
        with_theta.W_enc[s], with_theta.W_dec[s] = clt.W_enc[s], clt.W_dec[s]
    with_theta.b_enc, with_theta.b_dec, with_theta.W_skip = clt.b_enc, clt.b_dec, clt.W_skip
    log_theta = torch.stack([nearest_log(theta_s) for theta_s in theta])
    with_theta.log_theta = nn.Parameter(log_theta, requires_grad=clt.b_enc.requires_grad)
    return with_theta.train(clt.training)


class _Largest:
    """Keeps the `need` largest positive pre-activations of each feature while rows are added."""

    def __init__(self, need: Int[Tensor, " feature"]):
        self.need = need
        self.bound = torch.zeros_like(need, dtype=torch.float32)
        self.values = self.bound[:0]
        self.features = need[:0]
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.room = int(need.sum())

    def add(self, a: Float[Tensor, "token feature"]) -> None:
        rows, features = (a > self.bound).nonzero(as_tuple=True)
        self.waiting.append((a[rows, features].float(), features))
        # sorted only once as many wait as can stay, so that there are few sorts
        if sum(len(values) for values, _ in self.waiting) > self.room:
            self._prune()

    def _prune(self) -> None:
        values = torch.cat([self.values, *(values for values, _ in self.waiting)])
        features = torch.cat([self.features, *(features for _, features in self.waiting)])
        self.waiting.clear()
        values, order = values.sort(descending=True)
        features, order = features[order].sort(stable=True)
        values = values[order]
        counts = features.bincount(minlength=len(self.need))
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(features), device=features.device) - starts[features]
        full = counts >= self.need
        self.bound[full] = values[(starts + self.need - 1)[full]]
        kept = rank < self.need[features]
        self.values, self.features = values[kept], features[kept]

    def thresholds(self) -> Float[Tensor, " feature"]:
        self._prune()
        counts = self.features.bincount(minlength=len(self.need))
        padded = torch.cat([self.values, self.values.new_zeros(1)])
        starts, nothing = counts.cumsum(0) - counts, len(self.values)

        def at(rank: Tensor) -> Tensor:
            return padded[torch.where((rank >= 0) & (rank < counts), starts + rank, nothing)]

        first_silent, last_firing = at(self.need - 1), at(self.need - 2)
        middle = first_silent + (last_firing - first_silent) / 2
        # neighbouring floats have nothing between them
        middle = torch.where(middle < last_firing, middle, first_silent)
        return torch.where(self.need > 1, middle, first_silent * _ABOVE)


@torch.no_grad()
def nearest_log(theta: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """The float32 numbers whose exponentials, as torch computes them, are nearest to `theta` >= 0.

    Their exponentials equal theta where it is the exponential of a float32 number; where it is 0
    they are -inf.
    """
    theta = theta.float()
    best = theta.double().log().float()
    error = (best.exp().double() - theta.double()).abs()
    # log and exp both round, so that a neighbouring number may be nearer
    for end in (-torch.inf, torch.inf):
        candidate = best.nextafter(torch.full_like(best, end))
        candidate_error = (candidate.exp().double() - theta.double()).abs()
        best = torch.where(candidate_error < error, candidate, best)
        error = error.minimum(candidate_error)
    return best
