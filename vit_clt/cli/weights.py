"""`vit-clt weights`."""

from __future__ import annotations

from dataclasses import dataclass

from vit_clt.cli.options import StudyOptions, load_clt, print_table


@dataclass(kw_only=True)
class Weights(StudyOptions):
    """Decoder norms per source and target layer, cross-layer shares, concentration: no images.

    Example: vit-clt weights --clt out/clt --out out/weights
    """

    clt: str
    """CLT folder or Hub id."""

    def run(self) -> None:
        """Measure, draw, and report."""
        import pandas as pd

        from vit_clt.analysis import decoder_norms
        from vit_clt.analysis.reporting.files import write_study
        from vit_clt.metrics import Metric, metrics_json

        folder = self.study_folder("weights")
        clt = load_clt(self.clt, self.device)
        norms = decoder_norms(clt)
        of_source, of_target = norms.cross_layer_of_source, norms.cross_layer_of_target
        layers = range(clt.config.n_layers)
        rows = [
            (
                l,
                f"{norms.rms[l, l]:.4g}",
                f"{of_source[l]:.3f}",
                f"{of_target[l]:.3f}",
                f"{norms.effective[l, l]:.3f}",
                f"{norms.top_1_percent[l, l]:.3f}",
            )
            for l in layers
        ]
        shown = pd.DataFrame(
            rows,
            columns=[
                "layer",
                "norm of a feature",
                "written later",
                "from earlier",
                "effective features",
                "in the top 1 %",
            ],
        )
        caption = (
            f"{self.clt}: decoder norms, raw units, no images; norm of a feature, effective share "
            "of features and share held by the top 1 % on the diagonal; written later and from "
            "earlier: shares of squared norm that cross layers"
        )
        metrics = [
            Metric(f"cross_layer_of_{side}_{l}", float(shares[l]), "fraction", 0)
            for side, shares in (("source", of_source), ("target", of_target))
            for l in layers
        ]
        folder.open()
        figure = norms.figure(self.clt)
        write_study(folder, "weights", figure, norms.to_frame(), caption, shown=shown, png=self.png)
        folder.write("metrics.json", metrics_json(metrics, command="weights", clt=self.clt))
        print(caption)
        print_table(shown)
        print(
            "Between sources norms compare only as far as their codes are of one size.\n"
            f"written to {folder.path}"
        )
