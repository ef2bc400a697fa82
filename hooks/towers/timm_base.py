"""What timm's plain ViTs share: norms, MLPs, rows, pooling and the classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import HookedBlock, Recorder
from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.base import Tower

_MLPS = ("Mlp", "GluMlp", "SwiGLU", "GeGluMlp")
"""timm's MLPs that work row by row, by class name, unless they convolve."""


class TimmTower(Tower):
    """A timm ViT by itself, or as the trunk of open_clip's `TimmModel`.

    The embedding of a classifier is what its last layer reads. A subclass says how images enter.

    Args:
        model: the model as it was loaded.
        visual: its vision part: `trunk` itself, or the `TimmModel` around it.
        trunk: the timm ViT.
        recorder: of the clean passes of the model.

    Raises:
        InputError: blocks or MLPs of another class, or an embedding that is not pooled.
    """

    family = "timm"
    native_block: type[nn.Module]
    """The class of the trunk's blocks."""
    hooked_block: type[TimmBlock]

    def __init__(self, model: nn.Module, visual: nn.Module, trunk: Any, recorder: Recorder):
        self.model, self.visual = model, visual
        self.trunk = trunk
        if not self.trunk.global_pool:
            raise InputError("model", "gives an embedding for every token; expected a pooled one.")
        self.blocks = []
        for l, native in enumerate(self.trunk.blocks):
            self._check_block(native)
            self.blocks.append(self.hooked_block(native, recorder, self, l))
        embed = self.trunk.patch_embed
        self.image_size = tuple(embed.img_size)
        n_cls = int(self.trunk.cls_token is not None)
        self.rows = TokenRows(
            bool(n_cls), self.trunk.num_prefix_tokens - n_cls, tuple(embed.grid_size)
        )
        self.d_model = self.trunk.embed_dim
        self.n_heads = self.trunk.blocks[0].attn.num_heads
        self.activation = _activation(self.trunk.blocks[0].mlp)
        pooler = getattr(self.trunk, "attn_pool", None)
        self.pools_cls = pooler is None and self.trunk.global_pool == "token"
        if self._is_bare and self.trunk.num_classes > 0:
            self.classifier = self.trunk.head

    @property
    def _is_bare(self) -> bool:
        return self.visual is self.trunk

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch d_embed"]:
        """timm's `norm` and `forward_head`, and the projection of a CLIP."""
        resid = self.trunk.norm(resid)
        if self._is_bare:
            return self.trunk.forward_head(resid, pre_logits=True)
        visual: Any = self.visual
        return visual.head(self.trunk.forward_head(resid))

    def identity_tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the vision part, without a classifier's."""
        tensors = self.visual.state_dict()
        if not self._is_bare:
            return tensors
        return {n: t for n, t in tensors.items() if not n.startswith(("head.", "head_dist."))}

    @abstractmethod
    def positions(self, layer: int) -> dict[str, Any]:
        """What the attention of a layer takes besides its input: rotary or relative positions."""

    def _check_block(self, native: Any) -> None:
        family = type(native)
        if family is not self.native_block:
            raise InputError(
                "model",
                f"has blocks of class {family.__name__}; expected timm's "
                f"{self.native_block.__name__}, which normalises before attention and before the "
                "MLP, one after the other.",
            )
        convolves = any(isinstance(part, nn.Conv2d) for part in native.mlp.modules())
        if type(native.mlp).__name__ not in _MLPS or convolves:
            raise InputError(
                "model",
                f"has MLPs of class {type(native.mlp).__name__}"
                f"{' with convolutions' if convolves else ''}; expected MLPs that work row by "
                f"row, {', '.join(_MLPS)}.",
            )


class TimmBlock(HookedBlock):
    """A pre-norm block of timm.

    Args:
        native: the model's own block.
        recorder: of the clean passes of the model.
        tower: the tower of the block, which knows its positions.
        layer: the number of the block.
    """

    ln1 = property(attrgetter("native.norm1"))
    ln2 = property(attrgetter("native.norm2"))
    mlp = property(attrgetter("native.mlp"))

    def __init__(self, native: nn.Module, recorder: Recorder, tower: TimmTower, layer: int):
        super().__init__(native, recorder)
        self.tower, self.layer = tower, layer

    @property
    def gamma1(self) -> Tensor | None:
        """LayerScale of the attention output, in either of the two ways in which timm keeps it."""
        return _gamma(self.native, 1)

    @property
    def gamma2(self) -> Tensor | None:
        """LayerScale of the MLP output."""
        return _gamma(self.native, 2)

    def attention(self, x: Tensor) -> Tensor:
        """The attention layer's output, with its positions."""
        return self.native.attn(x, **self.tower.positions(self.layer))


def _gamma(native: Any, number: int) -> Tensor | None:
    scale = getattr(native, f"ls{number}", None)
    if scale is not None:
        return getattr(scale, "gamma", None)
    return getattr(native, f"gamma_{number}", None)


def _activation(mlp: Any) -> str:
    act = type(mlp.act).__name__
    return act if type(mlp).__name__ == "Mlp" else f"{type(mlp).__name__} {act}"
