"""How to train a CLT, as one frozen dataclass: validated here, written with every run.

What is particular to one sparsifier is in a frozen dataclass of its own
(`vit_clt.transcoder.sparsifier_options`), and hangs on the field `sparsity`. Free of torch, so that
the command line can list options at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from typing import Any, TypeVar, get_args

from vit_clt.choices import (
    Backend,
    LrSchedule,
    Optimiser,
    Precision,
    Start,
    Unreadable,
    check_choice,
)
from vit_clt.errors import InputError
from vit_clt.inputs import reading
from vit_clt.typed import made

Options = TypeVar("Options", bound="SparsifierTraining")
FEWEST_EPOCHS, FEWEST_STEPS = 3, 500
"""Of a run whose settings leave the number of epochs to the amount of data (docs/training.md)."""


@dataclass(frozen=True)
class SparsifierSettings:
    """Fields of a sparsifier itself that a user may set; this class itself has none."""


@dataclass(frozen=True)
class SparsifierTraining:
    """Options of one sparsifier's training; this class itself stands for their defaults."""

    @property
    def auxiliary_weight(self) -> float | None:
        """Weight in the loss of dead features that rebuild what is left over; None is off."""
        return None

    @property
    def l0_target(self) -> float | None:
        """Active features a token and layer that a run is steered to, if it is."""
        return None

    @property
    def fused(self) -> bool:
        """Whether pointwise arithmetic is compiled (`vit_clt.kernels.jump.fusion`)."""
        return False

    def aimed_at(self, l0: int) -> SparsifierTraining:
        """These options for a run that is to have `l0` active features a token and layer."""
        return self

    def in_use(self) -> dict[str, Any]:
        """Options by name, without those that a run makes no use of."""
        return asdict(self)

    def options_of(self, kind: type[Options]) -> Options | None:
        """The options of one kind: these, their defaults, or those held among several kinds'.

        None where these are of another kind.
        """
        if type(self) is kind:
            return self
        if type(self) is SparsifierTraining or kind is SparsifierTraining:
            return kind()  # none are given, or none are taken
        for held in fields(self):
            value = getattr(self, held.name)
            if isinstance(value, kind):
                return value
        return None


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's (arXiv 2604.13304) where it speaks."""

    lr: float | int = 2e-4
    """Peak learning rate of AdamW (betas 0.9 / 0.999, no weight decay)."""
    epochs: int | None = 10
    """Passes over the images. None: 3, or as many as make 500 steps where 3 make fewer."""
    batch_size: int = 4096
    """Token rows a step, over all processes."""
    accumulate: int = 1
    """Parts a batch is worked through in; the result is the whole batch's."""
    seed: int = 0
    """Of initialisation, image order and token order."""
    cls_weight: float | int = 1.0
    """Weight of a CLS row in the loss; CLS is one row in 50 or 197."""
    cls_balance: bool = False
    """Weigh CLS rows of each layer by the spread of the other rows' y over that of theirs besides,
    so that what counts is the share of their variance that is rebuilt."""
    start: Start = "drawn"
    """"drawn": as the CLT is made, biases at zero. "centred": encoder rows of norm 1, biases at the
    means of x and y, and one feature a layer for what sets CLS rows apart."""
    matryoshka: tuple[int, ...] | None = None
    """Numbers of features, ascending: the loss is the mean over the reconstructions of only the
    first so many features of every layer, and the whole one. None: the whole one alone."""
    stream_share: float | int = 0.0
    """Last share of the steps, in which x comes from the pass with every MLP replaced by the CLT as
    it then is; y stays the unaltered pass's."""
    interventions: float | int = 0.0
    """Share of the images, before that, whose pass has the outputs of a range of MLPs overwritten
    by another image's or their mean; y is then what the ViT's MLPs make of the altered x."""
    warmup_steps: int = 1000
    """Linear warm-up, at most 5 % of all steps."""
    lr_schedule: LrSchedule = "linear"
    """After warm-up: "linear" (constant, then to zero over `decay_fraction`), "cosine" (to zero
    over all the rest) or "constant"."""
    decay_fraction: float | int = 0.2
    """Linear decay to zero over this last share of the steps."""
    clip: float | int | None = None
    """Largest norm of the whole gradient; None leaves it as it is."""
    buffer_batches: int = 16
    """Batches' worth of tokens that are shuffled together."""
    shards: int | None = None
    """Independent shuffle buffers; a batch takes an equal part of each, so that the same batches
    are seen on any number of processes that divides it. None: one for each process."""
    norm_images: int = 1000
    """Images the normalisation is measured on (all, if fewer)."""
    val_images: int = 0
    """Images held out of training (at most a tenth of all), drawn by the seed, to validate on
    after each epoch."""
    sparsity: SparsifierTraining = SparsifierTraining()
    """Options of the sparsifier, e.g. `JumpReLUTraining(l0=32)`; by default its defaults."""
    dead_tokens: int | None = None
    """Token rows without firing after which a feature counts as dead; None: one epoch's."""
    optimiser: Optimiser = "adamw"
    """"adamw8bit" keeps both moments in 8 bits (needs torchao: pip install 'vit-clt[lowbit]')."""
    precision: Precision = "fp32"
    """"tf32" and "bf16" (autocast over float32 weights) are for GPUs; losses stay float32."""
    workers: int | None = None
    """Processes that decode images; None: 0 on CPU, up to 8 on a GPU."""
    unreadable: Unreadable = "stop"
    """What to do at an image that cannot be read; skipped images are counted."""
    log_every: int = 10
    """Steps between log records."""
    checkpoint_every: int = 500
    """Steps between checkpoints, where a folder for them is given; 0 writes only the last one."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    backend: Backend = "auto"
    """How steps are computed; all back ends are exact (`vit_clt.kernels.choose`)."""

    def __post_init__(self) -> None:
        check_above_zero(
            self,
            *("lr", "epochs", "batch_size", "accumulate", "cls_weight", "clip", "buffer_batches"),
            *("shards", "norm_images", "dead_tokens", "log_every", "keep_checkpoints"),
        )
        if not 0 <= self.seed < 2**63:
            raise InputError("seed", f"is {self.seed}; expected 0 to 2^63 - 1.")
        check_zero_or_more(
            *(self, "warmup_steps", "decay_fraction", "val_images", "workers", "checkpoint_every"),
            *("stream_share", "interventions"),
        )
        check_share(self, "decay_fraction", "stream_share", "interventions")
        check_choice("start", self.start, get_args(Start))
        prefixes = self.matryoshka
        if prefixes is not None and (
            not prefixes or prefixes[0] < 1 or sorted(set(prefixes)) != list(prefixes)
        ):
            raise InputError(
                "matryoshka",
                f"is {list(prefixes)}; expected numbers of features above 0, ascending.",
            )
        check_choice("lr_schedule", self.lr_schedule, get_args(LrSchedule))
        check_choice("optimiser", self.optimiser, get_args(Optimiser))
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("unreadable", self.unreadable, get_args(Unreadable))
        check_choice("backend", self.backend, get_args(Backend))

    def held_out(self, n_images: int) -> int:
        """How many of `n_images` are held out: `val_images`, at most a tenth."""
        return min(self.val_images, n_images // 10)

    def n_steps(self, n_images: int, n_tokens: int) -> int:
        """Steps of a run on one shard: all epochs over the images that are not held out."""
        return self._steps_per_epoch(n_images, n_tokens) * self.n_epochs(n_images, n_tokens)

    def n_epochs(self, n_images: int, n_tokens: int) -> int:
        """Passes over the images: `epochs`, or as many as the amount of data asks for."""
        if self.epochs is not None:
            return self.epochs
        steps = max(1, self._steps_per_epoch(n_images, n_tokens))
        return max(FEWEST_EPOCHS, ceil(FEWEST_STEPS / steps))

    def _steps_per_epoch(self, n_images: int, n_tokens: int) -> int:
        return ceil((n_images - self.held_out(n_images)) * n_tokens / self.batch_size)

    def flat(self) -> dict[str, Any]:
        """Every field by name, the sparsifier's options among the others."""
        values = asdict(self)
        return values | values.pop("sparsity")

    @classmethod
    def from_json(cls, values: Mapping[str, Any], options: type[SparsifierTraining]) -> TrainConfig:
        """The inverse of `asdict`, with this kind of options.

        Raises:
            InputError: values of another version, with other fields, or out of range.
        """
        with reading("training settings", "this one's", problem="are those of another version"):
            sparsity = made(options, values.get("sparsity", {}))
            return made(cls, {**values, "sparsity": sparsity})


