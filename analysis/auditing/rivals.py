"""Transcoders that the audit holds a CLT against: which ones, and their training."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vit_clt.data.fingerprints import data_fingerprint
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT
from vit_clt.outputs import check_same, read_json, staged_file
from vit_clt.training.trainer import train
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import SPARSIFIERS
from vit_clt.transcoder.train_config import TrainConfig

Role = Literal["per_layer", "variant", "untrained"]
SMALL = 1024
"""Features a layer of the variants, at most, unless every one of them is asked for in full."""
SEEDS = 3
VARIANTS = ("relu_topk", "abs_topk", "jumprelu")
"""Sparsifiers that variants take in place of the CLT's own: the paper's."""
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Rivals:
    """Trained transcoders that a CLT is held against; taken one at a time, so they may be loaded
    as they are asked for."""

    per_layer: Iterable[tuple[str, CrossLayerTranscoder]] = ()
    """Per-layer transcoders of the same ViT (D1), by name."""
    variants: Iterable[tuple[str, CrossLayerTranscoder]] = ()
    """CLTs of the same ViT with other seeds, sparsifiers, initialisations (D8)."""
    untrained: Iterable[tuple[str, HookedViT, CrossLayerTranscoder]] = ()
    """The ViT with shuffled weights, and a CLT trained on it (D11)."""
    trained_on: str = "given, training not known"
    """Images and hyperparameters of the rivals, for captions."""
    trained: Sequence[str] = ()
    """Names of those that were trained for this audit."""
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Folders or Hub ids of those that were trained before: "per_layer", "variants"."""

    def facts(self) -> dict[str, Any]:
        """What metrics.json is to say of them."""
        return {
            "rivals": list(self.trained),
            "rivals_trained_on": self.trained_on,
            "per_layer": list(self.given.get("per_layer", ())),
            "variants": list(self.given.get("variants", ())),
        }


@dataclass(frozen=True)
class SavedCLTs:
    """Transcoders in folders or on the Hub, each loaded when it is reached."""

    places: Mapping[str, Path | str]
    device: str | torch.device = "cpu"

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[str, CrossLayerTranscoder]]:
        for name, place in self.places.items():
            yield name, CrossLayerTranscoder.from_pretrained(place).to(self.device).eval()


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
    variants of at most 1,024 features: three seeds, `VARIANTS` but for its own, and off-diagonal
    decoders that start at zero; one CLT of the untrained ViT. With `full` the variants are every
    seed x sparsifier x initialisation at the CLT's own width. Variants' seeds follow the given one,
    which may be the CLT's own.

    Args:
        config: of the CLT that is audited.
        settings: how rivals are trained; its seed is the first.
        l0: active features a token and layer of every rival (JumpReLU is steered to it).
        full: see above.

    Raises:
        InputError: l0 is not between 1 and the features of the smallest rival, or the config is
            that of a per-layer transcoder.
    """
    n, f = config.n_layers, config.n_features
    small = f if full else min(f, SMALL)
    if not config.cross_layer:
        raise InputError("clt", "is a per-layer transcoder; expected one that reads across layers.")
    if not 1 <= l0 <= small:
        raise InputError("k", f"is {l0}; expected at least 1 and at most {small} features.")
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
        kind = SPARSIFIERS[sparsifier]
        options = settings.sparsity.options_of(kind.training) or kind.training()
        return RivalRun(
            name,
            role,
            replace(
                config,
                sparsifier=kind.for_l0(l0, config.sparsifier),
                n_features=n_features,
                cross_layer=cross_layer,
                zero_cross_init=zero_cross_init,
                teacher=None,
            ),
            replace(settings, seed=settings.seed + seed, sparsity=options.aimed_at(l0)),
        )

    runs = [
        run(f"per-layer, {what}", "per_layer", own, width, cross_layer=False)
        for what, width in (
            ("equal features", f),
            ("equal features a target", f * (n + 1) // 2),
            ("equal parameters", f * (n + 3) // 4),
        )
    ]
    others = [name for name in VARIANTS if name != own]
    if full:
        choices = [
            (name, seed, zero)
            for name in (own, *others)
            for seed in range(1, SEEDS + 1)
            for zero in (False, True)
        ]
    else:
        choices = [(own, seed, False) for seed in range(1, SEEDS + 1)]
        choices += [(name, 1, False) for name in others] + [(own, 1, True)]
    for name, seed, zero in choices:
        title = f"{name}, seed {settings.seed + seed}" + (", zero off-diagonal start" * zero)
        runs.append(run(title, "variant", name, small, seed=seed, zero_cross_init=zero))
    runs.append(run("shuffled weights", "untrained", own, small))
    return runs


def is_finished(run: RivalRun, folder: Path) -> bool:
    """Whether this run's transcoder lies in its place below `folder`."""
    return (_place(run, folder) / "model.safetensors").is_file()


