"""Short trials on this machine, which give the seconds a training step takes and the back end.

On a CPU `backend="auto"` is a fixed function of shape and density (`vit_clt.kernels.choose`). On a
GPU the faster back end depends on the chip, so that both are timed once before the run. The choice
is written to the settings of the run, and a resumed run keeps it.
"""

from __future__ import annotations

import warnings
from functools import partial
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from vit_clt.choices import Backend
from vit_clt.data.images import ImageData
from vit_clt.forecast.timing import fastest
from vit_clt.hooks.activations import IMAGES_PER_PASS, capture
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.kernels.choose import choose
from vit_clt.training.engine import is_sharded, matmul_precision
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig

_TRIAL_IMAGES, _TRIAL_ROWS = 16, (64, 256)


def seconds_per_step(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    settings: TrainConfig,
    *,
    processes: int = 1,
    cache: bool = False,
) -> float:
    """Estimate the seconds of a training step from a short trial on a few images.

    The ViT's passes (with `cache` only those that alter something) and AdamW are timed and scaled.
    Forward and backward run on
    two numbers of token rows (64 and 256 on a CPU; on a GPU, which few rows leave idle, a quarter
    and all of the rows of a step), and the line through both times is extended to the batch: one
    part of the time grows with the rows, another with the parameters. Penalties, the exchange
    between processes and waiting for images are not included. Weights, gradients and the random
    state are unchanged.

    Raises:
        InputError: an image cannot be read, or activations are not finite.
    """
    device = clt.b_enc.device
    on_gpu = device.type == "cuda"
    in_batch = ceil(settings.batch_size / processes)
    images, _ = data.batch(range(min(IMAGES_PER_PASS if on_gpu else _TRIAL_IMAGES, len(data))))
    images = images.to(device)
    devices = [device] if on_gpu else []
    with (
        torch.random.fork_rng(devices=devices, device_type=device.type),
        matmul_precision(settings.precision),
    ):
        activations = capture(vit, images)
        seconds = fastest(partial(capture, vit, images), device)
        teacher = seconds / activations.x[0, ..., 0].numel()
        # normalised as in training, because the scale decides how many features of JumpReLU fire
        x, y = (_normalised(values.flatten(1, 2)) for values in (activations.x, activations.y))
        rows = [min(n, x.shape[1]) for n in _TRIAL_ROWS]
        if on_gpu:
            rows = [ceil(in_batch / settings.accumulate / n) for n in (4, 1)]
            repeated = torch.arange(rows[1], device=device) % x.shape[1]
            x, y = x[:, repeated], y[:, repeated]
        _trial(clt, x[:, : rows[0]], y[:, : rows[0]], settings)  # the first one warms up
        few, many = (
            fastest(partial(_trial, clt, x[:, :n], y[:, :n], settings), device) for n in rows
        )
    per_row = max(0.0, many - few) / max(1, rows[1] - rows[0])
    # the fixed part is spent on each part of the batch
    fixed = max(0.0, many - per_row * rows[1]) * settings.accumulate
    # steps on the replaced stream run the ViT twice, and the CLT forward once more, which is about
    # a third of forward and backward
    replaced = settings.stream_share
    passes = 2 * replaced + (1 - replaced) * (float(not cache) + settings.interventions)
    per_row = per_row * (1 + replaced / 3) + teacher * passes
    return fixed + in_batch * per_row + _optimiser_seconds(clt)


def decided_backend(
    settings: TrainConfig,
    config: CLTConfig,
    device: torch.device,
    processes: int = 1,
    *,
    trial: bool,
) -> Backend:
    """The back end of a run, where `settings.backend` may be "auto".

    Top-k codes have one density: on a CPU `choose` decides, on a GPU a trial does, and without
    `trial` the back end stays "auto" there. The density of JumpReLU changes, so that the back end
    stays "auto" and is chosen for each batch; on a GPU it is then dense. Runs with sharded
    parameters are dense on a GPU as well, because one GPU may not hold all parameters for a trial.
    """
    density = config.sparsifier.density(config.n_features)
    if settings.backend != "auto" or density is None:
        return settings.backend
    if device.type != "cuda":
        weight = torch.empty(0, device=device)
        return choose("auto", config.n_features, config.d_model, density, weight)
    if not trial:
        return "auto"
    if is_sharded():
        return "dense"
    rows = ceil(settings.batch_size / processes / settings.accumulate)
    return faster_backend(config, settings, device, rows)


def faster_backend(
    config: CLTConfig, settings: TrainConfig, device: torch.device, rows: int
) -> Literal["dense", "sparse"]:
    """The back end whose forward and backward take less time, at initial weights and random x.

    The whole CLT is timed in the precision of the run, on `rows` token rows; weights and gradients
    must fit on the device. A back end that fails is not taken, with a warning: kernels are compiled
    when they are first used, and a machine may have no C compiler. The random state is unchanged.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type=device.type), torch.device(device):
        clt = CrossLayerTranscoder(config)
        x, y = torch.randn(2, config.n_layers, rows, config.d_model).unbind()
    step = partial(_trial, clt, x, y, settings)
    backends: tuple[Literal["dense", "sparse"], ...] = ("dense", "sparse")
    seconds: dict[Literal["dense", "sparse"], float] = {}
    with matmul_precision(settings.precision):
        for backend in backends:
            clt.backend = backend
            try:
                step()  # the first one warms up
                seconds[backend] = fastest(step, device)
            except Exception as error:
                if backend == backends[-1] and not seconds:
                    raise
                text = f'backend "{backend}" failed its trial: {error}'
                warnings.warn(text, RuntimeWarning, stacklevel=2)
    return min(seconds, key=seconds.__getitem__)


def _trial(clt: CrossLayerTranscoder, x: Tensor, y: Tensor, settings: TrainConfig) -> None:
    learned = [p for p in clt.parameters() if p.requires_grad]
    bf16 = settings.precision == "bf16"
    with torch.enable_grad():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            decoded = clt.decode_prefixes(clt.encode_batch(x), settings.matryoshka or (), x)
            errors = [y_hat.float() - y for y_hat in decoded]
        loss = torch.stack([error.square().sum(-1).mean() for error in errors]).mean()
        # backward() would add to .grad and run hooks that wait for other processes
        torch.autograd.grad(loss, learned)


def _normalised(values: Tensor) -> Tensor:
    norms = values.norm(dim=-1, keepdim=True).mean(1, keepdim=True)
    return values * (values.shape[-1] ** 0.5 / norms)


def _optimiser_seconds(clt: CrossLayerTranscoder) -> float:
    """Seconds of AdamW, timed on a tensor of at most 16 MB and scaled to all parameters."""
    n = sum(p.numel() for p in clt.parameters())
    stand_in = nn.Parameter(torch.zeros(min(n, 2**22), device=clt.b_enc.device))
    stand_in.grad = torch.zeros_like(stand_in)
    optimiser = torch.optim.AdamW([stand_in], fused=True)
    optimiser.step()
    return fastest(optimiser.step, stand_in.device) * n / stand_in.numel()
