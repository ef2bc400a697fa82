"""Studies of a CLT and of its ViT, one room a question; each returns numbers that draw themselves.

Rooms: `fit`, `contributions`, `silencing`, `ablations`, `causal`, `probing`, `auditing`,
`features`, `naming`, `measures`, `graphs`, `heads`, `high_norm`, `steering`, `retrieval`,
`explorer`, `factors`, `reproduction`; they share `stats`, `reporting` and `viewer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from vit_clt.analysis.ablations.all_sets import keep_sets as keep_sets
    from vit_clt.analysis.ablations.curves import ablation_curves as ablation_curves
    from vit_clt.analysis.ablations.keep_drop import drop_sources as drop_sources
    from vit_clt.analysis.ablations.keep_drop import drop_top_k as drop_top_k
    from vit_clt.analysis.ablations.keep_drop import keep_sources as keep_sources
    from vit_clt.analysis.ablations.keep_drop import keep_top_k as keep_top_k
    from vit_clt.analysis.auditing.claims import claims as claims
    from vit_clt.analysis.auditing.study import audit as audit
    from vit_clt.analysis.causal.head_ablations import head_ablations as head_ablations
    from vit_clt.analysis.causal.study import causal_effects as causal_effects
    from vit_clt.analysis.causal.surrogate_study import surrogate_causality as surrogate_causality
    from vit_clt.analysis.contributions.decoder_weights import decoder_norms as decoder_norms
    from vit_clt.analysis.contributions.moments import contribution_moments as contribution_moments
    from vit_clt.analysis.contributions.scores import contribution_scores as contribution_scores
    from vit_clt.analysis.contributions.scores import score as score
    from vit_clt.analysis.explorer.study import explore as explore
    from vit_clt.analysis.explorer.verdict import read_verdict as read_verdict
    from vit_clt.analysis.factors.clamping_study import clamp as clamp
    from vit_clt.analysis.factors.selectivity_study import selectivity as selectivity
    from vit_clt.analysis.factors.suppression import suppress as suppress
    from vit_clt.analysis.features.study import feature_statistics as feature_statistics
    from vit_clt.analysis.fit.cascade_study import cascade as cascade
    from vit_clt.analysis.fit.faithfulness_study import (
        surrogate_faithfulness as surrogate_faithfulness,
    )
    from vit_clt.analysis.fit.fidelity_study import fidelity as fidelity
    from vit_clt.analysis.fit.gate import measure_fit as measure_fit
    from vit_clt.analysis.fit.gate import measure_fits as measure_fits
    from vit_clt.analysis.fit.reconstruction_study import reconstruction as reconstruction
    from vit_clt.analysis.fit.reconstruction_study import reconstructions as reconstructions
    from vit_clt.analysis.fit.threshold_study import threshold_cost as threshold_cost
    from vit_clt.analysis.graphs.effects import direct_effects as direct_effects
    from vit_clt.analysis.graphs.graph import attribution_graph as attribution_graph
    from vit_clt.analysis.graphs.study import graph_study as graph_study
    from vit_clt.analysis.heads.study import head_study as head_study
    from vit_clt.analysis.high_norm.study import high_norm_rows as high_norm_rows
    from vit_clt.analysis.measures.study import feature_scores as feature_scores
    from vit_clt.analysis.naming.study import name_features as name_features
    from vit_clt.analysis.naming.vocabulary import Vocabulary as Vocabulary
    from vit_clt.analysis.probing.study import probes as probes
    from vit_clt.analysis.retrieval.consistency import class_consistency as class_consistency
    from vit_clt.analysis.retrieval.index import RetrievalIndex as RetrievalIndex
    from vit_clt.analysis.silencing.study import effect_scores as effect_scores
    from vit_clt.analysis.silencing.study import feature_effects as feature_effects
    from vit_clt.analysis.stats.ranks import rank_agreement as rank_agreement
    from vit_clt.analysis.steering.curve import steering_curve as steering_curve
    from vit_clt.analysis.steering.search import steering_search as steering_search

# names are found when they are first used, so that nothing waits for what it does not use
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ablations.all_sets": ["keep_sets"],
        "ablations.curves": ["ablation_curves"],
        "ablations.keep_drop": ["drop_sources", "drop_top_k", "keep_sources", "keep_top_k"],
        "auditing.claims": ["claims"],
        "auditing.study": ["audit"],
        "causal.head_ablations": ["head_ablations"],
        "causal.study": ["causal_effects"],
        "causal.surrogate_study": ["surrogate_causality"],
        "contributions.decoder_weights": ["decoder_norms"],
        "contributions.moments": ["contribution_moments"],
        "contributions.scores": ["contribution_scores", "score"],
        "explorer.study": ["explore"],
        "explorer.verdict": ["read_verdict"],
        "factors.clamping_study": ["clamp"],
        "factors.selectivity_study": ["selectivity"],
        "factors.suppression": ["suppress"],
        "features.study": ["feature_statistics"],
        "fit.cascade_study": ["cascade"],
        "fit.faithfulness_study": ["surrogate_faithfulness"],
        "fit.fidelity_study": ["fidelity"],
        "fit.gate": ["measure_fit", "measure_fits"],
        "fit.reconstruction_study": ["reconstruction", "reconstructions"],
        "fit.threshold_study": ["threshold_cost"],
        "graphs.effects": ["direct_effects"],
        "graphs.graph": ["attribution_graph"],
        "graphs.study": ["graph_study"],
        "heads.study": ["head_study"],
        "high_norm.study": ["high_norm_rows"],
        "naming.study": ["name_features"],
        "naming.vocabulary": ["Vocabulary"],
        "measures.study": ["feature_scores"],
        "probing.study": ["probes"],
        "retrieval.consistency": ["class_consistency"],
        "retrieval.index": ["RetrievalIndex"],
        "silencing.study": ["effect_scores", "feature_effects"],
        "stats.ranks": ["rank_agreement"],
        "steering.curve": ["steering_curve"],
        "steering.search": ["steering_search"],
    },
)
