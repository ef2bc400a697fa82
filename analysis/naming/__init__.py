"""What features mean, in words: texts of a vocabulary, each tested on images it was not chosen on.

`name_features` names the features of a CLT; the result, `FeatureNames`, lives with the features.
"""
