"""The choice of features that get a page: the same number of every layer, by a seeded rule."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd

from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.choices import Rule, check_choice
from vit_clt.errors import InputError
from vit_clt.readouts.class_names import class_number

_EFFECT = " (centred over classes, as a mean over all images it was measured on)"
RULES: dict[Rule, str] = {
    "spread": "one at random from each of as many equal groups of the active features, ordered by "
    "the share of images they are active on",
    "rate": "those active on most images",
    "effect": "the largest direct effect on any class logit" + _EFFECT,
    "purity": "the purest top images, of features that fill them; among equals those active on "
    "more images",
    "random": "active features at random",
}


def rule_in_words(rule: Rule, class_name: str | int | None = None) -> str:
    """The rule by which `select_features` chooses, in words; only "effect" takes a class."""
    if class_name is None:
        return RULES[rule]
    return f'the largest direct effect raising the logit of "{class_name}"' + _EFFECT


def check_selection(rule: Rule, count: int, class_name: str | int | None = None) -> None:
    """Refuse arguments that `select_features` could not use with any features.

    Raises:
        InputError: the rule is unknown, the count is below 1, or a class is given with another rule
            than "effect".
    """
    check_choice("rule", rule, get_args(Rule))
    if count < 1:
        raise InputError("count", f"is {count}; expected at least 1.")
    if class_name is not None and rule != "effect":
        raise InputError(
            "class_name", f'is "{class_name}" with rule "{rule}"; expected rule "effect".'
        )


def check_measured(rule: Rule, effects: bool) -> None:
    """Refuse the rule "effect" where no effects are measured.

    Raises:
        InputError: the rule is "effect", and `effects` is False.
    """
    if rule == "effect" and not effects:
        raise InputError(
            "rule",
            'is "effect", but no effects are measured; expected class names, and a model '
            "that pools the class token.",
        )


def select_features(
    stats: FeatureStatistics,
    rule: Rule = "spread",
    count: int = 32,
    *,
    class_name: str | int | None = None,
) -> list[tuple[int, int]]:
    """Choose `count` features of each layer, or all if there are fewer, as (layer, feature) pairs.

    Pairs are in the order of layers, then of the rule. Ties go to the lower number; silent features
    are never chosen.

    Args:
        stats: statistics of the layers to choose from; the rule uses their seed.
        rule: a key of `RULES`.
        count: features per layer.
        class_name: with "effect", the class whose logit the features raise most, as in
            `class_number`.

    Raises:
        InputError: the rule is unknown, it fits no feature, it needs effects that were not
            measured, or the class does not exist or its name is ambiguous.
    """
    check_selection(rule, count, class_name)
    check_measured(rule, stats.effects is not None)
    number = None
    if class_name is not None and stats.effects is not None:
        number = class_number(stats.effects.class_names, class_name, "class_name")
    table = stats.to_frame()
    pairs: list[tuple[int, int]] = []
    for s in stats.layers:
        layer = table[(table["layer"] == s) & (table["active_images"] > 0)]
        ranked = _ranked(stats, s, layer, rule, number)
        if rule == "spread":
            rng = np.random.default_rng([stats.seed, s])
            groups = np.array_split(ranked, min(count, len(ranked)) or 1)
            features = [int(rng.choice(group)) for group in groups if len(group)]
        else:
            features = ranked[:count].tolist()
        pairs += [(s, feature) for feature in features]
    if not pairs:
        raise InputError(
            "rule",
            f'is "{rule}", which fits no feature: none of layers {stats.layers} is active '
            f"as it asks on the {stats.n_images} images of {stats.data.name}.",
        )
    return pairs


def _ranked(
    stats: FeatureStatistics, s: int, layer: pd.DataFrame, rule: Rule, number: int | None
) -> np.ndarray:
    """Features of one layer, in the order in which they are chosen."""
    if rule == "random":
        rng = np.random.default_rng([stats.seed, s])
        return rng.permutation(layer["feature"].to_numpy())
    if rule == "effect":
        assert stats.effects is not None
        layer = layer[layer["effect_images"] > 0]
        centred = stats.effects.centred(s)[layer["feature"]]
        strength = np.abs(centred).max(1, initial=0) if number is None else centred[:, number]
        keys = ["strength"]
        layer = layer.assign(strength=strength * layer["effect_images"])
    elif rule == "purity":
        layer = layer[(layer["active_images"] >= stats.n_top) & layer["purity"].notna()]
        keys = ["purity", "active_images"]
    else:
        keys = ["active_images"]
    ranked = layer.sort_values([*keys, "feature"], ascending=[*(False for _ in keys), True])
    return ranked["feature"].to_numpy()
