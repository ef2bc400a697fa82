"""How well numbers tell a class of images from the others: the area under the ROC curve (AUC)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def class_aucs(
    values: Float[np.ndarray, "image quantity"],
    labels: Int[np.ndarray, " image"],
    n_classes: int,
) -> Float[np.ndarray, "quantity class"]:
    """AUC of every quantity for every class against the rest; 0.5 is chance.

    It is the share of pairs of an image of the class and another one in which that of the class has
    the larger value, ties counting half. NaN for a class that none or all of the images are of.

    Args:
        values: of each image.
        labels: class of each image, 0 to n_classes - 1.
        n_classes: number of classes.
    """
    from scipy.stats import rankdata  # takes a second to import

    of_class = labels[:, None] == np.arange(n_classes)
    inside = of_class.sum(0)
    sums = rankdata(values, axis=0).T @ of_class
    pairs = inside * (len(labels) - inside)
    return (sums - inside * (inside + 1) / 2) / np.where(pairs, pairs, np.nan)
