"""The fit of the CLTs of a command, printed before the study whose numbers stand on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from vit_clt.cli.loaded import once

if TYPE_CHECKING:
    from vit_clt.analysis.fit.gate import Fit
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


def measured_fits(
    vit: HookedViT, clts: Mapping[str, CrossLayerTranscoder], data: ImageData
) -> list[Fit]:
    """Measure the fit of every CLT on images of `data`, and print it.

    Args:
        vit: the teacher.
        clts: its transcoders, by name.
        data: the images of the study.
    """
    from vit_clt.analysis.fit.gate import measure_fits

    fits = once(lambda: measure_fits(vit, clts, data), "fits", vit, *clts.values(), data)
    fits = [replace(fit, clt=name) for name, fit in zip(clts, fits, strict=True)]
    for fit in fits:
        print_fit(fit)
    return fits


def print_fit(fit: Fit) -> None:
    """Print the sentence of a fit, as a warning where the CLT is worse than the mean."""
    print(f"{'WARNING: ' if fit.worse_than_mean() else ''}{fit.line()}", flush=True)
