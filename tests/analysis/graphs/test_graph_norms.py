"""A graph takes the norms that its interventions support, and warns where they support neither."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

from vit_clt.analysis.graphs import norms as module
from vit_clt.analysis.graphs.agreement import GraphAgreement
from vit_clt.analysis.graphs.norms import agreement_with_norms

N = 60


def agreement(held: float, differentiated: float, n: int = N, seed: int = 0) -> GraphAgreement:
    """Predictions that are the measured effect and noise, in these proportions."""
    rng = np.random.default_rng(seed)
    live = rng.normal(size=n)
    predictions = {
        name: share * live + (1 - abs(share)) * rng.normal(size=n)
        for name, share in (("direct", held), ("direct_norms", differentiated))
    }
    frame = pd.DataFrame(
        {
            "chosen": ["top", "random"] * (n // 2),
            "live": live,
            "codes_held": live,
            "total": live,
            "total_norms": live,
            **predictions,
        }
    )
    return GraphAgreement(frame, seed)


@pytest.mark.parametrize(
    ("held", "differentiated", "taken"),
    [
        (0.9, 0.9, "held"),  # both are right, and held effects sum to the logit
        (0.5, 0.55, "held"),  # better by less than the interval
        (0.5, 0.97, "differentiated"),
        (0.0, 0.9, "differentiated"),
        (0.9, 0.0, "held"),
        (0.0, 0.0, "held"),
        (-0.9, 0.6, "differentiated"),  # of the wrong sign
    ],
)
def test_the_norms_are_those_that_interventions_support(
    held: float, differentiated: float, taken: str
) -> None:
    by_norms = {name: agreement(held, differentiated) for name in ("held", "differentiated")}
    with patch.object(module, "graph_agreement", lambda *_, norms, **__: by_norms[norms]):
        norms, found, reason = agreement_with_norms([], [], "auto", n=2, seed=0)
        for asked in ("held", "differentiated"):
            named = agreement_with_norms([], [], asked, n=2, seed=0)
            assert named == (asked, by_norms[asked], None)
    assert norms == taken
    # the check is the one that these norms have when they are asked for by name
    assert found is by_norms[taken]
    r = found.live(taken)
    assert r["n"] == N
    assert f"{by_norms['held'].live('differentiated')['pearson']:.2f} with norms diff" in reason
    assert found.supports(taken) == ((held, differentiated) != (0.0, 0.0))


def test_too_few_interventions_support_nothing() -> None:
    few = agreement(1.0, 1.0, n=2)
    assert not few.supports("held")
    assert not few.supports("differentiated")
