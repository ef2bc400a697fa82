"""The work of studies that several commands do, in the units of `vit_clt.forecast.work`.

Passes of the ViT and of the CLT are counted from the code of the studies. Norms, products and
sums beside them are told as "sums", by a number that was measured on a CPU for each of them (12
layers of width 128, 65 tokens, 2,048 features), as was the memory of a batch, in arrays "layer
image token d_model" of float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil

from vit_clt.analysis.stats.names import layer_sets
from vit_clt.choices import TokenKind
from vit_clt.forecast.work import Number, Scope, Work

FIT_IMAGES = 256
"""Most images that the fit of a CLT is measured on (`vit_clt.analysis.fit.gate`)."""
SIMILARITY_IMAGES = 5000
"""Most images whose similarities are ranked (`vit_clt.analysis.fit.faithfulness_study`)."""
CLAIM_IMAGES = 500
"""Most images that claims measures effects on (`vit_clt.analysis.auditing.claims`)."""
LIBRARIES = 120e6
"""Bytes of the libraries that are imported for tables and pages: pandas, plotly, scipy."""
REPORT = Work(seconds=1.0)
"""Files and pages of a study, and the libraries that are imported for them (measured)."""
_FLOAT64 = 8
_DRAWS = 3200
"""Bytes of an image while a hundred bootstrap draws are taken."""
_ALTERED = 0.8
"""An altered pass, as a share of one that records x and y of every layer (measured)."""
_IDLE = 0.4
"""The same where all MLPs are replaced, and none runs (measured)."""
_PATCHES = 1.6
"""The same where patch rows alone are replaced: MLPs run, and large parts are copied (measured)."""


def row_share(of: Scope, tokens: TokenKind) -> float:
    """Share of the token rows that are of one kind; nearly all rows are patches."""
    return 1 / of.tokens if tokens == "cls" else 1.0


def later(of: Scope, first_layers: Iterable[int]) -> float:
    """Shares of a pass that passes run which begin at these layers, added up."""
    return sum(of.layers - s for s in first_layers) / of.layers


def memory(of: Scope, arrays: Number, an_image: Number = 0.0) -> float:
    """Bytes beyond what is loaded.

    Args:
        of: the sizes of the study.
        arrays: number of arrays "layer image token d_model" of a batch that are there at a time.
        an_image: bytes that are kept of every image.
    """
    return LIBRARIES + arrays * of.array + of.images * (an_image + _DRAWS)


def fit_work(of: Scope) -> Work:
    """The fit of every CLT, which is printed before a study."""
    return reconstruction_work(of, min(of.images, FIT_IMAGES))


def reconstruction_work(of: Scope, n: Number) -> Work:
    """`reconstructions` on n images: two passes, of which the second encodes and decodes."""
    return Work(
        {
            "read": 2 * n,
            "pass": 2 * n,
            "encode": of.clts * n,
            "decode": of.clts * n,
            "sums": (12 + 16 * of.clts) * n,
        },
        memory=memory(of, 9, of.layers * len(of.kinds) * 3 * _FLOAT64 * of.clts),
    )


def code_bytes(of: Scope) -> Number:
    """Bytes of an image that contribution scores keep between passes: codes, and sums of y."""
    # an entry has a value and an index; sums of y by kind of rows are in float64
    return of.clts * active_features(of) * 12 + of.layers * 3 * of.width * _FLOAT64


def contribution_work(of: Scope, n: Number, room: Number) -> Work:
    """The moments of contribution scores, and the scores, on n images.

    Args:
        of: the sizes of the study.
        n: number of images.
        room: bytes of codes that are kept between both passes over the images.
    """
    codes = code_bytes(of)
    again = max(0.0, n - room / max(1, codes))
    passes = n + again
    moments = of.layers * (of.layers + 1) / 2 * 7 * 3 * _FLOAT64
    return Work(
        {
            "read": passes,
            "pass": passes,
            "encode": of.clts * passes,
            # terms are formed in both passes, and multiplied with each other and with y^
            "terms": of.clts * 2 * n,
            "sums": of.clts * 33 * n,
        },
        memory=memory(of, 6, of.clts * moments) + min(room, n * codes),
    )


def effect_work(of: Scope, n: Number, *, first_order: bool = False, direct: bool = False) -> Work:
    """`effect_scores` of one CLT on n images: a live pass, and one altered pass for each source."""
    altered = 0.0 if direct else later(of, range(1, of.layers))
    if first_order:
        altered = 2.25  # backward passes (measured)
    parts = (2 + altered) * n
    return Work(
        {"read": 2 * n, "pass": parts, "encode": parts, "decode": parts},
        memory=memory(of, 20 if first_order else 7, of.layers**2 * _FLOAT64),
    )


def cascade_work(
    of: Scope, n: Number, first_layers: Iterable[int], tokens: Iterable[TokenKind], inputs: int = 1
) -> Work:
    """`cascade` of one CLT on n images: two floors and one replaced pass for each range."""
    work = Work({"read": 2 * n, "pass": 2 * n})
    ranges = later(of, first_layers)
    for kind in tokens:
        replaced = inputs * ranges * n
        altered = {"all": _IDLE, "patch": _PATCHES}.get(kind, _ALTERED)
        work += Work(
            {
                "pass": altered * (2 * ranges * n + replaced),
                "encode": replaced * row_share(of, kind),
                "decode": replaced * row_share(of, kind),
            }
        )
    return work + Work(memory=memory(of, 8))


def faithfulness_work(of: Scope, n: Number, first_layer: int, tokens: TokenKind) -> Work:
    """`surrogate_faithfulness`: a replaced pass and two floors, and ranks of similarities."""
    pairs = min(n, SIMILARITY_IMAGES) ** 2 / 2
    # of four versions; 80 bytes of a pair while two of them are compared (measured)
    ranks = Work(seconds=4 * 3.5e-7 * pairs, memory=memory(of, 8) + 80 * pairs)
    return cascade_work(of, n, [first_layer], [tokens]) + ranks


def high_norm_work(of: Scope, n: Number) -> Work:
    """`high_norm_rows` on n images: two passes, of which the second encodes and decodes."""
    sums = 7 + 13 * of.clts
    return Work(
        {
            "read": 2 * n,
            "pass": 2 * n,
            "encode": of.clts * n,
            "decode": of.clts * n,
            "sums": sums * n,
        },
        memory=memory(of, 5, 12 * of.layers * of.tokens),
    )


def term_work(
    of: Scope, n: Number, tokens: TokenKind, targets: Sequence[int], sets: Number, room: Number
) -> Work:
    """Readings of sets of kept terms at these targets, on n images.

    Args:
        of: the sizes of the study.
        n: number of images.
        tokens: rows that are overwritten.
        targets: layers that are overwritten.
        sets: number of sets.
        room: bytes of terms that are kept between the passes for means and for readings.
    """
    share = row_share(of, tokens)
    # on CLS rows of the last layer no block runs again, and a set costs next to nothing
    in_blocks = _ALTERED * later(of, [min(targets) + 1]) * sets * n
    terms = share * sum(t + 1 for t in targets) / (of.layers * (of.layers + 1) / 2)
    kept = 4 * of.width * of.tokens * share * sum(t + 2 for t in targets)
    passes = n + max(0.0, n - room / kept)
    return Work(
        {
            "read": passes,
            "pass": passes + in_blocks,
            "encode": share * passes,
            "terms": terms * passes,
        },
        memory=memory(of, 10) + min(room, n * kept),
    )


def causal_work(of: Scope, n: Number, *, pairs: bool = False, sets: bool = True) -> Work:
    """`causal_effects` on n images: means, a clean pass, and an altered pass for each set."""
    return Work(
        {"read": 2 * n, "pass": (2 + _ALTERED * set_passes(of, pairs=pairs, ranges=sets)) * n},
        memory=memory(of, 8, 6 * of.layers**2 * _FLOAT64),
    )


def set_passes(of: Scope, *, pairs: bool = False, ranges: bool = True) -> float:
    """Passes that altering each of `layer_sets` comes to, from its first layer on."""
    if not ranges:
        return later(of, [*range(of.layers), 0])
    sets = layer_sets(of.layers, pairs=pairs)
    return later(of, [min(each) for each in sets])


def surrogate_work(of: Scope, n: Number, surrogates: Number, *, pairs: bool = False) -> Work:
    """`surrogate_causality` on n images: the same sets in the ViT and in each surrogate."""
    sets = layer_sets(of.layers, pairs=pairs)
    passes = _ALTERED * set_passes(of, pairs=pairs)
    # codes are made at layers from the first one on that are not overwritten themselves
    codes = sum(of.layers - min(each) - len(each) for each in sets) / of.layers
    own = 2 + 3 + passes  # means, a clean pass, and the gradients of the loss
    return Work(
        {
            "read": 2 * n,
            "pass": (own + surrogates * (1 + passes)) * n,
            "encode": surrogates * (1 + codes) * n,
            "decode": surrogates * (1 + codes) * n,
        },
        memory=memory(of, 31, 8 * len(sets) * _FLOAT64),
    )


def head_work(of: Scope, n: Number) -> Work:
    """`head_ablations` on n images: two altered passes for each head, its own and a turned one."""
    passes = 2 * _ALTERED * of.heads * later(of, range(of.layers))
    return Work({"read": 2 * n, "pass": (3 + passes) * n}, seconds=2.0, memory=memory(of, 43))


def active_features(of: Scope) -> Number:
    """Active features of an image, over all layers and token rows."""
    return of.layers * of.tokens * of.active


def claims_work(of: Scope, room: Number) -> Work:
    """`claims`: scores of one half of the images, their tests on the other."""
    half = of.images / 2
    few = min(CLAIM_IMAGES, half)
    removed = Work(
        {"read": 2 * half, "pass": 2 * half, "terms": 4 * half / of.tokens, "sums": 10 * half}
    )
    # two sets of sources for each of two fills, of the last layer
    readings = 2 * term_work(of, half, "cls", [of.layers - 1], 7, room)
    scores = contribution_work(of, half, room)
    return scores + removed + readings + effect_work(of, few) + causal_work(of, few, sets=False)


def threshold_work(of: Scope, room: Number) -> Work:
    """Thresholds fitted on one set of images, and their cost on another.

    Args:
        of: the sizes of the study.
        room: bytes of pre-activations that are kept; layers beyond it take passes of their own.
    """
    # at most twice as many entries as there are active codes, 12 bytes each
    kept = 2 * active_features(of) * 12
    passes = 1 + ceil(max(1, of.train * kept / max(1, room)))
    fitted = Work(
        {"read": passes * of.train, "pass": passes * of.train, "encode": 2 * of.train},
        memory=memory(of, 8) + min(room, of.train * kept),
    )
    cascades = 2 * cascade_work(of, of.images, [0], of.kinds)
    return fitted + reconstruction_work(replace(of, clts=2), of.images) + cascades
