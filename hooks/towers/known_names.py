"""What the name of a ViT says before the library that has it is imported.

open_clip keeps the shapes of its models in files, of which the names are known. timm declares its
models in code, which is searched for the name and not run. A library that is imported may have been
given further models, and is asked itself, when the ViT is loaded.
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
    _check_listed(name)
    if random_seed(pretrained) is None:
        place = expanded(pretrained)
        if is_path(place) and not Path(place).exists():
            raise InputError(
                "pretrained", f"is {pretrained}; found no such file, nor such a folder."
            )


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


def _check_listed(model: str) -> None:
    library = "timm" if model.startswith(TIMM) else "open_clip"
    found = None if library in sys.modules else find_spec(library)
    if found is None or not found.submodule_search_locations:
        return
    folder = Path(next(iter(found.submodule_search_locations)))
    if library == "timm":
        name = model.removeprefix(TIMM)
        code = "".join(path.read_text("utf-8") for path in folder.glob("models/*.py"))
        if re.search(rf"\b{re.escape(name)}\b", code):
            return
        _refuse(model, [TIMM + known for known in _DECLARED.findall(code)], "timm.list_models()")
    name = model.replace("/", "-")
    known = [path.stem for path in folder.glob("model_configs/*.json")]
    if name not in known:
        _refuse(model, known, f"open_clip.list_models(), or one of {', '.join(SHIPPED)}")


def _refuse(model: str, known: list[str], where: str) -> None:
    near = get_close_matches(model, known, n=1)
    meant = f' (did you mean "{near[0]}"?)' if near else ""
    raise InputError("model", f'is "{model}"; expected a name of {where}{meant}.')
