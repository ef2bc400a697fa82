"""Measures of steered logits: probabilities, logits, KL, accuracy, loss, and their changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vit_clt.analysis.stats.intervals import bootstrap_means, intervals
from vit_clt.analysis.stats.readings import MEASURES, UNITS
from vit_clt.analysis.stats.similarity import kl_divergence
from vit_clt.readouts.base import Classifier

STEERED_UNITS: dict[str, str] = {
    "contrast": "logits",
    "logit": "logits",
    "probability": "fraction",
    "kl": "nats",
}
STEERED_UNITS |= {measure: UNITS[measure] for measure in MEASURES}


class SteeredReader:
    """Turns logits of versions of the model into table rows, with changes from the unsteered model
    paired over images.

    Args:
        clean: logits of the unsteered model.
        labels: labels of the images, or None where they are not known.
        class_names: names of the classes, in label order.
        seed: seed of the bootstrap.
    """

    def __init__(
        self,
        clean: Float[Tensor, "image class"],
        labels: Int[Tensor, " image"] | None,
        class_names: Sequence[str],
        seed: int,
    ):
        self.clean, self.labels, self.seed = clean, labels, seed
        names = list(class_names)
        numbers = list(range(len(names)))
        self.index: dict[str, list[Any]] = {
            "measure": ["probability"] * len(names) + ["logit"] * len(names) + ["kl"],
            "class": [*names, *names, None],
            "label": [*numbers, *numbers, None],
        }
        if labels is not None:
            for name, values in self.index.items():
                values += ["top1", "loss"] if name == "measure" else [None, None]
        self.before = self._columns(clean)

    def rows(
        self,
        logits: Float[Tensor, "image class"],
        controls: Sequence[Float[Tensor, "image class"]] = (),
        *,
        strength: float | None = None,
        **what: str,
    ) -> pd.DataFrame:
        """One table row per measure and class: value, change and their intervals.

        Args:
            logits: logits of one version of the model.
            controls: logits of the random controls. With them "beyond" is the value minus the mean
                of theirs, paired over images; its interval takes the controls drawn as given.
                Without them it is NaN.
            strength: written into every row.
            **what: further columns, the same in every row.
        """
        columns = self._columns(logits)
        change = columns - self.before
        k = columns.shape[1]
        low, high = _ends(np.concatenate([columns, change], axis=1), self.seed)
        beyond = beyond_low = beyond_high = np.full(k, np.nan)
        if controls:
            gaps = columns - np.mean([self._columns(control) for control in controls], axis=0)
            beyond = gaps.mean(0)
            beyond_low, beyond_high = _ends(gaps, self.seed)
        frame = pd.DataFrame(
            {
                **what,
                "strength": np.nan if strength is None else strength,
                **self.index,
                "unit": [STEERED_UNITS[m] for m in self.index["measure"]],
                "value": columns.mean(0),
                "low": low[:k],
                "high": high[:k],
                "change": change.mean(0),
                "change_low": low[k:],
                "change_high": high[k:],
                "beyond": beyond,
                "beyond_low": beyond_low,
                "beyond_high": beyond_high,
                "n": len(columns),
            }
        )
        return frame.astype({"label": "Int64", "class": object})

    def _columns(self, logits: Tensor) -> np.ndarray:
        columns = [logits.softmax(-1), logits, kl_divergence(self.clean, logits)[:, None]]
        if self.labels is not None:
            columns.append((logits.argmax(-1) == self.labels)[:, None].double())
            columns.append(F.cross_entropy(logits, self.labels, reduction="none")[:, None])
        return torch.cat(columns, dim=1).numpy()


def known_labels(
    classifier: Classifier, labels: Int[Tensor, " image"]
) -> Int[Tensor, " image"] | None:
    """The labels, or None where none is known (all are -1).

    Raises:
        InputError: a label has no class name.
    """
    if (labels == -1).all():
        return None
    classifier.check_labels(labels)
    return labels


def _ends(
    values: Float[np.ndarray, "image quantity"], seed: int
) -> tuple[Float[np.ndarray, " quantity"], Float[np.ndarray, " quantity"]]:
    """95 % bootstrap intervals of the means over images; NaN for a single image."""
    if len(values) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return nothing, nothing
    return intervals(bootstrap_means(values, seed))
