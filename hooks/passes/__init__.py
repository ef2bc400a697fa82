"""Forward passes that start from a clean pass instead of running the whole ViT again.

`CleanPass` keeps what one unaltered pass leaves behind. `SharedPrefix` goes on with MLPs replaced
from a layer on, `OverwrittenPass` with overwritten outputs, `SteeredPass` with edited features;
`FrozenPass` is linear around it: attention and norms are held.
"""
