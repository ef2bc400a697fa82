"""Names of torch devices, and what is known of them before torch is imported."""

from __future__ import annotations

import ctypes
import re
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from vit_clt.errors import InputError

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia", "hip", "vulkan", "ipu", "ve", "maia")
"""Kinds of torch devices that hold numbers; a number may follow, as in cuda:1."""


def check_device_name(device: str) -> None:
    """Refuse a device that torch cannot have on this machine, as far as that is known without it.

    Raises:
        InputError: no name of a device, or a GPU without its driver or its build of torch.
    """
    kind, colon, number = device.partition(":")
    if kind == "meta":
        reason = "it holds shapes and no numbers"
    elif kind not in DEVICES or (colon and not number.isdecimal()):
        near = get_close_matches(kind, DEVICES, n=1)
        reason = f"expected {near[0] if near else 'cpu, cuda'} or another device of torch"
    elif kind == "cuda" and (missing := _missing_for_cuda()):
        reason = missing
    else:
        return
    raise InputError("device", f'is "{device}", which is not usable: {reason}.')


def _missing_for_cuda() -> str | None:
    """What a CUDA device needs and is not there; None where only torch can tell."""
    found = None if "torch" in sys.modules else find_spec("torch")
    if found is None or found.origin is None or sys.platform != "linux":
        return None
    file = Path(found.origin).with_name("version.py")
    says = dict(re.findall(r"^(\w+)\b[^=\n]*= (.*)$", file.read_text(), re.MULTILINE))
    if says.get("hip") != "None":  # a build for AMD calls its devices cuda too
        return None
    if says.get("cuda") == "None":
        return f"this torch, {says.get('__version__')}, is built without CUDA"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "found no NVIDIA driver"
    return None
