"""Several saved CLTs, each loaded when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(frozen=True)
class SavedCLTs:
    """Names and transcoders, each loaded from its folder or the Hub when it is reached."""

    places: Mapping[str, Path | str]
    """Folder or Hub id by name."""
    device: str | torch.device = "cpu"
    any_teacher: bool = False
    """Forget which model each was trained on, so that it attaches wherever its shape fits."""

    @classmethod
    def named(
        cls, places: Sequence[str], device: str | torch.device, *, any_teacher: bool = False
    ) -> SavedCLTs:
        """The CLTs at these places, named as `distinct_names` does."""
        return cls(dict(zip(distinct_names(places), places, strict=True)), device, any_teacher)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[str, CrossLayerTranscoder]]:
        for name, place in self.places.items():
            clt = CrossLayerTranscoder.from_pretrained(place).to(self.device).eval()
            if self.any_teacher:
                clt.forget_teacher()
            yield name, clt


def distinct_names(places: Sequence[str]) -> list[str]:
    """The last part of each folder or Hub id, or the whole of each if two last parts are alike."""
    last_parts = [Path(place).resolve().name for place in places]
    return last_parts if len(set(last_parts)) == len(places) else list(places)
