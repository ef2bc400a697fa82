"""Whether weights were trained with GELU or QuickGELU, which their numbers do not show.

Two models that differ only in this have the same tensors, of the same names and shapes, and with
the wrong one all numbers are a little wrong. docs/weights.md says what tells them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import open_clip

from vit_clt.choices import Gelu
from vit_clt.errors import InputError
from vit_clt.hooks.towers.weights import WeightsFile
from vit_clt.inputs import read_json, read_text, reading

_OPENAI = {"input_resolution", "context_length", "vocab_size"}
_SUFFIX = "-quickgelu"


class Evidence(NamedTuple):
    """What says which activation function weights were trained with."""

    gelu: Gelu
    source: str
    """What says so, as the subject of a sentence."""


def check_tag(model: str, tag: str) -> None:
    """Refuse a name whose activation function is not that of a tag's weights.

    Raises:
        InputError: with the name to use.
    """
    found = open_clip.get_pretrained_cfg(model, tag)
    if found:
        gelu: Gelu = "quickgelu" if found.get("quick_gelu", False) else "gelu"
        _check(model, Evidence(gelu, f'the weights "{tag}"'))


def check_file(model: str, file: WeightsFile, stated: Gelu | None) -> None:
    """Refuse a weights file under a name whose activation function may not be that of the weights.

    Args:
        model: a name that open_clip lists.
        file: the weights.
        stated: what the user says they were trained with.

    Raises:
        InputError: the file, what lies beside it or the user says another activation function than
            the name; or nothing says any, and open_clip lists the model with both.
    """
    evidence = evidence_of(file)
    if evidence is None and stated is not None:
        evidence = Evidence(stated, f'gelu="{stated}"')
    if evidence is not None:
        _check(model, evidence)
    elif not model.endswith(_SUFFIX) and model + _SUFFIX in open_clip.list_models():
        raise InputError(
            "gelu",
            f'is missing; {file.path} does not say whether model "{model}" was trained with GELU '
            f'or QuickGELU: expected "gelu", or the model "{model}{_SUFFIX}".',
        )


def evidence_of(file: WeightsFile) -> Evidence | None:
    """What the weights or the files beside them say of the activation function, if anything.

    Raises:
        InputError: a file beside them is not readable.
    """
    if "QuickGELU" in file.classes:
        return Evidence("quickgelu", f"the program in {file.path}")
    if file.tensors.keys() >= _OPENAI:
        return Evidence("quickgelu", f"{file.path}, an archive of OpenAI,")
    if "GELU" in file.classes:
        return Evidence("gelu", f"the program in {file.path}")
    folder = file.path if file.path.is_dir() else file.path.parent
    config = folder / "open_clip_config.json"
    if config.is_file():
        with reading(config, "that of an open_clip model"):
            return _evidence(read_json(config)["model_cfg"].get("quick_gelu", False), config)
    # open_clip's training writes NAME/params.txt and NAME/checkpoints/epoch_1.pt
    for params in (folder / "params.txt", folder.parent / "params.txt"):
        if params.is_file():
            options = dict(line.split(": ", 1) for line in _lines(params) if ": " in line)
            listed = open_clip.get_model_config(options.get("model", "").replace("/", "-"))
            forced = options.get("force_quick_gelu") == "True"
            if listed is not None:
                return _evidence(forced or listed.get("quick_gelu", False), params)
    return None


def _evidence(quick_gelu: bool, path: Path) -> Evidence:
    return Evidence("quickgelu" if quick_gelu else "gelu", str(path))


def _lines(path: Path) -> list[str]:
    return read_text(path).splitlines()


def _check(model: str, evidence: Evidence) -> None:
    config = open_clip.get_model_config(model) or {}
    has: Gelu = "quickgelu" if config.get("quick_gelu", False) else "gelu"
    if has == evidence.gelu:
        return
    other = model.removesuffix(_SUFFIX) if has == "quickgelu" else model + _SUFFIX
    known = f'"{other}"' if other in open_clip.list_models() else "a model with that function"
    names = {"gelu": "GELU", "quickgelu": "QuickGELU"}
    raise InputError(
        "model",
        f'is "{model}", which uses {names[has]}; {evidence.source} says that the weights expect '
        f"{names[evidence.gelu]}: use {known}.",
    )
