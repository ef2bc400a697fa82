"""Reconstruction, replacement, faithfulness, scores, ablations, retrieval, features of a CLT."""

from vit_clt.analysis.ablation_curves import ablation_curves
from vit_clt.analysis.ablations import drop_sources, drop_top_k, keep_sources, keep_top_k
from vit_clt.analysis.attribution_graph import attribution_graph
from vit_clt.analysis.audit import audit
from vit_clt.analysis.cascade import cascade
from vit_clt.analysis.causal import causal_effects
from vit_clt.analysis.clamping import clamp
from vit_clt.analysis.class_consistency import class_consistency
from vit_clt.analysis.contributions import contribution_scores, score
from vit_clt.analysis.decoder_norms import decoder_norms
from vit_clt.analysis.direct_effects import direct_effects
from vit_clt.analysis.faithfulness import surrogate_faithfulness
from vit_clt.analysis.feature_statistics import feature_statistics
from vit_clt.analysis.fidelity import fidelity
from vit_clt.analysis.graph_study import graph_study
from vit_clt.analysis.keep_sets import keep_sets
from vit_clt.analysis.moments import contribution_moments
from vit_clt.analysis.probes import probes
from vit_clt.analysis.rank_agreement import rank_agreement
from vit_clt.analysis.reconstruction import reconstruction, reconstructions
from vit_clt.analysis.retrieval import RetrievalIndex
from vit_clt.analysis.selectivity import selectivity
from vit_clt.analysis.steering import steering_curve
from vit_clt.analysis.steering_search import steering_search
from vit_clt.analysis.suppression import suppress
from vit_clt.analysis.threshold_cost import threshold_cost

__all__ = [
    "RetrievalIndex",
    "ablation_curves",
    "attribution_graph",
    "audit",
    "cascade",
    "causal_effects",
    "clamp",
    "class_consistency",
    "contribution_moments",
    "contribution_scores",
    "decoder_norms",
    "direct_effects",
    "drop_sources",
    "drop_top_k",
    "feature_statistics",
    "fidelity",
    "graph_study",
    "keep_sets",
    "keep_sources",
    "keep_top_k",
    "probes",
    "rank_agreement",
    "reconstruction",
    "reconstructions",
    "score",
    "selectivity",
    "steering_curve",
    "steering_search",
    "suppress",
    "surrogate_faithfulness",
    "threshold_cost",
]
