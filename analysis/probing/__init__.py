"""Where a factor can be read from the residual stream: `probes`, with floors.

`places` names the rows, `discriminant` is the linear reader.
"""
