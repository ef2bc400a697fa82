"""The files of a saved CLT: where they are, and what config.json says, without torch.

What is checked here needs no weights, so that a command line is refused before libraries load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vit_clt.errors import InputError
from vit_clt.inputs import expanded, read_json, reading
from vit_clt.places import is_hub_id
from vit_clt.transcoder.sparsifier_options import OPTIONS

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
HUB_SECONDS = 5.0
"""How long the Hub may take to say whether a repository is there."""
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
                inside = folder / "clt"
                there = f"; {inside} is one" if (inside / CONFIG_FILE).is_file() else ""
                raise InputError("clt", f"is {folder}; expected a {path.name} in it{there}.")
        return files
    if folder.exists():
        raise InputError("clt", f"is {folder}, a file; expected a folder holding {CONFIG_FILE}.")
    if isinstance(place, str) and is_hub_id(place):
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


@lru_cache
def ask_hub(repo_id: str, name: str = CONFIG_FILE) -> None:
    """Ask the Hub for a file of a repository, unless it is in the cache.

    A repository that is not there, or no network, is known at once; a download would first wait and
    try again.

    Raises:
        InputError: there is no such repository or file, or the Hub is not reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    with on_the_hub(repo_id):
        if not isinstance(try_to_load_from_cache(repo_id, name), str):
            get_hf_file_metadata(hf_hub_url(repo_id, name), timeout=HUB_SECONDS)


@contextmanager
def on_the_hub(repo_id: str) -> Iterator[None]:
    """A context in which errors of the Hub become one sentence about this CLT.

    Raises:
        InputError: an error of the Hub was raised in the context.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.RemoteEntryNotFoundError as error:
        raise InputError(
            "clt",
            f"is {repo_id}; expected a {CONFIG_FILE} and a {WEIGHTS_FILE} in that "
            "repository of the Hub.",
        ) from error
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        answered = isinstance(error, errors.HfHubHTTPError | errors.HFValidationError)
        hub = "nor such a repository on the Hub" if answered else "and the Hub is not reached"
        raise InputError(
            "clt", f"is {repo_id}; found no such folder, {hub} ({type(error).__name__})."
        ) from error


def saved_shape(place: str) -> SavedShape | None:
    """The shape of a saved CLT, or None for a repository of the Hub, which is then asked for it.

    Raises:
        InputError: as of `local_files` and `ask_hub`, or config.json is unreadable or describes no
            CLT.
    """
    files = local_files(place)
    if files is None:
        ask_hub(place)
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
