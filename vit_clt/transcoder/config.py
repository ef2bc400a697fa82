"""What a CLT is (shape, targets, sparsifier, teacher), and the same as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vit_clt.errors import InputError
from vit_clt.inputs import reading
from vit_clt.transcoder.sparsifiers import SPARSIFIERS, ReLUTopK, Sparsifier
from vit_clt.typed import made


@dataclass(frozen=True)
class TeacherIdentity:
    """Which ViT a CLT was trained on."""

    model: str
    """Name for `HookedViT.load`."""
    pretrained: str | None
    """Tag or weights path, as given."""
    activation: str
    """The MLPs' activation function, e.g. "QuickGELU": wrong numbers come silently without it."""
    hook_in: str
    """Hook of x_l, with "{l}" for the layer."""
    hook_out: str
    """Hook of y_l, with "{l}" for the layer."""
    weights_sha256: str
    """Hash of the vision tower's tensors, without a classifier."""
    family: str = "open_clip"
    """Family of ViTs, as in docs/models.md."""


@dataclass(frozen=True)
class CLTConfig:
    """Shape and sparsifier of a CLT. Raises InputError for values that cannot be built."""

    n_layers: int
    """Blocks L of the ViT."""
    d_model: int
    """Width d of the residual stream."""
    n_features: int
    """Features F per layer (paper: 16 times d_model)."""
    sparsifier: Sparsifier[Any] = field(default_factory=ReLUTopK)
    """`ReLUTopK(k)`, `AbsTopK(k)`, `JumpReLU(theta, bandwidth)` or another of the registry."""
    zero_cross_init: bool = False
    """Start the off-diagonal decoders (s < l) at zero: shows what initialisation decides."""
    cross_layer: bool = True
    """False: a per-layer transcoder, whose features write to their own layer's output alone."""
    skip: bool = False
    """Whether y^_l also has W_skip[l] x_l, a linear map of its own layer's input."""
    teacher: TeacherIdentity | None = None
    """The ViT it was trained on; None for one built in memory, which attaches wherever it fits."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_features"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(name, f"is {getattr(self, name)!r}; expected an integer above 0.")
        k = self.sparsifier.expected_l0
        if k is not None and k > self.n_features:
            raise InputError("k", f"is {k}; expected at most n_features, {self.n_features}.")
        if self.zero_cross_init and not self.cross_layer:
            raise InputError(
                "zero_cross_init",
                "is True with cross_layer False, which has no off-diagonal "
                "decoders; expected one of them.",
            )

    @property
    def kind(self) -> str:
        """The kind of transcoder, in words."""
        kind = "CLT" if self.cross_layer else "per-layer transcoder"
        return f"{kind} with a skip connection" if self.skip else kind

    def targets(self, source: int) -> range:
        """Layers that features of `source` write to: source..L-1, or per layer `source` alone."""
        return range(source, self.n_layers if self.cross_layer else source + 1)

    def sources(self, *targets: int) -> list[int]:
        """Layers whose features write to any of `targets`: what y^ there is decoded from."""
        return [s for s in range(self.n_layers) if any(l in self.targets(s) for l in targets)]

    def n_decoders(self) -> int:
        """Pairs (source, target) with a decoder: L(L+1)/2, or per layer L."""
        return sum(len(self.targets(s)) for s in range(self.n_layers))

    def n_parameters(self) -> int:
        """L F d + `n_decoders` F d + L F + L d, L d^2 of a skip, and what the sparsifier learns."""
        n, f, d = self.n_layers, self.n_features, self.d_model
        own = self.sparsifier.n_parameters(n, f) + (n * d * d if self.skip else 0)
        return n * f * d + self.n_decoders() * f * d + n * f + n * d + own

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the sparsifier carries its `name`."""
        values = dataclasses.asdict(self)
        values["sparsifier"]["name"] = self.sparsifier.name
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> CLTConfig:
        """The inverse of `to_json`.

        Raises:
            InputError: a field is unknown, missing or of another type, or its value cannot be.
        """
        with reading("config.json", "all of one's fields", problem="does not describe a CLT"):
            fields = dict(values)
            sparsifier = dict(fields.pop("sparsifier"))
            kind = SPARSIFIERS[sparsifier.pop("name")]
            teacher = fields.pop("teacher", None)
            known = None if teacher is None else made(TeacherIdentity, teacher)
            return made(cls, fields | {"sparsifier": made(kind, sparsifier), "teacher": known})
