"""Which features get a page: the same number of every layer, by a stated, seeded rule."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd

from vit_clt.analysis.features.statistics import FeatureStatistics
from vit_clt.choices import Rule, check_choice
from vit_clt.errors import InputError
from vit_clt.zero_shot import class_number

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
    """What `select_features` chooses by a rule; a class only with "effect"."""
    if class_name is None:
        return RULES[rule]
    return f'the largest direct effect raising the logit of "{class_name}"' + _EFFECT


def check_selection(rule: Rule, count: int, class_name: str | int | None = None) -> None:
    """Refuse what `select_features` cannot choose by, whatever the features.

    Raises:
        InputError: an unknown rule, a count below 1, or a class with a rule that reads none.
    """
    check_choice("rule", rule, get_args(Rule))
    if count < 1:
        raise InputError("count", f"is {count}; expected at least 1.")
    if class_name is not None and rule != "effect":
        raise InputError(
            "class_name", f'is "{class_name}" with rule "{rule}"; expected rule "effect".'
        )


def check_measured(rule: Rule, effects: bool) -> None:
    """Refuse a rule by effects where there are none.

    Raises:
        InputError: "effect", and no effects are measured.
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
    """(layer, feature) pairs, `count` a layer (or all there are), by layer and then by the rule.

    Ties go to the lower number; silent features are never chosen.

    Args:
        stats: of the layers to choose from; its seed is the rule's too.
        rule: a key of `RULES`.
        count: features a layer.
        class_name: with "effect", the class whose logit the features raise most, as in
            `class_number`.

    Raises:
        InputError: an unknown rule, no feature to choose, effects that were not measured, or a
            class that does not exist, or not alone.
    """
    check_selection(rule, count, class_name)
    check_measured(rule, stats.effects is not None)
    number = None
    if class_name is not None and stats.effects is not None:
        number = class_number(stats.effects.class_names, class_name, "class_name")
    table = stats.to_frame()
    found: list[tuple[int, int]] = []
    for s in stats.layers:
        layer = table[(table["layer"] == s) & (table["active_images"] > 0)]
        ranked = _ranked(stats, s, layer, rule, number)
        if rule == "spread":
            rng = np.random.default_rng([stats.seed, s])
            groups = np.array_split(ranked, min(count, len(ranked)) or 1)
            chosen = [int(rng.choice(group)) for group in groups if len(group)]
        else:
            chosen = ranked[:count].tolist()
        found += [(s, feature) for feature in chosen]
    if not found:
        raise InputError(
            "rule",
            f'is "{rule}", which fits no feature: none of layers {stats.layers} is active '
            f"as it asks on the {stats.n_images} images of {stats.data.name}.",
        )
    return found


def _ranked(
    stats: FeatureStatistics, s: int, layer: pd.DataFrame, rule: Rule, number: int | None
) -> np.ndarray:
    """Features of one layer, the one to be chosen first in front."""
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
