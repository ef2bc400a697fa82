"""What is left of the answer when only some terms of a reconstruction are kept.

`keep_top_k`, `drop_top_k`, `keep_sources` and `drop_sources` alter one target, `ablation_curves`
every k, and `keep_sets` takes all sets of k sources.
"""
