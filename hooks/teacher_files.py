"""What is checked before a ViT is loaded: which ViTs a CLT may name, and the files of a folder.

A CLT of others says on which ViT it was trained. It does not decide what is read from the disk or
fetched from the Hub: unasked, only ViTs are loaded that come with this package, or that open_clip
itself lists with its weights, or that are drawn at random. Every other ViT is named by the user.

The files of a ViT (`local-dir:PATH` and `hf-hub:NAME`) may hold sizes, options of known names and
finite numbers. They may not name code or further models, and not ask for more numbers than the
weights have.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip import factory
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from open_clip.transform import PreprocessCfg

from vit_clt.errors import InputError
from vit_clt.hooks.towers.known_names import OPEN_CLIP_FILES, local_files
from vit_clt.hooks.towers.names import TIMM, random_seed
from vit_clt.hooks.towers.open_clip_names import shape_of_config
from vit_clt.inputs import file_size, read_json, reading
from vit_clt.teachers import SHIPPED
from vit_clt.tensor_files import check_floats, read_header
from vit_clt.transcoder.config import TeacherIdentity
from vit_clt.typed import made

CONFIG_FILE, WEIGHTS_FILE = OPEN_CLIP_FILES
TOKENIZER_OPTIONS = {"clean": str, "strip_sep_token": bool, "language": str}
"""Options of a tokenizer that a file may set."""
# each with its largest value; the smallest is 1
_SIZES = {
    "layers": 256,
    "width": 16_384,
    "head_width": 16_384,
    "heads": 1024,
    "patch_size": 4096,
    "image_size": 4096,
    "mlp_ratio": 64,
    "attn_pooler_queries": 4096,
    "attn_pooler_heads": 1024,
    "context_length": 4096,
    "vocab_size": 2_000_000,
    "embed_dim": 16_384,
}
_TOKENS = 100_000
_BOTH = (
    *("layers", "width", "mlp_ratio", "ls_init_value", "final_ln_after_pool", "pool_type"),
    *("output_tokens", "act_kwargs", "norm_kwargs", "block_type", "qk_norm"),
    *("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
)
_VISION = (
    *_BOTH,
    *("head_width", "patch_size", "image_size", "patch_dropout", "attentional_pool"),
    *("attn_pooler_queries", "attn_pooler_heads", "no_ln_pre", "pos_embed_type"),
    *("timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
)
_TEXT = (
    *_BOTH,
    *("context_length", "vocab_size", "heads", "embed_cls", "pad_id", "eos_id", "no_causal_mask"),
    *("proj_bias", "proj_type", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"),
)
_CLIP = {
    "embed_dim": int,
    "vision_cfg": dict,
    "text_cfg": dict,
    "quick_gelu": bool,
    "custom_text": bool,
    "init_logit_scale": float,
    "init_logit_bias": float,
    "nonscalar_logit_scale": bool,
}


_ON_THE_HUB = "a repository of the Hub with an open_clip model"


def unasked(teacher: TeacherIdentity, pretrained: str | None = None) -> tuple[str, str | None]:
    """The name and the weights of a CLT's ViT, where it may be loaded without being named.

    Args:
        teacher: what the CLT says.
        pretrained: weights that the user has named, in place of the CLT's.

    Raises:
        InputError: the ViT neither comes with this package, nor is one of open_clip's own names
            with one of its own tags, nor a name of open_clip or timm with random weights.
    """
    model, tag = teacher.model, pretrained or teacher.pretrained
    if model in SHIPPED:
        return model, pretrained
    is_drawn = random_seed(tag) is not None
    if is_drawn and model.startswith(TIMM) and timm.is_model(model.removeprefix(TIMM)):
        return model, tag
    if model not in open_clip.list_models():
        raise InputError(
            "model",
            f'is missing; the CLT was trained on "{model[:100]}", which a CLT alone cannot have '
            "loaded: expected the name of that ViT, or of one with the same weights.",
        )
    is_known = tag is None or is_drawn or open_clip.get_pretrained_cfg(model, tag)
    if pretrained is None and not is_known:
        raise InputError(
            "pretrained",
            f'is missing; the CLT was trained on model "{model}" with the weights '
            f'"{str(tag)[:100]}", which a CLT alone cannot have loaded: expected an open_clip tag '
            "or a file with them.",
        )
    return model, tag


def check_teacher_files(model: str) -> None:
    """Check the files of `local-dir:PATH` or `hf-hub:NAME` before anything is made of them.

    Raises:
        InputError: a file is missing or unreadable, has a field of another name or type, a size out
            of range, or asks for more numbers than the weights have; or weights that are no floats.
    """
    name = model.removeprefix(HF_HUB_PREFIX)
    if model.startswith(LOCAL_DIR_PREFIX):
        config, weights = local_files(model)
    else:
        with reading(model, _ON_THE_HUB, field="model"):
            config = Path(factory.download_pretrained_from_hf(name, filename=CONFIG_FILE))
    with reading(config, "that of an open_clip model with a vision transformer"):
        needed = _numbers(read_json(config))
    if model.startswith(HF_HUB_PREFIX):  # large, and fetched once the model is known to fit
        with reading(model, _ON_THE_HUB, field="model"):
            weights = Path(factory.download_pretrained_from_hf(name))
    n_numbers = file_size(weights)  # a number takes a byte at least
    if weights.suffix == ".safetensors":
        tensors = read_header(weights).tensors
        # indices that are kept beside weights
        floats = {name: t for name, t in tensors.items() if not name.endswith("position_ids")}
        check_floats(weights, floats)
        n_numbers = sum(prod(tensor.shape) for tensor in tensors.values())
    if needed > n_numbers:
        raise InputError(
            f"{config} asks for a model of at least {needed:,} numbers; expected at most "
            f"{n_numbers:,}, as {weights.name} has."
        )


def _numbers(document: Mapping[str, Any]) -> int:
    """A lower bound of the numbers in the weights of a model, once its fields are checked."""
    model = _known(document["model_cfg"], _CLIP, "model_cfg")
    vision = made(open_clip.CLIPVisionCfg, _known(model["vision_cfg"], _VISION, "vision_cfg"))
    text = made(open_clip.CLIPTextCfg, _known(model["text_cfg"], _TEXT, "text_cfg"))
    made(PreprocessCfg, document.get("preprocess_cfg") or {})
    d_embed = model["embed_dim"]
    _check_sizes({"embed_dim": d_embed})
    for part in (vision, text):
        _check_sizes(vars(part))
    _known(text.tokenizer_kwargs or {}, TOKENIZER_OPTIONS, "tokenizer_kwargs")
    size = vision.image_size
    height, across = size if isinstance(size, tuple) else (size, size)
    tokens = (height // vision.patch_size) * (across // vision.patch_size)
    if tokens > _TOKENS:
        raise ValueError(f"an image has {tokens:,} patches, and at most {_TOKENS:,} are read")
    if vision.timm_model_name is not None:
        if not timm.is_model(vision.timm_model_name):  # others would be fetched
            raise ValueError(f'timm has no model "{vision.timm_model_name[:50]}"')
        tower = shape_of_config(model)
        needed = sum(p.numel() for block in tower.blocks for p in block.native.parameters())
        return needed + _transformer(text) + text.vocab_size * text.width
    # open_clip stretches embeddings of positions, which may thus be fewer in the weights
    shape_of_config(model)
    return (
        _transformer(vision)
        + (3 * vision.patch_size**2 + d_embed) * vision.width
        + _transformer(text)
        + text.vocab_size * text.width
    )


def _transformer(part: Any) -> int:
    attention, mlp = 4 * part.width, 2 * int(part.width * part.mlp_ratio)
    layers: int = part.layers * part.width * (attention + mlp)
    return layers


def _known(values: Any, names: Any, where: str) -> dict[str, Any]:
    """The values, whose names must be known, and their types where `names` says them."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is no object")
    for name, value in values.items():
        if name not in names:
            raise ValueError(f'{where} has "{name[:50]}", which is not among the options read')
        if isinstance(names, dict) and not _is(value, names[name]):
            raise ValueError(f"{name} of {where} is no {names[name].__name__}")
    return values


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, int | float if kind is float else kind)


def _check_sizes(values: Mapping[str, Any]) -> None:
    for name in sorted(values.keys() & _SIZES.keys()):
        value, most = values[name], _SIZES[name]
        # an image may have a height and a width
        each = value if name == "image_size" and isinstance(value, tuple) else [value]
        if not all(isinstance(v, int | float) and 1 <= v <= most for v in each):
            raise ValueError(f"{name} is {str(value)[:50]}, and must be from 1 to {most}")
