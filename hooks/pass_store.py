"""Clean passes of a ViT on disk, to the last bit, for studies that go over the same images again.

Of a batch the residual stream before the first block, every mid_l and every y_l are kept in the
model's own dtype: the attention layers and the MLPs, which a pass spends its time in, are behind
them. The rest is computed anew by the model's own parts, so that it has the same bits:

    x_l = ln2_l(mid_l)    post_l = pre_{l+1} = mid_l + gamma2_l y_l    ln1_l(pre_l)    head(post)

Passes of one ViT by one arithmetic have a folder of their own, named by a hash of both, which
passes.json in it describes: another number of threads changes the last bits, and so may another
version of torch. In it is a safetensors file for each batch, named by a hash of its pixels: other
images, another preprocessing and other batches are other files. Each tensor has a checksum
(CRC-32), compared when it is first read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.hooks.points import (
    ATTN_IN,
    HOOK_IN,
    HOOK_OUT,
    READ_IN,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
)
from vit_clt.outputs.staging import staged_file, staged_files

if TYPE_CHECKING:
    from vit_clt.hooks.hooked_vit import HookedViT

FORMAT = 1
PASSES = "passes"
"""Name of the folder of passes in one of --cache, beside which an activation store may lie."""
MANIFEST_FILE = "passes.json"
LEFT_FREE = 1_000_000_000
"""Bytes of the disk that passes never take."""
_NAMES = ("model", "pretrained")

Pass = tuple[Tensor, dict[str, Tensor]]
"""Embeddings, and activations by the name of their hook point."""


class PassStore:
    """Clean passes of one ViT, kept in a folder and read in place of being run again.

    Only batches named by `keep` are written, and only while the disk has room. A pass is run as
    ever where it cannot be had to the last bit: under autocast, with gradients of the images, with
    attention patterns formed, for hook points inside attention, after the arithmetic was changed,
    and in a model whose activations are no contiguous arrays.

    Args:
        folder: where the passes of any ViTs are kept.
        vit: the ViT, whose weights must not change while the store is in use.

    Raises:
        InputError: a file is in the place of the folder, or the folder cannot be written.
    """

    n_run: int
    """Number of images whose passes were run."""
    n_read: int
    """Number of images whose passes were read."""

    def __init__(self, folder: Path | str, vit: HookedViT):
        for parent in (Path(folder), *Path(folder).parents):
            if parent.exists() and not parent.is_dir():
                raise InputError("cache", f"is {folder}; {parent} is a file, expected a folder.")
        self.vit = vit
        self.n_run = self.n_read = 0
        self._kept: set[str] = set()
        self._sound: set[tuple[str, str]] = set()
        self._has_room = True
        layers = range(vit.cfg.n_layers)
        self._places = {point.format(l=l): (point, l) for point in _SERVED for l in layers}
        self._stored = [RESID_PRE.format(l=0)]
        self._stored += [point.format(l=l) for l in layers for point in (RESID_MID, HOOK_OUT)]
        self._arithmetic = _arithmetic(vit)
        identity = {"format": FORMAT, **asdict(vit.identity()), **self._arithmetic}
        # the same weights may come from another place
        compared = {name: value for name, value in identity.items() if name not in _NAMES}
        name = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder) / name
        with staged_file(self.folder / MANIFEST_FILE) as place:
            place.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")

    def __deepcopy__(self, memo: object) -> None:
        """None: a copy of the ViT may be given other weights, so that it has no store."""

    def keep(self, images: Float[Tensor, "batch 3 height width"]) -> None:
        """Name a batch whose pass is to be kept, should it be run."""
        self._kept.add(_key(images))

    def run(
        self,
        images: Float[Tensor, "batch 3 height width"],
        names: Sequence[str],
        live: Callable[[Tensor, Sequence[str]], Pass],
    ) -> Pass:
        """What `live(images, names)` gives: read if it is there, otherwise run, and kept if named.

        Args:
            images: a batch.
            names: hook points.
            live: `HookedViT.run_clean` without a store.

        Warns:
            RuntimeWarning: once, that the disk has no room for further passes.
        """
        if self._exact(images, names):
            key = _key(images)
            if (read := self._read(key, len(images), names)) is not None:
                self.n_read += len(images)
                return read
            if key in self._kept and self._has_room:
                self.n_run += len(images)
                embeddings, cache = live(images, [*dict.fromkeys((*self._stored, *names))])
                self._write(key, {name: cache[name] for name in self._stored})
                return embeddings, {name: cache[name] for name in names}
        self.n_run += len(images)
        return live(images, names)

    def _exact(self, images: Tensor, names: Sequence[str]) -> bool:
        """Whether a pass that was kept has the bits that this pass would have."""
        return (
            self._places.keys() >= {*names}
            and not (images.requires_grad and torch.is_grad_enabled())
            and not torch.is_autocast_enabled(self.vit.device.type)
            and not any(block.use_attn_pattern for block in self.vit.blocks)
            and _arithmetic(self.vit) == self._arithmetic
        )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    # ---- reading and writing ----------------------------------------------------------------

    def _read(self, key: str, n_images: int, names: Sequence[str]) -> Pass | None:
        """The pass of a batch; None where it is not there, or damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                kept = _Kept(self.vit, file, partial(self._checked, key, n_images))
                activations = {name: kept.at(*self._places[name]) for name in names}
                return self.vit.head(kept.at(RESID_POST, self.vit.cfg.n_layers - 1)), activations
        except (SafetensorError, OSError, _Damaged):
            return None

    def _checked(self, key: str, n_images: int, name: str, file: Any) -> Tensor:
        """A tensor of a file, its checksum compared when it is read for the first time."""
        mapped, cfg = file.get_tensor(name), self.vit.cfg
        if (key, name) not in self._sound:
            shape = (n_images, cfg.n_tokens, cfg.d_model)
            right = tuple(mapped.shape) == shape and mapped.dtype == self.vit.tower.dtype
            if not right or _checksum(mapped) != (file.metadata() or {}).get(name):
                raise _Damaged
            self._sound.add((key, name))
        # a fresh tensor is aligned, which a mapped one need not be
        return mapped.clone().to(self.vit.device)

    def _write(self, key: str, tensors: dict[str, Tensor]) -> None:
        # kernels choose their way by how a tensor lies in memory, which a file does not say
        if not all(tensor.is_contiguous() for tensor in tensors.values()):
            return
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if shutil.disk_usage(self.folder).free < needed + LEFT_FREE:
            self._stop_writing("the disk is full but for a gigabyte")
            return
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        try:
            with staged_files(self.folder, [self._path(key).name]) as staging:
                save_file(tensors, staging / self._path(key).name, metadata=checksums)
        except InputError as error:
            self._stop_writing(str(error))
            return
        self._sound.update((key, name) for name in tensors)

    def _stop_writing(self, reason: str) -> None:
        self._has_room = False
        text = f"no further passes of the ViT are kept, which are run each time instead: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


