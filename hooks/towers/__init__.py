"""ViTs by family: where each keeps its embedding, blocks and head. One file a family.

`find.tower_of` finds the family of a loaded model; `base.Tower` is what every family gives.
"""
