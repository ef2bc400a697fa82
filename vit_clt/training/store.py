"""MLP inputs x and outputs y of every image on disk, so that the ViT runs once for many epochs.

A folder holds cache.json, which names the teacher, the images and the shapes, and the shards
shard-00000.safetensors, ... with tensors "x" and "y", "image layer token d_model" in bfloat16. The
images are in the row order of the data, and the bytes of one image are contiguous. The store is
meant for small models: an image takes 4 L T d bytes, which are 35 kB with the shipped digits model
but 7.3 MB with a ViT-B/16.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vit_clt.choices import Unreadable
from vit_clt.data.fingerprints import fingerprint_as
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks.activations import IMAGES_PER_PASS, Activations, capture
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.pass_store import PASSES
from vit_clt.inputs import read_json, reading
from vit_clt.outputs import check_same
from vit_clt.outputs.staging import STAGING, remove_unfinished, staged_files
from vit_clt.progress import Progress
from vit_clt.tensor_files import TensorFacts, check_finite, read_header
from vit_clt.typed import fits

FORMAT = 1
MANIFEST_FILE = "cache.json"
SHARD_BYTES = 256_000_000
"""Largest shard (a single image may be larger)."""
# these are written for people and not compared: the same weights may come from another place
NAMES = ("model", "pretrained", "data")
ABOUT = {
    "weights_sha256": "of the model",
    "activation": "of the model",
    "data_sha256": "of the images, preprocessed",
}


class ActivationStore:
    """MLP inputs x and outputs y of every image, computed where they are missing and read by row.

    The store is meant for training: values are rounded to bfloat16, a relative error of at most
    2^-8 (half of its machine epsilon). Evaluation always recomputes activations in float32.

    A build that was stopped or killed goes on with the next shard when it is started again, and a
    shard that is missing or cut short is built again. One process should build: several at once
    waste work but do no harm, because a shard takes its place only when it is complete.

    Every shard carries a checksum (CRC-32 of all its values), which is compared once each time the
    store is opened: this reads the whole store, about a second a gigabyte. A shard that was damaged
    is built again. Shards of earlier versions have no checksum and are read as they are; a store of
    an earlier version also keeps its fingerprint of 64 images (`fingerprint_as`).

    Args:
        folder: a store of this teacher and these images, or a new or empty folder.
        vit: the teacher.
        data: the images. Data sets are told apart by `data_fingerprint`.
        unreadable: "stop" at an image that cannot be read, or "skip" it and go on.
        progress: show a progress line over images.

    Raises:
        InputError: the folder holds anything else or the disk is too small (both are checked before
            anything is written), a write fails, an image cannot be read, or an activation is not
            finite.
    """

    unreadable: frozenset[int]
    """Images, by row of the data, that could not be read when the store was built.

    Their activations are zero. It is empty with `unreadable="stop"`, which reads them again."""
    description: str
    """One line with the number of images, bytes per image, bytes in total, and the folder."""

    def __init__(
        self,
        folder: Path | str,
        vit: HookedViT,
        data: ImageData,
        *,
        unreadable: Unreadable = "stop",
        progress: bool = True,
    ):
        self.folder = Path(folder)
        self._skip = unreadable == "skip"
        self._n_images = len(data)
        # the shape of x and of y of one image, as they lie on disk
        self._shape = (vit.cfg.n_layers, vit.cfg.n_tokens, vit.cfg.d_model)
        per_image = store_bytes(1, *self._shape)
        self._per_shard = max(1, SHARD_BYTES // per_image)
        self._shard_images = [
            range(start, min(start + self._per_shard, self._n_images))
            for start in range(0, self._n_images, self._per_shard)
        ]
        self._handles: dict[int, tuple[Any, int]] = {}
        new = _is_new(self.folder)
        recorded = {} if new else read_json(self.folder / MANIFEST_FILE)

        manifest = {
            "format": FORMAT,
            **asdict(vit.identity()),
            "data": data.name,
            "n_images": self._n_images,
            "data_sha256": fingerprint_as(recorded.get("data_sha256"), data),
            "n_layers": vit.cfg.n_layers,
            "n_tokens": vit.cfg.n_tokens,
            "d_model": vit.cfg.d_model,
            "dtype": "bfloat16",
            "images_per_shard": self._per_shard,
        }
        compared = {name: manifest[name] for name in manifest if name not in NAMES}
        # the key is written into every shard, so that a shard of another store is refused
        self._key = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()

        if not new:
            check_same(
                compared, recorded, f"activation store {self.folder}, or another folder", ABOUT
            )
        missing = [s for s in range(len(self._shard_images)) if not self._is_sound(s)]
        self._check_space(missing)
        if new:
            with staged_files(self.folder, [MANIFEST_FILE]) as staging:
                text = json.dumps(manifest, indent=2) + "\n"
                (staging / MANIFEST_FILE).write_text(text, encoding="utf-8")
        self._build(missing, vit, data, progress)
        self.unreadable = frozenset(
            image for s in range(len(self._shard_images)) for image in _unreadable(self._opened(s))
        )
        total = store_bytes(self._n_images, *self._shape)
        self.description = (
            f"activation store: {self._n_images:,} images of {_size(per_image)} in bfloat16, "
            f"{_size(total)} in all, in {self.folder}"
        )

    def read(self, rows: Sequence[int]) -> Activations:
        """x and y of these images, in the order of `rows`, in float32 on the CPU.

        Raises:
            InputError: there is no such row, a shard was deleted or damaged since the store was
                opened, or activations are NaN or infinite.
        """
        for row in rows:
            if not 0 <= row < self._n_images:
                raise InputError("rows", f"hold {row}; expected 0 to {self._n_images - 1}.")
        layers, *rest = self._shape
        x, y = (torch.empty(layers, len(rows), *rest) for _ in range(2))
        shard_numbers = {row // self._per_shard for row in rows}
        shards = {shard: self._opened(shard) for shard in shard_numbers}
        for i, row in enumerate(rows):
            shard, inside = divmod(row, self._per_shard)
            x[:, i] = shards[shard].get_slice("x")[inside]
            y[:, i] = shards[shard].get_slice("y")[inside]
        check_finite(f"cache {self.folder}", {"x": x, "y": y})
        return Activations(x, y)

    # ---- building ---------------------------------------------------------------------------

    def _build(self, missing: list[int], vit: HookedViT, data: ImageData, progress: bool) -> None:
        done = self._n_images - sum(len(self._shard_images[s]) for s in missing)
        with Progress(
            total=self._n_images,
            initial=done,
            unit="image",
            desc="activation store",
            disable=not progress or not missing,
        ) as bar:
            for shard in missing:
                self._build_shard(shard, vit, data, bar)
        # killed builds left these; every shard is in place now, also for a process still at work
        remove_unfinished(self.folder)

    def _build_shard(self, shard: int, vit: HookedViT, data: ImageData, bar: Any) -> None:
        shard_images = self._shard_images[shard]
        device = next(vit.parameters()).device
        x, y = (
            torch.zeros(len(shard_images), *self._shape, dtype=torch.bfloat16) for _ in range(2)
        )
        unreadable: list[int] = []
        for start in range(0, len(shard_images), IMAGES_PER_PASS):
            group = shard_images[start : start + IMAGES_PER_PASS]
            if self._skip:
                images, positions = data.readable(group)
            else:
                images, positions = data.batch(group)[0], list(range(len(group)))
            if images is not None:
                activations = capture(vit, images.to(device))
                places = torch.tensor(positions) + start
                x[places] = activations.x.transpose(0, 1).bfloat16().cpu()
                y[places] = activations.y.transpose(0, 1).bfloat16().cpu()
            read = set(positions)
            unreadable += [image for i, image in enumerate(group) if i not in read]
            bar.update(len(group))
        metadata = {
            "format": "pt",
            "cache": self._key,
            "unreadable": json.dumps(unreadable),
            "crc32": _checksum(x, y, json.dumps(unreadable)),
        }

        try:
            with staged_files(self.folder, [_name(shard)]) as staging:
                path = staging / _name(shard)
                save_file({"x": x, "y": y}, path, metadata=metadata)
                # safetensors makes files for their owner alone; a store may be shared by a group
                shutil.copymode(self.folder / MANIFEST_FILE, path)
        except InputError:
            # another process may have finished the same shard and removed the staging folder
            if self._whole(shard) is None:
                raise

    def _check_space(self, missing: list[int]) -> None:
        needed = store_bytes(sum(len(self._shard_images[s]) for s in missing), *self._shape)
        place = self.folder.absolute()
        free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
        if missing and needed > free:
            raise InputError(
                "cache",
                f"{self.folder} needs {_size(needed)} for {len(missing)} missing shards; "
                f"found {_size(free)} free.",
            )

    # ---- shards -----------------------------------------------------------------------------

    def _whole(self, shard: int) -> Any | None:
        """The shard, opened, or None where it has to be built."""
        images = self._shard_images[shard]
        path = self.folder / _name(shard)
        try:
            header = read_header(path)
            with reading(path, "a shard"):
                shape = (len(images), *self._shape)
                if header.tensors != dict.fromkeys("xy", TensorFacts("BF16", shape)):
                    raise ValueError("it holds other tensors")
                if header.metadata["cache"] != self._key:
                    raise ValueError("it is of another store")
                unreadable = json.loads(header.metadata["unreadable"])
                if not fits(unreadable, list[int]) or not set(unreadable) <= set(images):
                    raise ValueError("it does not list unreadable images")
                if unreadable and not self._skip:
                    raise ValueError("it leaves out images")
                return safe_open(path, "pt")
        except InputError:  # missing; cut short or no shard of this store
            return None

    def _is_sound(self, shard: int) -> bool:
        """Whether a shard is whole and its values are those that were written."""
        file = self._whole(shard)
        if file is None:
            return False
        metadata = file.metadata()
        x, y = (file.get_tensor(name) for name in ("x", "y"))
        found = _checksum(x, y, metadata["unreadable"])
        return metadata.get("crc32", found) == found

    def _opened(self, shard: int) -> Any:
        """The shard, kept open; it is refused once its file is gone or of another size."""
        path = self.folder / _name(shard)
        try:
            size = path.stat().st_size
        except OSError:
            size = 0
        if shard not in self._handles:
            self._handles[shard] = (self._whole(shard), size)
        file, expected = self._handles[shard]
        # checked before every read: reading past the end of a mapped file kills the process
        if file is None or size != expected:
            raise InputError(
                f"{path} was deleted or damaged while in use; expected it whole, and running again "
                "builds it again."
            )
        return file


def store_bytes(n_images: int, n_layers: int, n_tokens: int, d_model: int) -> int:
    """Bytes of x and y on disk, 4 L T d for an image; a shard's header adds a few hundred."""
    return n_images * 2 * 2 * n_layers * n_tokens * d_model


def _name(shard: int) -> str:
    return f"shard-{shard:05d}.safetensors"


def _checksum(x: Tensor, y: Tensor, unreadable: str) -> str:
    checksum = zlib.crc32(unreadable.encode())
    for values in (x, y):
        checksum = zlib.crc32(values.view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _unreadable(shard: Any) -> list[int]:
    return json.loads(shard.metadata()["unreadable"])


def _is_new(folder: Path) -> bool:
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise InputError("cache", f"is {folder}; {parent} is a file, expected a folder.")
    if not folder.is_dir():
        return True
    # clean passes for studies may lie beside the store
    names = [
        f.name for f in folder.iterdir() if not f.name.startswith(STAGING) and f.name != PASSES
    ]
    if names and MANIFEST_FILE not in names:
        raise InputError(
            "cache",
            f"is {folder}, which holds {min(names)} and no {MANIFEST_FILE}; expected a new "
            "or empty folder, or an activation store.",
        )
    return not names


def _size(n_bytes: int) -> str:
    value, unit = float(n_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:  # 999.5 and more would be shown as 1e+03
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
