"""Loads a model of open_clip by name, once what it is made of is known to fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from torch import Tensor, nn

from vit_clt.choices import Gelu
from vit_clt.errors import InputError
from vit_clt.hooks.teacher_files import check_teacher_files
from vit_clt.hooks.tokenizers import load_tokenizer
from vit_clt.hooks.towers.activation import check_file, check_tag
from vit_clt.hooks.towers.names import random_seed
from vit_clt.hooks.towers.open_clip_names import check_listed
from vit_clt.hooks.towers.weights import Weights, WeightsFile, fill, read_weights, told
from vit_clt.inputs import expanded, reading
from vit_clt.seeding import seeded_globally
from vit_clt.teachers import shipped_teacher
from vit_clt.tensor_files import check_finite

_VISUAL = "visual."


class LoadedClip(NamedTuple):
    """A model, and what prepares its inputs."""

    model: nn.Module
    """A CLIP or CoCa, or a vision tower if the weights have no text tower."""
    preprocess: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor] | None


def load_open_clip(
    name: str, pretrained: str | None, gelu: Gelu | None, device: str | torch.device
) -> LoadedClip:
    """A model of open_clip in fp32, as of `HookedViT.from_open_clip`.

    Warns:
        UserWarning: weights of a file were renamed, stretched or left out, or have no text tower.

    Raises:
        InputError: as of `HookedViT.from_open_clip`.
    """
    place = expanded(shipped_teacher(name) or name)
    has_own_weights = place.startswith(("local-dir:", "hf-hub:"))
    if has_own_weights and pretrained is not None:
        raise InputError(
            "pretrained",
            f'is "{pretrained}"; model "{name}" carries its own weights, expected none.',
        )
    if has_own_weights:
        check_teacher_files(place)
    listed = place.replace("/", "-")
    file: WeightsFile | None = None
    seed = random_seed(pretrained)
    if pretrained is not None:
        check_listed(listed)
    if pretrained is not None and seed is None:
        path = Path(expanded(pretrained))
        if open_clip.get_pretrained_cfg(listed, pretrained):
            check_tag(listed, pretrained)
        # what Google publishes as .npz has no other activation function, and open_clip converts it
        elif path.exists() and path.suffix != ".npz" and listed in open_clip.list_models():
            file = read_weights(path)
            check_file(listed, file, gelu)
    what = f'"{name}" with the weights "{pretrained}"'
    expected = "an open_clip name and tag, or readable weights"
    with reading(what, expected, problem="cannot be loaded", field="model"):
        with _without_notice(), nullcontext() if seed is None else seeded_globally(seed):
            clip, _, preprocess = open_clip.create_model_and_transforms(
                place,
                pretrained=None if file or seed is not None else pretrained,
                device=device,
                precision="fp32",
                require_pretrained=has_own_weights,
            )
        if file is not None and (visual := _fill_from(clip, file)) is not None:
            return LoadedClip(visual, preprocess, None)
        if has_own_weights or pretrained is not None:
            check_finite(f'model "{name}"', clip.state_dict())
            check_finite(f'model "{name}"', {"exp(logit_scale)": clip.logit_scale.exp()})
        return LoadedClip(clip, preprocess, load_tokenizer(place))


@contextmanager
def _without_notice() -> Iterator[None]:
    """Silence open_clip's "No pretrained weights loaded", of weights that come later or are asked
    to be random."""
    root = logging.getLogger()

    def keep(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def _fill_from(clip: Any, file: WeightsFile) -> nn.Module | None:
    """Fill `clip`, or its vision tower alone, which is then returned, if the file has no more."""
    names = clip.state_dict().keys()
    weights = file.named_as(names)
    tensors = _converted(clip, weights.tensors)
    if not any(name.startswith(_VISUAL) for name in tensors.keys() & names):
        tower = clip.visual.state_dict().keys()
        weights = file.named_as(tower)
        tensors = {_VISUAL + name: tensor for name, tensor in weights.tensors.items()}
    notes = _stretched(clip, tensors)
    texts = [n for n in tensors.keys() & names if not n.startswith((_VISUAL, "logit_"))]
    if texts:
        modules = {name.partition(".")[0] for name in names}
        left_out = fill(clip, tensors, file.path, lambda n: n.partition(".")[0] not in modules)
        _tell(file, weights, left_out, notes)
        return None
    of_tower = {n.removeprefix(_VISUAL): t for n, t in tensors.items() if n.startswith(_VISUAL)}
    left_out = fill(clip.visual, of_tower, file.path, lambda n: n.startswith(("head.", "logit_")))
    _tell(file, weights, left_out, [*notes, "the model has no text tower, as the file has none"])
    visual: nn.Module = clip.visual
    return visual


def _converted(clip: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of `clip`, as open_clip converts those of other writers."""
    tensors = dict(convert_state_dict(clip, tensors))
    if "positional_embedding" in tensors and not hasattr(clip, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and getattr(clip, name, None) is not None:
            tensors[name] = tensors[name].reshape(getattr(clip, name).shape)
    return {name: t for name, t in tensors.items() if not name.endswith("position_ids")}


def _stretched(clip: Any, tensors: dict[str, Tensor]) -> list[str]:
    """Stretch embeddings of positions to the size of `clip`, as open_clip does; what was done."""
    before = {name: tensor.shape for name, tensor in tensors.items()}
    resize_pos_embed(tensors, clip)
    resize_text_pos_embed(tensors, clip)
    changed = [name for name, shape in before.items() if tensors[name].shape != shape]
    return [f"{name} is stretched from {before[name][0]} positions" for name in changed]


def _tell(file: WeightsFile, weights: Weights, left_out: list[str], notes: list[str]) -> None:
    parts = [*told(weights, left_out), *notes]
    if parts:
        warnings.warn(f"{file.path.name}: {'; '.join(parts)}.", stacklevel=2)