def used_warmup(warmup_steps: int, n_steps: int) -> int:
    """Steps of the warm-up of a run of `n_steps`: at most 5 % of them."""
    return min(warmup_steps, round(0.05 * n_steps))


def check_above_zero(settings: object, *names: str) -> None:
    """Raise InputError for a field that is not above 0 and finite; None is left alone."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(name, f"is {value}; expected a value above 0.")


def check_zero_or_more(settings: object, *names: str) -> None:
    """Raise InputError for a field that is negative or not finite; None is left alone."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(name, f"is {value}; expected 0 or more.")


def check_share(settings: object, *names: str) -> None:
    """Raise InputError for a share of the run above 1."""
    for name in names:
        if getattr(settings, name) > 1:
            raise InputError(
                name, f"is {getattr(settings, name)}; expected a share of the run, at most 1."
            )


_BETTER: dict[str, Any] = {"lr": 3e-3, "start": "centred", "cls_weight": 4, "cls_balance": True}
PRESETS: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "small": TrainConfig(**_BETTER, epochs=None, batch_size=1024, val_images=200),
    "demo": TrainConfig(**_BETTER, epochs=12, batch_size=512),
}


def preset(name: str, sparsifier: str) -> TrainConfig:
    """A preset at the rate that suits a sparsifier.

    Abs-TopK, whose codes are signed, learns at 1e-3 where "small" and "demo" have 3e-3, at which it
    ends with a larger error (docs/results/starts.md).

    Raises:
        InputError: there is no preset of this name.
    """
    check_choice("preset", name, PRESETS)
    slower = sparsifier == "abs_topk" and name != "paper"
    return replace(PRESETS[name], lr=1e-3) if slower else PRESETS[name]
