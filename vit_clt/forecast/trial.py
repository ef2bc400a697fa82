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
from vit_clt.kernels.codes import Codes
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


def measured_rates(
    vit: HookedViT, clts: Sequence[CrossLayerTranscoder], data: ImageData, work: Work
) -> Rates:
    """Seconds of one image by part, from a trial on the first images that suits this work.

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
        _parts(vit, clt, data, first)  # the first run of each part warms it up
        rates = _rates(vit, clt, data, first)
        # the parts of an image are timed up to three times
        room = max(_SECONDS, _SHARE * _seconds(work, rates))
        n = min(_IMAGES, len(data), int(room / (3 * sum(rates.values()))))
        return _rates(vit, clt, data, n) if n > first else rates


def forecast(vit: HookedViT, data: ImageData, work: Work, rates: Rates) -> Forecast:
    """What this work will take here.

    Args:
        vit: the ViT.
        data: the images.
        work: what is to be done.
        rates: as `measured_rates` gives them.
    """
    seconds = _seconds(work, rates)
    if vit.pass_store is not None:
        # every pass over the images but the first reads what that one kept
        n = min(len(data), work.of("read"))
        seconds += (_WRITE * n - (1 - _READ) * (work.of("read") - n)) * rates["pass"]
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


def _rates(
    vit: HookedViT, clt: CrossLayerTranscoder | None, data: ImageData, n: int
) -> dict[Part, float]:
    """Seconds an image of every part, on the first n images."""
    parts = _parts(vit, clt, data, n)
    with torch.no_grad():
        return {part: fastest(run, vit.device) / n for part, run in parts.items()}


@torch.no_grad()
def _parts(
    vit: HookedViT, clt: CrossLayerTranscoder | None, data: ImageData, n: int
) -> dict[Part, Callable[[], object]]:
    """Every part on the first n images, each of which has run once, but for sums and terms."""
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
        clt.decode(codes)
        parts["encode"] = partial(clt.encode, x)
        parts["decode"] = partial(clt.decode, codes)
        parts["terms"] = partial(_terms, clt, codes, vit.cfg.n_layers)
    return parts


def _terms(clt: CrossLayerTranscoder, codes: Codes, n_layers: int) -> None:
    # one target at a time: those of all together take gigabytes with a large ViT
    for layer in range(n_layers):
        clt.contributions(codes, target=layer)
