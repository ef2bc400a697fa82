"""Names of ViTs: `hf:NAME`, `timm:NAME` with or without a checkpoint, or a name of open_clip."""

from __future__ import annotations

from vit_clt.errors import InputError

HF, TIMM = "hf:", "timm:"


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
