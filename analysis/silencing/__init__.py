"""What does a source do? Its features are silenced in the ViT with all its MLPs replaced.

`effect_scores` silences all features of each source layer: E(s->l) and E(s->output), which stand
where C(s->l) stands. `feature_effects` silences single features.
"""
