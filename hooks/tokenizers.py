"""Loads the tokenizer of a model. It may need a network even where the weights need none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import open_clip
from torch import Tensor

from vit_clt.errors import InputError


class MissingTokenizer:
    """Takes the place of a tokenizer that cannot be loaded, so that only texts are refused."""

    def __init__(self, name: str, model: str, reason: str):
        self.name = name
        self.model = model
        self.reason = reason

    def __call__(self, texts: list[str]) -> NoReturn:
        """Refuse to tokenize.

        Raises:
            InputError: always, with the name of the tokenizer and why it cannot be loaded.
        """
        raise InputError(
            f'tokenizer "{self.name}" of model "{self.model}" cannot be loaded: {self.reason}'
        )


def load_tokenizer(model: str) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer of a model, or a `MissingTokenizer` if it cannot be loaded.

    `model` is an open_clip name or `local-dir:PATH`. Hugging Face tokenizers (SigLIP, CLIPA) come
    from the Hub, unless they are in its local cache or in the folder PATH.
    """
    try:
        return open_clip.get_tokenizer(model)
    except Exception as error:  # transformers raises many kinds; each is one sentence to the user
        config = open_clip.get_model_config(model) or {}
        name = config.get("text_cfg", {}).get("hf_tokenizer_name") or model
        reason = " ".join(str(error).split())[:150]
        return MissingTokenizer(name, model, f"{type(error).__name__}: {reason}")
