"""`vit-clt features`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from vit_clt.choices import Rule
from vit_clt.cli.command import Command, SeedOptions, StudyOptions
from vit_clt.cli.feature_work import gallery_work
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import CLTOptions
from vit_clt.cli.readout_options import ReadoutOptions
from vit_clt.cli.study_work import fit_work
from vit_clt.cli.vocabulary_options import VocabularyOptions
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work


@dataclass(kw_only=True)
class Features(VocabularyOptions, ReadoutOptions, CLTOptions, StudyOptions, SeedOptions):
    """What does each feature fire on, write and do? A gallery that opens from disk.

    Example: vit-clt features --clt out/demo/clt --data digits --layers 7 --count 24
        --out out/features
    """

    other_names: ClassVar = {**Command.other_names, "rule": "select", "class_name": "raises"}

    layers: str | None = None
    """Source layers whose features are studied, e.g. 7-11 or 0,4,7-11 (inclusive); default: every
    layer, or those of --feature."""
    feature: tuple[str, ...] = ()
    """Features that get a page, as layer:feature, e.g. 7:76."""
    select: Rule | None = None
    """Rule that chooses --count features of each layer for a page; default: spread, or none with
    --feature."""
    count: int = 32
    """Number of features per layer that --select chooses."""
    raises: str | None = None
    """With --select effect: choose the features that raise the logit of this class most. The class
    is its name, a part of the name that is in no other, or its number."""
    top: int = 12
    """Number of most active images kept of each feature."""
    effect_images: int = 200
    """Number of first images on which direct effects on class logits (attention held, norms
    differentiated) are measured."""

    def check(self) -> None:
        """Refuse layers and features that the CLT has not."""
        features = [feature_address(text) for text in self.feature]
        if self.layers is not None:
            self.check_layers("layers", layer_numbers(self.layers))
        self.check_features(features)
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass for statistics and one for names, class effects, and pages."""
        layers = of.layers if self.layers is None else len(layer_numbers(self.layers))
        pages = len(self.feature) + self.count * layers
        named = self.vocabulary != "none"
        return fit_work(of) + gallery_work(of, layers, pages, self.effect_images, named=named)

    def run(self) -> None:
        """Study every feature, choose some for pages, and write the gallery."""
        from vit_clt.analysis.features.choice import check_selection
        from vit_clt.analysis.features.gallery import FeatureGallery
        from vit_clt.analysis.features.names import FeatureNames
        from vit_clt.analysis.features.study import feature_study
        from vit_clt.analysis.naming.study import name_features
        from vit_clt.readouts.class_names import class_number
        from vit_clt.readouts.zero_shot import ZeroShot

        check_selection(self.select or "spread", self.count, self.raises)
        features = [feature_address(text) for text in dict.fromkeys(self.feature)]
        layers = None if self.layers is None else layer_numbers(self.layers)
        folder = self.folder_of(FeatureGallery, FeatureNames)
        vit, clt, data = self.load_all(self.device)
        cfg = vit.cfg
        has_effects = cfg.family == "open_clip" and cfg.pools_cls
        classifier = self.classifier_if_any(vit, data, self.seed)
        vocabulary = self.texts(vit, classifier, data)
        if self.raises is not None:
            class_number(data.class_names, self.raises, "class_name")
        self.tell(vit, data, [clt])
        fits = measured_fits(vit, {self.clt: clt}, data)
        names = None
        if vocabulary is not None:
            names = name_features(
                vit, clt, data, vocabulary, layers=layers, seed=self.seed, progress=True
            )
        gallery = feature_study(
            vit,
            clt,
            data,
            classifier if has_effects and isinstance(classifier, ZeroShot) else None,
            features=features,
            layers=layers,
            rule=self.select,
            count=self.count,
            class_name=self.raises,
            effect_images=self.effect_images,
            top=self.top,
            names=names,
            seed=self.seed,
            progress=True,
        )
        last_line = f"{len(gallery.pages)} pages; open {folder.path / 'index.html'} in a browser"
        self.report(folder, gallery, "features", last_line, fits=fits)


def feature_address(text: str) -> tuple[int, int]:
    """A feature given as layer:feature, "7:76", as (7, 76).

    Raises:
        InputError: the text does not have this form.
    """
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
    if found is None:
        raise InputError("feature", f'is "{text[:100]}"; expected layer:feature, as in 7:76.')
    return int(found[1]), int(found[2])
