"""`vit-clt train`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

import tyro

from vit_clt.choices import Backend, check_choice
from vit_clt.cli.options import Command, ModelOptions
from vit_clt.cli.training_options import (
    TrainingOptions,
    preset_in,
    value_of,
    with_every_option,
)
from vit_clt.cli.training_summary import kind_of, training_summary
from vit_clt.errors import InputError
from vit_clt.transcoder.train_config import TrainConfig

if TYPE_CHECKING:
    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.outputs import OutputFolder
    from vit_clt.training.cost import Estimate
    from vit_clt.transcoder.config import CLTConfig

RUN_FILE, LOG_FILE = "run.json", "train.jsonl"
FILES = (
    RUN_FILE,
    LOG_FILE,
    "config.json",
    "model.safetensors",
    "README.md",
    "training.html",
    "metrics.json",
)
# options that may change when a run is resumed or repeated
_NOT_OF_THE_RUN = ("out", "overwrite", "resume", "config", "traceback", "device", "trackers")


@dataclass(kw_only=True)
class Train(ModelOptions, Command, TrainingOptions):
    """Train a CLT on a frozen ViT; the output folder is itself a --clt.

    An interrupted run goes on with the same command and --resume. Several processes are started by
    accelerate launch --multi_gpu --num_processes 4 -m vit_clt train ... (docs/scaling.md).

    Example: vit-clt train --model digits --data digits --n-features 512 --k 16 --out out/clt
    """

    imports = ("vit_clt.training.trainer",)

    config: Path | None = None
    """The run.json of an earlier run, whose options are then the defaults in place of a
    preset's."""
    k: int | None = None
    """Active features per token row and layer (for JumpReLU: the target of L0). Default: 128 for
    the paper preset, otherwise a quarter of the width, at most 32."""
    zero_cross_init: bool = False
    """Start the decoders that write to deeper layers at zero."""
    cross_layer: bool = True
    """Let features also write to deeper layers; --no-cross-layer trains a per-layer transcoder,
    whose features write to their own layer alone."""
    resume: bool = False
    """Go on with the run in --out, from the beginning if it has no checkpoint yet."""
    trackers: tuple[str, ...] = ()
    """Trackers that accelerate knows, such as tensorboard or wandb, in addition to train.jsonl."""

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Train:
        """The options' defaults, which depend on --preset or --config."""
        preset, path = value_of("--preset", args), value_of("--config", args)
        if preset is not None and path is not None:
            raise InputError("--preset and --config are both set; expected one of them.")
        options = {} if path is None else _options_in(Path(path))
        options.setdefault("training", preset_in(args))
        start = cls(out=Path(), **options)
        start.out = tyro.MISSING  # the option is required
        return start

    def run(self) -> None:
        """Train, save, and report."""
        from vit_clt.metrics import metrics_json
        from vit_clt.outputs import OutputFolder
        from vit_clt.training.store import ActivationStore
        from vit_clt.training.trainer import as_context, resolved, train
        from vit_clt.transcoder.model_card import model_card

        if self.resume and self.overwrite:
            raise InputError("--overwrite and --resume are both set; expected one of them.")
        # a process that starts late finds files that the main one has written
        overwrite = self.overwrite or not _is_main()
        folder = OutputFolder(self.out, FILES, overwrite, RUN_FILE if self.resume else None)
        vit, data, clt_config, requested, settings = self._resolved()
        if folder.resumes:
            before = folder.path / RUN_FILE
            backend = _check_same(self._described(clt_config, settings, data, vit), before)
            if (folder.path / "metrics.json").is_file():
                print(f"{folder.path} is finished; nothing to do")
                return
            if requested.backend == "auto":
                settings = replace(settings, backend=backend)
        self._check_fits(vit, data, clt_config, settings)
        if not folder.resumes:  # run.json has the choice, or else the checkpoint
            settings = resolved(settings, clt_config, self.device, _n_processes(), trial=True)
        requested = replace(requested, backend=settings.backend)
        run = self._described(clt_config, settings, data, vit)
        if _is_main():
            self._estimate(vit, data, clt_config, settings)
        if self.cache is not None and _n_processes() == 1:
            # a store of other images is refused here, before anything is overwritten
            store = ActivationStore(self.cache, vit, data, unreadable=settings.unreadable)
            print(store.description, flush=True)
        if _is_main() and not folder.resumes:
            self._begin(folder, run)
        with (
            folder.stream(LOG_FILE) if _is_main() else nullcontext() as log,
            asked_to_stop() as stop,
        ):
            clt = train(
                vit,
                data,
                clt_config,
                requested,
                checkpoints=folder.path / "checkpoints",
                resume=folder.resumes,
                cache=self.cache,
                trackers=self.trackers,
                log_dir=folder.path / "trackers" if self.trackers else None,
                on_log=partial(_write_record, log),
                should_stop=stop,
            )
        if not _is_main():
            return
        clt.save_pretrained(folder.path)
        metrics, facts, html = training_summary(
            folder.path / LOG_FILE, data, clt_config, settings, self.device
        )
        document = metrics_json(
            metrics,
            command="train",
            data=data.name,
            split=data.split,
            tokens="all",
            trajectory="teacher",
            l0=facts["l0"],
            seed=settings.seed,
            images=len(data) - settings.held_out(len(data)),
            steps=facts["steps"],
            device=self.device,
            **as_context(clt.config, settings),
        )
        folder.write("README.md", model_card(clt.config, json.loads(document)))
        folder.write("training.html", html)
        # this file is written last, because it marks the run as finished
        folder.write("metrics.json", document)
        print(f"{facts['line']}; saved to {folder.path}, curves in training.html")

    # ---- before -----------------------------------------------------------------------------

    def _resolved(
        self,
    ) -> tuple[HookedViT, ImageData, CLTConfig, TrainConfig, TrainConfig]:
        """The model, the images, the CLT, and the settings as requested and as resolved."""
        import torch

        from vit_clt.hooks.activations import capture
        from vit_clt.training.trainer import check_run, resolved

        if self.k is not None and self.k < 1:
            raise InputError("k", f"is {self.k}; expected at least 1.")
        if self.device == "cuda" and _n_processes() > 1:
            self.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        vit = self.load_vit(self.device)
        k = self.k or (128 if self.preset == "paper" else min(32, vit.cfg.d_model // 4))
        self.k = k
        clt_config = self.clt_config(vit.cfg.n_layers, vit.cfg.d_model, k)
        requested = self.sparsifier_training()
        requested = replace(requested, sparsity=requested.sparsity.aimed_at(k))
        settings = resolved(requested, clt_config, self.device, _n_processes())
        data = self.load_images(vit, "train")
        # a first pass, so that broken weights or images are refused before anything is written
        images, _ = data.readable(range(min(8, len(data))))
        if images is not None and settings.unreadable == "stop":
            images, _ = data.batch(range(min(8, len(data))))
        if images is not None:
            capture(vit, images.to(self.device))
        device = torch.device(self.device)
        check_run(vit, clt_config, settings, len(data), device, self.trackers)
        return vit, data, clt_config, requested, settings

    def clt_config(self, n_layers: int, d_model: int, k: int) -> CLTConfig:
        """Configuration of the CLT for a ViT of this depth and width.

        Raises:
            InputError: options contradict one another, or do not fit the width.
        """
        from vit_clt.transcoder.config import CLTConfig
        from vit_clt.transcoder.sparsifiers import SPARSIFIERS

        n_features = 16 * d_model if self.n_features is None else self.n_features
        sparsifier: Any = SPARSIFIERS[self.sparsifier].for_l0(k)
        if "bandwidth" in {field.name for field in fields(sparsifier)}:
            sparsifier = replace(sparsifier, bandwidth=self.bandwidth)
        elif self.bandwidth != TrainingOptions.bandwidth:
            raise InputError(
                "bandwidth", f"is {self.bandwidth}; expected only with sparsifier jumprelu."
            )
        return CLTConfig(
            n_layers,
            d_model,
            n_features,
            sparsifier,
            zero_cross_init=self.zero_cross_init,
            cross_layer=self.cross_layer,
        )

    def _described(
        self, config: CLTConfig, settings: TrainConfig, data: ImageData, vit: HookedViT
    ) -> dict[str, Any]:
        """The contents of run.json: what determines this run, and the options that repeat it."""
        from vit_clt.metrics import versions

        # a target of L0 that comes from --k is not written as an option
        kept = replace(settings, sparsity=self.sparsifier_training().sparsity)
        options = asdict(replace(self, training=kept, n_features=config.n_features))
        options = {name: v for name, v in options.items() if name not in _NOT_OF_THE_RUN}
        return {
            "command": "train",
            "options": json.loads(json.dumps(options, default=str)),
            "clt": config.to_json() | {"teacher": asdict(vit.identity())},
            "data": {"name": data.name, "split": data.split, "n_images": len(data)},
            "processes": _n_processes(),
            "versions": versions(),
        }

    def _check_fits(
        self, vit: HookedViT, data: ImageData, config: CLTConfig, settings: TrainConfig
    ) -> None:
        import torch

        from vit_clt.training.cost import check_fits
        from vit_clt.training.engine import is_sharded

        # the estimate assumes whole copies, which sharded processes do not have
        if not is_sharded():
            needs = self._needs(vit, data, config, settings)
            check_fits(needs, out=self.out, device=torch.device(self.device))

    def _needs(
        self, vit: HookedViT, data: ImageData, config: CLTConfig, settings: TrainConfig
    ) -> Estimate:
        from vit_clt.training.cost import estimate

        return estimate(
            config,
            settings,
            n_images=len(data),
            n_tokens=vit.cfg.n_tokens,
            teacher_parameters=sum(p.numel() for p in vit.parameters()),
            processes=_n_processes(),
            cache=self.cache is not None,
            device=self.device,
        )

    def _estimate(
        self, vit: HookedViT, data: ImageData, config: CLTConfig, settings: TrainConfig
    ) -> None:
        from vit_clt.training.cost import duration
        from vit_clt.training.trial import seconds_per_step
        from vit_clt.transcoder.model import CrossLayerTranscoder

        print(
            f"{vit.cfg.model}: {vit.cfg.n_layers} layers, width {vit.cfg.d_model}, "
            f"{vit.cfg.n_tokens} tokens; {data.name}: {len(data)} images; "
            f"{kind_of(config)}: {config.n_features} features a layer, "
            f"{config.n_parameters() / 1e6:.1f} M parameters, back end {settings.backend}"
        )
        print("\n".join(self._needs(vit, data, config, settings).lines()))
        clt = CrossLayerTranscoder(config, backend=settings.backend).to(self.device)
        if settings.unreadable == "stop":  # the trial needs images that can be read
            seconds = seconds_per_step(
                vit, clt, data, settings, processes=_n_processes(), cache=self.cache is not None
            )
            images = len(data) - settings.held_out(len(data))
            steps = -(-images * vit.cfg.n_tokens // settings.batch_size) * settings.epochs
            print(f"time: about {duration(seconds * steps)} for {steps:,} steps", flush=True)

    def _begin(self, folder: OutputFolder, run: dict[str, Any]) -> None:
        from vit_clt.training.checkpoints import Snapshots

        folder.open()
        Snapshots(folder.path / "checkpoints").remove()
        folder.write(RUN_FILE, json.dumps(run, indent=1) + "\n")


def _write_record(log: IO[str] | None, record: dict[str, Any]) -> None:
    assert log is not None  # only the main process is given records
    try:
        log.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"{log.name} cannot be written: {error.strerror}.") from error


def _n_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come, so that a last checkpoint can be written."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGTERM, before)


def _options_in(path: Path) -> dict[str, Any]:
    from vit_clt.transcoder.sparsifiers import SPARSIFIERS

    try:
        options = dict(json.loads(path.read_text())["options"])
        kind = SPARSIFIERS[options["sparsifier"]].training
        options["training"] = with_every_option(TrainConfig.from_json(options["training"], kind))
        for name in ("cache", "class_names"):
            options[name] = None if options[name] is None else Path(options[name])
        return options
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "config", f"is {path}; expected the run.json of a training run ({error})."
        ) from error


def _check_same(run: dict[str, Any], path: Path) -> Backend:
    """Refuse to resume a run of other options, and return the back end that it was started with.

    Settings that have no option are checked with the checkpoint.
    """
    from vit_clt.inputs import read_json
    from vit_clt.outputs import check_same
    from vit_clt.training.trainer import FREE

    before = read_json(path)
    try:
        was, now = _flat(before["options"]), _flat(run["options"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a run to resume.") from error
    # the checkpoint settles what "auto" and None stand for
    free = (*FREE, "training", "preset", "cache", "backend", "shards")
    now = {name: value for name, value in now.items() if name not in free}
    # an option that is newer than the run has its default
    defaults = {name: getattr(Train, name, None) for name in now}
    check_same(now, defaults | was, f"the run in {path.parent}")
    if before["versions"] != run["versions"]:
        print(
            f"warning: this run was started with {before['versions']}; it may not end with the "
            "same bits",
            file=sys.stderr,
        )
    backend: Backend = was.get("backend", "auto")
    check_choice("backend", backend, get_args(Backend))
    return backend


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """The options of run.json, with those of training and of its sparsifier at the same level."""
    training = dict(options["training"])
    sparsity = training.pop("sparsity")
    return {**options, **training, **sparsity}
