"""The study behind `vit-clt demo`: a CLT for the digits model, trained and explored offline."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import torch

from vit_clt.analysis.ablations.curves import AblationCurves, ablation_curves
from vit_clt.analysis.contributions.study import ScoreStudy
from vit_clt.analysis.explorer.result import Explorer
from vit_clt.analysis.explorer.study import explore
from vit_clt.analysis.fit.cascade_study import Cascade
from vit_clt.analysis.fit.reconstruction_study import Reconstruction, reconstruction
from vit_clt.analysis.reporting.page import Section, render_report
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.style import ROW_NAMES
from vit_clt.analysis.stats.readings import Measure
from vit_clt.data.forms import load_data
from vit_clt.hooks import HookedViT
from vit_clt.metrics import Metric
from vit_clt.readouts.zero_shot import ZeroShot
from vit_clt.training.trainer import train
from vit_clt.transcoder.config import CLTConfig
from vit_clt.transcoder.model import CrossLayerTranscoder
from vit_clt.transcoder.sparsifiers import ReLUTopK
from vit_clt.transcoder.train_config import PRESETS, TrainConfig

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEANING = (
    "C(s→l) says from which depth y_l, the output of the MLP at layer l, can be sparsely read: the "
    "share of its reconstruction that is decoded from features computed at layer s. It does not "
    "say what the MLP at layer s contributed, because those features read the whole stream up to "
    "that depth, attention included. A reconstruction can be right about outputs and wrong about "
    "mechanism, so read every score beside a causal ablation, and every accuracy beside its loss "
    "and floors: where putting the MLPs at their mean costs little, keeping accuracy shows little."
)
GRAPHS, INTERVENTIONS = 5, 8
"""Images that are taken apart, and features silenced in each: few, as the demo takes a minute."""


@dataclass(frozen=True)
class DemoStudy(Study):
    """The CLT that the demo trained, and everything that it measured."""

    name = "report"
    extra_files = Explorer.extra_files

    clt: CrossLayerTranscoder
    train_name: str
    """Name of the data that the CLT was trained on."""
    seconds: float
    """Wall time of training and measuring."""
    explorer: Explorer
    """Scores, features, images, graphs and steering, on linked pages."""
    reconstruction: Reconstruction
    curves: list[AblationCurves]

    @property
    def cascade(self) -> Cascade:
        """All layers replaced, for the three token kinds."""
        assert self.explorer.cascade is not None
        return self.explorer.cascade

    @property
    def scores(self) -> ScoreStudy:
        """The contribution scores."""
        return self.explorer.scores

    def metrics(self) -> list[Metric]:
        """The study's numbers, as written to metrics.json."""
        teacher = self.cascade.readings["original"]
        n = self.facts().n
        position = self.reconstruction.mean("patch", "r2_position")
        metrics = [
            teacher.top1.metric("teacher_top1", "fraction", n, floor=0.1),
            teacher.loss.metric("teacher_loss", "nats", n),
            Metric("r2_patch", self.reconstruction.mean("patch"), "fraction", n, floor=0.0),
            Metric("r2_patch_by_position", position, "fraction", n, floor=0.0),
            Metric("r2_cls", self.reconstruction.mean("cls"), "fraction", n, floor=0.0),
            Metric("l0", self.reconstruction.mean("all", "l0"), "count", n),
            Metric("dead", self.reconstruction.mean("all", "dead"), "fraction", n),
            Metric("seconds", self.seconds, "seconds", n),
        ]
        readings = self.cascade.readings
        for tokens in self.cascade.tokens:
            metrics += readings[f"{tokens}_stream_0"].metrics(
                f"replaced_{tokens}", floor=readings[f"{tokens}_mean_0"], baseline=teacher
            )
        for curves in self.curves:
            metrics += curves.metrics(prefix=f"fill_{curves.fill}_")
        return metrics

    def facts(self) -> Facts:
        """What the numbers were measured on."""
        return replace(
            self.curves[0].facts(),
            tokens="cls patch all",
            trajectory="stream for replacement, teacher for scores and ablations",
            l0=self.reconstruction.mean("all", "l0"),
            fill=" ".join(curves.fill for curves in self.curves),
            more={
                "trained_on": self.train_name,
                "readout": self.curves[0].readout,
                "clt": self.clt.config.to_json(),
            },
        )

    def caption(self) -> str:
        """What stands in the table: the replacement of all layers."""
        facts = self.facts()
        return f"{facts.data}, N = {facts.n}; all layers replaced, stream inputs"

    def to_frame(self) -> pd.DataFrame:
        """The replacement of all layers by token kind, as the cascade has it."""
        return self.cascade.to_frame()

    def shown(self) -> pd.DataFrame:
        """Accuracy and loss by token kind, beside the unaltered model and both floors."""
        rows = []
        for r in self.cascade.to_frame().itertuples():
            cells = (r.top1, r.baseline, r.floor_mean, r.floor_zero)
            losses = (r.loss, r.loss_baseline, r.loss_floor_mean, r.loss_floor_zero)
            pairs = zip(cells, losses, strict=True)
            rows.append((ROW_NAMES[r.tokens], *(f"{100 * c:.1f} / {x:.3f}" for c, x in pairs)))
        headers = ["with the CLT", "unaltered", "MLPs at mean", "MLPs at zero"]
        return pd.DataFrame(rows, columns=["top-1 % / loss (nats)", *headers])

    def notes(self) -> Sequence[str]:
        """What was found, how good the reconstruction is, at which L0, and how long it took."""
        mean = self.reconstruction.mean
        numbered = [f"{i}. {text}" for i, text in enumerate(self.explorer.findings(), 1)]
        return [
            *numbered,
            f"R2, mean over layers: patches {mean('patch'):.3f}, CLS {mean('cls'):.3f} (0 is the "
            f"mean; patches {mean('patch', 'r2_position'):.3f} if each position's); "
            f"L0 {mean('all', 'l0'):.1f}; {self.seconds:.0f} s",
        ]

    def extras(self) -> Iterable[tuple[str, str | bytes]]:
        """The linked pages."""
        return self.explorer.extras()

    def figure(self) -> go.Figure:
        """The contribution scores, from which the demo sets out."""
        return self.scores.figure()

    def page(self) -> str:
        """The page report.html: every study of the demo."""
        config, facts = self.clt.config, self.facts()
        mean = self.reconstruction.mean
        sections = [
            Section(
                "What was done",
                facts={
                    "Model": "the digits CLIP shipped with vit-clt: 8 layers, width 64, 16 patches "
                    "and a class token (CLS) an image",
                    "Images": f"trained on {self.train_name}, measured on {facts.data}, "
                    f"N = {facts.n}, which neither the model nor the CLT was trained on",
                    "CLT": f"{config.n_features} features a layer, ReLU-TopK, measured L0 "
                    f"{mean('all', 'l0'):.1f} a token, {config.n_parameters() / 1e6:.1f} M "
                    "parameters",
                    "Reconstruction": f"R² as a mean over layers {mean('patch'):.3f} on patch rows "
                    f"({mean('patch', 'r2_position'):.3f} where 0 is predicting each position's "
                    f"mean) and {mean('cls'):.3f} on CLS rows",
                    "Seed, time": f"{facts.seed}; {self.seconds:.0f} s",
                },
            ),
            Section("What was found", self.explorer.findings()),
            Section("What the numbers say, and what they do not", [MEANING]),
            Section(
                "Accuracy with the MLPs replaced",
                [
                    "Every MLP's output rows replaced by the CLT, which reads the live, already "
                    "altered stream. Accuracy in percent, loss in nats, 95 % bootstrap intervals "
                    "over images; templates: ensemble of 18."
                ],
                [self._replacement_table("top1"), self._replacement_table("loss")],
            ),
            Section(
                "Which depth is each layer read from?",
                [
                    "Rows of each heatmap, bias included, sum to 1. Projection counts what is the "
                    "same in every image; centred does not."
                ],
                figures=[self.scores.figure()],
            ),
            Section(
                "Does the model need those layers?",
                [
                    "The last layer's MLP output on CLS rows, rebuilt from the k highest-scoring "
                    "source layers alone (keep) or without them (drop). Dropped terms are set to "
                    "zero, or to their mean over the images."
                ],
                figures=[curves.figure() for curves in self.curves],
            ),
            Section(
                "Reconstruction per layer",
                figures=[self.reconstruction.figure()],
            ),
        ]
        lead = (
            "A cross-layer transcoder (CLT) stands in for every MLP of a small vision transformer. "
            "This page shows how well it does, and which depths it reads each layer from."
        )
        return render_report("vit-clt demo: handwritten digits", lead, sections)

    def _replacement_table(self, measure: Measure) -> pd.DataFrame:
        shown = _percent if measure == "top1" else "{:.4f}".format
        unit = "accuracy" if measure == "top1" else "loss (nats)"
        prefix = "" if measure == "top1" else "loss_"
        rows = []
        for _, r in self.cascade.to_frame().iterrows():
            low, high = r[f"{measure}_low"], r[f"{measure}_high"]
            rows.append(
                {
                    f"{unit}, all layers replaced": ROW_NAMES[r.tokens],
                    "with the CLT": f"{shown(r[measure])} ({shown(low)} to {shown(high)})",
                    "unaltered": shown(r[f"{prefix}baseline"]),
                    "MLP rows at their mean": shown(r[f"{prefix}floor_mean"]),
                    "MLP rows at zero": shown(r[f"{prefix}floor_zero"]),
                }
            )
        return pd.DataFrame(rows)


