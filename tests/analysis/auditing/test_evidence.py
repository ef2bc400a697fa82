"""The verdict's rule, on evidence made by hand, and on a CLT whose terms were dealt by chance."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from assertions import tells_itself

from vit_clt import CLTConfig, InputError, ReLUTopK, TrainConfig, ZeroShot, load_data, train
from vit_clt.analysis import contribution_scores, keep_sources
from vit_clt.analysis.ablations.all_sets_result import KeepSets, MarkedSet
from vit_clt.analysis.auditing.claims_result import Claim, Claims
from vit_clt.analysis.auditing.controls import ShuffledSources
from vit_clt.analysis.auditing.evidence import (
    Condition,
    Evidence,
    check_question,
    gather_evidence,
)
from vit_clt.analysis.auditing.rivals import Rivals
from vit_clt.analysis.auditing.study import Audit
from vit_clt.analysis.causal.study import causal_effects
from vit_clt.analysis.stats.halves import halves
from vit_clt.analysis.stats.intervals import Interval
from vit_clt.analysis.stats.ranks import Agreement, RankAgreement
from vit_clt.analysis.stats.readings import gather_readings
from vit_clt.data.images import TensorImages
from vit_clt.readouts.base import Outcome

N = 60
RANK = {"loss": 1, "top1": 1}


def sets(lead: float, noise: float, better: float, same: bool = False) -> KeepSets:
    """Keep-sets whose deepest set loses `lead` nats to the chosen one, give or take `noise`."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(200, generator=generator)
    last = chosen + lead + noise * torch.randn(200, generator=generator)
    names = {"projection": chosen, "last": chosen if same else last}
    names |= dict.fromkeys(("original", "full", "floor_mean", "floor_zero"), chosen)
    wrong = torch.zeros(200, dtype=torch.bool)
    outcomes = {
        name: [Outcome(correct=wrong, loss=loss, top=torch.zeros(200, dtype=torch.long))]
        for name, loss in names.items()
    }
    marks = [
        MarkedSet("projection", (0, 1), 0.0, 0.5, {"loss": better, "top1": 0.0}, RANK),
        MarkedSet("last", (0, 1) if same else (1, 2), 0.0, 0.6, {"loss": 0.5, "top1": 0.0}, RANK),
    ]
    return KeepSets(
        sets=[(0, 1), (1, 2), (0, 2), (0, 1)] * 10,
        top1=torch.zeros(40),
        loss=torch.zeros(40),
        marked=marks,
        readings=gather_readings(outcomes),
        n_possible=40,
        scores=[0.0] * 3,
        ranked_by="",
        k=2,
        targets=[2],
        tokens="cls",
        fill="zero",
        data="hand-made",
        split=None,
        readout="",
        seed=0,
        l0=1.0,
        no_op=False,
    )


def agreement(low: float | int, chance: float | int = 0.05) -> RankAgreement:
    value = Interval(low + 0.1, float(low), low + 0.2)
    found = Agreement(value, Interval(0.0, -float(chance), float(chance)), 0.5)
    return RankAgreement(pd.DataFrame({"target": [2], "spearman": [0.5]}), found, found, 1)


def evidence(
    low: float | int, zero: KeepSets, mean: KeepSets, chance: float | int = 0.05
) -> Evidence:
    return Evidence(
        scores={},
        agreement={("projection", "mean", "total"): agreement(low, chance)},
        depth_agreement=agreement(0.0),
        sets={"zero": zero, "mean": mean},
    )


GOOD, WEAK = sets(0.3, 0.1, 0.0), sets(-0.001, 1.0, 0.0)


@pytest.mark.parametrize(
    ("low", "zero", "mean", "holds", "verdict"),
    [
        (0.1, GOOD, GOOD, [True, True, True], "supported"),
        (0.0, GOOD, GOOD, [False, True, True], "mixed"),
        (0.1, sets(0.3, 0.1, 0.06), GOOD, [True, False, True], "mixed"),
        (0.1, WEAK, GOOD, [True, False, False], "mixed"),
        (0.1, GOOD, WEAK, [True, True, False], "mixed"),
        (-0.1, WEAK, WEAK, [False, False, False], "unsupported"),
        (-0.1, sets(-0.3, 0.1, 0.0), GOOD, [False, False, False], "unsupported"),
    ],
)  # fmt: skip
def test_each_condition_counts(low, zero, mean, holds, verdict):
    found = evidence(low, zero, mean)
    assert [c.holds for c in found.conditions] == holds
    assert found.verdict == verdict


