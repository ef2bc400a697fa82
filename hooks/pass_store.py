"""Clean passes of a ViT on disk, to the last bit, for studies that go over the same images again.

Of a batch the residual stream before the first block, every mid_l and every y_l are kept in the
model's own dtype: the attention layers and the MLPs, which a pass spends its time in, are behind
them. The rest is computed anew by the model's own parts, so that it has the same bits:

    x_l = ln2_l(mid_l)    post_l = pre_{l+1} = mid_l + gamma2_l y_l    ln1_l(pre_l)    head(post)

A folder holds passes.json, which names the ViT and the arithmetic, and a safetensors file for each
batch, named by a hash of its pixels: other images, another preprocessing or other batches are other
files. Each tensor has a checksum (CRC-32), compared when it is first read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
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
from vit_clt.inputs import read_json
from vit_clt.outputs import check_same
from vit_clt.outputs.staging import staged_file

if TYPE_CHECKING:
    from vit_clt.hooks.hooked_vit import HookedViT

FORMAT = 1
PASSES = "passes"
"""Name of the folder of passes in a folder of --cache, beside which an activation store may lie."""
MANIFEST_FILE = "passes.json"
# these are written for people and not compared: the same weights may come from another place
_NAMES = ("model", "pretrained")
_ABOUT = {"weights_sha256": "of the model"}

Pass = tuple[Tensor, dict[str, Tensor]]
"""Embeddings, and activations by the name of their hook point."""


class PassStore:
    """Clean passes of one ViT, kept in a folder and read in place of being run again.

    Only batches named by `keep` are written. A pass is run as ever where it cannot be had to the
    last bit: under autocast, with attention patterns formed, for hook points inside attention, and
    in a model whose activations are no contiguous arrays.

    Args:
        folder: a folder of passes of this ViT, or one that is not there or empty.
        vit: the ViT, whose weights must not change while the store is in use.

    Raises:
        InputError: the folder holds anything else, or passes of another ViT or another arithmetic.
    """

    n_run: int
    """Number of images whose passes were run."""
    n_read: int
    """Number of images whose passes were read."""

    def __init__(self, folder: Path | str, vit: HookedViT):
        self.folder, self.vit = Path(folder), vit
        self.n_run = self.n_read = 0
        self._kept: set[str] = set()
        self._sound: set[tuple[str, str]] = set()
        layers = range(vit.cfg.n_layers)
        self._places = {point.format(l=l): (point, l) for point in _SERVED for l in layers}
        self._stored = [RESID_PRE.format(l=0)]
        self._stored += [point.format(l=l) for l in layers for point in (RESID_MID, HOOK_OUT)]
        manifest = {"format": FORMAT, **asdict(vit.identity()), **_arithmetic(vit)}
        if self._is_new():
            with staged_file(self.folder / MANIFEST_FILE) as place:
                place.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            return
        recorded = read_json(self.folder / MANIFEST_FILE)
        compared = {name: manifest[name] for name in manifest if name not in _NAMES}
        check_same(
            compared, recorded, f"the passes kept in {self.folder}, or another folder", _ABOUT
        )

    def __deepcopy__(self, memo: object) -> None:
        """None: a copy of the ViT may be given other weights, so that it has no store."""

    def keep(self, images: Float[Tensor, "batch 3 height width"]) -> None:
        """Name a batch whose pass is to be kept, should it be run."""
        self._kept.add(_key(images))

    def check_room(self, n_images: int) -> None:
        """Refuse to begin where the disk has no room for the passes of this many images.

        Raises:
            InputError: as said, with the bytes needed and free.
        """
        needed = n_images * pass_bytes(self.vit)
        there = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        free = shutil.disk_usage(self.folder).free
        if needed - there > free:
            raise InputError(
                "cache",
                f"is {self.folder}; passes of {n_images:,} images take {needed / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free.",
            )

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
        """
        if self._exact(names):
            key = _key(images)
            if (read := self._read(key, names)) is not None:
                self.n_read += len(images)
                return read
            if key in self._kept:
                self.n_run += len(images)
                embeddings, cache = live(images, [*dict.fromkeys((*self._stored, *names))])
                self._write(key, {name: cache[name] for name in self._stored})
                return embeddings, {name: cache[name] for name in names}
        self.n_run += len(images)
        return live(images, names)

    def _is_new(self) -> bool:
        for parent in (self.folder, *self.folder.parents):
            if parent.exists() and not parent.is_dir():
                raise InputError("cache", f"is {self.folder}; {parent} is a file, not a folder.")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return True
        if not (self.folder / MANIFEST_FILE).is_file():
            raise InputError(
                "cache",
                f"is {self.folder}, which is no folder of passes; expected one, or a new folder.",
            )
        return False

    def _exact(self, names: Sequence[str]) -> bool:
        """Whether a pass that was kept has the bits that this pass would have."""
        return (
            self._places.keys() >= {*names}
            and not torch.is_autocast_enabled(self.vit.device.type)
            and not any(block.use_attn_pattern for block in self.vit.blocks)
        )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    # ---- reading and writing ----------------------------------------------------------------

    def _read(self, key: str, names: Sequence[str]) -> Pass | None:
        """The pass of a batch; None where it is not there, or damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                kept = _Kept(self.vit, file, partial(self._checked, key))
                activations = {name: kept.at(*self._places[name]) for name in names}
                return self.vit.head(kept.at(RESID_POST, self.vit.cfg.n_layers - 1)), activations
        except (SafetensorError, OSError, _Damaged):
            return None

    def _checked(self, key: str, name: str, file: Any) -> Tensor:
        """A tensor of a file, its checksum compared when it is read for the first time."""
        mapped = file.get_tensor(name)
        if (key, name) not in self._sound:
            if _checksum(mapped) != file.metadata().get(name):
                raise _Damaged
            self._sound.add((key, name))
        # a fresh tensor is aligned, which a mapped one need not be
        return mapped.clone().to(self.vit.device)

    def _write(self, key: str, tensors: dict[str, Tensor]) -> None:
        # kernels choose their way by how a tensor lies in memory, which a file does not say
        if not all(tensor.is_contiguous() for tensor in tensors.values()):
            return
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        with staged_file(self._path(key)) as place:
            save_file(tensors, place, metadata=checksums)
        self._sound.update((key, name) for name in tensors)


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
    """What the bits of a pass depend on beside the weights."""
    return {
        "torch": torch.__version__,
        "device": vit.device.type,
        "dtype": str(vit.tower.dtype),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def _key(images: Tensor) -> str:
    pixels = images.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{pixels.dtype} {tuple(pixels.shape)} ".encode(), digest_size=16)
    digest.update(pixels.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.view(torch.uint8).numpy().data):08x}"
