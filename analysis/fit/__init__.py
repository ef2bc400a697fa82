"""How well a CLT replaces the MLPs: their outputs, the ViT's accuracy, and the ViT's answers.

`reconstruction` measures layers one by one, `cascade` replaces ranges of layers,
`surrogate_faithfulness` compares answers, `fidelity` compares CLTs of several sparsities, and
`threshold_cost` compares top-k with thresholds.
"""
