"""A pretend GPU: CUDA's rules about devices, on CPU values.

Inside `with pretend_gpu():` a tensor made or moved on "cuda" is a `PretendTensor`: `.device` is
cuda:0, its values lie on the CPU, and every operation on it keeps CUDA's rules:

- tensors of two devices do not mix, but for copies, 0-dim CPU tensors, and CPU indices into a GPU
  tensor;
- NumPy never sees one;
- a CPU generator makes nothing on it, and there is no product of integers.

What it cannot show: CUDA's kernels, their order of summation, autocast, memory, streams, speed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # the mode imports it, and it must not see stand-ins
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
aten = torch.ops.aten

# operators that move values from one device to another, or look at none
_COPIES = {aten.copy_.default, aten._foreach_copy_.default, aten.is_same_size.default}
# operators whose indices may lie on the CPU while the rest is on the GPU
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
# the same, where Python's `x[index] = value` leads to them: CUDA's would lead to index_put_
_FILLS = {aten.index_fill_.int_Scalar, aten.masked_fill_.Scalar}
# operators that refuse even a 0-dim CPU tensor beside GPU ones
_STRICT = {aten.stack, aten.cat, aten.index_select, aten.gather, aten.scatter, aten.scatter_}
_PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot, aten.addmv}
_ABSENT = {aten.histogram}
# functions that make tensors: a GPU tensor among their arguments does not say where
_FACTORIES = {torch.full, torch.arange, torch.linspace, torch.tensor, torch.eye, torch.zeros}


class PretendTensor(Tensor):
    """A tensor that says it is on cuda:0; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        strided = inner.layout == torch.strided
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride() if strided else None,
            storage_offset=inner.storage_offset() if strided else None,
            dtype=inner.dtype,
            # for C++ it is a CPU tensor: autograd has no thread for a GPU that is not there
            device="cpu",
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.inner = value.inner

    is_cuda = True  # type: ignore[assignment]
    is_cpu = False  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.inner.tolist()

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cpu")

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": GPU, **kwargs})

    def __deepcopy__(self, memo: Any) -> PretendTensor:
        copied = PretendTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        return copied

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"{self.inner!r} on {GPU}"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.backward or kwargs.get("device") is not None or func in _FACTORIES:
                return func(*args, **kwargs)
            with _inheriting(), _setting(func is Tensor.__setitem__):
                return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


# how many running calls have their device from a GPU argument, whatever C++ says
_inherited = 0


@contextmanager
def _inheriting() -> Iterator[None]:
    global _inherited
    _inherited += 1
    try:
        yield
    finally:
        _inherited -= 1


# whether `x[index] = value` is running
_sets_items = False


@contextmanager
def _setting(sets_items: bool) -> Iterator[None]:
    global _sets_items
    before, _sets_items = _sets_items, sets_items
    try:
        yield
    finally:
        _sets_items = before


def _inherits() -> bool:
    if _inherited:
        return True
    # made by a formula of autograd's own, and by no Python in between
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _OURS:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


_OURS = {
    __file__,
    sys.modules[TorchDispatchMode.__module__].__file__,
    sys.modules["torch._compile"].__file__,
    sys.modules["torch._dynamo.eval_frame"].__file__,
    sys.modules["torch._ops"].__file__,
}


