"""What the name of a ViT says before the library that has it is imported.

open_clip keeps the shapes of its models in files, of which the names are known. Its tags of
weights, and all names of timm, stand in code, which is searched for the name and not run. A library
that is imported may have been given further models, and is asked itself, when the ViT is loaded.
"""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from vit_clt.errors import InputError
from vit_clt.hooks.towers.names import HF, TIMM, has_own_weights, random_seed, split_name
from vit_clt.inputs import expanded
from vit_clt.places import is_path
from vit_clt.teachers import SHIPPED

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
"""Configuration and weights in the folder of `local-dir:PATH`."""
_DECLARED = re.compile(r"^def (\w+)\(pretrained\b", re.MULTILINE)
"""Names of models in the code of timm."""
_TAGS = re.compile(r"^ +([\w-]+)=_\w*pcfg", re.MULTILINE)
"""Tags of weights in the code of open_clip."""


def check_name(model: str, pretrained: str | None) -> None:
    """Refuse a ViT that no library can have, or whose files are missing.

    Args:
        model: a name for `HookedViT.load`.
        pretrained: a tag of its weights, a file, "random" or "random:SEED"; None where the model
            has weights of its own.

    Raises:
        InputError: the name, its files, or the file of its weights is not there; or weights are
            named for a model that has its own, or for no other.
    """
    name, pretrained = split_name(model, pretrained)
    if has_own_weights(name):
        if pretrained is not None:
            raise InputError(
                "pretrained",
                f'is "{pretrained}"; model "{model}" carries its own weights, expected none.',
            )
        _check_own_files(name)
        return
    if pretrained is None:
        raise InputError(
            "pretrained",
            f'is missing; model "{model}" needs a tag of its weights or a file (or "random").',
        )
    code = _check_listed(name)
    if random_seed(pretrained) is None and not Path(expanded(pretrained)).exists():
        if is_path(expanded(pretrained)):
            raise InputError(
                "pretrained", f"is {pretrained}; found no such file, nor such a folder."
            )
        if code is not None:
            _check_tag(name, pretrained, code)


def local_files(model: str) -> tuple[Path, Path]:
    """Configuration and weights of `local-dir:PATH`.

    Raises:
        InputError: one of them is missing.
    """
    folder = Path(model.removeprefix(LOCAL_DIR))
    config, weights = (folder / name for name in OPEN_CLIP_FILES)
    if not (config.is_file() and weights.is_file()):
        expected = " and ".join(OPEN_CLIP_FILES)
        raise InputError("model", f'is "{model}"; expected a folder holding {expected}.')
    return config, weights


def _check_own_files(model: str) -> None:
    if model.startswith(LOCAL_DIR):
        local_files(expanded(model))
    elif model.startswith(HF):
        place = expanded(model.removeprefix(HF))
        folder = place if Path(place).exists() else place.partition(":")[0]  # perhaps with a part
        if is_path(folder) and not (Path(folder) / "config.json").is_file():
            raise InputError("model", f'is "{model}"; expected a folder holding config.json.')


def _check_listed(model: str) -> str | None:
    """Refuse a name that its library has not; returns the code that names the tags of weights."""
    library = "timm" if model.startswith(TIMM) else "open_clip"
    found = None if library in sys.modules else find_spec(library)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations)))
    if library == "timm":
        code = "".join(path.read_text("utf-8") for path in folder.glob("models/*.py"))
        if not _has_word(code, model.removeprefix(TIMM)):
            known = [TIMM + name for name in _DECLARED.findall(code)]
            raise _unknown("model", model, known, "a name of timm.list_models()")
        return code
    known = [path.stem for path in folder.glob("model_configs/*.json")]
    if model.replace("/", "-") not in known:
        expected = f"a name of open_clip.list_models(), or one of {', '.join(SHIPPED)}"
        raise _unknown("model", model, known, expected)
    return (folder / "pretrained.py").read_text("utf-8")


def _check_tag(model: str, tag: str, code: str) -> None:
    """Refuse a tag of weights that stands nowhere in the code that lists them."""
    if _has_word(code, tag):
        return
    pattern = _TAGS
    if model.startswith(TIMM):
        pattern = re.compile(rf"['\"]{re.escape(model.removeprefix(TIMM))}\.([\w.-]+)['\"]:")
    expected = f'a tag of weights of "{model}", a file, or random:SEED'
    raise _unknown("pretrained", tag, pattern.findall(code), expected)


def _has_word(code: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", code) is not None


def _unknown(field: str, value: str, known: list[str], expected: str) -> InputError:
    near = get_close_matches(value, known, n=1)
    meant = f' (did you mean "{near[0]}"?)' if near else ""
    return InputError(field, f'is "{value}"; expected {expected}{meant}.')
