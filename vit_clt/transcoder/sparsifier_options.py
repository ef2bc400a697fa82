"""The options of every sparsifier: the settings a user may choose, and those of its training.

Free of torch, so that the command line can list and check options at once. What the options do is
in the sparsifiers' own files (`vit_clt.transcoder.sparsifiers`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Any, NamedTuple

from vit_clt.errors import InputError
from vit_clt.transcoder.train_config import (
    SparsifierSettings,
    SparsifierTraining,
    check_above_zero,
    check_share,
    check_zero_or_more,
)


@dataclass(frozen=True)
class JumpReLUSettings(SparsifierSettings):
    """Fields of JumpReLU that a user may set."""

    bandwidth: float = 1.0
    """For JumpReLU only: width of the band around a threshold in which it learns."""


@dataclass(frozen=True)
class JumpReLUTraining(SparsifierTraining):
    """Options of JumpReLU."""

    l0: float | int | None = None
    """Steer lambda to this many active features a token and layer."""
    sparsity: float | int = 1e-3
    """Final lambda (its starting point, where `l0` steers it)."""
    sparsity_scale: float | int = 4.0
    """c in the tanh."""
    sparsity_ramp: float | int = 1.0
    """Share of the steps over which lambda rises from 0 (not where `l0` steers)."""
    ramp: bool = False
    """Let lambda rise to `sparsity` also where k is given as an L0 to steer it to."""
    compile: bool = False
    """Fuse its arithmetic (torch.compile; needs a C++ compiler on a CPU)."""

    def __post_init__(self) -> None:
        check_above_zero(self, "l0")
        check_zero_or_more(self, "sparsity", "sparsity_scale", "sparsity_ramp")
        check_share(self, "sparsity_ramp")
        if self.l0 is not None and self.ramp:
            raise InputError("ramp", "is True with an l0 target; expected one of them.")
        if self.l0 is not None and self.sparsity == 0:
            raise InputError("sparsity", "is 0 with an l0 target; expected a start above 0.")

    @property
    def l0_target(self) -> float | None:
        """`l0`."""
        return None if self.l0 is None else float(self.l0)

    @property
    def fused(self) -> bool:
        """`compile`."""
        return self.compile

    def aimed_at(self, l0: int) -> JumpReLUTraining:
        """Steered to `l0`, unless they say otherwise themselves."""
        return self if self.ramp or self.l0 is not None else replace(self, l0=float(l0))


@dataclass(frozen=True)
class TopKTraining(SparsifierTraining):
    """Options of top-k sparsifiers."""

    k_start: int | None = None
    """Active features at the first step, falling linearly to k; None starts at k."""
    k_ramp: float | int = 0.2
    """Share of the steps over which `k_start` falls to k."""
    aux_k: int = 0
    """Dead features that rebuild what is left over (Gao et al. 2024); 0 is off, half of d_model is
    usual."""
    aux_weight: float | int = 1 / 32
    """Weight of that term in the loss."""

    def __post_init__(self) -> None:
        check_above_zero(self, "k_start")
        check_zero_or_more(self, "k_ramp", "aux_k", "aux_weight")
        check_share(self, "k_ramp")

    @property
    def auxiliary_weight(self) -> float | None:
        """`aux_weight`, where `aux_k` asks for the term."""
        return float(self.aux_weight) if self.aux_k else None

    def in_use(self) -> dict[str, Any]:
        """`k_ramp` and `aux_weight` only beside what they are about."""
        found = super().in_use()
        if self.k_start is None:
            del found["k_ramp"]
        if not self.aux_k:
            del found["aux_weight"]
        return found


class OptionsOf(NamedTuple):
    """The options of one sparsifier."""

    training: type[SparsifierTraining]
    settings: type[SparsifierSettings] = SparsifierSettings


OPTIONS = {
    "jumprelu": OptionsOf(JumpReLUTraining, JumpReLUSettings),
    "relu_topk": OptionsOf(TopKTraining),
    "abs_topk": OptionsOf(TopKTraining),
    "batch_topk": OptionsOf(TopKTraining),
}
"""By the name of the sparsifier."""


def every_option(given: SparsifierTraining) -> SparsifierTraining:
    """The options of every sparsifier's training: those given, the others at their defaults.

    A dataclass with a field for each kind of options; `options_of` takes out those of one.
    """
    kinds = {kind.training.__name__: kind.training for kind in OPTIONS.values()}
    every = make_dataclass("EveryOption", kinds.items(), bases=(SparsifierTraining,), frozen=True)
    found: SparsifierTraining = every(
        *(given.options_of(kind) or kind() for kind in kinds.values())
    )
    return found


def every_setting() -> type[SparsifierSettings]:
    """A dataclass of the settings of every sparsifier, at their defaults."""
    kinds = tuple(k for k in dict.fromkeys(kind.settings for kind in OPTIONS.values()) if fields(k))
    return make_dataclass("EverySetting", [], bases=kinds, frozen=True)


def names_with(options: type[SparsifierTraining]) -> str:
    """The sparsifiers that are trained with these options, as part of a sentence."""
    return listed(name for name, kind in OPTIONS.items() if kind.training is options)


def listed(names: Iterable[str]) -> str:
    """Names as part of a sentence: "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
