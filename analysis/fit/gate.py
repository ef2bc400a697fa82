"""How well a CLT fits the ViT on the images at hand: what to know before reading its numbers.

The numbers are those of `reconstruction` on the same images, to the last digit: R^2 by layer on the
rows of each token kind (0 is predicting their mean, below it the CLT is worse than that), the
measured L0, and the share of features that fire on none of the token rows. Teacher trajectory.
Images of a folder are sorted by class, so that the first would be of a few classes: those taken are
evenly spaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstructions
from vit_clt.analysis.reporting.notice import Notice
from vit_clt.choices import TokenKind
from vit_clt.data.images import ImageData, ImageSubset, as_image_data, evenly_spaced
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.training.order import held_out_images
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig

N_IMAGES = 256
"""Most images that the fit is measured on, which keeps it short beside a study."""
_NAMES: dict[TokenKind, str] = {"cls": "CLS", "register": "registers", "patch": "patches"}
_ROWS: dict[TokenKind, str] = {"cls": "CLS", "register": "register", "patch": "patch"}


@dataclass(frozen=True)
class Fit:
    """How well one CLT reconstructs MLP outputs of its ViT on some images."""

    clt: str
    """Name of the CLT."""
    data: str
    split: str | None
    n_images: int
    """Images it was measured on, evenly spaced over the data."""
    of_images: int
    """Images that the data has."""
    r2: Mapping[TokenKind, tuple[float, ...]]
    """R^2 by layer, by token kind; only kinds that the ViT has, NaN where y does not vary."""
    l0: tuple[float, ...]
    """Active features a token row, by layer."""
    dead: tuple[float, ...]
    """Share of features that fire on no token row of these images, by layer: silent on them, which
    on so few images is not yet dead."""

    def mean_r2(self, kind: TokenKind) -> float:
        """Mean of R^2 over the layers where it is defined; NaN where it is at none."""
        defined = [value for value in self.r2[kind] if not isnan(value)]
        return float(np.mean(defined)) if defined else float("nan")

    def mean_l0(self) -> float:
        """Active features a token row and layer."""
        return float(np.mean(self.l0))

    def dead_share(self) -> float:
        """Share of all features that fire on no token row of these images."""
        return float(np.mean(self.dead))

    def worse_than_mean(self) -> list[tuple[int, TokenKind]]:
        """Layers and token kinds at which predicting the mean of the rows has a smaller error."""
        return [
            (layer, kind)
            for kind, values in self.r2.items()
            for layer, value in enumerate(values)
            if value < 0
        ]

    def line(self) -> str:
        """The fit in one sentence, and a second one where the CLT is worse than the mean."""
        few = self.n_images < self.of_images
        of = f" of {self.of_images} images, evenly spaced" if few else " images"
        parts = [f"{_NAMES[kind]} {self._r2_text(kind)}" for kind in self.r2]
        worse = self.worse_than_mean()
        return (
            f"Fit of {self.clt} on {self.data}, {self.n_images}{of}: R2 {', '.join(parts)}, "
            f"L0 {self.mean_l0():.1f}, {self.dead_share():.0%} of features are silent on them."
            + (
                f" Worse than the mean at {_places(worse, len(self.l0))}: do not read their scores."
                * bool(worse)
            )
        )

    def by_layer(self) -> pd.DataFrame:
        """R^2 of every token kind, L0 and the silent share, one row a layer, as text."""
        columns = {
            f"R2 {_ROWS[kind]} rows": [_two_digits(value) for value in values]
            for kind, values in self.r2.items()
        }
        columns["L0"] = [f"{l0:.1f}" for l0 in self.l0]
        columns["silent"] = [f"{share:.0%}" for share in self.dead]
        return pd.DataFrame(columns).rename_axis("layer").reset_index()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, null for NaN, with where the CLT is worse than the mean."""
        r2 = {
            kind: [value if isfinite(value) else None for value in values]
            for kind, values in self.r2.items()
        }
        worse = [{"layer": layer, "tokens": kind} for layer, kind in self.worse_than_mean()]
        return {
            **{**asdict(self), "l0": list(self.l0), "dead": list(self.dead)},
            "r2": r2,
            "worse_than_mean": worse,
        }

    def metrics(self) -> list[Metric]:
        """Mean and least R^2 of every token kind, L0, and the share of silent features."""
        metrics = []
        for kind, values in self.r2.items():
            defined = [value for value in values if not isnan(value)]
            least = min(defined, default=None)
            for name, value in ((f"r2_{kind}", self.mean_r2(kind)), (f"r2_{kind}_least", least)):
                metrics.append(Metric(f"fit_{name}", value, "fraction", self.n_images, floor=0.0))
        metrics.append(Metric("fit_l0", self.mean_l0(), "count", self.n_images))
        return [*metrics, Metric("fit_silent", self.dead_share(), "fraction", self.n_images)]

    def notice(self) -> Notice:
        """The sentence for the head of a page: a warning where the CLT is worse than the mean."""
        return Notice(self.line(), bool(self.worse_than_mean()), self.by_layer(), self.to_json())

    def _r2_text(self, kind: TokenKind) -> str:
        values, mean = self.r2[kind], self.mean_r2(kind)
        if isnan(mean):
            return "undefined"
        least = int(np.nanargmin(values))
        return f"{_two_digits(mean)} (least {_two_digits(values[least])} at layer {least})"


