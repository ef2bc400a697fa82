"""How to train a CLT, as one frozen dataclass: validated here, written with every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from vit_clt.choices import Backend, LrSchedule, Optimiser, Precision, Unreadable, check_choice
from vit_clt.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's (arXiv 2604.13304) where it speaks."""

    lr: float | int = 2e-4
    """Peak learning rate of AdamW (betas 0.9 / 0.999, no weight decay)."""
    epochs: int = 10
    """Passes over the images."""
    batch_size: int = 4096
    """Token rows a step, over all processes."""
    accumulate: int = 1
    """Parts a batch is worked through in; the result is the whole batch's."""
    seed: int = 0
    """Of initialisation, image order and token order."""
    cls_weight: float | int = 1.0
    """Weight of a CLS row in the loss; CLS is one row in 50 or 197."""
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
    l0: float | int | None = None
    """JumpReLU only: steer lambda to this many active features a token and layer."""
    sparsity: float | int = 1e-3
    """JumpReLU only: final lambda (its starting point, where `l0` steers it)."""
    sparsity_scale: float | int = 4.0
    """JumpReLU only: c in the tanh."""
    sparsity_ramp: float | int = 1.0
    """JumpReLU only: share of the steps over which lambda rises from 0 (not where `l0` steers)."""
    k_start: int | None = None
    """Top-k only: active features at the first step, falling linearly to k; None starts at k."""
    k_ramp: float | int = 0.2
    """Top-k only: share of the steps over which `k_start` falls to k."""
    aux_k: int = 0
    """Top-k only: dead features that rebuild what is left over (Gao et al. 2024); 0 is off, half
    of d_model is usual."""
    aux_weight: float | int = 1 / 32
    """Weight of that term in the loss."""
    dead_tokens: int | None = None
    """Token rows without firing after which a feature counts as dead; None: one epoch's."""
    optimiser: Optimiser = "adamw"
    """"adamw8bit" keeps both moments in 8 bits (needs torchao: pip install 'vit-clt[lowbit]')."""
    precision: Precision = "fp32"
    """"tf32" and "bf16" (autocast over float32 weights) are for GPUs; losses stay float32."""
    compile: bool = False
    """JumpReLU only: fuse its arithmetic (torch.compile; needs a C++ compiler on a CPU)."""
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
        positive = (
            "lr",
            "epochs",
            "batch_size",
            "accumulate",
            "cls_weight",
            "buffer_batches",
            "norm_images",
            "log_every",
            "keep_checkpoints",
        )
        optional = ("clip", "shards", "l0", "k_start", "dead_tokens")
        for name in (*positive, *(name for name in optional if getattr(self, name) is not None)):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(name, f"is {getattr(self, name)}; expected a value above 0.")
        if not 0 <= self.seed < 2**63:
            raise InputError("seed", f"is {self.seed}; expected 0 to 2^63 - 1.")
        for name in (
            "warmup_steps",
            "decay_fraction",
            "val_images",
            "sparsity",
            "sparsity_scale",
            "sparsity_ramp",
            "k_ramp",
            "aux_k",
            "aux_weight",
            "workers",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(name, f"is {value}; expected 0 or more.")
        for name in ("decay_fraction", "sparsity_ramp", "k_ramp"):
            if getattr(self, name) > 1:
                raise InputError(
                    name, f"is {getattr(self, name)}; expected a share of the run, at most 1."
                )
        if self.l0 is not None and self.sparsity == 0:
            raise InputError("sparsity", "is 0 with an l0 target; expected a start above 0.")
        check_choice("lr_schedule", self.lr_schedule, get_args(LrSchedule))
        check_choice("optimiser", self.optimiser, get_args(Optimiser))
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("unreadable", self.unreadable, get_args(Unreadable))
        check_choice("backend", self.backend, get_args(Backend))

    def held_out(self, n_images: int) -> int:
        """How many of `n_images` are held out: `val_images`, at most a tenth."""
        return min(self.val_images, n_images // 10)


_JUMPRELU_ONLY = ("l0", "sparsity", "sparsity_scale", "sparsity_ramp", "compile")


def idle(settings: Mapping[str, object], sparsifier: str) -> set[str]:
    """Fields of a configuration that a run with this sparsifier makes no use of."""
    if sparsifier == "jumprelu":
        return {"k_start", "k_ramp", "aux_k", "aux_weight"}
    found = set(_JUMPRELU_ONLY)
    if settings.get("k_start") is None:
        found.add("k_ramp")
    if not settings.get("aux_k"):
        found.add("aux_weight")
    return found


PRESETS: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "small": TrainConfig(lr=1e-3, epochs=3, batch_size=1024, val_images=200),
    "demo": TrainConfig(lr=2e-3, epochs=12, batch_size=512),
}