class _Kept:
    """The activations of one kept pass, each read or computed when it is asked for."""

    def __init__(self, vit: HookedViT, file: Any, read: Callable[[str, Any], Tensor]):
        self.vit, self.file, self.read = vit, file, read
        self._tensors: dict[str, Tensor] = {}

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file."""
        if name not in self._tensors:
            self._tensors[name] = self.read(name, self.file)
        return self._tensors[name]

    def at(self, point: str, layer: int) -> Tensor:
        """The activation at a hook point of a layer."""
        block = self.vit.blocks[layer]
        if point == RESID_PRE and layer > 0:
            return self.at(RESID_POST, layer - 1)
        if point == ATTN_IN:
            return block.ln1(self.at(RESID_PRE, layer))
        if point in (HOOK_IN, READ_IN):
            return block.ln2(self.at(RESID_MID, layer))
        if point == RESID_POST:
            return block.add_mlp(self.at(RESID_MID, layer), self.at(HOOK_OUT, layer))
        return self.tensor(point.format(l=layer))


_SERVED = (RESID_PRE, ATTN_IN, RESID_MID, HOOK_IN, READ_IN, HOOK_OUT, RESID_POST)


class _Damaged(Exception):
    """A tensor is not the one that was written."""


def pass_bytes(vit: HookedViT) -> int:
    """Bytes that the kept pass of one image takes: (2 L + 1) T d numbers."""
    cfg = vit.cfg
    return vit.tower.dtype.itemsize * (2 * cfg.n_layers + 1) * cfg.n_tokens * cfg.d_model


def _arithmetic(vit: HookedViT) -> dict[str, Any]:
    """What the bits of a pass depend on beside the weights and the images."""
    device, backends = vit.device, torch.backends
    on_gpu = device.type == "cuda"
    return {
        **{name: _version(name) for name in ("torch", "timm", "open_clip_torch", "transformers")},
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "dtype": str(vit.tower.dtype),
        "threads": torch.get_num_threads(),
        "instruction_set": backends.cpu.get_cpu_capability(),
        "one_dnn": backends.mkldnn.enabled,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32],
        "sdp": [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ],
        "attention": str(getattr(getattr(vit.model, "config", None), "_attn_implementation", "")),
    }


@cache
def _version(package: str) -> str:
    """The version of a package that is installed."""
    return metadata.version(package)


def _key(images: Tensor) -> str:
    pixels = images.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{pixels.dtype} {tuple(pixels.shape)} ".encode(), digest_size=16)
    digest.update(pixels.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.view(torch.uint8).numpy().data):08x}"
