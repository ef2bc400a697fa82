"""Readouts: how the logits of classes are read from image embeddings, and what they say.

The text tower (`zero_shot`), the model's own head (`head`), or a linear classifier fitted on other
images (`linear`); `choose` finds the one that a model and a data set allow.
"""
