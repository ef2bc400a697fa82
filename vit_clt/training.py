"""Train a CLT on a frozen ViT: teacher-forced, all tokens, AdamW.

Per layer, the squared error is averaged over token rows in normalised space (mean norms of x and
of y brought to sqrt(d_model)), with weight `cls_weight` on CLS rows; layers are summed. JumpReLU
adds lambda * mean over tokens of sum_s sum_i tanh(c ||W_dec,i|| z_i), where ||W_dec,i|| runs over
all targets of feature i together. The normalisation is folded into the returned CLT. The paper
(arXiv 2604.13304) fixes AdamW, lr 2e-4, 10 epochs, all tokens; the rest is our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil, exp, log, prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.activations import TokenBatch, norm_scales, token_batches
from vit_clt.backends import Backend, check_backend
from vit_clt.codes import Codes, RaggedCodes
from vit_clt.config import CLTConfig
from vit_clt.data import ImageData, as_image_data
from vit_clt.errors import InputError
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.sparsifiers import JumpReLU
from vit_clt.transcoder import CrossLayerTranscoder


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's where it speaks."""

    lr: float | int = 2e-4
    """Peak learning rate of AdamW (betas 0.9 / 0.999, no weight decay)."""
    epochs: int = 10
    """Passes over the images."""
    batch_size: int = 4096
    """Token rows a step."""
    seed: int = 0
    """Of initialisation, image order and token order."""
    cls_weight: float | int = 1.0
    """Weight of a CLS row in the loss; CLS is one row in 50 or 197."""
    warmup_steps: int = 1000
    """Linear warm-up, at most 5 % of all steps."""
    decay_fraction: float | int = 0.2
    """Linear decay to zero over this last share of the steps."""
    buffer_batches: int = 16
    """Batches' worth of tokens that are shuffled together."""
    norm_images: int = 1000
    """Images the normalisation is measured on (all, if fewer)."""
    l0: float | int | None = None
    """JumpReLU only: steer lambda to this many active features a token and layer."""
    sparsity: float | int = 1e-3
    """JumpReLU only: final lambda (its starting point, where `l0` steers it)."""
    sparsity_scale: float | int = 4.0
    """JumpReLU only: c in the tanh."""
    log_every: int = 10
    """Steps between log records."""
    backend: Backend = "auto"
    """How steps are computed; all back ends are exact (`vit_clt.backends`)."""

    def __post_init__(self) -> None:
        for name in (
            "lr",
            "epochs",
            "batch_size",
            "cls_weight",
            "buffer_batches",
            "norm_images",
            "log_every",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a value above 0.")
        for name in ("warmup_steps", "decay_fraction", "sparsity", "sparsity_scale"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if self.l0 is not None and not self.l0 > 0:
            raise InputError(f"l0 is {self.l0}; expected a value above 0.")
        check_backend(self.backend)


PRESETS: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "small": TrainConfig(lr=1e-3, epochs=3, batch_size=1024),
    "demo": TrainConfig(lr=2e-3, epochs=12, batch_size=512),
}

Log = Callable[[dict[str, Any]], None]


def train(
    vit: HookedViT,
    data: ImageData,
    config: CLTConfig,
    train_config: TrainConfig | None = None,
    *,
    on_log: Log | None = None,
    progress: bool = True,
) -> CrossLayerTranscoder:
    """Train a CLT from scratch and return it in raw units, its teacher recorded.

    Args:
        vit: the frozen teacher.
        data: training images; labels are not used.
        config: shape and sparsifier; must fit `vit`.
        train_config: hyperparameters.
        on_log: called with a dict every `log_every` steps and after the last one: step, epoch,
            tokens (rows of the batch), loss (reconstruction), fvu, fvu_cls, fvu_patch (in
            normalised space, means over layers for this batch; None where it holds fewer than two
            such rows), l0, dead (share of features silent for an epoch), sparsity (lambda), lr,
            backend (of the step: dense, sparse or banded).
        progress: show a progress line.

    Raises:
        InputError: `config` does not fit `vit`, or activations or loss are not finite.
    """
    settings = train_config or TrainConfig()
    _check(vit, config, settings)
    data = as_image_data(data)
    generator = torch.Generator().manual_seed(settings.seed)
    device = next(vit.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        taught = replace(config, teacher=vit.identity())
        clt = CrossLayerTranscoder(taught, backend=settings.backend).to(device)
    scale_x, scale_y = norm_scales(vit, data, n_images=settings.norm_images, generator=generator)

    steps_per_epoch = ceil(len(data) * vit.cfg.n_tokens / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    optimiser = torch.optim.AdamW(
        clt.parameters(), lr=settings.lr, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    warmup = max(1, min(settings.warmup_steps, round(0.05 * total)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _learning_rate(step, total, warmup, settings.decay_fraction)
    )
    sparsity = _Sparsity(settings, total)
    activity = _Activity(clt, tokens_per_epoch=len(data) * vit.cfg.n_tokens)

    step = 0
    bar = tqdm(total=total, unit="step", disable=not progress, desc="train")
    for epoch in range(settings.epochs):
        for batch in token_batches(
            vit,
            data,
            batch_size=settings.batch_size,
            buffer_batches=settings.buffer_batches,
            generator=generator,
        ):
            x = batch.x * scale_x[:, None, None]
            y = batch.y * scale_y[:, None, None]
            codes = clt.encode(x)
            y_hat = clt.decode(codes)
            loss = reconstruction_loss(y_hat, y, _weights(batch, settings))
            penalty = sparsity.penalty(clt, codes)
            if not loss.isfinite():
                raise InputError(f"loss is {loss.item()} at step {step}; lower lr ({settings.lr}).")
            optimiser.zero_grad()
            (loss + penalty).backward()
            optimiser.step()
            lr = schedule.get_last_lr()[0]
            schedule.step()
            step += 1
            l0 = float(codes.l0().float().mean())
            sparsity.steer(l0)
            activity.count(codes, len(batch))
            if step % settings.log_every == 0 or step == total:
                record = {
                    "step": step,
                    "epoch": epoch,
                    "tokens": len(batch),
                    "loss": loss.item(),
                    **_fvu(y_hat.detach(), y, batch),
                    "l0": l0,
                    "dead": activity.dead_share(),
                    "sparsity": sparsity.value,
                    "lr": lr,
                    "backend": clt.backend_for(codes),
                }
                bar.set_postfix(_short(record))
                if on_log is not None:
                    on_log(record)
            bar.update()
    bar.close()
    clt.rescale_(scale_x, scale_y)
    return clt.eval()


def reconstruction_loss(
    y_hat: Float[Tensor, "layer token d_model"],
    y: Float[Tensor, "layer token d_model"],
    weights: Float[Tensor, " token"],
) -> Float[Tensor, ""]:
    """Sum over layers of sum_t w_t ||y^_t - y_t||^2 / sum_t w_t."""
    squared = (y_hat - y).square().sum(-1)
    return (squared * weights).sum() / weights.sum()


class _Sparsity:
    """The tanh penalty of JumpReLU: lambda ramps from 0 over the run; an L0 target steers it."""

    def __init__(self, settings: TrainConfig, total: int):
        self.settings = settings
        self.total = total
        self.step = 0
        self.log_gain = 0.0

    @property
    def value(self) -> float:
        """lambda now."""
        if self.settings.l0 is not None:
            return self.settings.sparsity * exp(self.log_gain)
        return self.settings.sparsity * self.step / self.total

    def penalty(self, clt: CrossLayerTranscoder, codes: Codes) -> Tensor:
        if not isinstance(clt.config.sparsifier, JumpReLU):
            return clt.b_dec.new_zeros(())
        norms = clt.decoder_norms()
        total = clt.b_dec.new_zeros(())
        for s in range(len(codes)):
            each = codes[s]
            if isinstance(each, RaggedCodes):
                # units neither stored nor in the band are 0, and owe the threshold no gradient
                z, norm = each.values, norms[s].index_select(0, each.indices)
            else:
                z, norm = each.to_dense(), norms[s]
            summed = torch.tanh(self.settings.sparsity_scale * norm * z).sum()
            if isinstance(each, RaggedCodes) and each.band is not None:
                at_rest = torch.tanh(self.settings.sparsity_scale * norms[s] * each.band.shift)
                summed = summed + (each.band.counts() * at_rest).sum()
            total = total + summed / prod(each.tokens)
        return self.value * total

    def steer(self, l0: float) -> None:
        self.step += 1
        if self.settings.l0 is not None:
            # integral control of log lambda: lambda grows while too many features are active
            error = log(max(l0, 1e-3) / self.settings.l0)
            self.log_gain += 0.05 * max(-1.0, min(1.0, error))


class _Activity:
    """When each feature last fired; dead means silent for one epoch's tokens."""

    def __init__(self, clt: CrossLayerTranscoder, tokens_per_epoch: int):
        self.window = tokens_per_epoch
        self.silent = torch.zeros_like(clt.b_enc, dtype=torch.long)

    def count(self, codes: Codes, n_tokens: int) -> None:
        self.silent += n_tokens
        self.silent[codes.fired() > 0] = 0

    def dead_share(self) -> float:
        return float((self.silent >= self.window).float().mean())


def _weights(batch: TokenBatch, settings: TrainConfig) -> Tensor:
    return torch.where(batch.is_cls, settings.cls_weight, 1.0)


def _fvu(y_hat: Tensor, y: Tensor, batch: TokenBatch) -> dict[str, float | None]:
    everything = torch.ones_like(batch.is_cls)
    rows = {"fvu": everything, "fvu_cls": batch.is_cls, "fvu_patch": ~batch.is_cls}
    found: dict[str, float | None] = {}
    for name, chosen in rows.items():
        true, error = y[:, chosen], (y_hat - y)[:, chosen]
        spread = (true - true.mean(1, keepdim=True)).square().sum((1, 2))
        # a batch with fewer than two such rows (the end of an epoch) has no variance to explain
        defined = true.shape[1] > 1 and bool((spread > 0).all())
        found[name] = float((error.square().sum((1, 2)) / spread).mean()) if defined else None
    return found


def _short(record: dict[str, Any]) -> dict[str, str]:
    return {
        "loss": f"{record['loss']:.1f}",
        "fvu": "-" if record["fvu"] is None else f"{record['fvu']:.3f}",
        "l0": f"{record['l0']:.1f}",
        "dead": f"{record['dead']:.1%}",
    }


def _learning_rate(step: int, total: int, warmup: int, decay_fraction: float) -> float:
    decay = max(1.0, decay_fraction * total)
    return min(1.0, (step + 1) / warmup, max(0.0, (total - step) / decay))


def _check(vit: HookedViT, config: CLTConfig, settings: TrainConfig) -> None:
    have, want = (config.n_layers, config.d_model), (vit.cfg.n_layers, vit.cfg.d_model)
    if have != want:
        raise InputError(
            f"config is for {have[0]} layers of width {have[1]}; expected {want[0]} layers of "
            f"width {want[1]}, as in model {vit.cfg.model}."
        )
    if settings.l0 is not None and not isinstance(config.sparsifier, JumpReLU):
        raise InputError(f"l0 is {settings.l0}; only JumpReLU is steered to an L0, top-k has k.")


def as_context(clt: CrossLayerTranscoder, settings: TrainConfig) -> dict[str, Any]:
    """Both configurations and the back end of the steps as JSON values, for metrics files."""
    return {
        "clt": clt.config.to_json(),
        "train": asdict(settings),
        "backend": clt.planned_backend(),
    }
