"""Cascaded replacement: layers s..L-1 replaced at once, for each s, beside its floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_clt.activations import capture
from vit_clt.analysis.readings import Readings, gather_readings
from vit_clt.data import ImageData, as_image_data
from vit_clt.hooks import (
    HookedViT,
    TokenKind,
    check_fits,
    layer_list,
    overwrite_mlp_hooks,
    replacement_hooks,
    token_rows,
)
from vit_clt.hooks.hooked_vit import HOOK_IN
from vit_clt.hooks.replacement import Inputs
from vit_clt.transcoder import CrossLayerTranscoder
from vit_clt.zero_shot import Outcome, ZeroShot


@dataclass(frozen=True)
class Cascade:
    """Readings of the ranges first..L-1 for one token kind, each with its zero and mean floors."""

    readings: Readings
    """Versions "original" and, per first layer s, "replaced_s", "floor_zero_s", "floor_mean_s"."""
    first_layers: list[int]
    n_layers: int
    tokens: TokenKind
    inputs: Inputs
    data: str

    def to_frame(self) -> pd.DataFrame:
        """One row per range; accuracies are fractions, losses nats."""
        original = self.readings["original"]
        rows = []
        for s in self.first_layers:
            zero, mean = self.readings[f"floor_zero_{s}"], self.readings[f"floor_mean_{s}"]
            rows.append(
                {
                    "tokens": self.tokens,
                    "first_layer": s,
                    "last_layer": self.n_layers - 1,
                    "inputs": self.inputs,
                    **self.readings[f"replaced_{s}"].columns(),
                    "baseline": original.top1,
                    "floor_zero": zero.top1,
                    "floor_mean": mean.top1,
                    "loss_baseline": original.loss,
                    "loss_floor_zero": zero.loss,
                    "loss_floor_mean": mean.loss,
                }
            )
        return pd.DataFrame(rows)


@torch.no_grad()
def cascade(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    data: ImageData,
    zs: ZeroShot,
    *,
    tokens: TokenKind = "cls",
    inputs: Inputs = "stream",
    first_layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Cascade:
    """Zero-shot accuracy and loss with the CLT in place of layers s..L-1, for each s.

    Args:
        vit: the teacher.
        clt: its transcoder.
        data: labelled images.
        zs: the zero-shot classifier.
        tokens: rows replaced.
        inputs: where codes come from, "stream" or "teacher".
        first_layers: the values of s; all layers by default.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        InputError: an argument out of range, labels without names, or a CLT of another model.
    """
    data = as_image_data(data)
    check_fits(vit, clt)
    n = vit.cfg.n_layers
    firsts = layer_list(range(n) if first_layers is None else first_layers, n)
    rows = token_rows(tokens, vit.cfg.has_cls)
    means = mean_mlp_outputs(vit, data)
    device = clt.b_dec.device
    names = [HOOK_IN.format(l=l) for l in range(n)]
    outcomes: dict[str, list[Outcome]] = {"original": []}
    for images, labels in tqdm(data, f"cascade ({tokens})", disable=not progress):
        images = images.to(device)
        outcomes["original"].append(zs.read(vit(images), labels))
        clean = vit.clean_cache(images, names) if inputs == "teacher" else None
        for s in firsts:
            layers = range(s, n)
            hooks = replacement_hooks(clt, layers=layers, tokens=tokens, inputs=inputs, clean=clean)
            replaced = vit.run_with_hooks(images, fwd_hooks=hooks)
            zero = vit.run_with_hooks(images, fwd_hooks=overwrite_mlp_hooks(layers, tokens))
            values = {l: means[l, rows] for l in layers}
            mean = vit.run_with_hooks(images, fwd_hooks=overwrite_mlp_hooks(layers, tokens, values))
            for name, embeddings in (
                ("replaced", replaced),
                ("floor_zero", zero),
                ("floor_mean", mean),
            ):
                outcomes.setdefault(f"{name}_{s}", []).append(zs.read(embeddings, labels))
    readings = gather_readings(outcomes, seed, data.label_sets)
    return Cascade(readings, firsts, n, tokens, inputs, data.name)


@torch.no_grad()
def mean_mlp_outputs(vit: HookedViT, data: ImageData) -> Float[Tensor, "layer token d_model"]:
    """Mean of every y_l over the images, per token position (summed in float64)."""
    device = next(vit.parameters()).device
    total = torch.zeros(
        vit.cfg.n_layers, vit.cfg.n_tokens, vit.cfg.d_model, dtype=torch.float64, device=device
    )
    for images, _ in data:
        total += capture(vit, images.to(device)).y.double().sum(1)
    return (total / len(data)).float()