def test_an_audit_tells_its_verdict(tmp_path: Path) -> None:
    reads = Claim("reads", "C", [Condition("mean fill", False, "no lead")], [], N)
    acts = Claim("acts", "E", [Condition("output", True, "0.90")], [], N)
    claims = Mock(
        spec=Claims,
        verdicts=[reads.verdict, acts.verdict],
        accounts=["acts, held: y"],
        clt="a CLT",
        weights_sha256="0",
    )
    claims.metrics.return_value = [*reads.metrics(), *acts.metrics()]
    claims.shown.return_value = pd.DataFrame({"claim": ["C reads", "E acts"]})
    claims.figure.return_value = go.Figure()
    found = Audit(
        evidence=evidence(0.1, GOOD, WEAK),
        claims=claims,
        diagnostics=[],
        left_out={"D1": "no per-layer transcoder was given"},
        tokens="cls",
        target=2,
        data="hand-made",
        split=None,
        n=N,
        l0=4.5,
        readout="text tower (templates: single)",
        fitted_on=None,
        rivals=Rivals().facts(),
        seed=3,
    )
    context = tells_itself(found, tmp_path / "audit")
    assert (context["data"], context["tokens"], context["l0"], context["seed"]) == (
        "hand-made", "cls", 4.5, 3,
    )  # fmt: skip
    assert (context["verdict"], context["rivals"]) == ("mixed", [])
    assert found.shown()["holds"].tolist() == ["yes", "yes", "no"]
    verdicts = ["reads: unsupported (mean fill), no better than depth", "acts: supported"]
    assert context["claims"] == verdicts
    assert found.notes() == [*verdicts, "acts, held: y"]
    held = [c.name for c in found.evidence.conditions if c.holds]
    failed = [c.name for c in found.evidence.conditions if not c.holds]
    assert held
    assert failed
    listed = f"held: {', '.join(held)}; failed: {', '.join(failed)}"
    assert found.summary == f"verdict: mixed ({listed})"
    assert listed in found.page()


def test_agreement_that_permuted_rows_reach_is_none():
    assert evidence(0.1, GOOD, GOOD, chance=0.19).conditions[0].holds
    found = evidence(0.1, GOOD, GOOD, chance=0.2)
    assert not found.conditions[0].holds
    assert "97.5 % of permuted rows below 0.20" in found.conditions[0].reason


def test_a_chosen_set_that_is_the_deepest_has_no_lead():
    same = sets(0.3, 0.1, 0.0, same=True)
    found = evidence(-0.1, same, same)
    assert found.verdict == "unsupported"
    assert "the chosen set is the deepest one" in found.conditions[1].reason


@pytest.fixture(scope="module")
def study(digits_vit):
    images = load_data("digits", split="train", vit=digits_vit, limit=300)
    clt = train(
        digits_vit,
        images,
        CLTConfig(8, 64, 128, ReLUTopK(k=8)),
        TrainConfig(lr=2e-3, epochs=4, batch_size=512),
        progress=False,
    )
    data = load_data("digits", split="test", vit=digits_vit, limit=N)
    zs = ZeroShot(digits_vit, data.class_names, "single")
    effects = [causal_effects(digits_vit, data, zs, tokens="cls", fill="mean")]
    return digits_vit, clt, data, zs, effects


def test_terms_dealt_by_chance_come_out_unsupported(study):
    vit, clt, data, zs, effects = study
    found = gather_evidence(vit, ShuffledSources.of(clt), data, zs, effects, k=4)
    assert found.verdict == "unsupported", [c.reason for c in found.conditions]


def test_what_was_gathered_is_what_each_study_gives(study):
    vit, clt, data, zs, effects = study
    found = gather_evidence(vit, clt, data, zs, effects, k=2)
    # chosen on one half of the images, read on the other
    chosen_on, read_on = halves(data, 0)
    row = contribution_scores(vit, clt, chosen_on).matrix[-1]
    assert found.sets["zero"].chosen.sources == tuple(sorted(row.topk(2).indices.tolist()))
    kept = keep_sources(vit, clt, read_on, zs, sources=found.sets["zero"].chosen.sources)
    assert found.sets["zero"].chosen.loss == pytest.approx(kept.loss, abs=1e-5)
    assert found.sets["zero"].readings.n == N // 2
    assert set(found.sets) == {"zero", "mean", "resample"}
    assert {(kind, path) for kind, _, path in found.agreement} == {
        (kind, path) for kind in ("projection", "centred") for path in ("total", "direct")
    }
    # depth alone ranks the deepest source first, whatever the CLT
    by_target = found.depth_agreement.by_target.set_index("target")["spearman"]
    effect = effects[0].matrix("total")
    order = torch.from_numpy(effect[7, :7]).argsort().argsort().double()
    expected = torch.corrcoef(torch.stack([order, torch.arange(7.0, dtype=torch.float64)]))[0, 1]
    assert by_target[7] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fill": "zero"}, r"effects hold fills .*; expected mean among them"),
        ({"n": 8}, r"on cls rows of digits .*N = 8, seed 0.; expected all rows of mlp"),
        ({"seed": 3}, r"seed 3.; expected all rows of mlp on cls rows of .*seed 0"),
        ({"site": "attn"}, r"effects are of all rows of attn"),
        ({"ablated": "cls"}, r"effects are of cls rows of mlp"),
        ({"tokens": "patch"}, r"tokens is patch at the last layer"),
    ],
)
def test_effects_of_something_else(study, changes, sentence):
    vit, clt, data, zs, effects = study
    with pytest.raises(InputError, match=sentence):
        gather_evidence(vit, clt, data, zs, [replace(effects[0], **changes)])


def test_questions_that_cannot_be_answered(study):
    vit, _, data, *_ = study
    for k in (0, 8):
        with pytest.raises(
            InputError, match=f"keep is {k}; layer 7 has 8 sources, expected 1 to 7"
        ):
            check_question(vit, data, "cls", -1, k, "keep")
    with pytest.raises(InputError, match="data has 3 images; expected at least 4"):
        check_question(vit, load_data("digits", vit=vit, limit=3), "cls", -1, 2)
    with pytest.raises(InputError, match="which has no class names"):
        check_question(vit, TensorImages(data.batch(range(4))[0]), "cls", -1, 2)
