"""What a study does, in units that a trial times on this machine.

A unit is one image that passes through one part of the work. Every command states its work as a
function of the images, the model and its own options (`Command.work`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from vit_clt.choices import TokenKind

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder

Part = Literal["read", "pass", "encode", "decode", "terms", "sums"]
"""Images that are read and preprocessed ("read"), that pass through the ViT, where a pass that
begins later counts as the share of blocks that it runs ("pass"), whose x is encoded at all layers
("encode"), whose codes are decoded into all layers ("decode"), of which the terms c_{s->l} of all
sources and targets are formed one by one ("terms"), or whose rows of all layers are squared and
summed in float64 ("sums")."""
Number = int | float
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Scope:
    """The sizes that the work of a study depends on, beside its options."""

    images: int
    layers: int
    tokens: int
    """Token rows of an image."""
    width: int
    """d_model."""
    heads: int
    """Attention heads of a layer."""
    kinds: Sequence[TokenKind]
    """Kinds of token rows, "all" among them."""
    classes: int
    clts: int = 1
    features: int = 0
    """Features a layer of a CLT."""
    active: Number = 0.0
    """Active features a token row and layer."""
    batch: int = 64
    """Images of a batch."""
    train: int = 0
    """Images that something is fitted on, beside those that are measured."""

    @classmethod
    def of(
        cls,
        vit: HookedViT,
        data: ImageData,
        clts: Sequence[CrossLayerTranscoder],
        train: ImageData | None = None,
    ) -> Scope:
        """The sizes of a study of these CLTs, or of the ViT alone, on these images."""
        return cls(
            images=len(data),
            layers=vit.cfg.n_layers,
            tokens=vit.cfg.n_tokens,
            width=vit.cfg.d_model,
            heads=vit.cfg.n_heads,
            kinds=tuple(vit.cfg.rows.kinds),
            classes=len(data.class_names),
            clts=len(clts),
            features=clts[0].config.n_features if clts else 0,
            active=_active(clts[0]) if clts else 0.0,
            batch=min(len(data), data.batch_size),
            train=0 if train is None else len(train),
        )

    @property
    def array(self) -> int:
        """Bytes of an array "layer image token d_model" of a batch, in float32."""
        return 4 * self.layers * self.batch * self.tokens * self.width


@dataclass(frozen=True)
class Work:
    """The work of a study. Works that follow one another add up; a number repeats one."""

    units: Mapping[Part, Number] = field(default_factory=dict)
    """Images through each part."""
    seconds: Number = 0.0
    """What does not follow the images: bootstraps, pages, on the machine where it was measured."""
    memory: Number = 0.0
    """Bytes that are needed at one time beyond what is loaded."""

    def __add__(self, other: Work) -> Work:
        units = {part: self.of(part) + other.of(part) for part in PARTS}
        return Work(units, self.seconds + other.seconds, max(self.memory, other.memory))

    def __rmul__(self, times: Number) -> Work:
        units = {part: times * n for part, n in self.units.items()}
        return Work(units, times * self.seconds, self.memory)

    def of(self, part: Part) -> Number:
        """Images through one part."""
        return self.units.get(part, 0)


def _active(clt: CrossLayerTranscoder) -> float:
    """Active features a token row and layer, as far as the configuration tells."""
    n = clt.config.sparsifier.expected_l0
    # thresholds do not tell it; trained ones leave about this share active
    return clt.config.n_features / 64 if n is None else float(n)
