"""Which features carry a factor of a model with a known answer, and what setting them does.

`selectivity` finds them, `suppress` switches them off, `clamp` sets them to another value's codes.
"""
