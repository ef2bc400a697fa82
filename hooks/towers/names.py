"""Names of ViTs: `hf:NAME`, `timm:NAME` with or without a checkpoint, or a name of open_clip."""

from __future__ import annotations

import re

from vit_clt.errors import InputError
from vit_clt.teachers import SHIPPED

HF, TIMM = "hf:", "timm:"
_RANDOM = re.compile(r"random(?::(\d{1,18}))?", re.ASCII)


def split_name(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """`timm:NAME:CHECKPOINT` as `timm:NAME` and its checkpoint; other names as they are.

    Raises:
        InputError: a checkpoint is named twice.
    """
    if not model.startswith(TIMM):
        return model, pretrained
    name, colon, checkpoint = model.removeprefix(TIMM).partition(":")
    if colon and pretrained is not None:
        raise InputError(
            "pretrained", f'is "{pretrained}"; model "{model}" names a checkpoint, expected none.'
        )
    return TIMM + name, checkpoint if colon else pretrained


def has_own_weights(model: str) -> bool:
    """Whether a model is named together with its weights."""
    return model.startswith(("local-dir:", "hf-hub:", HF)) or model in SHIPPED


def random_seed(pretrained: str | None) -> int | None:
    """The seed of random weights, "random:SEED" or "random" (seed 0); None for other weights.

    Raises:
        InputError: it begins with "random:" and names no seed.
    """
    if pretrained is None or not (found := _RANDOM.fullmatch(pretrained)):
        if pretrained is not None and pretrained.startswith("random:"):
            raise InputError(
                "pretrained", f'is "{pretrained}"; expected the number of a seed, as in random:7.'
            )
        return None
    return int(found[1] or 0)


def recorded_name(pretrained: str | None) -> str | None:
    """The name of weights as a CLT records it: random ones with their seed."""
    seed = random_seed(pretrained)
    return pretrained if seed is None else f"random:{seed}"
