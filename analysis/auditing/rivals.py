"""The transcoders that the audit compares a CLT with: which ones, and their training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from vit_clt.choices import PaperSparsifier, SparsifierName
from vit_clt.data.fingerprints import data_fingerprint
from vit_clt.data.images import ImageData
from vit_clt.errors import InputError
from vit_clt.hooks import HookedViT, check_fits
from vit_clt.inputs import read_json
from vit_clt.outputs import OutputFolder, check_same
from vit_clt.outputs.manifest import MANIFEST_FILE, Manifest, is_whole
from vit_clt.training.checkpoints import Checkpoints
from vit_clt.training.trainer import train
from vit_clt.transcoder.checkpoints import CARD_FILE
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.saved import SavedCLTs
from vit_clt.transcoder.saved_files import CONFIG_FILE, WEIGHTS_FILE
from vit_clt.transcoder.sparsifiers import SPARSIFIERS
from vit_clt.transcoder.train_config import TrainConfig

Role = Literal["per_layer", "variants", "untrained"]
SMALL = 1024
"""The most features a layer of a variant, unless the full set of variants is asked for."""
SEEDS = 3
VARIANTS = [name for name in get_args(SparsifierName) if name in get_args(PaperSparsifier)]
"""Sparsifiers that variants take in place of the CLT's own; they are the paper's."""
RUN_FILE = "run.json"
FILES = (RUN_FILE, CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, MANIFEST_FILE)
"""Files of a rival, in its folder."""


@dataclass(frozen=True)
class Rivals:
    """Trained transcoders that the audit compares a CLT with.

    They are taken one at a time, so that an iterable may load each when it is reached.
    """

    per_layer: Iterable[tuple[str, CrossLayerTranscoder]] = ()
    """Per-layer transcoders of the same ViT (D1), by name."""
    variants: Iterable[tuple[str, CrossLayerTranscoder]] = ()
    """CLTs of the same ViT with other seeds, sparsifiers, initialisations (D8)."""
    untrained: Iterable[tuple[str, HookedViT, CrossLayerTranscoder]] = ()
    """The ViT with shuffled weights, and CLTs trained on it (D11), by name."""
    trained_on: str = "given, training not known"
    """Images and hyperparameters of the rivals, for captions."""
    trained: Sequence[str] = ()
    """Names of the rivals that were trained for this audit."""
    given: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Folders or Hub ids of rivals that were trained before, under "per_layer" and "variants"."""

    def facts(self) -> dict[str, Any]:
        """Facts on the rivals for metrics.json."""
        return {
            "rivals": list(self.trained),
            "rivals_trained_on": self.trained_on,
            "per_layer": list(self.given.get("per_layer", ())),
            "variants": list(self.given.get("variants", ())),
        }


@dataclass(frozen=True)
class RivalRun:
    """The training of one rival."""

    name: str
    role: Role
    config: CLTConfig
    settings: TrainConfig