def demo_training(vit: HookedViT, seed: int) -> tuple[CLTConfig, TrainConfig]:
    """The CLT of the demo, and how it is trained."""
    config = CLTConfig(vit.cfg.n_layers, vit.cfg.d_model, 512, ReLUTopK(k=16))
    return config, replace(PRESETS["demo"], seed=seed)


def demo_study(
    *,
    clt_name: str = "in memory",
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> DemoStudy:
    """Train a CLT on the digits' training split and measure everything on the held-out one.

    Args:
        clt_name: what the pages call the CLT.
        seed: seed of everything that is drawn at random.
        device: where to run.
        progress: show progress bars.
    """
    started = time.perf_counter()
    vit = HookedViT.from_open_clip("digits", device=device)
    train_data = load_data("digits", vit=vit, split="train")
    test_data = load_data("digits", vit=vit, split="test")
    zs = ZeroShot(vit, test_data.class_names, "ensemble")
    clt = train(vit, train_data, *demo_training(vit, seed), progress=progress)

    explorer = explore(
        vit,
        clt,
        test_data,
        zs,
        graphs=GRAPHS,
        interventions=INTERVENTIONS,
        clt_name=clt_name,
        links={"The numbers of the demo": "report.html"},
        seed=seed,
        progress=progress,
    )
    cls_scores = explorer.scores.drawn(clt_name, "cls", "projection")
    curves = [
        ablation_curves(vit, clt, test_data, zs, scores=cls_scores, fill=fill, seed=seed)
        for fill in ("zero", "mean")
    ]
    return DemoStudy(
        clt=clt,
        train_name=train_data.name,
        explorer=explorer,
        reconstruction=reconstruction(vit, clt, test_data, seed=seed),
        curves=curves,
        seconds=time.perf_counter() - started,
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
