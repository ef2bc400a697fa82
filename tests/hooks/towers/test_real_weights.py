"""A ViT-S/14 of DINOv2's layout with weights of others, by transformers and by timm."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from builders import random_clt
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from vit_clt.analysis import contribution_scores
from vit_clt.hooks import HookedViT
from vit_clt.hooks.passes.clean import CleanPass
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, RESID_MID, RESID_POST

FOLDER = Path(
    os.environ.get("DINOV2_SMALL")
    or Path(os.environ.get("VIT_CLT_DATA", ""), "teachers", "dinov2_small")
)
pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(),
    reason="DINOV2_SMALL names no folder, and VIT_CLT_DATA holds no teachers/dinov2_small",
)
# transformers' names of tensors, and those of DINOv2's own code
RENAMES = {
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.": "",
    r"^encoder\.layer\.": "blocks.",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"^layernorm\.": "norm.",
}
PARTS = ("query", "key", "value")
SMALL = torch.randn(2, 3, 98, 98, generator=torch.Generator().manual_seed(0))
"""Two images of 50 token rows."""


def in_dinov2s_names() -> dict[str, Tensor]:
    """The weights as DINOv2's own code names them, with queries, keys and values in one."""
    found = {}
    for name, tensor in load_file(FOLDER / "model.safetensors").items():
        for pattern, new in RENAMES.items():
            name = re.sub(pattern, new, name)
        found[name] = tensor
    for first in [name for name in found if ".attention.attention.query." in name]:
        parts = [found.pop(first.replace("query", part)) for part in PARTS]
        found[first.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return found


def test_the_same_activations_by_transformers_and_by_timm() -> None:
    by_transformers = HookedViT.load(f"hf:{FOLDER}")
    assert by_transformers.cfg.image_size == (518, 518)  # positions are interpolated nowhere
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    model.load_state_dict(checkpoint_filter_fn(in_dinov2s_names(), model), strict=True)
    by_timm = HookedViT(model)
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    names = [point.format(l=l) for point in (HOOK_IN, HOOK_OUT, RESID_POST) for l in range(12)]
    with torch.no_grad():
        ours, first = by_transformers.run_clean(images, names)
        theirs, second = by_timm.run_clean(images, names)
    for name in names:
        scale = second[name].abs().max()
        assert (first[name] - second[name]).abs().max() < 1e-5 * scale, name
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_smaller_images_as_the_model_itself_takes_them() -> None:
    loaded = HookedViT.load(f"hf:{FOLDER}").model
    vit = HookedViT(loaded, image_size=98)
    assert vit.cfg.n_tokens == 50
    assert torch.equal(vit(SMALL), loaded(SMALL).pooler_output)


def test_layer_scale_stands_between_y_and_the_stream() -> None:
    vit = HookedViT(HookedViT.load(f"hf:{FOLDER}").model, image_size=98)
    layers = range(vit.cfg.n_layers)
    clean = CleanPass(vit, SMALL, {RESID_MID: layers, HOOK_OUT: layers, RESID_POST: layers})
    for l in layers:
        y, gamma = clean.at(HOOK_OUT, l), vit.model.encoder.layer[l].layer_scale2.lambda1
        assert torch.equal(clean.at(RESID_POST, l), clean.at(RESID_MID, l) + gamma * y)
        # these weights scale y by very different factors, so that nothing above holds by chance
        assert (gamma.abs().mean() - 1).abs() > 0.05
    assert torch.equal(clean.from_mlp(6, clean.at(HOOK_OUT, 6)), clean.embeddings)


def test_scores_of_every_target_sum_to_one() -> None:
    vit = HookedViT(HookedViT.load(f"hf:{FOLDER}").model, image_size=98)
    for tokens in ("cls", "patch"):
        scores = contribution_scores(vit, random_clt(vit), SMALL, tokens=tokens)
        whole = scores.matrix.nansum(1) + scores.bias
        torch.testing.assert_close(whole, torch.ones_like(whole))