def train_rivals(
    vit: HookedViT,
    data: ImageData,
    runs: Sequence[RivalRun],
    folder: Path,
    *,
    overwrite: bool = False,
    should_stop: Callable[[], bool] | None = None,
    progress: bool = False,
) -> Rivals:
    """Train what is missing in `folder`; a killed training goes on, a finished one stays.

    Args:
        vit: the teacher.
        data: images to train on.
        runs: what to train.
        folder: each run has its own folder there, which is itself a CLT; its run.json says what
            was trained, on which images.
        overwrite: train everything again.
        should_stop: asked after each step; True saves a checkpoint and raises `Stopped`.
        progress: show progress lines.

    Raises:
        InputError: a folder holds a transcoder trained otherwise.
        Stopped: `should_stop` said so.
    """
    untrained = shuffled_weights(vit) if any(r.role == "untrained" for r in runs) else vit
    device = next(vit.parameters()).device
    places: dict[Role, dict[str, Path]] = {"per_layer": {}, "variant": {}, "untrained": {}}
    for run in runs:
        teacher = untrained if run.role == "untrained" else vit
        place = _place(run, folder)
        places[run.role][run.name] = place
        description = {
            "config": run.config.to_json(),
            "settings": asdict(run.settings),
            "teacher": teacher.identity().weights_sha256,
            "data": data_fingerprint(data),
        }
        if overwrite:
            shutil.rmtree(place, ignore_errors=True)
        _check_same(place, description)
        if is_finished(run, folder):
            continue
        with staged_file(place / RUN_FILE) as staging:
            staging.write_text(json.dumps(description, indent=1) + "\n")
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
        shutil.rmtree(place / "checkpoints")
    settings = runs[0].settings if runs else None
    return Rivals(
        per_layer=SavedCLTs(places["per_layer"], device),
        variants=SavedCLTs(places["variant"], device),
        untrained=[(name, untrained, clt) for name, clt in SavedCLTs(places["untrained"], device)],
        trained_on=Rivals.trained_on
        if settings is None
        else f"{data.name}, {len(data)} images, {settings.epochs} epochs of {settings.batch_size} "
        f"rows a step, lr {settings.lr:g}",
        trained=[run.name for run in runs],
    )


def shuffled_weights(vit: HookedViT) -> HookedViT:
    """The ViT with the entries of every parameter of its vision tower permuted.

    An untrained network with the trained one's distribution of weights: what a CLT says of it,
    training did not put there.
    """
    shuffled = copy.deepcopy(vit)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in shuffled.clip.named_parameters():
        if not name.startswith("visual."):
            continue
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return shuffled


def _place(run: RivalRun, folder: Path) -> Path:
    return folder / run.name.replace(", ", "_").replace(" ", "-")


def _check_same(place: Path, now: dict[str, Any]) -> None:
    """Refuse a folder whose transcoder was, or is being, trained otherwise."""
    path = place / RUN_FILE
    if not path.is_file():
        if (place / "model.safetensors").is_file():
            raise InputError(f"{place} holds a transcoder without {RUN_FILE}; expected none.")
        return
    check_same(now, read_json(path), f"the run in {place}", remedy="overwrite")
