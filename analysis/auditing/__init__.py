"""Can an attribution be believed? `audit` gathers the evidence and decides by a stated rule.

`evidence`, `claims` and `diagnostics` measure; `rivals`, `ridge` and `controls` make what a CLT is
compared with.
"""
