"""How well a CLT stands in for the MLPs: in themselves, in the ViT, and for the ViT's answers.

`reconstruction` measures layers one by one, `cascade` replaces ranges of them,
`surrogate_faithfulness` compares answers, `fidelity` CLTs of several sparsities, `threshold_cost`
top-k with thresholds.
"""
