"""What every sparsifier says about itself: codes, tensors, training, memory, thresholds.

A new one is a frozen dataclass on `Sparsifier` in a file of its own, and a line in the registry
(`vit_clt.transcoder.sparsifiers`). It must say its `name`, its `label` and how pre-activations
become codes; everything else has a default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_clt.choices import Backend
from vit_clt.errors import InputError
from vit_clt.kernels.codes import Codes
from vit_clt.transcoder.train_config import (
    SparsifierSettings,
    SparsifierTraining,
    TrainConfig,
)

if TYPE_CHECKING:
    from vit_clt.transcoder.model import CrossLayerTranscoder

Options = TypeVar("Options", bound=SparsifierTraining)


class Encoder(NamedTuple):
    """What the codes of one source layer are computed from."""

    x: Float[Tensor, "*token d_model"]
    weight: Float[Tensor, "feature d_model"]
    bias: Float[Tensor, " feature"]
    own: Mapping[str, Tensor]
    """This layer's part of the sparsifier's own tensors (`Sparsifier.tensors`), by name."""

    def pre_activations(self) -> Float[Tensor, "*token feature"]:
        """a = W_enc x + b_enc."""
        return nn.functional.linear(self.x, self.weight, self.bias)


class Schedule:
    """What changes of a sparsifier from step to step of a training run: here nothing does."""

    steered: bool = False
    """Whether `advance` must be told the L0 of every step."""

    def __init__(self, sparsifier: Sparsifier[Any]):
        self.sparsifier = sparsifier

    def at(self, step: int) -> Sparsifier[Any]:
        """The sparsifier of this step."""
        return self.sparsifier

    def weight(self, step: int) -> float | None:
        """lambda of this step, which weighs `Sparsifier.penalty`; None without a penalty."""
        return None

    def advance(self, l0: float | None) -> None:
        """Go on by a step whose mean L0 was this; None for a step without rows."""

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold beside the step, as JSON values."""
        return {}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` gave."""


@dataclass(frozen=True)
class Sparsifier(ABC, Generic[Options]):
    """Makes pre-activations a sparse: z = sparsify(a). Its fields are what config.json holds."""

    name: ClassVar[str]
    """In config.json and on the command line, e.g. "relu_topk"."""
    label: ClassVar[str]
    """In figures and tables, e.g. "ReLU-TopK"."""
    signed: ClassVar[bool] = False
    """Whether codes may be negative."""
    whole_batch: ClassVar[bool] = False
    """Whether a row's codes in training depend on the other rows of the batch, which then cannot
    be worked through in parts or shared between processes."""
    dense_layout: ClassVar[bool] = True
    """Whether the dense back end writes codes out (`DenseCodes`)."""
    penalised: ClassVar[bool] = False
    """Whether the loss has a `penalty`."""
    settings: ClassVar[type[SparsifierSettings]] = SparsifierSettings
    """Those of its fields that the command line offers, beside k."""
    training: ClassVar[type[SparsifierTraining]] = SparsifierTraining
    """The options of its training."""

    # ---- codes ------------------------------------------------------------------------------

    @abstractmethod
    def __call__(self, a: Float[Tensor, "*token feature"]) -> Codes:
        """Codes of pre-activations, by dense operations on any device and in any dtype.

        A sparsifier with tensors of its own takes one layer's part of them after `a`, in the order
        of `tensors`.
        """

    def encode(self, layers: Sequence[Encoder], backend: Backend) -> list[Codes]:
        """Codes of some layers' inputs. A row's codes depend on that row alone.

        The default is dense, whatever `backend` asks for. All layers must get one layout.
        """
        return [self(layer.pre_activations(), *layer.own.values()) for layer in layers]

    def encode_batch(self, layers: Sequence[Encoder], backend: Backend) -> list[Codes]:
        """Codes of some layers' inputs as a training step forms them."""
        return self.encode(layers, backend)

    def density(self, n_features: int) -> float | None:
        """Share of features that codes store; None where only the batch tells."""
        return None

    @property
    def expected_l0(self) -> int | None:
        """Active features a token and layer, where the sparsifier itself fixes them."""
        return None

    @classmethod
    def for_l0(cls, l0: int, like: Sparsifier[Any] | None = None) -> Sparsifier[Any]:
        """One with `l0` active features a token and layer, as far as it fixes them itself.

        `like` is one to take all else from, if it is of this kind.
        """
        return like if isinstance(like, cls) else cls()

    # ---- its own tensors --------------------------------------------------------------------

    def tensors(self, n_layers: int, n_features: int) -> dict[str, Tensor]:
        """Tensors a CLT holds for it, layer first, as they start, under their public names.

        An `nn.Parameter` is learned; a plain tensor is a buffer. Both are saved with the weights.
        """
        return {}

    def n_parameters(self, n_layers: int, n_features: int) -> int:
        """Learned numbers among them."""
        return 0

    def thresholds(
        self, own: Mapping[str, Tensor], n_features: int
    ) -> Float[Tensor, "layer feature"] | None:
        """theta, where z = a 1[a > theta] are its codes exactly; None where no thresholds are.

        circuit-tracer's files hold just that. A sparsifier without thresholds is exported with
        fitted ones, and not at all if it is signed.
        """
        return None

    # ---- training ---------------------------------------------------------------------------

    def with_options(self, settings: TrainConfig) -> TrainConfig:
        """`settings` with the options of this sparsifier's training, or their defaults.

        Raises:
            InputError: they hold another sparsifier's.
        """
        found = settings.sparsity.options_of(self.training)
        if found is None:
            raise InputError(
                "sparsity",
                f"is a {type(settings.sparsity).__name__}; expected {self.training.__name__}, the "
                f"options of {self.name}.",
            )
        return replace(settings, sparsity=found)

    def check(self, options: Options, n_features: int) -> None:
        """Raise InputError, in one sentence, for options that do not fit."""

    def schedule(self, options: Options, total: int) -> Schedule:
        """What changes from step to step of a run of `total` steps."""
        return Schedule(self)

    def penalty(
        self, clt: CrossLayerTranscoder, codes: Codes, options: Options
    ) -> Float[Tensor, ""]:
        """What lambda weighs in the loss, summed over tokens."""
        return clt.b_dec.new_zeros(())

    def auxiliary_error(
        self,
        clt: CrossLayerTranscoder,
        x: Float[Tensor, "layer token d_model"],
        error: Float[Tensor, "layer token d_model"],
        dead: Bool[Tensor, "layer feature"],
        options: Options,
    ) -> Float[Tensor, "layer token d_model"]:
        """What remains of y^ - y once dead features try to rebuild it.

        Called where `options.auxiliary_weight` is not None, which weighs its square in the loss.
        """
        return torch.zeros_like(error)

    def observe_(self, codes: Codes, own: Mapping[str, Tensor]) -> None:
        """Bring its buffers up to date with the codes of a training step, in place."""

    def stored(self, options: Options, n_features: int) -> int:
        """Most entries a row and layer that a training step is expected to store."""
        return n_features
