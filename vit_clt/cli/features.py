"""`vit-clt features`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vit_clt.choices import Rule, Templates
from vit_clt.cli.options import (
    CLTOptions,
    Command,
    SeedOptions,
    StudyOptions,
    layer_numbers,
)
from vit_clt.errors import InputError


@dataclass(kw_only=True)
class Features(CLTOptions, StudyOptions, SeedOptions):
    """What does each feature fire on, write and do? A gallery that opens from disk.

    Example: vit-clt features --clt out/clt --data digits --layers 7 --count 24 --out out/features
    """

    other_names: ClassVar = {**Command.other_names, "rule": "select", "class_name": "raises"}

    layers: str | None = None
    """Source layers looked at, e.g. 7-11 or 0,4,7-11 (inclusive); default: every layer, or those of
    --feature."""
    feature: tuple[str, ...] = ()
    """Features that get a page, as layer:feature, e.g. 7:76."""
    select: Rule | None = None
    """Also a page for --count features a layer by this rule; default: spread, unless --feature."""
    count: int = 32
    """Features a layer chosen by --select."""
    raises: str | None = None
    """With --select effect: a class, by its name, a part that no other name holds, or its number;
    the features that raise its logit most."""
    top: int = 12
    """Most active images kept of each feature."""
    effect_images: int = 200
    """First images that direct effects on class logits (attention held, norms differentiated) are
    measured on."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Look at every feature, choose some, and write their gallery."""
        from vit_clt.analysis import feature_statistics
        from vit_clt.analysis.features.choice import (
            check_measured,
            check_selection,
            rule_in_words,
            select_features,
        )
        from vit_clt.analysis.features.gallery import FeatureGallery, feature_gallery
        from vit_clt.analysis.features.page import check_features
        from vit_clt.hooks import layer_list
        from vit_clt.zero_shot import ZeroShot, class_number

        rule = self.select or "spread"
        check_selection(rule, self.count, self.raises)
        named = [feature_address(text) for text in dict.fromkeys(self.feature)]
        layers = None if self.layers is None else layer_numbers(self.layers)
        if layers is None and named and self.select is None:
            layers = [layer for layer, _ in named]
        folder = self.folder_of(FeatureGallery)
        vit, clt, data = self.load_all(self.device)
        sources = layer_list(
            range(vit.cfg.n_layers) if layers is None else layers, vit.cfg.n_layers
        )
        if named:
            check_features(named, sources, clt.config.n_features)
        if self.raises is not None:
            class_number(data.class_names, self.raises, "raises")
        zs = None
        if data.class_names and vit.cfg.pools_cls:
            zs = ZeroShot(vit, data.class_names, self.templates)
        check_measured(rule, zs is not None)
        stats = feature_statistics(
            vit,
            clt,
            data,
            layers=sources,
            zs=zs,
            effect_images=self.effect_images,
            top=self.top,
            seed=self.seed,
            progress=True,
        )
        rules = ["those named"] if named else []
        chosen = list(named)
        if self.select is not None or not named:
            chosen += select_features(stats, rule, self.count, class_name=self.raises)
            rules.append(f"at most {self.count} a layer, {rule_in_words(rule, self.raises)}")
        chosen = list(dict.fromkeys(chosen))
        gallery = feature_gallery(stats, chosen, "; ".join(rules), progress=True)
        where = f"{len(chosen)} pages; open {folder.path / 'index.html'} in a browser"
        self.report(folder, gallery, "features", where)


def feature_address(text: str) -> tuple[int, int]:
    """ "7:76" as (7, 76).

    Raises:
        InputError: anything else.
    """
    layer, colon, feature = text.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() for part in (layer, feature)):
        raise InputError("feature", f'is "{text}"; expected layer:feature, as in 7:76.')
    return int(layer), int(feature)
