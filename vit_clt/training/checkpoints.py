"""Checkpoints of a run in progress: safetensors and JSON, whole or not there, verified by hash.

    FOLDER/step-00000500/NAME.safetensors ...  state.json  SHA256SUMS

A checkpoint is written into a hidden folder and renamed, so a kill at any moment leaves the ones
before it as they were. SHA256SUMS is what `sha256sum -c` reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.outputs import file_hash, staged_folder

STATE_FILE, SUMS_FILE = "state.json", "SHA256SUMS"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Snapshot:
    """A verified checkpoint."""

    step: int
    state: dict[str, Any]
    """JSON values."""
    tensors: dict[str, dict[str, Tensor]]
    """By file, then by name, on the CPU."""


class Snapshots:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first is written.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path | str, keep: int = 2):
        self.folder = Path(folder)
        self.keep = keep

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
    ) -> None:
        """Write a checkpoint, then remove the oldest beyond `keep`.

        Raises:
            InputError: it cannot be written; those before it are untouched.
        """
        try:
            text = json.dumps(state, indent=1, allow_nan=False) + "\n"
            with staged_folder(self.folder / f"step-{step:08d}") as staging:
                for name, found in tensors.items():
                    whole = {key: value.detach().cpu().contiguous() for key, value in found.items()}
                    save_file(whole, staging / f"{name}.safetensors")
                (staging / STATE_FILE).write_text(text)
                files = sorted(file.name for file in staging.iterdir())
                lines = [f"{file_hash(staging / name)}  {name}\n" for name in files]
                (staging / SUMS_FILE).write_text("".join(lines))
                for name in files:  # safetensors lets nobody else read its files
                    shutil.copymode(staging / SUMS_FILE, staging / name)
        except ValueError as error:  # InputError is one
            kept = self.steps()
            earlier = f"the one at step {kept[-1]} is untouched" if kept else "there is none before"
            raise InputError(
                f"the checkpoint at step {step} cannot be written to {self.folder}: "
                f"{error.__cause__ or error}; {earlier}."
            ) from error
        for old in [s for s in self.steps() if s <= step][: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old:08d}", ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or torn, in order."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint (None if there is none), and why newer ones are not.

        Damaged ones are renamed to damaged-..., so that they count no more.
        """
        torn: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self._read(step), torn
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                torn.append(f"the checkpoint at step {step} is damaged ({error})")
                damaged = self.folder / f"damaged-{step:08d}"
                with contextlib.suppress(OSError):
                    shutil.rmtree(damaged, ignore_errors=True)
                    os.replace(self.folder / f"step-{step:08d}", damaged)
        return None, torn

    def remove(self) -> None:
        """Remove every checkpoint, and nothing else."""
        if not self.folder.is_dir():
            return
        for entry in list(self.folder.iterdir()):
            name = entry.name.removeprefix(".").removesuffix(".part")
            if _NAME.fullmatch(name.replace("damaged-", "step-")):
                shutil.rmtree(entry, ignore_errors=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _read(self, step: int) -> Snapshot:
        folder = self.folder / f"step-{step:08d}"
        sums = [line.split("  ", 1) for line in (folder / SUMS_FILE).read_text().splitlines()]
        names = [name for _, name in sums]
        if STATE_FILE not in names:
            raise ValueError(f"{SUMS_FILE} does not list {STATE_FILE}")
        for expected, name in sums:
            if file_hash(folder / name) != expected:
                raise ValueError(f"{name} does not match its hash")
        tensors = {
            Path(name).stem: load_file(folder / name) for name in names if name != STATE_FILE
        }
        return Snapshot(step, json.loads((folder / STATE_FILE).read_text()), tensors)
