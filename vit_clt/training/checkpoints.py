"""Checkpoints of a run in progress, as safetensors and JSON files that are verified by hash.

    FOLDER/step-00000500/NAME.safetensors ...  state.json  SHA256SUMS

A checkpoint is written into a hidden folder that is then renamed, so that it is complete or absent,
and a kill at any moment leaves the ones before it unchanged. SHA256SUMS has the format that
`sha256sum -c` reads.
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

from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.inputs import file_size, read_json, read_text, reading
from vit_clt.outputs.manifest import file_hash
from vit_clt.outputs.staging import staged_folder

STATE_FILE, SUMS_FILE = "state.json", "SHA256SUMS"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    step: int
    state: dict[str, Any]
    """Counters, settings and facts of the run, as JSON values."""
    tensors: dict[str, dict[str, Tensor]]
    """Tensors by file and name, on the CPU."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the folder that they are in; it is made when the first is written.
        keep: number of newest checkpoints that are kept.
    """

    def __init__(self, folder: Path | str, keep: int = 2):
        self.folder = Path(folder)
        self.keep = keep

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
    ) -> None:
        """Write a checkpoint, then remove the oldest beyond `keep`.

        Raises:
            InputError: it cannot be written; the checkpoints before it are unchanged.
        """
        try:
            text = json.dumps(state, indent=1, allow_nan=False) + "\n"
            with staged_folder(self.folder / f"step-{step:08d}") as staging:
                for name, named in tensors.items():
                    stored = {
                        key: value.detach().cpu().contiguous() for key, value in named.items()
                    }
                    save_file(stored, staging / f"{name}.safetensors")
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
        """Steps that have a checkpoint, complete or damaged, in order."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest complete checkpoint or None, and one sentence about each newer damaged one.

        Damaged ones are renamed to damaged-..., so that they are not tried again.
        """
        damages: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self._read(step), damages
            except InputError as error:
                reason = str(error).rstrip(".")
                damages.append(f"the checkpoint at step {step} is damaged ({reason})")
                damaged = self.folder / f"damaged-{step:08d}"
                with contextlib.suppress(OSError):
                    shutil.rmtree(damaged, ignore_errors=True)
                    os.replace(self.folder / f"step-{step:08d}", damaged)
        return None, damages

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

    def _read(self, step: int) -> Checkpoint:
        folder = self.folder / f"step-{step:08d}"
        with reading(folder, "a checkpoint"):
            lines = read_text(folder / SUMS_FILE).splitlines()
            sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
            if STATE_FILE not in sums:
                raise ValueError(f"{SUMS_FILE} does not list {STATE_FILE}")
            for name, digest in sums.items():
                if Path(name).name != name:
                    raise ValueError(f"{SUMS_FILE} lists {name[:80]}, which is in another folder")
                file_size(folder / name)
                if file_hash(folder / name) != digest:
                    raise ValueError(f"{name} does not match its hash")
            tensors = {
                Path(name).stem: load_file(folder / name) for name in sums.keys() - {STATE_FILE}
            }
            return Checkpoint(step, read_json(folder / STATE_FILE), tensors)
