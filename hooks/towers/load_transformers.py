"""Loads a plain ViT of transformers from a folder or the Hub, once its configuration fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import logging

from vit_clt.errors import InputError
from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.towers.find_transformers import (
    TRUNKS,
    WRAPPERS,
    known_classes,
    transformers_tower,
)
from vit_clt.hooks.towers.names import HF
from vit_clt.hooks.towers.transformers_files import (
    CONFIG_FILE,
    check_settings,
    check_weights,
    find_file,
)
from vit_clt.hooks.towers.transformers_inputs import Preprocessing, load_preprocessing, load_words
from vit_clt.inputs import reading
from vit_clt.tensor_files import check_finite

# no forward of an image reads it
_MASK = "mask_token"
_POOLER = "pooler."


class LoadedModel(NamedTuple):
    """A transformers model and what lies beside it."""

    model: nn.Module
    preprocess: Preprocessing | None
    tokenizer: Callable[[list[str]], Tensor] | None
    """None without a text tower."""
    image_size: tuple[int, int] | None
    """Height and width that the preprocessing gives."""


class _Choice(NamedTuple):
    """What is made of a configuration."""

    kind: Any
    """The class of the model."""
    config: Any
    renames: dict[str, str]
    """Patterns of names of tensors, and what takes their place."""


def load_transformers(name: str) -> LoadedModel:
    """A transformers model in fp32 with its preprocessing and its tokenizer.

    A pooler that the weights lack (DINO as a `ViTModel`) is left out; every other tensor that is
    read must be among the weights.

    Args:
        name: a folder or a repository of the Hub, and perhaps a colon and the name of a part.

    Raises:
        InputError: as of `HookedViT.from_transformers`.
    """
    place, part = _place_and_part(name)
    what = f'"{HF}{name}"'
    expected = "a folder or a repository with a plain ViT of transformers"
    with reading(what, expected, problem="cannot be loaded", field="model"), _quiet():
        found = find_file(place, CONFIG_FILE)
        if found is None:
            raise InputError(
                "model", f"is {what}, which has no {CONFIG_FILE}; expected {expected}."
            )
        check_settings(found)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        choice = _choice(what, config, part)
        choice.config._attn_implementation = "sdpa"
        with torch.device("meta"):
            shape = choice.kind(choice.config)
        transformers_tower(shape, Recorder())
        needed = (t.numel() for n, t in shape.state_dict().items() if not _may_lack(n))
        check_weights(place, sum(needed))
        preprocess, image_size = load_preprocessing(place)
        model = _with_weights(what, place, choice)
        tokenizer = None
        if hasattr(model, "get_text_features"):
            tokenizer = load_words(place, choice.config.text_config.max_position_embeddings)
        return LoadedModel(model, preprocess, tokenizer, image_size)


def _place_and_part(name: str) -> tuple[str, str]:
    is_folder = Path(name).expanduser().is_dir()
    place, _, part = (name, "", "") if is_folder else name.partition(":")
    folder = Path(place).expanduser()
    return (str(folder) if folder.is_dir() else place), part


def _choice(what: str, config: Any, part: str) -> _Choice:
    towers = {
        kind.config_class.model_type: kind
        for kind in (getattr(transformers, name) for name in TRUNKS)
    }
    vision = getattr(config, "vision_config", None)
    tower = towers.get(getattr(vision, "model_type", None))
    if part:
        if tower is None:
            found = "no vision tower" if vision is None else f'one of type "{vision.model_type}"'
            raise InputError("model", f"is {what}, with {found}; expected {', '.join(towers)}.")
        return _Choice(tower, vision, {rf"^(?:model\.)?{re.escape(part)}\.": ""})
    names = list(config.architectures or [])
    if len(names) != 1 or names[0] not in {*TRUNKS, *WRAPPERS}:
        inside = f'{what[:-1]}:vision_tower" for its vision tower, or ' if tower else ""
        raise InputError(
            "model",
            f"is {what}, a {' and a '.join(names) or config.model_type}; expected {inside}one of "
            f"the classes {known_classes()}.",
        )
    return _Choice(getattr(transformers, names[0]), config, {})


def _with_weights(what: str, place: str, choice: _Choice) -> nn.Module:
    model, info = choice.kind.from_pretrained(
        place,
        config=choice.config,
        dtype=torch.float32,
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        key_mapping=choice.renames or None,
        output_loading_info=True,
    )
    lacking = sorted(info["missing_keys"])
    needed = [name for name in lacking if not _may_lack(name)]
    if needed:
        raise InputError(
            "model",
            f"is {what}, whose weights lack {len(needed)} of the tensors of a "
            f"{choice.kind.__name__}, {needed[0]} among them; expected all.",
        )
    if any(_POOLER in name for name in lacking):
        model.pooler = None
    check_finite(f"model {what}", model.state_dict())
    if hasattr(model, "logit_scale"):
        check_finite(f"model {what}", {"exp(logit_scale)": model.logit_scale.detach().exp()})
    loaded: nn.Module = model
    return loaded


def _may_lack(name: str) -> bool:
    return _POOLER in name or name.endswith(_MASK)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which transformers reports errors alone."""
    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()