def planned_rivals(
    config: CLTConfig, settings: TrainConfig, l0: int | None, *, full: bool = False
) -> list[RivalRun]:
    """The trainings of all rivals of a CLT of this shape.

    There are three per-layer transcoders: one with as many features a layer as the CLT, one with as
    many features for a target to read ((L + 1) / 2 times as many a layer, on average), and one with
    as many parameters. Variants have at most 1,024 features: three differ in the seed, one for each
    further sparsifier of `VARIANTS`, and one has off-diagonal decoders that start at zero. One CLT
    is trained on the untrained ViT. With `full` there is a variant for every combination of seed,
    sparsifier and initialisation, at the CLT's own width. The seeds of variants follow that of
    `settings`, which may be the CLT's own.

    Args:
        config: configuration of the CLT that is audited.
        settings: how rivals are trained; its seed is the first.
        l0: active features a token row and layer of every rival (JumpReLU is trained towards it);
            None takes those that the CLT's sparsifier fixes.
        full: make every combination of variants, at the CLT's width.

    Raises:
        InputError: l0 is not between 1 and the features of the smallest rival, or is None where
            the sparsifier does not fix it, or the configuration is that of a per-layer transcoder.
    """
    n, f = config.n_layers, config.n_features
    small = f if full else min(f, SMALL)
    if not config.cross_layer:
        raise InputError("clt", "is a per-layer transcoder; expected one that reads across layers.")
    l0 = config.sparsifier.expected_l0 if l0 is None else l0
    if l0 is None:
        raise InputError(
            "k",
            f"is missing; a {config.sparsifier.label} CLT does not say the L0 its rivals should "
            "have, expected a number (vit-clt reconstruct measures its own).",
        )
    if not 1 <= l0 <= small:
        raise InputError("k", f"is {l0}; expected at least 1 and at most {small} features.")
    own_sparsifier = config.sparsifier.name

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
        run(f"per-layer, {equal}", "per_layer", own_sparsifier, width, cross_layer=False)
        for equal, width in (
            ("equal features", f),
            ("equal features a target", f * (n + 1) // 2),
            ("equal parameters", f * (n + 3) // 4),
        )
    ]
    others = [name for name in VARIANTS if name != own_sparsifier]
    if full:
        choices = [
            (name, seed, zero)
            for name in (own_sparsifier, *others)
            for seed in range(1, SEEDS + 1)
            for zero in (False, True)
        ]
    else:
        choices = [(own_sparsifier, seed, False) for seed in range(1, SEEDS + 1)]
        choices += [(name, 1, False) for name in others] + [(own_sparsifier, 1, True)]
    for name, seed, zero in choices:
        title = f"{name}, seed {settings.seed + seed}" + (", zero off-diagonal start" * zero)
        runs.append(run(title, "variants", name, small, seed=seed, zero_cross_init=zero))
    runs.append(run("shuffled weights", "untrained", own_sparsifier, small))
    return runs


def given_rivals(
    vit: HookedViT,
    given: Mapping[str, Sequence[str]],
    device: str | torch.device = "cpu",
    *,
    any_teacher: bool = False,
) -> dict[str, SavedCLTs]:
    """Rivals that were trained before, by role, each checked to be of its role and of this ViT.

    Args:
        vit: the teacher.
        given: folders or Hub ids by role, "per_layer" or "variants"; roles without any are left
            out.
        device: torch device they are loaded to.
        any_teacher: as of `SavedCLTs`.

    Raises:
        InputError: one is given twice, is of the other kind, or of another teacher.
    """
    found = {}
    for role, places in given.items():
        if len(set(places)) < len(places):
            raise InputError(role, "names one folder twice; expected different ones.")
        saved = SavedCLTs.named(places, device, any_teacher=any_teacher)
        for name, clt in saved:
            if clt.config.cross_layer == (role == "per_layer"):
                kind = "cross-layer" if clt.config.cross_layer else "per-layer"
                raise InputError(role, f"names {name}, which is a {kind} transcoder.")
            check_fits(vit, clt)
        if places:
            found[role] = saved
    return found


def is_finished(run: RivalRun, folder: Path) -> bool:
    """Whether the transcoder of this run is already saved below `folder`, and whole."""
    place = _place(run, folder)
    whole = is_whole(place, "audit", RUN_FILE)
    return (place / WEIGHTS_FILE).is_file() if whole is None else whole


def train_rivals(
    vit: HookedViT,
    data: ImageData,
    runs: Sequence[RivalRun],
    folder: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    progress: bool = False,
) -> Rivals:
    """Train the rivals that are missing in `folder`; interrupted trainings resume.

    Args:
        vit: the teacher.
        data: images to train on.
        runs: trainings of the rivals.
        folder: folder with one folder for each run, which is itself a CLT; its run.json holds
            configuration, settings, teacher and data of the training.
        should_stop: called after each step; where it returns True, a checkpoint is saved and
            `Stopped` is raised.
        progress: show progress lines.

    Raises:
        InputError: a folder holds a transcoder of another training.
        Stopped: `should_stop` returned True.
    """
    untrained = shuffled_weights(vit) if any(r.role == "untrained" for r in runs) else vit
    device = next(vit.parameters()).device
    places: dict[Role, dict[str, Path]] = {"per_layer": {}, "variants": {}, "untrained": {}}
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
        output = OutputFolder(place, FILES, begun=RUN_FILE, resume=True, command="audit")
        if output.resumes:
            recorded = read_json(place / RUN_FILE)
            check_same(description, recorded, f"the run in {place}", remedy="overwrite")
        if is_finished(run, folder):
            output.close()
            continue
        if not output.resumes:
            output.begin(description)
        manifest = Manifest.read(place)
        if not (place / WEIGHTS_FILE).is_file() or (
            manifest is not None and WEIGHTS_FILE in manifest.damage(place)
        ):
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
        # nothing reads its checkpoints any more
        Checkpoints(place / "checkpoints").remove()
        output.finish()
    settings = runs[0].settings if runs else None
    epochs = None if settings is None else settings.n_epochs(len(data), vit.cfg.n_tokens)
    return Rivals(
        per_layer=SavedCLTs(places["per_layer"], device),
        variants=SavedCLTs(places["variants"], device),
        untrained=[(name, untrained, clt) for name, clt in SavedCLTs(places["untrained"], device)],
        trained_on=Rivals.trained_on
        if settings is None
        else f"{data.name}, {len(data)} images, {epochs} epochs of {settings.batch_size} "
        f"rows a step, lr {settings.lr:g}",
        trained=[run.name for run in runs],
    )


def shuffled_weights(vit: HookedViT) -> HookedViT:
    """The ViT with the entries of every parameter of its vision tower permuted.

    This is an untrained network whose weights have the same distribution as the trained ones; what
    a CLT finds in it does not come from training.
    """
    shuffled = copy.deepcopy(vit)
    generator = torch.Generator().manual_seed(0)
    for parameter in shuffled.tower.visual.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return shuffled


def _place(run: RivalRun, folder: Path) -> Path:
    return folder / run.name.replace(", ", "_").replace(" ", "-")
