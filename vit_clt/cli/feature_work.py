"""The work of studies of features, of single images and of probes, as in `study_work`.

What is no pass of the ViT or the CLT is told in seconds of the machine that it was measured on.
"""

from __future__ import annotations

from math import ceil

from vit_clt.cli.study_work import (
    active_features,
    cascade_work,
    contribution_work,
    fit_work,
    memory,
)
from vit_clt.forecast.work import Number, Scope, Work

NAME_IMAGES = 2048
"""Most images that names of features are chosen and tested on."""
PROBE_SECONDS = 0.06
"""Of a probe and its permutations, for 1,000 images of width 128."""
SEARCH_SECONDS = 1.6e-10
"""Of a pair of a query and an image of the corpus, in one layer, a feature."""
NAME_SECONDS = 0.2
"""Of the tests of names, a layer."""
PAGE_SECONDS = 0.006
"""Of the page of a feature."""
MEASURE_SECONDS = 0.3
"""Of the measures of a layer of one dictionary."""


def probe_work(of: Scope, layers: Number, room: Number) -> Work:
    """`probes`: passes over both sets of images, and the probes of every place.

    Args:
        of: the sizes of the study.
        layers: number of layers probed.
        room: bytes of vectors that are kept; layers beyond it take passes of their own.
    """
    n = of.images + of.train
    # four stages, of CLS rows and of both halves of the patches, in float32
    vectors = 4 * 3 * of.width * 4 * layers
    passes = ceil(max(1, n * vectors / max(1, room)))
    places = 8 * layers
    return Work(
        {"read": passes * n, "pass": passes * n, "sums": 6 * n},
        seconds=places * PROBE_SECONDS * n / 1000 * (of.width / 128) ** 2,
        memory=memory(of, 3) + min(room, n * vectors),
    )


def retrieval_work(of: Scope, layers: Number, kinds: Number, *, within: bool = False) -> Work:
    """An index of the corpus, descriptors of the queries, and the search of every layer."""
    queries, corpus = of.images, of.images if within else of.train
    n = corpus if within else queries + corpus
    encoded = layers / of.layers * (1 + (kinds - 1) / of.tokens)
    # a pooled patch code has some ten times as many active features as a row, 8 bytes each
    entries = 10 * of.active * kinds * layers
    return Work(
        {"read": n, "pass": n, "encode": encoded * n, "sums": encoded * 8 * n},
        seconds=queries * corpus * layers * kinds * of.features * SEARCH_SECONDS,
        memory=memory(of, 4) + n * (8 * entries + 4 * of.width * layers * kinds),
    )


def gallery_work(
    of: Scope, layers: Number, pages: Number, effect_images: Number, *, named: bool
) -> Work:
    """Statistics of features, class effects, names, and the pages of some of them."""
    n, share = of.images, layers / of.layers
    some = min(n, NAME_IMAGES) if named else 0
    few = min(n, effect_images)
    return Work(
        {
            "read": n + some + few,
            # a gradient of each class, about a frozen forward each
            "pass": n + some + few * (2 + 0.7 * of.classes),
            "encode": share * (n + some + few),
            "decode": share * few * of.classes,
            "sums": share * (32 * n + 50 * some),
        },
        seconds=pages * PAGE_SECONDS + (layers * NAME_SECONDS if named else 0),
        memory=memory(of, 5) + 600 * of.features * layers + _effect_memory(of),
    )


def explore_work(
    of: Scope, pages: Number, graphs: Number, interventions: Number, room: Number
) -> Work:
    """`explore` but for its statistics of features: `gallery_work` without pages.

    Args:
        of: the sizes of the study.
        pages: number of features that have a page.
        graphs: number of images that are taken apart.
        interventions: number of features silenced in each of them.
        room: bytes of codes that scores keep between their passes.
    """
    n = of.images
    readings = Work({"read": n, "pass": n, "encode": n}, seconds=pages * PAGE_SECONDS)
    neighbours = retrieval_work(of, of.layers, 1, within=True)
    taken_apart = graphs * graph_work(of, interventions)
    measured = cascade_work(of, n, [0], of.kinds) + contribution_work(of, n, room) + fit_work(of)
    return readings + neighbours + taken_apart + measured


def measures_work(of: Scope, layers: Number, effect_images: Number, room: Number) -> Work:
    """`feature_scores`: a pass for all dictionaries, and the measures of each layer.

    Args:
        of: the sizes of the study.
        layers: number of layers.
        effect_images: number of images that direct effects are measured on.
        room: bytes of image-level activations; layers beyond it take passes of their own.
    """
    n, share = of.images + of.train, layers / of.layers
    few = min(of.images, effect_images)
    dictionaries = of.clts + 3  # an untrained CLT, neurons, components
    # of every unit: hidden units of MLPs are four times the width, as a rule
    a_layer = 8 * n * ((of.clts + 1) * of.features + 5 * of.width)
    passes = ceil(max(1, layers * a_layer / max(1, room)))
    # on an image all units of the ViT are active, and some ten times as many features as on a row
    active = (of.clts + 1) * min(of.features, 10 * of.active) + 5 * of.width
    kept = 16 * n * layers * active
    # components, activations, and rows for absorption
    reads = (1.5 + passes) * n
    return Work(
        {
            "read": reads,
            "pass": reads + of.clts * few * (2 + 0.7 * of.classes),
            "encode": share * 2 * of.clts * n,
            "decode": share * of.clts * few * of.classes,
        },
        seconds=layers * dictionaries * MEASURE_SECONDS,
        # of one layer every unit is written out, in some six arrays
        memory=memory(of, 5, 24 * of.features) + min(max(room, a_layer), kept) + _effect_memory(of),
    )


def graph_work(of: Scope, interventions: Number) -> Work:
    """The graph of one image: effects among its features, and a pass for each one silenced."""
    n = interventions
    # seconds of an image, and of an active feature of it
    seconds = 0.7 + 1.7e-4 * active_features(of)
    return Work({"read": 2, "pass": n, "encode": n, "decode": n}, seconds, memory(of, 4))


def steering_work(of: Scope, n: Number, versions: Number, searched: Number = 0.0) -> Work:
    """Typical activations of all images, and versions of a steered pass on n of them."""
    passes = versions / 2
    return Work(
        {
            "read": of.images + n,
            "pass": of.images + (1 + passes) * n + 3 * searched,
            "encode": of.images / of.layers + searched,
            "decode": searched,
        },
        memory=memory(of, 8, 4 * versions * of.classes),
    )


def taken_apart_work(of: Scope, n: Number) -> Work:
    """Direct terms of n images, and the features that heads carry, an image at a time."""
    # seconds of an image, and of an active feature of it
    return Work({"read": 3 * n}, seconds=n * (0.03 + 1e-5 * active_features(of)))


def _effect_memory(of: Scope) -> Number:
    """Bytes of the gradients of class effects: some six arrays of at most 2^25 numbers."""
    numbers = of.classes * 32 * of.layers * of.tokens * of.width
    return 6 * 4 * min(2**25, numbers)
