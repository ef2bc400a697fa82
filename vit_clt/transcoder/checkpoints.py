"""Save, load and publish a CLT: config.json, model.safetensors, README.md, by huggingface_hub.

No pickle is read or written. Files are written beside their targets and moved into place, so a
write that fails leaves what was there. The weights file repeats the configuration it was saved
with, so that a config.json and weights of two different saves (one of them killed between the two
moves, or a download between two uploads) are refused rather than loaded as a CLT that never was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RemoteEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from yaml import YAMLError

from vit_clt.errors import InputError
from vit_clt.outputs import check_same
from vit_clt.outputs.staging import remove_unfinished, staged_files
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model_card import model_card

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
CLT = TypeVar("CLT", bound="PretrainedCLT")


class PretrainedCLT(nn.Module, PyTorchModelHubMixin):
    """A module built from a `CLTConfig`, saved to and loaded from a folder or the Hub."""

    config: CLTConfig

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write config.json, model.safetensors and a model card (README.md) into `save_directory`.

        Each file is complete before it takes its place, the weights last; a README.md that is
        there already is kept. Keyword arguments are huggingface_hub's: with `push_to_hub=True`,
        `repo_id` and those of `push_to_hub`, the CLT then goes to the Hub with the folder's card.
        `model_card_kwargs={"report": parsed metrics.json}` puts measured numbers on a new card.

        Raises:
            InputError: the folder cannot be made or written, or the Hub does not take it.
        """
        target = Path(save_directory)
        remove_unfinished(target)
        card = [] if (target / CARD_FILE).exists() else [CARD_FILE]
        with staged_files(target, [*card, CONFIG_FILE, WEIGHTS_FILE]) as staging:
            super().save_pretrained(staging, model_card_kwargs=kwargs.get("model_card_kwargs"))
            # safetensors lets nobody else read its files
            shutil.copymode(staging / CONFIG_FILE, staging / WEIGHTS_FILE)
        if kwargs.pop("push_to_hub", False):
            kwargs["model_card_kwargs"] = {"text": _read_card(target / CARD_FILE)}
            return self.push_to_hub(kwargs.pop("repo_id", None) or target.name, **kwargs)
        return None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload config.json, model.safetensors and a model card; the address of the commit.

        Args:
            repo_id: "user/name"; made if there is none.
            **kwargs: huggingface_hub's (`private`, `token`, `branch`, ...).
                `model_card_kwargs={"report": parsed metrics.json}` puts its numbers on the card.

        Raises:
            InputError: the Hub refuses or cannot be reached. Nothing on this machine has changed.
        """
        try:
            return super().push_to_hub(repo_id, **kwargs)
        except InputError:
            raise
        # RuntimeError: what huggingface_hub and hf_xet raise around a failed upload of one file
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            raise InputError(
                "repo_id",
                f'is "{repo_id}", which {constants.ENDPOINT} did not take: {_refusal(error)}.',
            ) from error

    def generate_model_card(
        self, report: Mapping[str, Any] | None = None, text: str | None = None
    ) -> ModelCard:
        """The card that goes with the files: `text` as it is, else `model_card` of `report`."""
        return ModelCard(model_card(self.config, report) if text is None else text)

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        values = self.config.to_json()
        # a single entry: safetensors writes several in random order, so no two files would be equal
        save_file(tensors, save_directory / WEIGHTS_FILE, metadata={"config": json.dumps(values)})
        (save_directory / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls: type[CLT], pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> CLT:
        """Load a CLT from a folder or a Hub id.

        Raises:
            InputError: nothing there, or what is there is not a whole CLT.
        """
        source = Path(pretrained_model_name_or_path)
        if source.is_dir():
            _read_config(source / CONFIG_FILE)
        elif source.exists():
            raise InputError(
                "clt", f"is {source}, a file; expected a folder holding {CONFIG_FILE}."
            )
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"{CONFIG_FILE} of {source} on the Hub is not readable JSON: {error}."
            ) from error
        except RemoteEntryNotFoundError as error:
            raise InputError(
                "clt",
                f"is {source}; expected a {CONFIG_FILE} and a {WEIGHTS_FILE} in that "
                "repository of the Hub.",
            ) from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise InputError(
                "clt",
                f"is {source}; found neither such a folder nor such a repository on the Hub "
                f"({type(error).__name__}).",
            ) from error

    @classmethod
    def _from_pretrained(
        cls: type[CLT],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **kwargs: Any,
    ) -> CLT:
        def locate(name: str) -> Path:
            if Path(model_id).is_dir():
                return Path(model_id) / name
            path = hf_hub_download(
                model_id,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            return Path(path)

        clt = cls(CLTConfig.from_json(_read_config(locate(CONFIG_FILE))))
        _load_weights(clt, locate(WEIGHTS_FILE))
        device = kwargs.get("map_location", "cpu")
        return clt.to(device)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError("clt", f"is {path.parent}; expected a {path.name} in it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}; expected a JSON object.")
    return values


def _load_weights(clt: PretrainedCLT, path: Path) -> None:
    if not path.is_file():
        raise InputError("clt", f"is {path.parent}; expected a {path.name} in it.")
    try:
        found = load_file(path)
        with safe_open(path, framework="pt") as file:
            saved_with = (file.metadata() or {}).get("config")
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}.") from error
    expected = clt.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        have = tuple(found[name].shape) if name in found else "no such tensor"
        want = tuple(expected[name].shape) if name in expected else "no such tensor"
        if have != want:
            raise InputError(f"{path}: {name} is {have}; config.json expects {want}.")
    if saved_with is not None:  # files of other writers carry none
        _check_same_save(clt.config.to_json(), saved_with, path)
    with torch.no_grad():
        clt.load_state_dict(found)


def _check_same_save(config: dict[str, Any], saved_with: str, path: Path) -> None:
    try:
        values = CLTConfig.from_json(json.loads(saved_with)).to_json()
    except (TypeError, ValueError) as error:  # InputError is one
        reason = str(error).rstrip(".")
        raise InputError(f"{path} names no readable configuration: {reason}.") from error
    check_same(config, values, f"{path}: {CONFIG_FILE} and {path.name} must be of one save")


def _read_card(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        ModelCard(text)
    except (OSError, ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable model card: {reason}.") from error
    return text


def _refusal(error: BaseException) -> str:
    """Why an upload failed, as part of a sentence: the Hub's own answer where there is one."""
    cause = error
    while not isinstance(cause, HfHubHTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    said = str(cause)
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        answer = cause.server_message or cause.response.reason_phrase
        said = f"HTTP {status} {answer.rstrip('.')}"
        if status in (401, 403):
            said += ", expected the token of an account that may write there (hf auth login)"
    return " ".join(said.split())[:300].rstrip(".") or type(cause).__name__
