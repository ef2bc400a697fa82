"""Are the features of a CLT any good? Measures of single features, each beside its floors.

`feature_scores` measures the features of several CLTs, and by the same code the ViT's own neurons,
principal components of x_l and an untrained CLT: what the features are compared with.
"""
