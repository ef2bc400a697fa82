"""Which patch rows have outlying norms, and what do they do to a CLT?

`high_norm_rows` marks them by a stated rule, and measures them beside ordinary patch rows, CLS
rows, registers, and as many random patch rows.
"""
