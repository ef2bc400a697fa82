"""The time and memory of a command, or of several together, told before the work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from vit_clt.cli.loaded import once
from vit_clt.cli.study_work import REPORT
from vit_clt.errors import InputError
from vit_clt.forecast.work import Scope, Work

if TYPE_CHECKING:
    from vit_clt.cli.command import Command
    from vit_clt.data.images import ImageData
    from vit_clt.forecast.trial import Forecast
    from vit_clt.hooks import HookedViT
    from vit_clt.transcoder.model import CrossLayerTranscoder


def told(
    vit: HookedViT, clts: Sequence[CrossLayerTranscoder], data: ImageData, work: Work
) -> Forecast:
    """What this work will take.

    In commands that load once (`vit_clt.cli.loaded`) the parts are timed once too.

    Args:
        vit: the ViT.
        clts: its transcoders, or untrained ones of the same shape.
        data: the images that are measured.
        work: of one command or of several.
    """
    from vit_clt.forecast.trial import forecast, measured_rates

    rates = once(lambda: measured_rates(vit, clts, data, work), "rates", vit, *clts[:1], data)
    return forecast(vit, data, work, rates)


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
    work = Work()
    for command in commands:
        # what a study refuses it says itself, when it is its turn
        with suppress(InputError):
            of = Scope.of(vit, data, [clt], command.read_beside(vit, data))
            work += command.work(of) + REPORT
    return told(vit, [clt], data, work)
