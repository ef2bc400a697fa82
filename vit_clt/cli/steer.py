"""`vit-clt steer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_clt.choices import EditKind, Templates, TokenKind
from vit_clt.cli.features import feature_address
from vit_clt.cli.options import CLTOptions, SeedOptions, StudyOptions, print_table
from vit_clt.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from vit_clt.data.images import ImageData
    from vit_clt.hooks import HookedViT
    from vit_clt.metrics import Metric
    from vit_clt.transcoder.model import CrossLayerTranscoder


@dataclass(kw_only=True)
class Steer(CLTOptions, StudyOptions, SeedOptions):
    """Turn features up or down: what do class probabilities do? Or which features move a class?

    Example: vit-clt steer --clt out/clt --data digits --feature 7:76 --out out/steer
    Example: vit-clt steer --clt out/clt --data digits --search three --out out/search
    """

    feature: tuple[str, ...] = ()
    """LAYER:FEATURE, e.g. 7:76; several are steered together."""
    search: str | None = None
    """In place of --feature: find the features that move this class: its name, a part that no other
    name holds, or its number."""
    top: int = 10
    """With --search: features that are measured."""
    tokens: TokenKind = "all"
    """Rows steered. With all, typical activations mix CLS and patch rows: for late layers take
    cls."""
    kind: EditKind = "clamp"
    """Clamp z to a multiple of its typical activation, or scale it."""
    values: tuple[float, ...] = ()
    """Strengths: multiples, or factors; default: -2 -1 0 1 2 4 6, or -1 0 1 2 4."""
    only_active: bool = False
    """Clamp only where the feature is active."""
    query: tuple[int, ...] = ()
    """Rows of --data that are read; default: all. Typical activations are always of all."""
    target: str | None = None
    """Class compared with random features in the figure, as --search; default: the one that moves
    most."""
    random: int | None = None
    """Random features of about the same firing rate beside each; default: 5, with --search 3."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Steer, draw, and report."""
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.analysis.steering.report import steering_report
        from vit_clt.metrics import metrics_json

        folder = self.study_folder("steering")
        features = self._check_options()
        vit, clt, data = self.load_all(self.device)
        if self.search is None:
            found = self._curve(vit, clt, data, features)
        else:
            found = self._search(vit, clt, data, self.search)
        facts = {
            "Model": f"{vit.cfg.model}, {vit.cfg.n_layers} layers of width {vit.cfg.d_model}",
            "CLT": f"{self.clt}, {clt.config.n_features} features a layer",
            "Images": f"{data.name}, N = {found.n}",
            **found.facts,
            "Seed": str(self.seed),
        }
        folder.open()
        write_study(
            folder,
            "steering",
            found.figure,
            found.frame,
            found.caption,
            shown=found.shown,
            page=steering_report(found.figure, found.shown, found.title, facts, found.notes),
            png=self.png,
        )
        context = {
            "command": "steer",
            "data": data.name,
            "split": data.split,
            "tokens": self.tokens,
            "trajectory": "stream",
            "l0": found.l0,
            "seed": self.seed,
            "features": list(self.feature),
            "search": self.search,
            "kind": self.kind if self.search is None else "scale",
            "only_active": self.only_active,
            "query": list(self.query),
            "templates": self.templates,
            "model": vit.cfg.model,
            "clt": self.clt,
            "error_node": True,
            "floor": "mean of random features of the same layer and of about the same firing rate",
            "baseline": "the unsteered model",
        }
        folder.write("metrics.json", metrics_json(found.metrics, **context))
        print(found.caption)
        print_table(found.shown)
        for note in found.notes:
            print(note)
        print(f"written to {folder.path}")

    def _check_options(self) -> list[tuple[int, int]]:
        if (self.search is None) == (not self.feature):
            given = "both are" if self.feature else "neither is"
            raise InputError(f"{given} given of --feature and --search; expected one of them.")
        if self.search is not None:
            curve_only = {
                "values": self.values,
                "only_active": self.only_active,
                "query": self.query,
                "target": self.target,
                "kind": self.kind == "scale",
            }
            for name, given_value in curve_only.items():
                if given_value:
                    raise InputError(name, "is given with --search; expected it with --feature.")
        return [feature_address(text) for text in self.feature]

    def _curve(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        data: ImageData,
        features: list[tuple[int, int]],
    ) -> _Found:
        from vit_clt.analysis import steering_curve
        from vit_clt.analysis.steering.curve_figure import rows_name
        from vit_clt.analysis.steering.report import MIXED_ROWS, curve_table, edits_text
        from vit_clt.zero_shot import ZeroShot, class_number

        if self.target is not None:
            class_number(data.class_names, self.target)
        curve = steering_curve(
            vit,
            clt,
            data,
            ZeroShot(vit, data.class_names, self.templates),
            features,
            kind=self.kind,
            values=self.values or None,
            tokens=self.tokens,
            only_active=self.only_active,
            rows=self.query or None,
            n_random=5 if self.random is None else self.random,
            seed=self.seed,
            progress=True,
        )
        unit = "× typical activation" if self.kind == "clamp" else "factor on z"
        typical = ", ".join(f"{value:.3g}" for value in curve.steered.typical)
        caption = (
            f"{data.name}, N = {curve.n}, {curve.steered.text()} on {rows_name(curve.tokens)}, "
            f"strength: {unit} (typical: {typical} over {curve.n_typical} images), error nodes, "
            f"stream inputs, L0 {curve.l0:.1f}, templates: {curve.templates}, seed {curve.seed}; "
            "after a value its change from the unsteered model, with the paired 95 % interval; "
            f"beyond random: minus the mean of {len(curve.controls)} random features"
        )
        notes = [edits_text(self.kind, self.only_active)]
        if self.tokens == "all" and self.kind == "clamp":
            notes.append(MIXED_ROWS)
        facts = {
            "Trajectory": "stream inputs, error nodes; typical activations on the teacher's",
            "Typical activation": f"{curve.steered.activity_text()} ({curve.n_typical} images)",
        }
        return _Found(
            curve.figure(self.target),
            curve.to_frame(),
            curve_table(curve, self.target),
            curve.metrics(),
            caption,
            f"Steering {curve.steered.text()}",
            facts,
            notes,
            curve.l0,
            curve.n,
        )

    def _search(
        self,
        vit: HookedViT,
        clt: CrossLayerTranscoder,
        data: ImageData,
        wanted: str,
    ) -> _Found:
        from vit_clt.analysis import steering_search
        from vit_clt.analysis.steering.curve_figure import rows_name
        from vit_clt.analysis.steering.report import agreement_text, edits_text, search_table
        from vit_clt.zero_shot import ZeroShot, class_number

        label = class_number(data.class_names, wanted, "search")
        search = steering_search(
            vit,
            clt,
            data,
            ZeroShot(vit, data.class_names, self.templates),
            label,
            top=self.top,
            tokens=self.tokens,
            n_random=3 if self.random is None else self.random,
            seed=self.seed,
            progress=True,
        )
        caption = (
            f"{data.name}, ranked on {search.n_ranked} images, measured on the other "
            f"N = {search.n}; class: {search.target}, {rows_name(search.tokens)}, error nodes, "
            f"stream inputs, L0 {search.l0:.1f}, templates: {search.templates}, seed {search.seed}"
        )
        return _Found(
            search.figure(),
            search.to_frame(),
            search_table(search),
            search.metrics(),
            caption,
            f"Which features move “{search.target}”?",
            {
                "Trajectory": "stream inputs, error nodes; direct effects (attention held, norms "
                "differentiated) and shares of rows, images and CLS rows on which a feature is "
                "active on the teacher's",
            },
            [agreement_text(search), edits_text("scale")],
            search.l0,
            search.n,
        )


@dataclass(frozen=True)
class _Found:
    figure: go.Figure
    frame: pd.DataFrame
    shown: pd.DataFrame
    metrics: list[Metric]
    caption: str
    title: str
    facts: dict[str, str]
    notes: list[str]
    l0: float
    n: int
