"""The option of commands that name features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_clt.data.words import common_words, read_words

if TYPE_CHECKING:
    from vit_clt.analysis.naming.vocabulary import Vocabulary
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.readouts.base import Classifier


@dataclass(kw_only=True)
class VocabularyOptions:
    """The texts that features are named with."""

    vocabulary: str = "classes"
    """Texts that features are named with, each tested on held-out images: the classes of the
    readout (classes), these and about 4,000 common English words (common), a text file with one a
    line, or none."""

    def check(self) -> None:
        """Refuse a file that holds no vocabulary."""
        if self.vocabulary not in ("classes", "common", "none"):
            read_words(Path(self.vocabulary))
        super().check()  # type: ignore[misc]

    def texts(
        self, vit: HookedViT, classifier: Classifier | None, data: ImageData
    ) -> Vocabulary | None:
        """The vocabulary; None for none, and for classes that nothing can read or test.

        Raises:
            InputError: a model without a text tower for other texts than classes, or a text that
                its tokenizer cuts off.
        """
        from vit_clt.analysis.naming.study import LEAST_IMAGES
        from vit_clt.analysis.naming.vocabulary import Vocabulary

        if self.vocabulary == "none":
            return None
        if self.vocabulary == "classes":
            # one class is never better than another
            if classifier is None or len(classifier.class_names) < 2 or len(data) < LEAST_IMAGES:
                return None  # nobody asked for names
            return Vocabulary.of_classes(classifier, vit.cfg.d_embed)
        if self.vocabulary == "common":
            classes = [] if classifier is None else list(classifier.class_names)
            source = "classes and common English words" if classes else "common English words"
            return Vocabulary.of_texts(vit, classes + common_words(), source, progress=True)
        source = Path(self.vocabulary).name
        return Vocabulary.of_texts(vit, read_words(Path(self.vocabulary)), source, progress=True)
