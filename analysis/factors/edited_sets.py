"""What the studies state alike that edit a group of features, and random features like it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vit_clt.analysis.factors.sets import FeatureSet, overlap
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.choices import Region
from vit_clt.data.images import ImageData
from vit_clt.readouts.base import Classifier


@dataclass(frozen=True, kw_only=True)
class EditedSets(Study):
    """A study of the model with the codes of a group of features altered on a region's rows."""

    n_features: int
    """Features in the group, over all its layers."""
    overlap: float
    """Share of the group that is also in a random set, as a mean over sets."""
    layers: list[int]
    region: Region
    l0: float
    """Active features per row of the region and layer, over the layers of all sets."""
    readout: str
    data: str
    split: str | None
    seed: int

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of images."""

    def facts_with(self, fill: str, **more: Any) -> Facts:
        """Images, region and settings; codes come from the altered stream.

        Args:
            fill: what the codes of the group are set to.
            **more: further facts.
        """
        return Facts(
            self.data,
            self.n,
            self.region,
            "stream with error nodes",
            self.l0,
            split=self.split,
            fill=fill,
            seed=self.seed,
            more={
                "readout": self.readout,
                **more,
                "layers": self.layers,
                "n_features": self.n_features,
                "overlap": self.overlap,
            },
        )


def measured_on(
    group: FeatureSet,
    randoms: Sequence[FeatureSet],
    region: Region,
    l0: float,
    classifier: Classifier,
    data: ImageData,
    seed: int,
) -> dict[str, Any]:
    """The fields of `EditedSets` by name."""
    return {
        "n_features": sum(map(len, group.values())),
        "overlap": overlap(group, randoms),
        "layers": sorted(group),
        "region": region,
        "l0": l0,
        "readout": classifier.name,
        "data": data.name,
        "split": data.split,
        "seed": seed,
    }
