"""`vit-clt reconstruct`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_clt.cli.options import CompareOptions, SeedOptions, StudyOptions, print_table

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = {
    ("r2", "cls"): "R2 CLS",
    ("r2", "patch"): "R2 patch",
    ("r2_typical", "patch"): "R2 patch, typical",
    ("r2_position", "patch"): "R2 patch by position",
    ("cosine", "cls"): "cos CLS",
    ("cosine", "patch"): "cos patch",
    ("cross_layer", "all"): "cross-layer",
}


@dataclass(kw_only=True)
class Reconstruct(CompareOptions, StudyOptions, SeedOptions):
    """Reconstruction per layer and token kind: R^2, cosine, MSE, L0, dead features.

    Example: vit-clt reconstruct --clt out/clt --data digits --out out/reconstruction
    """

    def run(self) -> None:
        """Measure, draw, and report."""
        import pandas as pd

        from vit_clt.analysis.fit.reconstruction_figure import reconstruction_figure
        from vit_clt.analysis.fit.reconstruction_study import reconstructions
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import metrics_json

        folder = self.study_folder("reconstruction")
        vit, named, data = self.load_compared(self.device)
        names, clts = [name for name, _ in named], [clt for _, clt in named]
        results = reconstructions(vit, clts, data, seed=self.seed, progress=True)
        figure = reconstruction_figure(results, names)
        folder.open()
        frames = [r.frame.assign(clt=name) for name, r in zip(names, results, strict=True)]
        frame = pd.concat(frames, ignore_index=True)
        frame.insert(0, "clt", frame.pop("clt"))
        shown = _readable(frame)
        l0s = {name: r.mean("all", "l0") for name, r in zip(names, results, strict=True)}
        listed = ", ".join(f"{name} L0 {l0:.1f}" for name, l0 in l0s.items())
        caption = (
            f"{data.name}, N = {len(data)}, teacher trajectory, {listed}, seed {self.seed}; "
            "predicting the mean has R2 0"
        )
        write_study(folder, "reconstruction", figure, frame, caption, shown=shown, png=self.png)
        context = {
            "command": "reconstruct",
            "data": data.name,
            "split": data.split,
            "tokens": "cls patch all",
            "trajectory": "teacher",
            "l0": l0s[names[0]],
            "seed": self.seed,
            "clt": names[0],
            "compared": {name: {"l0": l0s[name]} for name in names[1:]},
            "floor": "predicting the mean of the same rows",
        }
        metrics = results[0].metrics()
        for name, result in zip(names[1:], results[1:], strict=True):
            metrics += result.metrics(prefix=f"{name}_")
        folder.write("metrics.json", metrics_json(metrics, **context))
        print(caption)
        print_table(shown)
        print(f"written to {folder.path}")


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    wide = frame.pivot(
        index=["clt", "layer"], columns="tokens", values=list({column for column, _ in _SHOWN})
    )
    # pivot sorts by name; the order asked for stays
    wide = wide.reindex(frame["clt"].unique(), level="clt")
    table = wide[list(_SHOWN)].set_axis(list(_SHOWN.values()), axis=1)
    # + 0.0: rounding at layer 0, which has no other source, is not to read -0.000
    return (table.round(3) + 0.0).map("{:.3f}".format).reset_index()
