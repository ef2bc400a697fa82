"""`vit-clt probe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vit_clt.cli.command import Command, MemoryOptions, SeedOptions, StudyOptions
from vit_clt.cli.feature_work import probe_work
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import MeasuredOptions, TrainDataOptions
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT


@dataclass(kw_only=True)
class Probe(TrainDataOptions, MeasuredOptions, StudyOptions, MemoryOptions, SeedOptions):
    """At which depth can the class, or what else is known of an image, be read linearly?

    Example: vit-clt probe --model adding --out out/probe
    """

    other_names: ClassVar = {**Command.other_names, "factor": "factors"}

    limit: int | None = 2000
    """Use only the first N images."""
    train_limit: int | None = 4000
    """Use only the first N of these images."""
    factors: tuple[str, ...] = ()
    """What probes predict: label, or a factor of the data (adding: left, right). Default: all."""
    layers: str | None = None
    """Layers that are probed, e.g. 4-7 or 0,3-5 (inclusive); default: every layer."""

    def check(self) -> None:
        """Refuse layers that are no layers."""
        if self.layers is not None:
            layer_numbers(self.layers)
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass over both sets of images, and the probes of each place."""
        layers = of.layers if self.layers is None else len(layer_numbers(self.layers))
        return probe_work(of, layers, self.kept_bytes)

    def read_beside(self, vit: HookedViT, data: ImageData) -> ImageData | None:
        """The images that probes are fitted on."""
        return self.load_train_images(vit, data)

    def run(self) -> None:
        """Fit the probes, measure them, and report."""
        from vit_clt.analysis import probes
        from vit_clt.analysis.probing.result import Probes

        folder = self.folder_of(Probes)
        layers = None if self.layers is None else layer_numbers(self.layers)
        vit = self.load_vit(self.device)
        data = self.load_measured(vit)
        train = self.load_train_images(vit, data)
        self.tell(vit, data, train=train)
        result = probes(
            vit,
            train,
            data,
            factors=self.factors or None,
            layers=layers,
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "probe")