def _over(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` of every leaf; pytree's own way takes longer than the operators."""
    if isinstance(value, list | tuple):
        return type(value)(_over(change, each) for each in value)
    return change(value)


def _real(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, PretendTensor) else leaf


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator on the values beneath, once its devices are found right."""
    asked = kwargs.get("device")
    leaves: list[Any] = []
    _over(leaves.append, (*args, *kwargs.values()))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    if ours:
        _check(func, args, tensors, ours)
    if asked is None:
        on_gpu = bool(ours) or (not tensors and "device" in kwargs and _inherits())
    else:
        # C++ asks for the device that it takes the arguments to be on
        guessed = "sparse" in str(func) if ours else not tensors and _inherits()
        on_gpu = torch.device(asked).type == "cuda" or guessed or (bool(ours) and _inherits())
        kwargs = {**kwargs, "device": torch.device("cpu") if on_gpu else asked}
    if on_gpu and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    found = func(
        *(_over(_real, value) for value in args),
        **{name: _over(_real, value) for name, value in kwargs.items()},
    )
    if not on_gpu:
        return found
    # what an operator wrote into stays the tensor that it was
    same = {id(tensor.inner): tensor for tensor in ours}

    def wrapped(leaf: Any) -> Any:
        if id(leaf) in same:
            return same[id(leaf)]
        return PretendTensor(leaf) if isinstance(leaf, Tensor) else leaf

    return _over(wrapped, found)


def _check(func: Any, args: Any, tensors: list[Tensor], ours: list[Any]) -> None:
    packet = func.overloadpacket
    if packet in _ABSENT:
        raise NotImplementedError(f"{func} has no kernel on the 'CUDA' backend")
    if packet in _PRODUCTS and not (ours[0].is_floating_point() or ours[0].is_complex()):
        raise RuntimeError(f'"{packet}_cuda" not implemented for {ours[0].dtype}')
    if len(ours) == len(tensors) or func in _COPIES:
        return
    if isinstance(args[0], PretendTensor):
        if func in _INDEXED:
            tensors = [args[0], *args[2:3]]
        elif func in _FILLS and _sets_items:
            return
    written = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    strict = packet in _STRICT
    if any(t.ndim or strict for t in tensors if not isinstance(t, PretendTensor)) or any(
        isinstance(v, Tensor) and not isinstance(v, PretendTensor) for v in written
    ):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
            f"and cpu! ({func})"
        )


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


# functions of torch.cuda that need do nothing
_NOTHING = (
    "_lazy_init",
    "synchronize",
    "set_device",
    "empty_cache",
    "reset_peak_memory_stats",
    "set_rng_state",
    "set_rng_state_all",
    "manual_seed",
    "manual_seed_all",
)
_to = Tensor.to


def _moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which C++ would answer by the devices it knows."""
    devices = [a for a in (*args, kwargs.get("device")) if isinstance(a, str | torch.device)]
    devices += [a.device for a in (*args, kwargs.get("other")) if isinstance(a, Tensor)]
    dtypes = [a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)]
    dtypes += [a.dtype for a in (*args, kwargs.get("other")) if isinstance(a, Tensor)]
    here = self.device.type
    device = torch.device(devices[0]).type if devices else here
    dtype = dtypes[0] if dtypes else self.dtype
    copy = kwargs.get("copy", False) or (len(args) > 0 and args[-1] is True and len(args) > 3)
    if "cuda" not in (here, device):
        return _to(self, *args, **kwargs)
    if here == device and dtype == self.dtype and not copy:
        return self
    place = GPU if device == "cuda" else torch.device(device)
    with torch._C.DisableTorchFunctionSubclass():
        return aten._to_copy.default(self, dtype=dtype, device=place)


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and the like, which move what they made past every mode."""

    def on_device(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is not None and torch.device(device).type == "cuda":
            return make(*args, **kwargs).to(GPU)
        return make(*args, **kwargs) if device is None else make(*args, device=device, **kwargs)

    return on_device


def _pinned(collate: Callable[[Any], Any] | None, value: Any) -> Any:
    found = value if collate is None else collate(value)
    leaves: list[Any] = []
    _over(leaves.append, found)
    if any(isinstance(leaf, PretendTensor) for leaf in leaves):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be")
    return found


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """A CUDA device that is not there, as long as the block lasts; yields its name."""
    patched: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "max_memory_allocated": lambda *_: 2**20,
        "mem_get_info": lambda *_: (2**36, 2**37),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "is_bf16_supported": lambda *_: True,
    }
    for name in _NOTHING:
        patched[name] = lambda *_, **__: None
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    # a wrapper does not fit into the parameter that it replaces
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with ExitStack() as stack:
            for name, stand_in in patched.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
            # there is no page-locked memory; what could not be locked is refused as on a GPU
            loader = torch.utils.data.DataLoader
            make = loader.__init__

            def unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
                if kwargs.pop("pin_memory", False):
                    kwargs["collate_fn"] = partial(_pinned, kwargs.get("collate_fn"))
                make(self, *args, **kwargs)

            stack.enter_context(mock.patch.object(loader, "__init__", unpinned))
            stream = mock.Mock(is_capturing=lambda: False)
            stack.enter_context(
                mock.patch.object(torch.accelerator, "current_stream", return_value=stream)
            )
            for name in ("tensor", "as_tensor", "asarray"):
                stack.enter_context(mock.patch.object(torch, name, _made(getattr(torch, name))))
            stack.enter_context(mock.patch.object(Tensor, "to", _moved))
            stack.enter_context(
                mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self.to(GPU))
            )
            stack.enter_context(_Devices())
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
