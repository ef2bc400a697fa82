"""A short trial of the parts of a study on the loaded model, and what a study then will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from vit_clt.data.images import ImageData
from vit_clt.forecast.memory import resident_memory
from vit_clt.forecast.timing import fastest
from vit_clt.forecast.wording import byte_size, duration
from vit_clt.forecast.work import PARTS, Number, Part, Work
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.transcoder.model import CrossLayerTranscoder

Rates = Mapping[Part, float]
"""Seconds of one image, by part."""
_WARM_UP, _IMAGES = 2, 16
_READ, _WRITE = 0.2, 0.4
"""What reading a pass from a store takes, and keeping one there, as shares of running it; measured
on two models, reading is 0.11 and 0.21, keeping 0.35 and 0.45."""
_SECONDS, _SHARE = 2.0, 0.02
"""The trial takes about this many seconds at most, or this share of the whole if that is more."""


@dataclass(frozen=True)
class Forecast:
    """What a study will take."""

    images: int
    seconds: Number
    memory: Number
    """Bytes of the machine's memory that the process will have at most."""

    def line(self) -> str:
        """The forecast in one line."""
        return (
            f"time: about {duration(self.seconds)} for {self.images:,} images; memory: about "
            f"{byte_size(self.memory)}"
        )

    def beside_training(self, seconds: Number, memory: Number) -> str:
        """The forecast in one line, with a training of so many seconds and bytes before it."""
        return (
            f"time: about {duration(seconds)} of training and {duration(self.seconds)} of studies "
            f"of {self.images:,} images; memory: about {byte_size(max(memory, self.memory))}"
        )


def forecast(
    vit: HookedViT, clts: Sequence[CrossLayerTranscoder], data: ImageData, work: Work
) -> Forecast:
    """What this work will take here, by a trial on the first images.

    Nothing is changed by the trial, no random state either.

    Args:
        vit: the ViT.
        clts: its transcoders; the first one is timed.
        data: the images.
        work: what is to be done.

    Raises:
        InputError: an image cannot be read, or activations are not finite.
    """
    clt = clts[0] if clts else None
    first = min(_WARM_UP, len(data))
    with _without_store(vit):
        _rates(vit, clt, data, first)  # the first run warms up
        rates = _rates(vit, clt, data, first)
        # the parts of an image are timed up to three times
        room = max(_SECONDS, _SHARE * _seconds(work, rates))
        n = min(_IMAGES, len(data), int(room / (3 * sum(rates.values()))))
        if n > first:
            rates = _rates(vit, clt, data, n)
    seconds = _seconds(work, rates)
    if vit.pass_store is not None:
        # every pass over the images but the first reads what that one kept
        n = len(data)
        seconds += (_WRITE * n - (1 - _READ) * max(0, work.of("read") - n)) * rates["pass"]
    needed = 0 if vit.device.type == "cuda" else work.memory
    return Forecast(len(data), seconds, resident_memory() + needed)


def _seconds(work: Work, rates: Rates) -> Number:
    return work.seconds + sum(work.of(part) * rates.get(part, 0.0) for part in PARTS)


@contextmanager
def _without_store(vit: HookedViT) -> Iterator[None]:
    """A context in which passes are run, and neither kept nor read."""
    store, vit.pass_store = vit.pass_store, None
    try:
        yield
    finally:
        vit.pass_store = store


@torch.no_grad()
def _rates(
    vit: HookedViT, clt: CrossLayerTranscoder | None, data: ImageData, n: int
) -> dict[Part, float]:
    """Seconds an image of every part, on the first n images."""
    images, _ = data.batch(range(n))
    images = images.to(vit.device)
    x = capture(vit, images).x
    parts: dict[Part, Callable[[], object]] = {
        "read": partial(data.batch, range(n)),
        "pass": partial(capture, vit, images),
        "sums": lambda: x.double().square().sum(-1),
    }
    if clt is not None:
        codes = clt.encode(x)
        layers = range(vit.cfg.n_layers)
        parts["encode"] = partial(clt.encode, x)
        parts["decode"] = partial(clt.decode, codes)
        parts["terms"] = lambda: [clt.contributions(codes, target=l) for l in layers]
    return {part: fastest(run, vit.device) / n for part, run in parts.items()}
