"""The files of a saved CLT: where they are, and what config.json says, without torch.

What is checked here needs no weights, so that a command line is refused before libraries load.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vit_clt.errors import InputError
from vit_clt.inputs import expanded, read_json, reading
from vit_clt.places import is_hub_id
from vit_clt.transcoder.sparsifier_options import OPTIONS

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_OF_THE_DEMO = Path("out/demo/clt")


class SavedFiles(NamedTuple):
    """The two files that a CLT is loaded from."""

    config: Path
    weights: Path


class SavedShape(NamedTuple):
    """What config.json says of a CLT, as far as options of a command depend on it."""

    n_layers: int
    d_model: int
    n_features: int
    teacher: str | None
    """Name of the ViT that it was trained on."""


def local_files(place: str | Path) -> SavedFiles | None:
    """The files of a CLT on this machine, or None for a repository of the Hub.

    Args:
        place: a folder, or OWNER/NAME on the Hub. A path that is missing is no repository.

    Raises:
        InputError: there is no such folder, or it lacks one of the files.
    """
    folder = Path(expanded(str(place)))
    if folder.is_dir():
        files = SavedFiles(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
        for path in files:
            if not path.is_file():
                raise InputError("clt", f"is {folder}; expected a {path.name} in it.")
        return files
    if folder.exists():
        raise InputError("clt", f"is {folder}, a file; expected a folder holding {CONFIG_FILE}.")
    if is_hub_id(str(place)):
        return None
    if folder == _OF_THE_DEMO:
        raise InputError(
            "clt", f"is {folder}; found no such folder, which vit-clt demo writes: run it first."
        )
    raise InputError(
        "clt",
        f"is {folder}; found no such folder, expected that of a CLT, or OWNER/NAME of one on the "
        "Hub.",
    )


def saved_shape(place: str) -> SavedShape | None:
    """The shape of a saved CLT, or None for a repository of the Hub.

    Raises:
        InputError: as of `local_files`, or config.json is unreadable or describes no CLT.
    """
    files = local_files(place)
    if files is None:
        return None
    values = read_json(files.config)
    with reading(files.config, "all of one's fields", problem="does not describe a CLT"):
        sizes = values["n_layers"], values["d_model"], values["n_features"]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"its sizes are {str(sizes)[:50]}")
        if values["sparsifier"]["name"] not in OPTIONS:
            raise ValueError(f'its sparsifier is "{str(values["sparsifier"]["name"])[:50]}"')
        teacher = values.get("teacher")
        return SavedShape(*sizes, None if teacher is None else str(teacher["model"]))
