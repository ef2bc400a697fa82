"""What an output folder holds: whose each file is, which command wrote it, and is it whole?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vit_clt.outputs.exchange import READY, leaves
from vit_clt.outputs.manifest import CHECKPOINT, MANIFEST_FILE, Manifest, is_whole, json_object
from vit_clt.outputs.staging import STAGING, beside

NEW = ".vit-clt-new"
"""End of the name of a folder that a result is made in."""


class Contents:
    """The contents of the output folder of a command, as they are when a method is called.

    Args:
        folder: the folder, which may be absent.
        files: names of the files that the command writes, with wildcards.
        begun: name of the file that a run which can be resumed writes first.
        command: name of the command.
    """

    def __init__(self, folder: Path, files: Sequence[str], begun: str | None, command: str):
        self.folder, self.begun, self.command = folder, begun, command
        self._files = [MANIFEST_FILE, *files]
        # a kill may leave these
        self._left = {READY, NEW, ".lock", *(beside(Path(name)).name for name in self._files)}

    def names(self) -> Iterator[str]:
        """Relative names of everything in the folder, but for what a kill may have left."""
        for name in leaves(self.folder):
            top = name.split("/")[0]
            if top not in self._left and not top.startswith(STAGING):
                yield name

    def own(self) -> set[str]:
        """Names of the files that this package wrote; a symbolic link is none of them."""
        manifest = Manifest.read(self.folder)
        if manifest is not None:
            listed = {*self.names()} & manifest.names()
        elif self.written_by() in ("", self.command):  # unfinished, or older than manifests
            listed = {name for name in self.names() if self.is_declared(name)}
        else:
            listed = set()
        return {name for name in listed if not (self.folder / name).is_symlink()}

    def users(self) -> set[str]:
        """Names of everything else."""
        return {*self.names()} - self.own()

    def is_declared(self, name: str) -> bool:
        """Whether the command may write a file of this name."""
        return CHECKPOINT.search(name) is not None or any(
            fnmatch(name, pattern) for pattern in self._files
        )

    def in_the_way(self) -> str | None:
        """What the user has where the command would write a file, or None."""
        above = {str(parent) for name in self._files for parent in PurePosixPath(name).parents}
        above |= set() if self.begun is None else {"checkpoints"}
        for name in sorted(self.users()):
            path, parents = self.folder / name, {str(p) for p in PurePosixPath(name).parents}
            is_folder = path.is_dir() and not path.is_symlink()
            if name in self._files or parents & {*self._files} or (name in above and not is_folder):
                return name
        return None

    def written_by(self) -> str | None:
        """Name of the command that wrote the folder.

        It is "" if an earlier version did not record it, and None if no command wrote it.
        """
        manifest = Manifest.read(self.folder)
        if manifest is not None:
            return manifest.command
        context = json_object(self.folder / "metrics.json").get("context")
        if isinstance(context, dict) and context.get("command"):
            return str(context["command"])
        begun = {} if self.begun is None else json_object(self.folder / self.begun)
        return str(begun.get("command", "")) if begun else None

    def has_begun(self) -> bool:
        """Whether there is a run that can be resumed, finished or not."""
        return self.begun is not None and (self.folder / self.begun).is_file()

    def has_weights(self) -> bool:
        """Whether there is a checkpoint or a trained transcoder."""
        return any(name.endswith(".safetensors") for name in self.names())

    def is_finished(self) -> bool:
        """Whether the whole output of this command is there."""
        whole = is_whole(self.folder, self.command, self.begun)
        if whole is not None:
            return whole
        # before there were manifests, metrics.json was written last
        weights = [name for name in self._files if name == "model.safetensors"]
        return (
            bool(json_object(self.folder / "metrics.json"))
            and self.written_by() == self.command
            and all((self.folder / name).is_file() for name in weights)
        )
