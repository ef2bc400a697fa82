"""The gallery of all features of a CLT, which is the result of `vit-clt features`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from vit_clt.analysis.features.names import FeatureNames
from vit_clt.analysis.features.pages import FeaturePages
from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.viewer.front_end import FILES


@dataclass(frozen=True, repr=False)
class FeatureGallery(FeatureStatistics):
    """The statistics of all features of some layers, with pages of some of them."""

    extra_files = FILES

    pages: FeaturePages
    """Pages of some of the features, in the order in which they were chosen."""
    rule: str
    """The rule by which these features were chosen, in words."""
    names: FeatureNames | None = None
    """Names of the features; None where none were sought."""

    def facts(self) -> Facts:
        """What the statistics were measured on, and which features have a page."""
        facts = super().facts()
        pages = {"layers": self.layers, "pages": len(self.pages), "select": self.rule}
        return replace(facts, more={**pages, **facts.more})

    def companions(self) -> Sequence[Study]:
        """The names, with their tests."""
        return [] if self.names is None else [self.names]

    def extras(self) -> Iterable[tuple[str, str | bytes]]:
        """The gallery, file after file; its images are read once more."""
        from vit_clt.analysis.features.gallery_contents import gallery_contents

        return gallery_contents(self)


def feature_gallery(
    stats: FeatureStatistics,
    features: Sequence[tuple[int, int]],
    rule: str,
    *,
    names: FeatureNames | None = None,
    progress: bool = False,
) -> FeatureGallery:
    """The gallery of all features of `stats`, with pages of some of them.

    Args:
        stats: the statistics of all features.
        features: the (layer, feature) pairs that get a page, without repeats.
        rule: the rule by which they were chosen, in words.
        names: names of features (`vit_clt.analysis.name_features`).
        progress: show a progress bar.

    Raises:
        InputError: what `FeatureStatistics.feature_pages` refuses.
    """
    measured = {field.name: getattr(stats, field.name) for field in fields(FeatureStatistics)}
    pages = stats.feature_pages(features, progress=progress)
    return FeatureGallery(**measured, pages=pages, rule=rule, names=names)
