"""Transcoders that the audit holds a CLT against: which ones, and their training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from vit_clt.config import CLTConfig
from vit_clt.data import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.sparsifiers import AbsTopK, JumpReLU, ReLUTopK, Sparsifier
from vit_clt.train_config import TrainConfig
from vit_clt.training import train
from vit_clt.transcoder import CrossLayerTranscoder

Role = Literal["per_layer", "variant", "untrained"]
SMALL = 1024
"""Features a layer of the variants, at most, unless every one of them is asked for in full."""
SEEDS = 3


@dataclass(frozen=True)
class Rivals:
    """Trained transcoders that a CLT is held against."""

    per_layer: Mapping[str, CrossLayerTranscoder] = field(default_factory=dict)
    """Per-layer transcoders of the same ViT (D1)."""
    variants: Mapping[str, CrossLayerTranscoder] = field(default_factory=dict)
    """CLTs of the same ViT with other seeds, sparsifiers, initialisations (D8)."""
    untrained: Mapping[str, tuple[HookedViT, CrossLayerTranscoder]] = field(default_factory=dict)
    """The ViT with shuffled weights, and a CLT trained on it (D11)."""


@dataclass(frozen=True)
class RivalRun:
    """One transcoder to be trained."""

    name: str
    role: Role
    config: CLTConfig
    settings: TrainConfig


def planned_rivals(
    config: CLTConfig, settings: TrainConfig, l0: int, *, full: bool = False
) -> list[RivalRun]:
    """The rivals of a CLT of this shape.

    Per-layer transcoders at the CLT's k with as many features a layer, with as many features for a
    target to read ((L + 1) / 2 times as many a layer, on average), and with as many parameters;
    variants of at most 1,024 features: three seeds, the two other sparsifiers, and off-diagonal
    decoders that start at zero; one CLT of the untrained ViT. With `full` the variants are every
    seed x sparsifier x initialisation at the CLT's own width.

    Args:
        config: of the CLT that is audited.
        settings: how rivals are trained; its seed is the first.
        l0: active features a token and layer of every rival (JumpReLU is steered to it).
        full: see above.

    Raises:
        InputError: l0 is not between 1 and the features of the smallest rival.
    """
    n, f = config.n_layers, config.n_features
    small = f if full else min(f, SMALL)
    if not 1 <= l0 <= small:
        raise InputError(f"l0 is {l0}; expected at least 1 and at most {small} features.")
    own = config.sparsifier.name

    def run(
        name: str,
        role: Role,
        sparsifier: str,
        n_features: int,
        *,
        seed: int = 0,
        cross_layer: bool = True,
        zero_cross_init: bool = False,
    ) -> RivalRun:
        kind = _sparsifier(sparsifier, l0, config.sparsifier)
        return RivalRun(
            name,
            role,
            replace(
                config,
                sparsifier=kind,
                n_features=n_features,
                cross_layer=cross_layer,
                zero_cross_init=zero_cross_init,
                teacher=None,
            ),
            replace(
                settings,
                seed=settings.seed + seed,
                l0=l0 if isinstance(kind, JumpReLU) else None,
            ),
        )

    runs = [
        run(f"per-layer, {what}", "per_layer", own, width, cross_layer=False)
        for what, width in (
            ("equal features", f),
            ("equal features a target", f * (n + 1) // 2),
            ("equal parameters", f * (n + 3) // 4),
        )
    ]
    others = [name for name in ("relu_topk", "abs_topk", "jumprelu") if name != own]
    if full:
        choices = [
            (name, seed, zero)
            for name in (own, *others)
            for seed in range(SEEDS)
            for zero in (False, True)
        ]
    else:
        choices = [(own, seed, False) for seed in range(SEEDS)]
        choices += [(name, 0, False) for name in others] + [(own, 0, True)]
    for name, seed, zero in choices:
        title = f"{name}, seed {settings.seed + seed}" + (", zero off-diagonal start" * zero)
        runs.append(run(title, "variant", name, small, seed=seed, zero_cross_init=zero))
    runs.append(run("shuffled weights", "untrained", own, small))
    return runs


def train_rivals(
    vit: HookedViT,
    data: ImageData,
    runs: Sequence[RivalRun],
    folder: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    progress: bool = False,
) -> Rivals:
    """Train what is missing in `folder`, load what is there; a killed training goes on.

    Args:
        vit: the teacher.
        data: images to train on.
        runs: what to train.
        folder: each run has its own folder there, which is itself a CLT.
        should_stop: asked after each step; True saves a checkpoint and raises `Stopped`.
        progress: show progress lines.

    Raises:
        InputError: a folder holds another run's transcoder.
        Stopped: `should_stop` said so.
    """
    found: dict[Role, dict[str, CrossLayerTranscoder]] = {}
    untrained = shuffled_weights(vit) if any(r.role == "untrained" for r in runs) else vit
    for run in runs:
        place = folder / run.name.replace(", ", "_").replace(" ", "-")
        teacher = untrained if run.role == "untrained" else vit
        clt = _finished(place, run)
        if clt is None:
            clt = train(
                teacher,
                data,
                run.config,
                run.settings,
                checkpoints=place / "checkpoints",
                resume=True,
                should_stop=should_stop,
                progress=progress,
            )
            clt.save_pretrained(place)
        found.setdefault(run.role, {})[run.name] = clt.to(next(vit.parameters()).device).eval()
    return Rivals(
        per_layer=found.get("per_layer", {}),
        variants=found.get("variant", {}),
        untrained={name: (untrained, clt) for name, clt in found.get("untrained", {}).items()},
    )


def shuffled_weights(vit: HookedViT, seed: int = 0) -> HookedViT:
    """The ViT with the entries of every parameter of its vision tower permuted.

    An untrained network with the trained one's distribution of weights: what a CLT says of it,
    training did not put there.
    """
    shuffled = copy.deepcopy(vit)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in shuffled.clip.named_parameters():
        if not name.startswith("visual."):
            continue
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return shuffled


def _sparsifier(name: str, l0: int, own: Sparsifier) -> Sparsifier:
    if name == "jumprelu":
        return own if isinstance(own, JumpReLU) else JumpReLU()
    return ReLUTopK(k=l0) if name == "relu_topk" else AbsTopK(k=l0)


def _finished(place: Path, run: RivalRun) -> CrossLayerTranscoder | None:
    if not (place / "model.safetensors").is_file():
        return None
    try:
        clt = CrossLayerTranscoder.from_pretrained(place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{place} holds no readable transcoder: {error}.") from error
    if replace(clt.config, teacher=None) != run.config:
        raise InputError(
            f"{place} holds a transcoder of another shape or sparsifier than {run.name}; expected "
            "that run's own, or no folder."
        )
    return clt
