"""Forward passes that start from a clean pass instead of running the whole ViT again.

`ReplacedRange` replaces MLPs from a layer on, `UnalteredPass` goes on from overwritten outputs,
`SteeredPass` from edited features, and `FrozenPass` is linear: attention and norms are held.
"""
