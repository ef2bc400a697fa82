"""From which depth each MLP output is read: the contribution scores C(s->l).

`contribution_moments` gathers sums over images, `score` makes a score of them,
`contribution_scores` does both; `decoder_norms` looks at the weights alone.
"""
