"""The result of `vit_clt.analysis.heads.study.head_study`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from vit_clt.analysis.causal.head_result import HeadAblations
from vit_clt.analysis.graphs.graph_result import patch_name
from vit_clt.analysis.heads.agreement import MEASURED, TermAgreement
from vit_clt.analysis.heads.carried import PARTS, CarriedParts
from vit_clt.analysis.heads.terms import DirectTerms
from vit_clt.analysis.reporting.study import Facts, Study
from vit_clt.analysis.reporting.subject import Subject
from vit_clt.analysis.reporting.tables import csv_table, rounded
from vit_clt.analysis.stats.intervals import Interval, mean_intervals
from vit_clt.metrics import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PRINTED = 12  # heads in the table of a terminal


@dataclass(frozen=True)
class DrawnImage:
    """An image on which the rows that heads read are shown."""

    number: int
    """Its number in the data."""
    label: str
    picture: UInt8[np.ndarray, "height width 3"]
    keys: Float[np.ndarray, "head token"]
    """Direct term of each strong head by the key row that it reads."""
    read: pd.DataFrame
    """As `vit_clt.analysis.heads.carried.read_rows` gives it."""


@dataclass(frozen=True)
class HeadStudy(Study):
    """Direct terms of heads and MLPs, ablations of heads, and the features that heads carry."""

    name = "heads"
    extra_files = ("terms_by_layer.csv", "carried_features.csv", "rows_read.csv", "agreement.csv")

    terms: DirectTerms
    ablations: HeadAblations
    """Of the same images."""
    agreement: list[TermAgreement]
    """Of direct terms with the ablations."""
    carried: CarriedParts
    """By the strongest heads."""
    examples: list[DrawnImage]
    subject: Subject
    patch_grid: tuple[int, int]
    l0: float
    """Active features a token row and layer."""

    def facts(self) -> Facts:
        """The images, the CLT, the fill, and what stands as floors."""
        ablated = self.ablations
        return Facts(
            ablated.data,
            len(self.terms.logit),
            "all",
            "teacher",
            self.l0,
            split=ablated.split,
            fill=ablated.fill,
            seed=ablated.seed,
            more={
                "model": self.subject.model,
                "clt": self.subject.clt,
                "readout": ablated.readout,
                "logit": "the label's less the mean of all classes",
                "held": "attention patterns, LayerNorm scales, the embedding's norm",
                "floor": "direct terms and features: the same for another label; "
                "ablations: every head; agreement: 97.5 % of permutations",
            },
        )

    def caption(self) -> str:
        """The images, the CLT, the logit, and what was ablated."""
        ablated = self.ablations
        return (
            f"{ablated.data}, N = {len(self.terms.logit)}, readout: {ablated.readout}, CLT "
            f"{self.subject.short_name}, L0 {self.l0:.1f}; logits of the label less the mean of "
            f"all classes; direct terms with attention and norms held, ablation on all rows (fill: "
            f"{ablated.fill}, seed {ablated.seed})"
        )

    @cached_property
    def _frame(self) -> pd.DataFrame:
        terms, ablated = self.terms, self.ablations
        n, n_layers, n_heads = terms.heads.shape
        flat = terms.heads.reshape(n, -1)
        direct_terms = mean_intervals(flat, ablated.seed)
        beyond = mean_intervals(terms.beyond.reshape(n, -1), ablated.seed)
        floors, fills = (each.reshape(n, -1).mean(0) for each in (terms.floor, terms.fills))
        changes = {
            path: mean_intervals(ablated.logit_changes(path), ablated.seed)
            for path in ("total", "direct", "random")
        }
        loss = ablated.changes("total", "loss").ravel()
        rows = []
        for i in range(n_layers * n_heads):
            row = {"layer": i // n_heads, "head": i % n_heads, **direct_terms[i].columns("term")}
            row |= {"floor": float(floors[i]), **beyond[i].columns("beyond")}
            row["fill"] = float(fills[i])
            for path, values in changes.items():
                row |= values[i].columns(f"{path}_logit")
            rows.append(row | {"total_loss": float(loss[i])})
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per head: its direct term, and what ablating it changes.

        Columns: layer, head; term, the mean direct term with its interval (_low, _high); floor, the
        mean for another label; beyond, the one less the other, paired, with its interval;
        fill, the mean term of the fill; the change of the logit by
        ablation, total_logit, direct_logit and random_logit (the same change turned at random),
        with intervals; total_loss, the change of the loss in nats.
        """
        return self._frame.copy()

    def shown(self) -> pd.DataFrame:
        """One row per head, largest direct term beyond the floor first."""
        order = self._frame["beyond"].abs().argsort(kind="stable").to_numpy()[::-1]
        rows = []
        for r in self._frame.iloc[order].to_dict("records"):
            text = {
                name: Interval.from_columns(r, name).text("+.3f")
                for name in ("beyond", "direct_logit", "total_logit", "random_logit")
            }
            rows.append(
                {
                    "head": f"{r['layer']}.{r['head']}",
                    "direct term": f"{r['term']:+.3f}",
                    "other labels (floor)": f"{r['floor']:+.3f}",
                    "beyond": text["beyond"],
                    "fill": f"{r['fill']:+.3f}",
                    "ablated: Δ logit": text["total_logit"],
                    "direct": text["direct_logit"],
                    "turned at random": text["random_logit"],
                    "Δ loss": f"{r['total_loss']:+.4f}",
                }
            )
        return pd.DataFrame(rows)

    def printed(self) -> pd.DataFrame:
        """The heads of largest direct term beyond the floor alone."""
        columns = ["head", "direct term", "beyond", "ablated: Δ logit", "Δ loss"]
        return self.shown().iloc[:_PRINTED][columns]

    def by_layer(self) -> pd.DataFrame:
        """One row per layer: the mean terms of its heads, of out_proj's bias and of its MLP.

        Columns: layer, heads, out_bias, attention (both), mlp, each a mean over images in logits;
        attention and mlp with intervals (_low, _high).
        """
        terms, seed = self.terms, self.ablations.seed
        attention = mean_intervals(terms.heads.sum(-1) + terms.out_bias, seed)
        mlp = mean_intervals(terms.mlps, seed)
        return pd.DataFrame(
            {
                "layer": l,
                "heads": float(terms.heads[:, l].sum(-1).mean()),
                "out_bias": float(terms.out_bias[:, l].mean()),
                **attention[l].columns("attention"),
                **mlp[l].columns("mlp"),
            }
            for l in range(terms.mlps.shape[1])
        )

    def agreement_frame(self) -> pd.DataFrame:
        """One row per prediction and measurement: predicted, measured, rho, its floor, slope."""
        return pd.DataFrame(
            {
                "predicted": each.predicted,
                "measured": each.measured,
                **each.rho.columns("rho"),
                "rho_floor": float(each.floor),
                "rho_floor_high": each.floor.high,
                **each.slope.columns("slope"),
                "foretells": each.foretells,
            }
            for each in self.agreement
        )

    def rows_read(self) -> pd.DataFrame:
        """Where the strongest heads read on the drawn images; the first column is the image."""
        return pd.concat(
            [each.read.assign(image=each.number) for each in self.examples], ignore_index=True
        ).pipe(lambda frame: frame[["image", *frame.columns.drop("image")]])

    def further_tables(self) -> Mapping[str, pd.DataFrame]:
        """Agreement, layers, and what the strongest heads carry."""
        return {
            "Do direct terms foretell ablations?": self.agreement_table(),
            "Attention and MLPs by layer, mean terms in logits": rounded(self.by_layer()),
            "What the strongest heads carry, mean terms in logits": self.parts_table(),
            "Features that the strongest heads carry": self.features_table(),
        }

    def agreement_table(self) -> pd.DataFrame:
        """`agreement_frame` as text."""
        return pd.DataFrame(
            {
                "predicted": each.predicted,
                "ablation": MEASURED[each.measured],
                "Spearman's ρ over heads": each.rho.text(".2f"),
                "permuted": f"below {each.floor.high:.2f}",
                "slope": each.slope.text(".2f"),
                "foretold": "yes" if each.foretells else "no",
            }
            for each in self.agreement
        )

    def parts_table(self) -> pd.DataFrame:
        """What each strong head carries from all features, errors, patches and biases, as text."""
        rows = []
        for i, (layer, head) in enumerate(self.carried.heads):
            means = self.carried.parts[:, i].mean(0)
            carried = self.carried.rows[i]
            keys = np.abs(self.carried.keys[:, i])
            rows.append(
                {
                    "head": f"{layer}.{head}",
                    "term": f"{means.sum():+.3f}",
                    **{name: f"{v:+.3f}" for name, v in zip(PARTS, means, strict=True)},
                    "features active on CLS row": _share(carried[0], carried.sum()),
                    "reads CLS row": _share(keys[:, 0].sum(), keys.sum()),
                }
            )
        return pd.DataFrame(rows)

    def features_table(self) -> pd.DataFrame:
        """The features of each strong head as text."""
        rows = [
            {
                "head": f"{r['layer']}.{r['head']}",
                "feature": f"{r['source']}:{r['feature']}",
                "carried": f"{r['carried']:+.3f}",
                "other labels (floor)": f"{r['floor']:+.3f}",
                "beyond": Interval.from_columns(r, "beyond").text("+.3f"),
                "of the head's term": f"{100 * r['of_term']:.0f} %",
                "images": f"{100 * r['images']:.0f} %",
            }
            for r in self.carried.top_features(self.ablations.seed).to_dict("records")
        ]
        return pd.DataFrame(rows)

    def rows_table(self) -> pd.DataFrame:
        """`rows_read` as text, one row per key row."""
        rows = []
        for example in self.examples:
            for (layer, head, key), read in example.read.groupby(
                ["layer", "head", "key"], sort=False
            ):
                term, share = read[["term", "share"]].iloc[0]
                carried = [
                    f"{r.source}:{r.feature} on {patch_name(int(r.token), self.patch_grid)} "
                    f"{r.carried:+.3f}"
                    for r in read.dropna(subset="feature").itertuples()
                ]
                rows.append(
                    {
                        "image": f"{example.number}, {example.label}",
                        "head": f"{layer}.{head}",
                        "reads row": patch_name(int(key), self.patch_grid),
                        "term": f"{term:+.3f}",
                        "share": f"{100 * share:.0f} %",
                        "features carried from there": "; ".join(carried) or "none",
                    }
                )
        return pd.DataFrame(rows)

    def notes(self) -> Sequence[str]:
        """How to read the columns."""
        return [
            "head: layer.number; in brackets 95 % of bootstrap draws over images",
            f"heads, MLPs, biases and what enters the stream sum to the logit within "
            f"{self.terms.residue:.1e}",
            "direct term: what the head's output adds through the residual stream alone; other "
            "labels: the same for the label of an image of another class; beyond: the one less the "
            "other; fill: the term of what ablation writes; turned at random: the same change, "
            "rotated",
            "heads and features shown are the largest of many on these images, and their intervals "
            "do not count the choice",
            "what a head carries: the part of a feature's effect whose last attention step is this "
            "head; the row of a feature is the one it is active on",
        ]

    def metrics(self) -> list[Metric]:
        """Terms of heads and layers, and their agreement with ablations."""
        n = len(self.terms.logit)
        metrics = []
        for r in self._frame.to_dict("records"):
            name = f"{r['layer']}.{r['head']}"
            term = Interval.from_columns(r, "term")
            metrics.append(term.metric(f"term_{name}", "logits", n, r["floor"]))
            for path in ("total", "direct"):
                change = Interval.from_columns(r, f"{path}_logit")
                floor = r["random_logit"] if path == "total" else None
                metrics.append(change.metric(f"{path}_{name}", "logits", n, floor, 0.0))
        for r in self.by_layer().to_dict("records"):
            for part in ("attention", "mlp"):
                value = Interval.from_columns(r, part)
                metrics.append(value.metric(f"{part}_{r['layer']}", "logits", n))
        for each in self.agreement:
            name = f"{each.key}_against_{each.measured}"
            metrics.append(each.rho.metric(f"{name}_spearman", "fraction", n, each.floor.high))
            metrics.append(each.slope.metric(f"{name}_slope", "fraction", n))
        return metrics

    def companions(self) -> Sequence[Study]:
        """The ablations, which have files of their own."""
        return (self.ablations,)

    def figure(self) -> go.Figure:
        """Heatmap of direct terms, layers of attention and MLPs, and agreement with ablation."""
        from vit_clt.analysis.heads.figure import heads_figure

        return heads_figure(self)

    def page(self) -> str:
        """The page: figure, agreement, what heads carry, and the rows read on some images."""
        from vit_clt.analysis.heads.report import heads_report

        return heads_report(self)

    def extras(self) -> Iterable[tuple[str, str]]:
        """Terms by layer, features carried, rows read, and agreement."""
        return {
            "terms_by_layer.csv": csv_table(self.by_layer()),
            "carried_features.csv": csv_table(self.carried.top_features(self.ablations.seed)),
            "rows_read.csv": csv_table(self.rows_read()),
            "agreement.csv": csv_table(self.agreement_frame()),
        }.items()


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"
