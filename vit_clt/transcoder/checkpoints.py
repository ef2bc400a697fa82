"""Save, load and publish a CLT: config.json, model.safetensors, README.md, by huggingface_hub.

No pickle is read or written. Files are written beside their targets and moved into place, so a
write that fails leaves what was there. The weights file repeats the configuration it was saved
with, so that a config.json and weights of two different saves (one of them killed between the two
moves, or a download between two uploads) are refused rather than loaded as a CLT that never was.
config.json has the hash of the weights file, so that no damage to it passes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import (
    ModelCard,
    PyTorchModelHubMixin,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
)
from safetensors.torch import load_file, save_file
from torch import nn

from vit_clt.errors import InputError
from vit_clt.inputs import parse_json, read_json, read_text, reading
from vit_clt.outputs import check_same
from vit_clt.outputs.manifest import file_hash
from vit_clt.outputs.staging import remove_unfinished, staged_files
from vit_clt.tensor_files import Header, check_finite, check_floats, read_header
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model_card import model_card
from vit_clt.transcoder.saved_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ask_hub,
    local_files,
    on_the_hub,
)

CARD_FILE = "README.md"
HASH_KEY = "safetensors_sha256"
"""Field of config.json: the SHA-256 of model.safetensors, as `sha256sum` prints it."""
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
        weights = save_directory / WEIGHTS_FILE
        save_file(tensors, weights, metadata={"config": json.dumps(values)})
        values[HASH_KEY] = file_hash(weights)
        (save_directory / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls: type[CLT],
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str | torch.device = "cpu",
        **hub: Any,
    ) -> CLT:
        """Load a CLT from a folder or a Hub id.

        Nothing is executed, and no more is fetched than its two files. Weights are held against the
        configuration before memory is taken, against the hash in config.json if there is one (CLTs
        that were saved before it have none), and must be finite.

        Args:
            pretrained_model_name_or_path: the folder, or "user/name" on the Hub.
            map_location: the device it is put on.
            **hub: huggingface_hub's (`revision`, `cache_dir`, `force_download`, `local_files_only`,
                `token`).

        Raises:
            InputError: nothing there, or what is there is not a whole CLT.
        """
        name = str(pretrained_model_name_or_path)
        config, weights = local_files(pretrained_model_name_or_path) or (
            _download(name, file, hub) for file in (CONFIG_FILE, WEIGHTS_FILE)
        )
        return _load(cls, config, weights).to(map_location)


def _download(repo_id: str, name: str, options: Mapping[str, Any]) -> Path:
    if not options:
        ask_hub(repo_id, name)
    with on_the_hub(repo_id):
        return Path(hf_hub_download(repo_id, name, **options))


def _load(kind: type[CLT], config_path: Path, path: Path) -> CLT:
    values = read_json(config_path)
    sha256 = values.pop(HASH_KEY, None)
    config = CLTConfig.from_json(values)
    header = read_header(path)
    # before anything of the size that config.json asks for is made
    if config.n_layers > len(header.tensors):
        raise InputError(
            f"{path} has {len(header.tensors)} tensors; {CONFIG_FILE} expects {config.n_layers} "
            "layers, with tensors of each."
        )
    with reading(config_path, "sizes that can be built"), torch.device("meta"):
        clt = kind(config)
    _check_shapes(clt, path, header)
    check_floats(path, header.tensors)
    if "config" in header.metadata:  # files of other writers carry none
        _check_same_save(config.to_json(), header.metadata["config"], path)
    if sha256 is not None and sha256 != file_hash(path):
        raise InputError(
            f"{path} does not have the SHA-256 that {CONFIG_FILE} says; expected both of one save "
            "and whole."
        )
    with reading(path, "tensors that fit into memory"):
        # copies, as the file may change while it is mapped
        found = {
            name: value.to(torch.float32, copy=True) for name, value in load_file(path).items()
        }
        clt.load_state_dict(found, assign=True)
    # exp(-inf) is a threshold of 0
    check_finite(path, found, unbounded_below=["log_theta"])
    return clt


def _check_shapes(clt: PretrainedCLT, path: Path, header: Header) -> None:
    expected = clt.state_dict()
    for name in sorted(expected.keys() | header.tensors.keys()):
        have = header.tensors[name].shape if name in header.tensors else "no such tensor"
        want = tuple(expected[name].shape) if name in expected else "no such tensor"
        if have != want:
            raise InputError(f"{path}: {name} is {have}; {CONFIG_FILE} expects {want}.")


def _check_same_save(config: dict[str, Any], saved_with: str, path: Path) -> None:
    expected, problem = "the one it was saved with", "names no readable configuration"
    with reading(path, expected, problem=problem):
        try:
            values = CLTConfig.from_json(parse_json(saved_with, "it")).to_json()
        except InputError as error:
            raise ValueError(error) from error
    check_same(config, values, f"{path}: {CONFIG_FILE} and {path.name} must be of one save")


def _read_card(path: Path) -> str:
    with reading(path, "Markdown under YAML", problem="is not a readable model card"):
        text = read_text(path)
        ModelCard(text)
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
