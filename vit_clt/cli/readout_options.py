"""Options of commands that read classes from embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vit_clt.choices import Readout, Templates
from vit_clt.cli.loaded import once
from vit_clt.cli.options import TrainDataOptions
from vit_clt.errors import InputError

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.readouts.base import Classifier
    from vit_clt.readouts.zero_shot import ZeroShot


@dataclass(kw_only=True)
class PromptOptions:
    """Option of a command that reads classes with the text tower."""

    templates: Templates = "ensemble"
    """Zero-shot prompts: single ("a photo of a {}.") or ensemble (the 18 CIFAR templates)."""

    def zero_shot(self, vit: HookedViT, data: ImageData) -> ZeroShot:
        """The zero-shot classifier of the classes of `data`."""
        from vit_clt.readouts.zero_shot import ZeroShot

        names = tuple(data.class_names)
        return once(
            lambda: ZeroShot(vit, names, self.templates),
            "zero-shot",
            id(vit),
            names,
            self.templates,
        )


@dataclass(kw_only=True)
class ReadoutOptions(PromptOptions, TrainDataOptions):
    """Options of a command that reads accuracy and loss."""

    trains: ClassVar[bool] = False
    """Whether the command uses --train-data for more than a linear readout."""

    readout: Readout | None = None
    """How classes are read: by the text tower (text), by the model's own classifier (head), or by a
    linear classifier fitted on --train-data (linear). Default: the first that model and data
    allow."""

    def classifier(
        self, vit: HookedViT, data: ImageData, seed: int, *, fits: bool = False
    ) -> Classifier:
        """The readout of the classes of `data`.

        Args:
            vit: the model.
            data: the images that are measured.
            seed: seed of a linear readout.
            fits: whether these options have the command fit something else on --train-data.

        Raises:
            InputError: the readout is not there or does not fit, or an option is given that it does
                not use.
        """
        from vit_clt.readouts.choose import choose_classifier
        from vit_clt.readouts.linear import LinearClassifier
        from vit_clt.readouts.zero_shot import ZeroShot

        classifier = once(
            lambda: choose_classifier(
                vit,
                data,
                lambda: self.load_train_images(vit, data),
                self.readout,
                templates=self.templates,
                seed=seed,
                progress=True,
            ),
            *("classifier", vit, data, self.readout, self.templates, seed),
            *(self.train_data, self.train_limit),
        )
        unused = {"templates": self.templates != "ensemble"}
        if isinstance(classifier, ZeroShot):
            unused = {}
        if not isinstance(classifier, LinearClassifier) and not (self.trains or fits):
            unused |= {"train_data": bool(self.train_data), "train_limit": bool(self.train_limit)}
        for name, given in unused.items():
            if given:
                raise InputError(
                    name, f"is given, which the readout does not use: {classifier.name}."
                )
        return classifier

    def classifier_if_any(self, vit: HookedViT, data: ImageData, seed: int) -> Classifier | None:
        """The readout of the classes of `data`; None where nothing can read them.

        Raises:
            InputError: a readout is asked for that is not there or does not fit.
        """
        if self.readout in (None, "text") and vit.has_text_tower and data.class_names:
            return self.zero_shot(vit, data)
        try:
            return self.classifier_if_labelled(vit, data, seed)
        except InputError:
            if self.readout is not None:
                raise
            return None  # without an option the pages show what can be shown

    def classifier_if_labelled(
        self, vit: HookedViT, data: ImageData, seed: int, *, fits: bool = False
    ) -> Classifier | None:
        """`classifier`, or None for data without labels or without names of their classes."""
        labelled = bool(data.class_names) and int(data.batch([0])[1]) >= 0
        return self.classifier(vit, data, seed, fits=fits) if labelled else None
