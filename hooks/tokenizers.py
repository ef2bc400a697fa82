"""Loads the tokenizer of a model. It may need a network even where the weights need none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import open_clip
from torch import Tensor

from vit_clt.errors import InputError
from vit_clt.inputs import reason


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
    from the Hub, unless they are in its local cache or in the folder PATH. Python that lies beside
    a tokenizer is never run.
    """
    config = open_clip.get_model_config(model) or {}
    name = config.get("text_cfg", {}).get("hf_tokenizer_name")
    try:
        if not name:
            return open_clip.get_tokenizer(model)
        # without it transformers asks on the terminal whether to run code
        return open_clip.get_tokenizer(model, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each is one sentence to the user
        return MissingTokenizer(name or model, model, f"{type(error).__name__}: {reason(error)}")
