"""What transformers' plain ViTs share: attention, sizes, rows and the classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import HookedBlock, Recorder
from vit_clt.hooks.patterns import Edit, same
from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.base import Tower

_ATTENTION = ("sdpa", "eager")
"""Implementations of attention that are bit-exact here."""


class TransformersTower(Tower):
    """A ViT of transformers by itself, or inside a CLIP, a classifier, or a model of language.

    A subclass says how images enter, where the blocks are, and what the embedding is: what the
    model's own forward pools, or what its classifier reads.

    Args:
        model: the model as it was loaded.
        trunk: its vision transformer: `model` itself, or a part of it.
        recorder: of the clean passes of the model.
        image_size: of images in pixels, where it is not that of the model's configuration; the
            model's own code then interpolates positions.

    Raises:
        InputError: attention of another implementation, or images that are smaller than a patch.
    """

    family = "transformers"
    hooked_block: type[TransformersBlock]

    def __init__(
        self,
        model: nn.Module,
        trunk: Any,
        recorder: Recorder,
        image_size: int | tuple[int, int] | None = None,
    ):
        self.model, self.visual = model, trunk
        config = trunk.config
        if config._attn_implementation not in _ATTENTION:
            raise InputError(
                "model",
                f'computes attention by "{config._attn_implementation}"; expected '
                f"{' or '.join(_ATTENTION)}, as model.set_attn_implementation sets it.",
            )
        self.blocks = [self.hooked_block(native, recorder, self) for native in self._layers]
        usual = _pair(config.image_size)
        self.image_size = usual if image_size is None else _pair(image_size)
        self.interpolates = self.image_size != usual
        patch = _pair(config.patch_size)
        grid = (self.image_size[0] // patch[0], self.image_size[1] // patch[1])
        if min(grid) < 1:
            raise InputError(
                "image_size", f"is {self.image_size}; expected at least a patch, {patch}."
            )
        self.rows = self._rows(grid)
        self.pools_cls = self._pools_cls
        self.d_model = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.activation = _activation(self.blocks[0].mlp)
        head = getattr(model, "classifier", None)
        self.classifier: Callable[[Tensor], Tensor] | None = (
            head if isinstance(head, nn.Linear) else None
        )

    @property
    def trunk(self) -> Any:
        """The vision transformer."""
        return self.visual

    @property
    def wrapper(self) -> str:
        """The name of the class of the model, which decides what the embedding is."""
        return type(self.model).__name__

    @property
    @abstractmethod
    def _layers(self) -> nn.ModuleList:
        """The model's own blocks."""

    def _rows(self, grid: tuple[int, int]) -> TokenRows:
        """The rows of a patch grid."""
        return TokenRows(True, 0, grid)

    @property
    def _pools_cls(self) -> bool:
        """Whether the embedding is read from the class token alone."""
        return True

    def identity_tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the vision transformer, without those that only its pooler reads.

        A projection of a CLIP or a classifier is no part of it, so that a tower is the same ViT by
        itself, in a CLIP, in a classifier and in a model of language.
        """
        tensors = self.visual.state_dict()
        return {n: t for n, t in tensors.items() if not n.startswith("pooler.")}

    def positions(self) -> dict[str, Any]:
        """What the attention takes besides its input: nothing, if positions enter in `embed`."""
        return {}


class TransformersBlock(HookedBlock):
    """A pre-norm block of transformers.

    Args:
        native: the model's own block.
        recorder: of the clean passes of the model.
        tower: the tower of the block, which knows its positions.
    """

    def __init__(self, native: nn.Module, recorder: Recorder, tower: TransformersTower):
        super().__init__(native, recorder)
        self.tower = tower

    @property
    @abstractmethod
    def attn(self) -> Any:
        """The attention layer."""

    @property
    def mlp(self) -> Any:
        """The MLP, which works row by row."""
        return self.native.mlp

    def attention(self, x: Tensor) -> Tensor:
        """The attention layer's output, in the implementation that the model has."""
        return self.attn(x, **self.tower.positions())[0]

    def pattern_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `HookedBlock`'s, whatever the implementation."""
        with _by_sdpa(self.attn.config):
            return super().pattern_and_values(x)

    def unfused_attention(self, x: Tensor, edit: Edit = same, edit_heads: Edit = same) -> Tensor:
        """As `HookedBlock`'s, whatever the implementation."""
        with _by_sdpa(self.attn.config):
            return super().unfused_attention(x, edit, edit_heads)


@contextmanager
def _by_sdpa(config: Any) -> Iterator[None]:
    # the pattern is read from the arguments of torch's kernel, which "eager" does not call
    before = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _activation(mlp: Any) -> str:
    act = type(mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act_fn).__name__
    return f"{type(mlp).__name__} {act}" if hasattr(mlp, "gate_proj") else act
