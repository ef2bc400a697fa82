"""A model's tokenizer, which may be out of reach without a network while its weights are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import open_clip
from torch import Tensor

from vit_clt.errors import InputError


class MissingTokenizer:
    """Stands in for a tokenizer that cannot be loaded: images need none, so only texts fail."""

    def __init__(self, name: str, model: str, reason: str):
        self.name = name
        self.model = model
        self.reason = reason

    def __call__(self, texts: list[str]) -> NoReturn:
        """Refuse to tokenize.

        Raises:
            InputError: always; names the tokenizer and says why it cannot be loaded.
        """
        raise InputError(
            f'tokenizer "{self.name}" of model "{self.model}" cannot be loaded: {self.reason}'
        )


def load_tokenizer(source: str) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer of a model, or a `MissingTokenizer`.

    Hugging Face tokenizers (SigLIP, CLIPA) come from the Hub unless they lie in its cache, or, for
    `local-dir:`, in the model's folder.
    """
    try:
        return open_clip.get_tokenizer(source)
    except Exception as error:  # transformers raises many kinds; each is one sentence to the user
        config = open_clip.get_model_config(source) or {}
        name = config.get("text_cfg", {}).get("hf_tokenizer_name") or source
        reason = " ".join(str(error).split())[:150]
        return MissingTokenizer(name, source, f"{type(error).__name__}: {reason}")
