"""How a training run went: its last numbers, its curves, and the card of the CLT it made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vit_clt.analysis.fit.gate import Fit, fit_of_training
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.data.images import ImageData
from vit_clt.forecast.memory import peak_memory
from vit_clt.forecast.wording import duration
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric, metrics_json
from vit_clt.training.trainer import as_context
from vit_clt.transcoder.checkpoints import CARD_FILE
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.model_card import model_card
from vit_clt.transcoder.sparsifiers import TopKTraining
from vit_clt.transcoder.train_config import FEWEST_STEPS, TrainConfig

if TYPE_CHECKING:
    import plotly.graph_objects as go

MANY_DEAD = 0.2
"""Share of features dead at the end of training, above which `Training.advice` speaks of it."""
_FVU_KINDS = ("fvu", "fvu_cls", "fvu_patch")


@dataclass(frozen=True)
class Training(Study):
    """A finished training run, told from its log."""

    name = "training"
    endings = ("html",)
    extra_files = (CARD_FILE,)

    records: Sequence[dict[str, Any]]
    """The records of its log, as `train` gives them to `on_log`."""
    config: CLTConfig
    settings: TrainConfig
    data: str
    split: str | None
    n: int
    """Number of images, those held out included."""
    device: str
    peak_memory: int
    """Bytes that the process has taken at most."""
    fit: Fit | None = None
    """How well the CLT fits the ViT at the end (`fit_of_training`)."""

    @cached_property
    def _end(self) -> dict[str, Any]:
        return next(r for r in reversed(self.records) if r.get("event") == "end")

    @cached_property
    def _last(self) -> dict[str, Any]:
        steps = [r for r in self.records if "event" not in r]
        # the last batch of an epoch may be too small to have a variance
        whole = (r for r in reversed(steps) if None not in map(r.get, _FVU_KINDS))
        return next(whole, steps[-1])

    @cached_property
    def _validation(self) -> dict[str, Any] | None:
        held_out = (r for r in reversed(self.records) if r.get("event") == "validation")
        return next(held_out, None)

    def _held_out_fvu(self, kind: str) -> float | None:
        assert self._validation is not None
        values = self._validation[f"fvu_{kind}_by_layer"]
        return None if values is None else sum(values) / len(values)

    def facts(self) -> Facts:
        """The images that were trained on, and both configurations."""
        return Facts(
            self.data,
            self.n,
            "all",
            "teacher",
            self._last["l0"],
            self.split,
            seed=self.settings.seed,
            more={
                "images": self.n - self.settings.held_out(self.n),
                "steps": self._end["step"],
                "device": self.device,
                **as_context(self.config, self.settings),
            },
        )

    def caption(self) -> str:
        """FVU on the held-out images or of the last batch, L0, dead features and the time."""
        last, end = self._last, self._end
        measured_on, by_kind = "last batch", {"CLS": last["fvu_cls"], "patches": last["fvu_patch"]}
        if self._validation is not None:
            measured_on = f"{self._validation['n_images']} held-out images"
            by_kind = {"CLS": self._held_out_fvu("cls"), "patches": self._held_out_fvu("patch")}
        fvu = ", ".join(
            f"{label} {'undefined' if value is None else f'{value:.3f}'}"
            for label, value in by_kind.items()
        )
        bad = [label for label, value in by_kind.items() if value is not None and value > 1]
        warning = f"; worse than the mean on {' and '.join(bad)} (R^2 below 0)" if bad else ""
        return (
            f"{measured_on}: FVU {fvu}; L0 {last['l0']:.1f}, dead {last['dead']:.1%}; "
            f"{duration(end['seconds'])}, {end['tokens_per_second']:.0f} tokens/s{warning}"
        )

    def advice(self) -> str | None:
        """What to try where the CLT is worse than the mean or many features are dead, or None.

        Dead is what was silent for an epoch of training rows: the few images of the fit do not tell
        a rare feature from a dead one. What each option did is in docs/training.md.
        """
        if self.fit is None:
            return None
        worse = {kind for _, kind in self.fit.worse_than_mean()}
        many_dead = self._last["dead"] > MANY_DEAD
        settings = self.settings
        n_steps = self._end["step"]
        tries = {
            f"--epochs above {settings.epochs} ({n_steps} steps are few)": n_steps < FEWEST_STEPS,
            "--start centred": settings.start != "centred",
            "--lr 3e-3": settings.lr < 1e-3,
            "--lr 1e-3": settings.lr >= 1e-3 and bool(worse),
            "--cls-weight 4": "cls" in worse and settings.cls_weight < 4,
            "--cls-balance": "cls" in worse and not settings.cls_balance,
            "a larger --k": bool(worse),
            "--aux-k 32": many_dead
            and settings.sparsity.options_of(TopKTraining) is not None
            and settings.sparsity.auxiliary_weight is None,
            "a smaller --n-features": many_dead,
        }
        if not (worse or many_dead):
            return None
        return f"What to try: {', '.join(name for name, applies in tries.items() if applies)}."

    def to_frame(self) -> pd.DataFrame:
        """One row per number of `metrics`."""
        return pd.DataFrame(map(asdict, self.metrics()))

    def metrics(self) -> list[Metric]:
        """Fit and sparsity of the last batch and on held-out images; time and memory."""
        last, end = self._last, self._end
        metrics = [
            *(
                Metric(f"last_batch_{name}", last[name], "fraction", last["tokens"], floor=1.0)
                for name in _FVU_KINDS
            ),
            Metric("last_batch_l0", last["l0"], "count", last["tokens"]),
            Metric("dead", last["dead"], "fraction", self.n),
            Metric("skipped_images", last["skipped"], "count", self.n),
            Metric("seconds", end["seconds"], "seconds", self.n),
            Metric("tokens_per_second", end["tokens_per_second"], "tokens/s", self.n),
            Metric("peak_memory", self.peak_memory, "bytes", self.n),
        ]
        if self._validation is not None:
            n = self._validation["n_images"]
            metrics += [
                Metric(f"held_out_fvu_{kind}", self._held_out_fvu(kind), "fraction", n, floor=1.0)
                for kind in ("cls", "patch")
            ]
        return [*metrics, *(() if self.fit is None else self.fit.metrics())]

    def figure(self) -> go.Figure:
        """FVU by step; the page has all curves."""
        from vit_clt.analysis.reporting.training_page import fit_figure

        return fit_figure(self.records)

    def page(self) -> str:
        """The curves of the run, by layer."""
        from vit_clt.analysis.reporting.training_page import training_report

        config, settings = self.config, self.settings
        target = config.sparsifier.expected_l0 or settings.sparsity.l0_target
        balance = ", balanced" if settings.cls_balance else ""
        facts = {
            **({} if config.teacher is None else {"Model": config.teacher.model}),
            "Data": f"{self.data}, {self.n} images, {settings.held_out(self.n)} held out",
            config.kind: f"{config.n_features} features a layer, {config.sparsifier.name}",
            "Settings": f"{settings.epochs} epochs of {settings.batch_size} rows a step, lr "
            f"{settings.lr:g}, start {settings.start}, CLS weight {settings.cls_weight:g}"
            f"{balance}; all of them: run.json",
            "Command": "vit-clt train --config run.json --out NEW_FOLDER repeats the run",
            "Seed": str(settings.seed),
            **({"L0 target": str(target)} if target else {}),
        }
        title = f"Training a {config.kind} on {self.data}"
        return training_report(self.records, title=title, facts=facts)

    def extras(self) -> Iterable[tuple[str, str]]:
        """The card of the CLT, with these numbers."""
        document = metrics_json(self.metrics(), command="train", **self.facts().context())
        return [(CARD_FILE, model_card(self.config, json.loads(document)))]


def finished_training(
    log: Path,
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    settings: TrainConfig,
    data: ImageData,
    device: str,
) -> Training:
    """The result of a run of this process: its train.jsonl, and the fit of the CLT it made.

    Raises:
        InputError: the log cannot be read.
    """
    from vit_clt.analysis.reporting.training_page import read_log

    fit = fit_of_training(vit, clt, data, settings)
    images = data.name, data.split, len(data)
    records = read_log(log)
    return Training(records, clt.config, settings, *images, device, peak_memory(device), fit)
