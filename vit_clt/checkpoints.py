"""Save and load a CLT: config.json and model.safetensors, through huggingface_hub's mixin.

No pickle is read or written. Files are written beside their targets and moved into place, so a
write that fails leaves what was there.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vit_clt.config import CLTConfig
from vit_clt.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CLT = TypeVar("CLT", bound="PretrainedCLT")


class PretrainedCLT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vit-clt",
    license="mit",
    tags=["interpretability", "cross-layer-transcoder", "vision-transformer"],
):
    """A module built from a `CLTConfig`, saved to and loaded from a folder or the Hub."""

    config: CLTConfig

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write config.json, model.safetensors and a model card (README.md) into `save_directory`.

        Each file is complete before it takes its place, the weights last. Keyword arguments are
        huggingface_hub's.

        Raises:
            InputError: the folder cannot be made or written.
        """
        target = Path(save_directory)
        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as staging:
                super().save_pretrained(staging, model_card_kwargs=kwargs.get("model_card_kwargs"))
                for file in sorted(Path(staging).iterdir()):
                    if file.name != "README.md" or not (target / file.name).exists():
                        os.replace(file, target / file.name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write the CLT to {target}: {error}.") from error
        if kwargs.pop("push_to_hub", False):
            return self.push_to_hub(repo_id=kwargs.pop("repo_id", None) or target.name, **kwargs)
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, save_directory / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(self.config.to_json(), indent=2)
        (save_directory / CONFIG_FILE).write_text(text + "\n")

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
            raise InputError(f"clt is {source}, a file; expected a folder holding {CONFIG_FILE}.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise InputError(
                f"clt is {source}; found neither such a folder nor such a repository on the Hub "
                f"({type(error).__name__})."
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
        raise InputError(f"clt is {path.parent}; expected a {path.name} in it.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}; expected a JSON object.")
    return values


def _load_weights(clt: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"clt is {path.parent}; expected a {path.name} in it.")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}.") from error
    expected = clt.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        have = tuple(found[name].shape) if name in found else "no such tensor"
        want = tuple(expected[name].shape) if name in expected else "no such tensor"
        if have != want:
            raise InputError(f"{path}: {name} is {have}; config.json expects {want}.")
    with torch.no_grad():
        clt.load_state_dict(found)
