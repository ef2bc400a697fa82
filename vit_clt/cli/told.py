"""The time and memory of several commands together, told before the first of them starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vit_clt.cli.command import Command
from vit_clt.cli.study_work import REPORT
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.forecast.trial import Forecast
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


def told_together(
    commands: Iterable[Command], vit: HookedViT, clt: CrossLayerTranscoder, data: ImageData
) -> Forecast:
    """What these studies of one CLT and images will take, one after another.

    Args:
        commands: the studies.
        vit: the ViT.
        clt: its transcoder, or an untrained one of the same shape.
        data: the images that are measured.
    """
    from vit_clt.forecast.trial import forecast

    work = Work()
    for command in commands:
        of = Scope.of(vit, data, [clt], command.read_beside(vit, data))
        work += command.work(of) + REPORT
    return forecast(vit, [clt], data, work)
