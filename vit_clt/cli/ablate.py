"""`vit-clt ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_clt.choices import Fill, Ranking, ScoreKind, Templates, TokenKind
from vit_clt.cli.options import (
    CLTOptions,
    SeedOptions,
    StudyOptions,
    layer_numbers,
    print_table,
)

if TYPE_CHECKING:
    import pandas as pd

    from vit_clt.analysis.ablations.curves import AblationCurves
    from vit_clt.analysis.ablations.term_sets import Targets
    from vit_clt.analysis.stats.readings import Measure


@dataclass(kw_only=True)
class Ablate(CLTOptions, StudyOptions, SeedOptions):
    """Keep or drop source layers of one or several layers' reconstructions, and read the model.

    Example: vit-clt ablate --clt out/clt --data digits --rankings projection last random
    --fill mean --out out/ablation
    """

    tokens: TokenKind = "cls"
    """Rows overwritten."""
    target: str = "-1"
    """Layer whose MLP output is overwritten; -1 is the last; several (4,7-11) or all at once."""
    fill: Fill = "zero"
    """What stands in for a dropped term."""
    kind: ScoreKind = "projection"
    """Score that ranks the sources."""
    rankings: tuple[Ranking, ...] = ()
    """Orders in which sources are kept or dropped: kinds of score, last (deepest first), bottom
    (lowest score first), random; default: --kind alone."""
    draws: int = 5
    """How many random orders."""
    sources: str | None = None
    """A set of source layers to keep, and to drop, beside the curves, e.g. 8,9,11."""
    templates: Templates = "ensemble"
    """Zero-shot prompts: "a photo of a {}." or the 18 CIFAR templates."""

    def run(self) -> None:
        """Ablate, draw, and report."""
        from vit_clt.analysis import ablation_curves, contribution_scores
        from vit_clt.analysis.ablations.keep_drop import sources_at
        from vit_clt.analysis.ablations.term_sets import target_list
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json
        from vit_clt.zero_shot import ZeroShot

        folder = self.study_folder("ablation")
        target = _target(self.target)
        sources = None if self.sources is None else layer_numbers(self.sources, "sources")
        vit, clt, data = self.load_all(self.device)
        zs = ZeroShot(vit, data.class_names, self.templates)
        sources_at(target_list(target, vit.cfg.n_layers), sources or [])
        curves = ablation_curves(
            vit,
            clt,
            data,
            zs,
            scores=contribution_scores(
                vit, clt, data, tokens=self.tokens, kind=self.kind, progress=True
            ),
            rankings=self.rankings or None,
            sources=sources,
            draws=self.draws,
            target=target,
            tokens=self.tokens,
            fill=self.fill,
            seed=self.seed,
            progress=True,
        )
        layers = ", ".join(map(str, curves.targets))
        caption = (
            f"{data.name}, N = {len(data)}, layer {layers}, {self.tokens} rows, teacher "
            f"trajectory, dropped terms: {self.fill}, templates: {self.templates}, ranked by "
            f"{', '.join(curves.rankings)}, L0 {curves.l0:.1f}, seed {self.seed}; recovered: "
            "share of the way from the mean floor to the full reconstruction"
        )
        context = {
            "command": "ablate",
            "data": data.name,
            "split": data.split,
            "tokens": self.tokens,
            "trajectory": "teacher",
            "l0": curves.l0,
            "fill": self.fill,
            "seed": self.seed,
            "templates": self.templates,
            "target": curves.targets[0] if len(curves.targets) == 1 else curves.targets,
            "ranking": curves.ranking,
            "rankings": curves.rankings,
            "ranked_by": curves.ranked_by,
            "sources": sources,
            "no_op": curves.no_op,
        }
        shown, frame = _table(curves), curves.to_frame()
        folder.open()
        write_study(folder, "ablation", curves.figure(), frame, caption, shown=shown, png=self.png)
        folder.write("metrics.json", metrics_json(curves.metrics(), **context))
        print(caption)
        print_table(shown)
        if curves.no_op:
            print("these rows cannot reach the output: a no-op")
        print(f"written to {folder.path}")


def _target(text: str) -> Targets:
    if text == "all":
        return "all"
    if text.startswith("-") and text[1:].isascii() and text[1:].isdigit():
        return int(text)
    return layer_numbers(text, "target")


def _table(curves: AblationCurves) -> pd.DataFrame:
    # one line per ranking, mode and k; random orders as the mean over their draws
    import pandas as pd

    measures: dict[str, tuple[Measure, str, float]] = {
        "top-1 %": ("top1", ".2f", 100),
        "loss (nats)": ("loss", ".4f", 1),
    }
    if "any_hit" in curves.readings.means:
        measures["any hit %"] = ("any_hit", ".2f", 100)
    frame = curves.to_frame()
    # of several targets only the deepest one's sources: the table file has them all
    deepest = {p.name: " ".join(map(str, p.chosen[curves.targets[-1]])) for p in curves.points}
    frame["shown"] = list(deepest.values())
    rows = []
    for (ranking, mode, k), own in frame.groupby(["ranking", "mode", "k"], sort=False):
        plain = list(frame["ranking"].unique()) == [ranking]
        share = own["recovered_loss"].mean()
        rows.append(
            {
                "": f"{mode} {k}" if plain else f"{ranking} {mode} {k}",
                **{name: f"{own[m].mean() * by:{how}}" for name, (m, how, by) in measures.items()},
                "loss recovered %": "-" if share != share else f"{100 * share:.1f}",
                "sources": own["shown"].iloc[0] or "-" if len(own) == 1 else f"{len(own)} draws",
            }
        )
    for name in ("original", "full", "bias_only", "floor_mean", "floor_zero"):
        reading = curves.readings[name]
        cells = {c: f"{getattr(reading, m) * by:{how}}" for c, (m, how, by) in measures.items()}
        rows.append({"": name, **cells, "loss recovered %": "-", "sources": "-"})
    return pd.DataFrame(rows)
