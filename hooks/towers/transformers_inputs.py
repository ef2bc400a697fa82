"""The image processor and the tokenizer that lie beside a transformers model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import Normalize
from transformers import AutoImageProcessor, AutoTokenizer

from vit_clt.errors import InputError
from vit_clt.hooks.tokenizers import MissingTokenizer
from vit_clt.hooks.towers.transformers_files import (
    PREPROCESSING_FILES,
    TOKENIZER_FILES,
    check_settings,
    find_file,
)
from vit_clt.inputs import reason


class Preprocessing:
    """A transformers image processor as a function from an image to "3 height width"."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """The pixels of an image, as the processor itself gives them for its RGB colours."""
        found = self.processor(images=image.convert("RGB"), return_tensors="pt")
        pixels: Tensor = found["pixel_values"][0]
        return pixels

    @property
    def transforms(self) -> list[Normalize]:
        """The normalisation alone, found where torchvision's Compose has it; pictures undo it."""
        processor = self.processor
        if not processor.do_normalize:
            return [Normalize([0.0] * 3, [1.0] * 3)]
        return [Normalize(processor.image_mean, processor.image_std)]

    def __repr__(self) -> str:
        """All settings, by which two preprocessings are compared."""
        return repr(self.processor)


class Words:
    """A transformers tokenizer as a function from texts to token ids "text context"."""

    def __init__(self, tokenizer: Any, n_context: int):
        self.tokenizer, self.n_context = tokenizer, n_context

    def __call__(self, texts: list[str]) -> Tensor:
        """The token ids, padded to the context on which the text tower was trained."""
        found = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.n_context,
            return_tensors="pt",
        )
        ids: Tensor = found["input_ids"]
        return ids


def load_preprocessing(place: str) -> tuple[Preprocessing | None, tuple[int, int] | None]:
    """The preprocessing of a folder or a repository, and the height and width that it gives.

    Returns:
        None twice where there is no image processor.

    Raises:
        InputError: a size is out of range, or images of other proportions get another size.
    """
    files = [find_file(place, name) for name in PREPROCESSING_FILES]
    for path in files:
        if path is not None:
            check_settings(path)
    if not any(files):
        return None, None
    processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    preprocess = Preprocessing(processor)
    shapes = {tuple(preprocess(Image.new("RGB", size)).shape) for size in ((40, 60), (60, 40))}
    shape, *others = sorted(shapes)
    if others or len(shape) != 3:
        raise InputError(
            "model",
            f"is {place}, whose {type(processor).__name__} gives images of shapes "
            f"{', '.join(map(str, sorted(shapes)))}; expected one of fixed height and width.",
        )
    return preprocess, (shape[1], shape[2])


def load_words(place: str, n_context: int) -> Callable[[list[str]], Tensor]:
    """The tokenizer of a folder or a repository, or a `MissingTokenizer` if it cannot be loaded.

    Python that lies beside it is never run.
    """
    try:
        if not any(find_file(place, name) for name in TOKENIZER_FILES):
            # transformers would make one without words
            raise FileNotFoundError(f"none of {', '.join(TOKENIZER_FILES)} is there")
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each is one sentence to the user
        return MissingTokenizer(place, place, f"{type(error).__name__}: {reason(error)}")
    return Words(tokenizer, n_context)