def measure_fit(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData | Tensor | Iterable[Any],
    *,
    n_images: int = N_IMAGES,
    progress: bool = False,
) -> Fit:
    """Measure the fit of one CLT; see `measure_fits`."""
    fits = measure_fits(vit, {"the CLT": clt}, data, n_images=n_images, progress=progress)
    return fits[0]


def fit_of_training(
    vit: HookedViT, clt: CrossLayerTranscoder, data: ImageData, settings: TrainConfig
) -> Fit | None:
    """The fit of a CLT at the end of its training.

    It is measured on the images that the run held out, or else on some that it was trained on; None
    where no image can be read.

    Args:
        vit: the teacher.
        clt: the CLT that was trained.
        data: the images of the run, those held out included.
        settings: how it was trained.
    """
    held_out, trained_on = held_out_images(settings, len(data))
    chosen = held_out or trained_on
    if settings.unreadable == "skip":
        chosen = [chosen[i] for i in evenly_spaced(len(chosen), N_IMAGES)]
        _, readable = data.readable(chosen)
        chosen = [chosen[i] for i in readable]
    if not chosen:
        return None
    images = ImageSubset(data, chosen)
    images.batch_size = data.batch_size
    images.name = f"{'held-out' if held_out else 'training'} images of {data.name}"
    return measure_fit(vit, clt, images)


def measure_fits(
    vit: HookedViT,
    clts: Mapping[str, CrossLayerTranscoder],
    data: ImageData | Tensor | Iterable[Any],
    *,
    n_images: int = N_IMAGES,
    progress: bool = False,
) -> list[Fit]:
    """Measure the fit of several CLTs of one ViT on the same images, in two passes of the ViT.

    Args:
        vit: the teacher.
        clts: its transcoders, by name.
        data: ImageData, a tensor "image 3 height width", or batches.
        n_images: most images that are used; where there are more, so many, evenly spaced.
        progress: show progress bars.

    Raises:
        InputError: a CLT does not fit the model, or there are no CLTs or no images.
    """
    images = as_image_data(data)
    result = reconstructions(vit, clts, images.evenly_spaced(n_images), progress=progress)
    kinds: list[TokenKind] = [kind for kind in vit.cfg.rows.kinds if kind != "all"]
    return [_fit(name, each, kinds, len(images)) for name, each in result.by_clt().items()]


def _fit(name: str, result: Reconstruction, kinds: Sequence[TokenKind], of_images: int) -> Fit:
    def column(tokens: TokenKind, column: str) -> tuple[float, ...]:
        frame = result.frame
        return tuple(float(value) for value in frame.loc[frame["tokens"] == tokens, column])

    return Fit(
        clt=name,
        data=result.data,
        split=result.split,
        n_images=result.n,
        of_images=of_images,
        r2={kind: column(kind, "r2") for kind in kinds},
        l0=column("all", "l0"),
        dead=column("all", "dead"),
    )


def _places(worse: list[tuple[int, TokenKind]], n_layers: int) -> str:
    parts = []
    for kind in dict.fromkeys(kind for _, kind in worse):
        layers = [str(layer) for layer, of in worse if of == kind]
        listed = " and ".join([", ".join(layers[:-1]), layers[-1]] if layers[1:] else layers)
        where = f"layer{'s' if layers[1:] else ''} {listed}"
        parts.append(f"{'every layer' if len(layers) == n_layers else where} ({_ROWS[kind]} rows)")
    return " and at ".join(parts)


def _two_digits(value: float) -> str:
    """Two decimals; three where a value below 0 would be rounded to 0."""
    if isnan(value):
        return "undefined"
    return f"{value:.3f}" if -0.005 < value < 0 else f"{value:.2f}"
