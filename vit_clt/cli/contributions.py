"""`vit-clt contributions`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.choices import ScoreKind, TokenKind
from vit_clt.cli.options import CompareOptions, SeedOptions, StudyOptions, print_table


@dataclass(kw_only=True)
class Contributions(CompareOptions, StudyOptions, SeedOptions):
    """Contribution scores C(s->l): heatmaps, a table of every kind, metrics.

    With --compare also difference.html and its tables: --clt less each of the others.

    Example: vit-clt contributions --clt out/clt --data digits --out out/contributions
    """

    tokens: TokenKind | None = None
    """Rows to score; default: CLS above patches."""
    kind: tuple[ScoreKind, ...] = (
        "projection",
        "centred",
    )
    """Scores drawn, one or several; the CSV holds every kind."""
    label: str | None = None
    """Score the images of this class alone: its name, a part that no other name holds, or its
    number; means stay those of all images."""
    image: int | None = None
    """Score this image alone (its row); means stay those of all images."""

    def run(self) -> None:
        """Score, draw, and report."""
        from vit_clt.analysis.contributions.study import score_study
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.analysis.reporting.style import ROW_NAMES
        from vit_clt.metrics import metrics_json

        names = ("contributions", "difference") if self.compare else ("contributions",)
        folder = self.study_folder(*names)
        vit, clts, data = self.load_compared(self.device)
        tokens: list[TokenKind] = [self.tokens] if self.tokens else ["cls", "patch"]
        study = score_study(
            vit,
            dict(clts),
            data,
            tokens=tokens,
            kinds=self.kind,
            label=self.label,
            image=self.image,
            seed=self.seed,
            progress=True,
        )
        first, shown = study.first, study.last_layer()
        l0 = {
            name: {t: study.drawn(name, t, first.kind).l0 for t in tokens} for name in study.names
        }
        on_rows = ", ".join(f"{of_clt[tokens[0]]:.1f}" for of_clt in l0.values())
        facts = (
            f"{first.data}, N = {first.n_images}, teacher trajectory, L0 {on_rows} "
            f"({ROW_NAMES[tokens[0]]}); intervals in the CSV: 95 % bootstrap over images, "
            f"seed {self.seed}"
        )
        caption = f"shares of the last layer's reconstruction, {facts}"
        folder.open()
        write_study(
            folder,
            "contributions",
            study.figure(),
            study.to_frame(),
            caption,
            shown=shown,
            png=self.png,
        )
        if self.compare:
            write_study(
                folder,
                "difference",
                study.difference_figure(),
                study.difference_frame(),
                f"shares of the last layer's reconstruction, {study.names[0]} less another CLT, "
                f"95 % bootstrap paired by image, {facts}",
                shown=study.last_layer_differences(),
                png=self.png,
            )
        drawn = [study.drawn(n, t, k) for n in study.names for t in tokens for k in study.kinds]
        context = {
            "command": "contributions",
            "data": first.data,
            "split": data.split,
            "tokens": " ".join(tokens),
            "trajectory": "teacher",
            "l0": l0 if self.compare else l0[study.names[0]],
            "seed": self.seed,
            "clts": study.names,
            "excluded_rows": int(sum(each.excluded.sum() for each in drawn)),
        }
        folder.write("metrics.json", metrics_json(study.metrics(), **context))

        print(caption)
        print_table(shown)
        print(
            "C(s->l) says from which depth y_l can be sparsely read, not what MLP_s contributed.\n"
            f"written to {folder.path}"
        )
