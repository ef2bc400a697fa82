"""What a machine has for this package, and what to do about what is missing or slow.

Nothing is fetched, and nothing is written. A library that is broken is a finding, not an error.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from vit_clt.inputs import reason

PACKAGES = (
    *("torch", "torchvision", "transformer_lens", "open_clip_torch", "timm", "transformers"),
    *("datasets", "huggingface_hub", "accelerate", "safetensors", "plotly"),
)
EXTRAS = {
    "png": ("kaleido", "--png, figures as pictures"),
    "faiss": ("faiss", "retrieve --search faiss"),
    "lowbit": ("torchao", "train --optimiser adamw8bit"),
    "tensorboard": ("tensorboard", "train --trackers tensorboard"),
    "jupyter": ("jupyterlab", "the notebooks"),
    "wandb": ("wandb", "train --trackers wandb"),
}
"""Optional extras of this package: the module each brings, and the options that need it."""
GB = 1e9
LEAST_MEMORY, LEAST_DISK = 2 * GB, 5 * GB
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: str
    advice: str = ""
    """What to do, in one sentence; "" if nothing is wrong."""


def findings(out: Path) -> Iterator[Finding]:
    """Everything that is looked at, in the order in which it is shown.

    Args:
        out: the folder that results will be written to.
    """
    yield Finding("python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("platform", platform.platform())
    yield from _packages()
    yield from _torch()
    yield from _memory()
    yield from _disks(out)
    yield from _extras()
    yield from _hub()
    yield from _settings()


def _packages() -> Iterator[Finding]:
    yield Finding("vit-clt", _version("vit-clt") or "not installed, run from its folder")
    for name in PACKAGES:
        found = _version(name)
        advice = "" if found else f"install it, as in pip install {name}."
        yield Finding(name, found or "missing", advice)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        yield Finding("torch build", reason(error), "torch cannot be imported; install it again.")
        return
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    yield Finding("torch build", build)
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        yield Finding(
            "torchvision build",
            reason(error),
            "torchvision does not fit torch; install both together from one index of PyTorch.",
        )
    devices = ["cpu"]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            devices.append(f"cuda:{i} ({gpu.name}, {gpu.total_memory / GB:.0f} GB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    has_gpu = Path("/dev/nvidiactl").exists() and len(devices) == 1
    advice = "there is an NVIDIA GPU that this torch cannot use; install a torch for its driver."
    yield Finding("devices", ", ".join(devices), advice if has_gpu else "")
    threads, cores = torch.get_num_threads(), _cores()
    yield Finding(
        "threads",
        f"{threads} of torch on {cores} cores (OMP_NUM_THREADS {_variable('OMP_NUM_THREADS')})",
        f"more threads than cores wait for one another; set OMP_NUM_THREADS={cores}."
        if threads > cores
        else "",
    )


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield Finding(
        "memory",
        f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f}",
        "little is free; end other programs, or use --limit and fewer --n-features."
        if memory.available < LEAST_MEMORY
        else "",
    )


def _disks(out: Path) -> Iterator[Finding]:
    from huggingface_hub import constants

    for what, place in (
        ("results", out),
        ("temporary files", Path(tempfile.gettempdir())),
        ("Hub cache", Path(constants.HF_HUB_CACHE)),
    ):
        there = place.absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        advice = ""
        if not (there.is_dir() and os.access(there, os.W_OK)):
            advice = f"{there} cannot be written to; choose another folder."
        elif free < LEAST_DISK:
            advice = f"the disk of {there} is nearly full; make room or choose another folder."
        yield Finding(what, f"{free / GB:.0f} GB free, {place}", advice)


def _extras() -> Iterator[Finding]:
    for name, (module, gives) in EXTRAS.items():
        state = "installed" if find_spec(module) else f"no: pip install 'vit-clt[{name}]'"
        yield Finding(f"extra {name}", f"{state}, for {gives}")
    if find_spec("choreographer") is None:
        return
    from choreographer.browsers.chromium import Chromium

    browser = Chromium.find_browser(skip_local=False)
    advice = "--png needs Chrome or Chromium; install one, as with plotly_get_chrome."
    yield Finding("browser", str(browser or "none"), "" if browser else advice)


def _hub() -> Iterator[Finding]:
    names = ("HF_HOME", *OFFLINE)
    given = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    offline = [name for name in OFFLINE if os.environ.get(name, "0").upper() in ("1", "TRUE", "ON")]
    state = "offline, only what is in the cache is found" if offline else "asked where needed"
    yield Finding("Hub", f"{state}; {given or 'no variable set'}")


def _settings() -> Iterator[Finding]:
    policy = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    advice = "idle threads that spin slow small steps down ten times; unset it, or set PASSIVE."
    yield Finding("OMP_WAIT_POLICY", policy, advice if policy.upper() == "ACTIVE" else "")
    data = os.environ.get("VIT_CLT_DATA")
    missing = data is not None and not Path(data).is_dir()
    advice = "it names no folder; the scripts and tests that read it will not find their data."
    yield Finding("VIT_CLT_DATA", _variable("VIT_CLT_DATA"), advice if missing else "")


def _variable(name: str) -> str:
    return os.environ.get(name, "not set")
