"""Short trials on this machine: seconds a training step will take, and the faster back end.

On a CPU `backend="auto"` is a fixed function of shape and density (`vit_clt.kernels.choose`). On a
GPU which back end wins depends on the chip, so it is timed, once, before the run; the choice is
written to the run's settings, and a resumed run keeps it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from vit_clt.choices import Backend
from vit_clt.data.images import ImageData
from vit_clt.hooks.activations import IMAGES_PER_PASS, capture
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.kernels.choose import choose
from vit_clt.training.engine import is_sharded, matmul_precision
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig

_IMAGES, _ROWS = 16, (64, 256)


def seconds_per_step(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    settings: TrainConfig,
    *,
    processes: int = 1,
    cache: bool = False,
) -> float:
    """Estimated seconds a training step will take, from a short trial on a few images.

    The ViT's pass (none with `cache`) and AdamW are timed and scaled. Forward and backward run on a
    few and on more rows (64 and 256 on a CPU; a quarter of a step's and all on a GPU, which few
    leave idle), and the line through both is followed to the batch: a step's cost is a part that
    grows with its rows and one that grows with its parameters. Penalties, the exchange between
    processes and waiting for images are not in it. Weights, gradients and the random state are left
    as they are.

    Raises:
        InputError: an image cannot be read, or activations are not finite.
    """
    device = clt.b_enc.device
    on_gpu = device.type == "cuda"
    in_batch = ceil(settings.batch_size / processes)
    images, _ = data.batch(range(min(IMAGES_PER_PASS if on_gpu else _IMAGES, len(data))))
    images = images.to(device)
    devices = [device] if on_gpu else []
    with (
        torch.random.fork_rng(devices=devices, device_type=device.type),
        matmul_precision(settings.precision),
    ):
        found = capture(vit, images)
        seconds = _seconds(partial(capture, vit, images), device)
        teacher = 0.0 if cache else seconds / found.x[0, ..., 0].numel()
        # in training's units: the scale decides how many features JumpReLU stores
        x, y = (_normalised(values.flatten(1, 2)) for values in (found.x, found.y))
        rows = [min(n, x.shape[1]) for n in _ROWS]
        if on_gpu:
            rows = [ceil(in_batch / settings.accumulate / n) for n in (4, 1)]
            again = torch.arange(rows[1], device=device) % x.shape[1]
            x, y = x[:, again], y[:, again]
        _trial(clt, x[:, : rows[0]], y[:, : rows[0]], settings)  # the first one warms up
        few, many = (
            _seconds(partial(_trial, clt, x[:, :n], y[:, :n], settings), device) for n in rows
        )
    a_row = max(0.0, many - few) / max(1, rows[1] - rows[0])
    # the fixed part comes again in each part of the batch
    fixed = max(0.0, many - a_row * rows[1]) * settings.accumulate
    return fixed + in_batch * (a_row + teacher) + _optimiser_seconds(clt)


def decided_backend(
    settings: TrainConfig,
    config: CLTConfig,
    device: torch.device,
    processes: int = 1,
    *,
    trial: bool,
) -> Backend:
    """What `settings.backend` means for a run, where "auto" leaves that open.

    Top-k codes have one density: on a GPU a trial decides ("auto" without `trial`), elsewhere
    `choose`. JumpReLU's density changes, so that "auto" stays and each batch is decided by its own;
    on a GPU it is dense. So are sharded runs there, whose whole parameters may not fit one GPU.
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

    All of the CLT is timed, in the run's precision, on as many token rows as a step has; weights
    and gradients must fit. One that fails, with a warning, loses: kernels are compiled at their
    first use, and a machine may lack a C compiler. The random state is left as it is.
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
                seconds[backend] = _seconds(step, device)
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
            y_hat = clt.decode(clt.encode_batch(x))
        loss = (y_hat.float() - y).square().sum(-1).mean()
        # not backward(): nothing is added to .grad, and no hook that waits for other processes runs
        torch.autograd.grad(loss, learned)


def _normalised(values: Tensor) -> Tensor:
    norms = values.norm(dim=-1, keepdim=True).mean(1, keepdim=True)
    return values * (values.shape[-1] ** 0.5 / norms)


def _optimiser_seconds(clt: CrossLayerTranscoder) -> float:
    """AdamW on a stand-in of at most 16 MB, scaled to all parameters."""
    n = sum(p.numel() for p in clt.parameters())
    stand_in = nn.Parameter(torch.zeros(min(n, 2**22), device=clt.b_enc.device))
    stand_in.grad = torch.zeros_like(stand_in)
    optimiser = torch.optim.AdamW([stand_in], fused=True)
    optimiser.step()
    return _seconds(optimiser.step, stand_in.device) * n / stand_in.numel()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of three runs, fewer if they are slow: other programs only ever add time."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    taken: list[float] = []
    wait()
    while len(taken) < 3 and sum(taken) < 0.5:
        began = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - began)
    return min(taken)
