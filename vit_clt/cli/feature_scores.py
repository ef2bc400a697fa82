"""`vit-clt feature-scores`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vit_clt.cli.command import MemoryOptions, SeedOptions, StudyOptions
from vit_clt.cli.feature_work import measures_work
from vit_clt.cli.fits import measured_fits
from vit_clt.cli.layers import layer_numbers
from vit_clt.cli.options import CompareOptions, TrainDataOptions, check_clts, load_clt
from vit_clt.cli.readout_options import PromptOptions
from vit_clt.cli.study_work import fit_work
from vit_clt.errors import InputError, renamed
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from torch import Tensor

    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT


@dataclass(kw_only=True)
class FeatureScores(
    PromptOptions, TrainDataOptions, CompareOptions, StudyOptions, MemoryOptions, SeedOptions
):
    """Are a CLT's features any good? Measures of each, beside neurons, components and floors.

    Monosemanticity, localization, class AUC, sparse probes, stability over seeds, absorption on a
    hierarchy of classes, effect on the logits.

    Example: vit-clt feature-scores --clt out/demo/clt --data digits --out out/feature_scores
    """

    layers: str | None = None
    """Source layers whose features are measured, e.g. 7-11 or 0,4,7-11 (inclusive); default: every
    layer."""
    seed_clt: tuple[str, ...] = ()
    """CLTs trained from other seeds, with which features are matched by what they write."""
    hierarchy: Path | None = None
    """JSON file {parent: [class, ...]}, for absorption; CIFAR-10, CIFAR-100 and digits have one
    built in."""
    embedding_model: str | None = None
    """Model whose embeddings say which images are alike, named as --model; default: the ViT."""
    effect_images: int = 200
    """Number of first images on which direct effects on class logits are measured."""

    def check(self) -> None:
        """Refuse layers that the CLT has not, and files that are missing."""
        if self.layers is not None:
            self.check_layers("layers", layer_numbers(self.layers))
        check_clts("seed_clt", self.seed_clt)
        if self.hierarchy is not None and not self.hierarchy.is_file():
            raise InputError("hierarchy", f"is {self.hierarchy}; found no such file.")
        super().check()

    def work(self, of: Scope) -> Work:
        """A pass over both sets of images for every dictionary, and measures of each layer."""
        layers = of.layers if self.layers is None else len(layer_numbers(self.layers))
        return fit_work(of) + measures_work(of, layers, self.effect_images, self.kept_bytes)

    def read_beside(self, vit: HookedViT, data: ImageData) -> ImageData | None:
        """The images that probes are fitted on, where the data have labels."""
        labelled = bool(data.class_names) and int(data.batch([0])[1]) >= 0
        return self.load_train_images(vit, data) if labelled else None

    def run(self) -> None:
        """Measure, and report."""
        from vit_clt.analysis.measures.scores import FeatureScores as Scores
        from vit_clt.analysis.measures.study import feature_scores
        from vit_clt.data.hierarchies import check_hierarchy, known_hierarchy, read_hierarchy
        from vit_clt.transcoder.saved import distinct_names

        hierarchy = None if self.hierarchy is None else read_hierarchy(self.hierarchy)
        folder = self.folder_of(Scores)
        vit, clts, data = self.load_compared(self.device)
        if hierarchy is not None:
            check_hierarchy(hierarchy, data.class_names)
        train = self.read_beside(vit, data)
        labelled = train is not None
        seeds = dict(
            zip(
                distinct_names(list(self.seed_clt)) if self.seed_clt else [],
                [load_clt(place, self.device) for place in self.seed_clt],
                strict=True,
            )
        )
        for clt in seeds.values():
            self.check_teacher(vit, clt)
        self.tell(vit, data, [clt for _, clt in clts], train)
        fits = measured_fits(vit, dict(clts), data)
        cfg = vit.cfg
        has_effects = labelled and cfg.family == "open_clip" and cfg.pools_cls
        result = feature_scores(
            vit,
            dict(clts),
            data,
            train,
            zs=self.zero_shot(vit, data) if has_effects and vit.has_text_tower else None,
            layers=None if self.layers is None else layer_numbers(self.layers),
            embeddings=self._embeddings(vit, data),
            embedded_by=self.embedding_model or "the teacher",
            seed_clts=seeds,
            hierarchy=hierarchy or (known_hierarchy(data.class_names) if labelled else None),
            effect_images=self.effect_images,
            kept_bytes=self.kept_bytes,
            seed=self.seed,
            progress=True,
        )
        self.report(folder, result, "feature-scores", fits=fits)

    def _embeddings(self, vit: HookedViT, data: ImageData) -> Tensor | None:
        """Embeddings of the images by --embedding-model; None without it."""
        if self.embedding_model is None:
            return None
        import torch

        from vit_clt.hooks.hooked_vit import HookedViT as Loaded

        with renamed(model="embedding_model"):
            other = Loaded.load(self.embedding_model, device=self.device)
        options = replace(self, data=self.data or vit.cfg.model)
        again = options.load_images(other)
        with torch.no_grad():
            return torch.cat([other(images.to(other.device)) for images, _ in again])
