"""Which norms a graph takes: those under which its direct effects foretell interventions.

Direct effects are predictions of what silencing a feature does, and interventions say whether they
are any good (`graph_agreement`): Pearson's r between them, everything recomputed, over all features
silenced. Predictions are **supported** where r's 95 % interval lies above what 97.5 % of permuted
predictions stay below. With norms held, effects sum to the logit, so that they are taken unless
they are not supported, or r is better with norms differentiated by more than its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from vit_clt.analysis.graphs.agreement import GraphAgreement, graph_agreement
from vit_clt.analysis.graphs.sources import Sources
from vit_clt.choices import Norms, NormsChoice


def agreement_with_norms(
    images: Sequence[Sources],
    directions: Sequence[Tensor],
    asked: NormsChoice,
    *,
    n: int,
    seed: int,
    progress: bool = False,
) -> tuple[Norms, GraphAgreement, str | None]:
    """The norms of a study of graphs, their check by intervention, and why they were chosen.

    The check is the one that these norms asked for by name would have; the reason is None there.

    Args:
        images: the sources of each image.
        directions: the direction in the embedding space that is read, one for each image.
        asked: the norms, or "auto" for those that interventions support.
        n: interventions per image, which "auto" may make twice.
        seed: seed of the random features, the bootstrap and the permutations.
        progress: show a progress bar.

    Raises:
        InputError: as `graph_agreement`.
    """
    measured = partial(graph_agreement, images, directions, n=n, seed=seed, progress=progress)
    if asked != "auto":
        return asked, measured(norms=asked), None
    agreement = measured(norms="held")
    held, differentiated = agreement.live("held"), agreement.live("differentiated")
    reason = (
        f"norms chosen by interventions: Pearson's r {held['pearson']:.2f} "
        f"[{held['pearson_low']:.2f}, {held['pearson_high']:.2f}] with norms held, "
        f"{differentiated['pearson']:.2f} with norms differentiated"
    )
    beyond = differentiated["pearson"] > held["pearson_high"]
    rescues = agreement.supports("differentiated") and not agreement.supports("held")
    if beyond or rescues:
        return "differentiated", measured(norms="differentiated"), reason
    return "held", agreement, reason
