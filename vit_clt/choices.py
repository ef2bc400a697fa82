"""The values that options take, declared once for the library and the command line.

This module does not import torch, so that the command line can list the values quickly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vit_clt.errors import InputError

# the CLT and its training
SparsifierName = Literal["relu_topk", "abs_topk", "jumprelu", "batch_topk"]
PaperSparsifier = Literal["jumprelu", "relu_topk", "abs_topk"]
"""The sparsifiers of the source paper."""
TranscoderKind = Literal["clt", "plt"]
"""A cross-layer transcoder, or a per-layer one."""
Preset = Literal["paper", "small", "demo"]
Backend = Literal["auto", "dense", "sparse"]
LrSchedule = Literal["linear", "cosine", "constant"]
Start = Literal["drawn", "centred"]
"""Weights as drawn and biases at zero, or fitted to the means of the activations."""
Optimiser = Literal["adamw", "adamw8bit"]
Precision = Literal["fp32", "tf32", "bf16"]
Unreadable = Literal["stop", "skip"]

# the ViT
Gelu = Literal["gelu", "quickgelu"]
"""The activation function that weights of a CLIP were trained with."""
TokenKind = Literal["cls", "register", "patch", "all"]
Region = Literal["all", "cls", "register", "patch", "left_half", "right_half"]
"""Rows by place: a `TokenKind`, or one half of the patch grid."""
Inputs = Literal["stream", "teacher"]
"""The pass that the codes of a replacement come from: the live stream, or a clean pass."""
Site = Literal["mlp", "attn"]
"""Which output of a block is overwritten."""
CausalSite = Literal[Site, "head"]
"""What is ablated: the output of a layer's MLP or attention, or that of one attention head."""
EditKind = Literal["clamp", "scale"]
Norms = Literal["held", "differentiated"]
"""Whether a frozen pass holds the norms constant or takes gradients through them."""
NormsChoice = Literal["auto", Norms]
"""Norms by name, or those under which effects foretell interventions."""

# studies
Readout = Literal["text", "head", "linear"]
"""How classes are read from embeddings: by the text tower, by the model's own classifier, or by a
linear classifier fitted on other images."""
Templates = Literal["single", "ensemble"]
"""Zero-shot prompts: one, or the 18 CIFAR templates."""
ContributionKind = Literal["projection", "centred", "norm", "loo", "loo_r2"]
"""From which depth y_l is read: C(s->l)."""
ScoreKind = Literal[ContributionKind, "effect"]
"""What a source layer is to a target: a contribution score, or what silencing the source changes
there, E(s->l)."""
EffectPath = Literal["total", "direct"]
"""Whether everything downstream of an ablation answers to it, or one reader alone sees it."""
EffectOrder = Literal["exact", "first"]
"""Whether effects are measured in altered passes, or to first order from gradients."""
Reduce = Literal["mean_of_ratios", "ratio_of_means"]
Ranking = Literal[ScoreKind, "last", "bottom", "random"]
"""An order of sources: a score, highest first; "last", deepest first; "bottom", the lowest score
first; or "random"."""
Fill = Literal["zero", "mean", "resample"]
"""What takes the place of a dropped term or an ablated output."""
Rule = Literal["spread", "rate", "effect", "purity", "random"]
"""How the features that get a page are selected."""
MAX_GROUPS = 2**16
"""The most groups that images are added up in, by default: some 15 kB each of contribution sums."""
KEPT_BYTES = 2 * 10**9
"""The most bytes of codes or terms of images that are kept between passes over them, by default."""
GroupRule = Literal["decoder", "name"]
"""How nodes of a graph are grouped: features that write alike, or that have one name."""
SearchBackend = Literal["exact", "faiss"]
Backbone = Literal["ViT-B/32", "ViT-B/16"]
ExportFormat = Literal["circuit-tracer"]


def check_choice(field: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of `choices`, such as `typing.get_args` of a Literal.

    Raises:
        InputError: the sentence has the field, the value and the choices.
    """
    known = list(choices)
    if value not in known:
        listed = ", ".join(f'"{choice}"' for choice in known)
        raise InputError(field, f'is "{value}"; expected one of {listed}.')
