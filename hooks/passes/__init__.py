"""Forward passes that start from a clean pass instead of running the whole ViT again.

`CleanPass` keeps activations of one clean pass. `SharedPrefix` goes on from it with MLPs replaced
from a layer on, `OverwrittenPass` with overwritten outputs, and `SteeredPass` with edited features.
`FrozenPass` holds the attention and the norms of the clean pass, and is linear.
"""
