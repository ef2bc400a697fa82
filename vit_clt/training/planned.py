"""A training run before it starts: it is checked, its cost estimated, its back end decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from vit_clt.choices import Backend
from vit_clt.data.images import ImageData
from vit_clt.forecast.wording import duration
from vit_clt.hooks import HookedViT
from vit_clt.hooks.activations import capture
from vit_clt.training.cost import Estimate, check_resources, estimate
from vit_clt.training.engine import is_sharded
from vit_clt.training.processes import n_processes
from vit_clt.training.store import ActivationStore
from vit_clt.training.trainer import check_run, resolved
from vit_clt.training.trial import seconds_per_step
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.train_config import TrainConfig


@dataclass(frozen=True)
class PlannedRun:
    """What is to be trained, on what, and how."""

    vit: HookedViT
    data: ImageData
    config: CLTConfig
    requested: TrainConfig
    """The settings as they were asked for."""
    device: str = "cpu"
    cache: Path | None = None
    """Folder of the activation store that activations are read from, if they are."""

    @cached_property
    def settings(self) -> TrainConfig:
        """The settings with every "auto" and None decided, as far as no trial is needed.

        Raises:
            InputError: as `resolved`.
        """
        epochs = self.requested.n_epochs(len(self.data), self.vit.cfg.n_tokens)
        requested = replace(self.requested, epochs=epochs)
        return resolved(requested, self.config, self.device, n_processes())

    @property
    def n_steps(self) -> int:
        """Number of steps of the run."""
        return self.settings.n_steps(len(self.data), self.vit.cfg.n_tokens)

    def on(self, backend: Backend) -> PlannedRun:
        """The same run on this back end, unless another one was asked for."""
        if self.requested.backend != "auto":
            return self
        return replace(self, requested=replace(self.requested, backend=backend))

    def decided(self) -> PlannedRun:
        """The same run with its back end decided, on a GPU by a trial."""
        settings = resolved(self.settings, self.config, self.device, n_processes(), trial=True)
        return self.on(settings.backend)

    def check(self, trackers: Sequence[str] = ()) -> None:
        """Refuse what the run would refuse at its start; nothing is written.

        Raises:
            InputError: a first pass of the ViT finds broken weights or images, or as `check_run`.
        """
        first = range(min(8, len(self.data)))
        images, _ = self.data.readable(first)
        if images is not None and self.settings.unreadable == "stop":
            images, _ = self.data.batch(first)
        if images is not None:
            capture(self.vit, images.to(self.device))
        device = torch.device(self.device)
        check_run(self.vit, self.config, self.settings, len(self.data), device, trackers)

    def needs(self) -> Estimate:
        """Memory and disk that the run will need."""
        return estimate(
            self.config,
            self.settings,
            n_images=len(self.data),
            n_tokens=self.vit.cfg.n_tokens,
            teacher_parameters=sum(p.numel() for p in self.vit.parameters()),
            processes=n_processes(),
            cache=self.cache is not None,
            device=self.device,
        )

    def check_resources(self, out: Path) -> None:
        """Refuse a run that needs more memory or disk than there is (`cost.check_resources`)."""
        # the estimate assumes whole copies, which sharded processes do not have
        if not is_sharded():
            check_resources(self.needs(), out=out, device=torch.device(self.device))

    def seconds(self) -> float:
        """Time of all steps, by a short trial on images that must be readable."""
        clt = CrossLayerTranscoder(self.config, backend=self.settings.backend).to(self.device)
        return self.n_steps * seconds_per_step(
            self.vit,
            clt,
            self.data,
            self.settings,
            processes=n_processes(),
            cache=self.cache is not None,
        )

    def forecast(self) -> Iterator[str]:
        """Lines that say what is trained and what it will take.

        Raises:
            InputError: the activation store is of other images.
        """
        vit, config = self.vit.cfg, self.config
        yield (
            f"{vit.model}: {vit.n_layers} layers, width {vit.d_model}, {vit.n_tokens} tokens; "
            f"{self.data.name}: {len(self.data)} images; {config.kind}: {config.n_features} "
            f"features a layer, {config.n_parameters() / 1e6:.1f} M parameters, back end "
            f"{self.settings.backend}"
        )
        yield from self.needs().lines()
        if self.settings.unreadable == "stop":
            yield f"time: about {duration(self.seconds())} for {self.n_steps:,} steps"
        if self.cache is not None and n_processes() == 1:
            unreadable = self.settings.unreadable
            yield ActivationStore(
                self.cache, self.vit, self.data, unreadable=unreadable
            ).description
