"""What every family of ViTs gives: embedding, blocks, head, geometry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.hooks.blocks import HookedBlock
from vit_clt.hooks.rows import TokenRows


class Tower(ABC):
    """A loaded ViT, seen as images -> embed -> blocks -> head.

    `head` of the blocks of `embed` must equal the model's own forward bit for bit. An
    implementation calls the model's own modules, and copies no arithmetic.
    """

    family: str
    """Name of the family, as in docs/models.md."""
    model: nn.Module
    """The model as it was loaded, whose state dict is that of the `HookedViT`."""
    visual: nn.Module
    """The vision part of the model, whose weights are the identity of the ViT."""
    blocks: list[HookedBlock]
    image_size: tuple[int, int]
    """Height and width of an input image, in pixels."""
    rows: TokenRows
    pools_cls: bool
    """Whether the embedding is read from the class token alone."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    activation: str
    """The MLPs' activation function, by the name of its class."""
    classifier: Callable[[Tensor], Tensor] | None = None
    """The model's own classifier: its logits, of embeddings "batch d_embed"."""

    @abstractmethod
    def embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The residual stream that enters block 0."""

    @abstractmethod
    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """Embeddings from the output of the last block; with `pools_cls` row 0 is enough."""

    def identity_tensors(self) -> Mapping[str, Tensor]:
        """The tensors that make this ViT what it is, those of classifiers left out."""
        return self.visual.state_dict()

    @property
    def text(self) -> Any:
        """The text tower: open_clip's `encode_text` and `logit_scale`; None without one."""
        return self.model if hasattr(self.model, "encode_text") else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and of images."""
        return next(self.visual.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.visual.parameters()).device

    @property
    def d_embed(self) -> int:
        """Width of an embedding."""
        shape = (1, self.rows.n_tokens, self.d_model)
        return self.head(torch.zeros(shape, dtype=self.dtype, device=self.device)).shape[-1]
