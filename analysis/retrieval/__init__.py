"""Which images look alike to each layer: `RetrievalIndex` and `class_consistency`.

`descriptors` turns codes into one sparse row an image; `index` finds the nearest.
"""
