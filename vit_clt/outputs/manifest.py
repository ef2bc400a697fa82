"""manifest.json: the files of a finished output, with their hashes. It is written last.

    {"command": "train", "version": "0.2.0",
     "files": {"config.json": {"size": 412, "sha256": "..."}, ...}, "further": ["...", ...]}

A folder is finished if its manifest is there and every file of "files" is as it was written.
"further" lists files that were written too but are not looked at again: checkpoints, which have
hashes of their own, and the files of results in sub-folders, which have manifests of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from vit_clt.errors import InputError
from vit_clt.inputs import read_json

MANIFEST_FILE = "manifest.json"
FINISHED_BY = "finished_by"
"""Entry of the file that a run writes first, with the name of the one that it writes last."""
CHECKPOINT = re.compile(r"(^|/)checkpoints(/\.?(step|damaged)-\d{8,}|$)")
"""Found in the names of the files of checkpoints, and of the folder that holds them."""


def file_hash(path: Path | str) -> str:
    """Hex SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The files of a finished output."""

    command: str
    """Name of the command that wrote them."""
    version: str
    """Version of this package that wrote them."""
    files: Mapping[str, Mapping[str, Any]]
    """Size and SHA-256 by name, relative to the folder."""
    further: tuple[str, ...]
    """Names of files that were written too and are not checked."""

    @classmethod
    def of(cls, folder: Path, command: str, names: Iterable[str]) -> Manifest:
        """The manifest of these files of `folder`, as they are now."""
        names = sorted(set(names) - {MANIFEST_FILE})
        results = {
            str(PurePath(name).parent) for name in names if name.endswith(f"/{MANIFEST_FILE}")
        }
        further = [name for name in names if CHECKPOINT.search(name) or _inside(name, results)]
        files = {
            name: {"size": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
            for name in names
            if name not in further
        }
        return cls(command, version("vit-clt"), files, tuple(further))

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in a folder, or None if there is none that can be read."""
        values = json_object(folder / MANIFEST_FILE)
        try:
            files = {str(name): {**sums} for name, sums in values["files"].items()}
            further = tuple(map(str, values["further"]))
            return cls(str(values["command"]), str(values["version"]), files, further)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def names(self) -> set[str]:
        """Names of everything that was written, the manifest included."""
        return {*self.files, *self.further, MANIFEST_FILE}

    def damage(self, folder: Path) -> set[str]:
        """Names of the files that are gone or not as they were written.

        Texts to be read, such as a model card, may have been edited.
        """

        def is_whole(name: str) -> bool:
            path, sums = folder / name, self.files[name]
            if not path.is_file() or name.endswith(".md"):
                return path.is_file()
            same_size = path.stat().st_size == sums.get("size")
            return same_size and file_hash(path) == sums.get("sha256")

        return {name for name in self.files if not is_whole(name)}


def is_whole(folder: Path, command: str, begun: str | None) -> bool | None:
    """Whether a folder has the whole output of a command.

    It is None where nothing says so: the folder was written before there were manifests, or is no
    output.

    Args:
        folder: the folder.
        command: name of the command.
        begun: name of the file that the command writes first, if it can be resumed.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        is_unfinished = begun is not None and FINISHED_BY in json_object(folder / begun)
        return False if is_unfinished else None
    return manifest.command == command and not manifest.damage(folder)


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none that can be read."""
    try:
        return read_json(path)
    except InputError:
        return {}


def _inside(name: str, results: set[str]) -> bool:
    """Whether a file is part of a result in a sub-folder, other than its manifest."""
    path = PurePath(name)
    return path.name != MANIFEST_FILE and any(str(parent) in results for parent in path.parents)
