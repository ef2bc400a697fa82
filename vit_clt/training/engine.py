"""What training uses of Hugging Face accelerate: processes, precision and trackers.

State is read and written as whole tensors by name, whichever parts of them a process has, so that a
checkpoint does not depend on the number of processes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vit_clt.choices import Precision, check_choice
from vit_clt.errors import InputError
from vit_clt.kernels.jump import fusion
from vit_clt.training.objective import Objective
from vit_clt.transcoder.train_config import TrainConfig

Value = TypeVar("Value")

# trackers that are extras of this package
EXTRAS = ("tensorboard", "wandb")


class Engine:
    """The processes of one run, as a context manager, because accelerate keeps global state.

    Args:
        settings: the settings of the run.
        device: the device of this process.
        trackers: names of the trackers that get the numbers of the run.
        log_dir: where trackers write.

    Raises:
        InputError: as `check_engine`.
    """

    def __init__(
        self,
        settings: TrainConfig,
        device: torch.device,
        trackers: Sequence[str] = (),
        log_dir: Path | None = None,
    ):
        check_engine(settings, device, trackers)
        self.settings, self.device = settings, device
        self.accelerator = Accelerator(
            mixed_precision="bf16" if settings.precision == "bf16" else "no",
            cpu=device.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=log_dir,
            # gradients are views of the buckets that are sent, so that there is one copy, not two
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        if trackers:
            self.accelerator.init_trackers("vit-clt")

    def __enter__(self) -> Engine:
        with ExitStack() as stack:
            stack.enter_context(matmul_precision(self.settings.precision))
            stack.enter_context(fusion(self.settings.sparsity.fused))
            self._arithmetic = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._arithmetic.close()
        if error[0] is None:
            self.accelerator.end_training()
        # the next run of this process may use another precision or device; several processes stay
        # connected
        AcceleratorState._reset_state(reset_partial_state=self.n_processes == 1)

    @property
    def n_processes(self) -> int:
        """Number of processes that train together."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return bool(self.accelerator.is_main_process)

    def prepare(self, objective: Objective) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The objective as the processes share it, and its optimiser."""
        if is_sharded() and self.device.type == "cpu" and self.n_processes > 1:
            # accelerate shards on accelerators only; torch does it on CPUs as well
            mesh = init_device_mesh("cpu", (self.n_processes,))
            fully_shard(objective, mesh=mesh)
            return objective, _optimiser(objective, self.settings)
        optimiser = _optimiser(objective, self.settings)
        module, prepared = self.accelerator.prepare(
            objective, optimiser, device_placement=[False, False]
        )
        return module, prepared

    def agreed(self, value: Value) -> Value:
        """The value of the main process, in every process."""
        values: list[Value] = broadcast_object_list([value])
        return values[0]

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over processes."""
        if self.n_processes == 1:
            return value
        total: Tensor = self.accelerator.reduce(value, "sum")
        return total

    def unsynchronised(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """A context in which gradients are exchanged only for the last part of a batch."""
        if last or self.n_processes == 1:
            return nullcontext()
        if isinstance(module, FSDPModule):
            return nullcontext()  # sharded gradients are exchanged part by part
        context: AbstractContextManager[Any] = self.accelerator.no_sync(module)
        return context

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a record to the trackers."""
        if self.accelerator.trackers:
            numbers = {name: v for name, v in values.items() if isinstance(v, float | int)}
            self.accelerator.log(numbers, step=step)


def is_sharded() -> bool:
    """Whether this process was launched to hold a part of the parameters (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """A context in which float32 matrix products use TF32 if `precision` is "tf32".

    The user's setting is restored after it.
    """
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_engine(settings: TrainConfig, device: torch.device, trackers: Sequence[str]) -> None:
    """Refuse settings, a device or trackers that this machine cannot run with.

    Raises:
        InputError: an unknown tracker, a missing package, or TF32 on a CPU.
    """
    known = [str(tracker) for tracker in LoggerType if tracker != LoggerType.ALL]
    for name in trackers:
        check_choice("trackers", name, known)
        if name not in map(str, get_available_trackers()):
            extra = f"vit-clt[{name}]" if name in EXTRAS else name
            raise InputError(
                "trackers",
                f'holds "{name}", which is not installed; expected its package: '
                f"pip install '{extra}'.",
            )
    if settings.precision == "tf32" and device.type == "cpu":
        raise InputError("precision", 'is "tf32" on a CPU; expected a GPU, or "fp32".')
    if settings.optimiser == "adamw8bit" and importlib.util.find_spec("torchao") is None:
        raise InputError(
            "optimiser", "is \"adamw8bit\", which needs torchao: pip install 'vit-clt[lowbit]'."
        )


def gradient_norm(parameters: Sequence[Tensor], clip: float | int | None) -> float:
    """The norm of the whole gradient. It is then clipped in place to norm `clip`, if not None."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, float(clip), norm)
    return float(_whole(norm))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's compiled optimisers keep this tensor
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Whole parameters and buffers by name. Every process must call this."""
    return {name: _whole(value.detach()) for name, value in _named_tensors(module)}


def put_model(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `model_tensors` in place. Every process must call this."""
    with torch.no_grad():
        for name, value in _named_tensors(module):
            _put(value, tensors[name])


def optimiser_tensors(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Whole optimiser state by name, "parameter/key". Every process must call this."""
    return {name: _whole(value) for name, value in _state(module, optimiser)}


def restore(
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    model: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """Load the tensors of `model_tensors` and `optimiser_tensors` in place."""
    # a step with zero gradients makes the optimiser allocate its state, sharded and typed rightly
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad()
    put_model(module, model)
    with torch.no_grad():
        for name, value in _state(module, optimiser):
            _put(value, state[name])


def _optimiser(objective: Objective, settings: TrainConfig) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"betas": (0.9, 0.999), "weight_decay": 0.0}
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(objective.parameters(), lr=settings.lr, fused=True, **options)
    from torchao.optim import AdamW8bit

    width = objective.clt.config.d_model

    class FeatureWise(AdamW8bit):  # type: ignore[misc]
        # Features fire at very different rates. If one scale is shared by several, the second
        # moment of a rare feature rounds to 0 while its first does not, and its weights diverge.
        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            per_feature = p.shape[-1] == width
            buffer = super()._new_buffer(p, signed) if per_feature else torch.zeros_like(p)
            assert isinstance(buffer, Tensor)
            return buffer

    optimiser: torch.optim.Optimizer = FeatureWise(
        objective.parameters(), lr=settings.lr, block_size=gcd(width, 256), **options
    )
    return optimiser


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _state(module: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    state = getattr(optimiser, "optimizer", optimiser).state
    for name, parameter in module.named_parameters():
        for key, value in state[parameter].items():
            yield from _parts(f"{name}/{key}", value)


def _parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    # torchao keeps moments as a tensor of codes with their scales
    local = value.to_local() if isinstance(value, DTensor) else value
    inner = getattr(local, "__tensor_flatten__", None)
    if inner is None or isinstance(local, DTensor):
        yield name, value
        return
    if isinstance(value, DTensor):
        raise InputError("optimiser", 'is "adamw8bit" with sharded parameters; expected "adamw".')
    for key in inner()[0]:
        yield f"{name}/{key}", getattr(value, key)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _put(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, list(target.placements)
        )
    target.copy_(value)
